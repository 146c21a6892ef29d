"""Calling a tool for a tenant: intent event, policies, adapter, result event, in that order.

The intent is durable before the first byte leaves, so a crash leaves a trace of what may have happened. A repeat under the
same idempotency key is the same call: it finds what the first one did, or finishes it.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from actors.policies.refusals import PolicyRefusal
from actors.policies.wrappers.timeout import within
from actors.tools.adapter import ToolAdapter, ToolCall, ToolContext, ToolResult
from actors.tools.config import ToolConfig
from actors.tools.errors import ToolInputError
from actors.tools.registry import Registry
from events.ask import Asker
from events.errors import CommandRefusedError, PlatformError
from events.ids import derived_id
from events.tools import RecordToolCall, RecordToolFailure, RecordToolSuccess

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 60.0
INPUT_BYTES_MAX = 512 * 1024
_RECORD_RETRY_S = 0.5
_RECORD_PATIENCE_S = 120.0
_MESSAGE_MAX = 1000
_canonical = msgspec.json.Encoder(order="deterministic")


class ToolOutcome(msgspec.Struct, frozen=True):
    """A call that succeeded. ``repeated``: it had succeeded before, under this key. Then ``output`` is None where asking
    the tool again could have done it again. ``position``: of the result in the tenant's log.
    """

    call_id: str
    output: Any
    cost_nano_usd: int
    attempts: int
    latency_us: int
    position: int
    repeated: bool = False


class ToolFailedBeforeError(PlatformError):
    """The call has failed for good before, under this idempotency key: nothing was done now."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code, self.message = code, message

    def __str__(self) -> str:
        return f"this call failed before, and is not tried again under the same idempotency key: {self.message}"


class _Running(msgspec.Struct):
    """One call on its way. ``attempts`` counts those that reached the adapter."""

    tenant: str
    actor: str
    call: ToolCall
    call_id: str
    config: ToolConfig
    timeout_s: float
    correlation_id: str
    began: float
    attempts: int = 0

    @property
    def latency_us(self) -> int:
        return int((time.monotonic() - self.began) * 1e6)


class Tools:
    """Safe for concurrent use. ``close`` when done: it waits for results that are still to be recorded."""

    def __init__(self, asker: Asker, registry: Registry) -> None:
        self._asker, self.registry = asker, registry
        self._recording: set[asyncio.Task[int]] = set()

    async def call(
        self,
        tenant: str,
        tool: str,
        given: Mapping[str, Any],
        *,
        idempotency_key: str,
        actor: str,
        timeout_s: float = CALL_TIMEOUT_S,
        correlation_id: str = "",
        on_delta: Callable[[dict[str, Any]], None] | None = None,
    ) -> ToolOutcome:
        """
        Args:
            given: The tool's input, plain data.
            idempotency_key: The caller's name for this call: the same for each repeat, another for another call.
            timeout_s: For all attempts together.
            on_delta: Gets the parts of a streamed result as they come.

        Raises:
            NotFoundError, ToolInputError, CommandRefusedError: Not called, nothing recorded.
            PolicyRefusal: Not called, recorded: a policy refused.
            ToolError, CallTimeoutError: Called and failed; recorded.
            ToolFailedBeforeError: Failed for good under this key before.
            OutcomeUnknownError, StoreUnavailableError, BusUnavailableError: The intent could not be recorded, so nothing
                was called.
        """
        adapter = self.registry.adapter(tool, tenant)
        call = ToolCall(tool, dict(given), idempotency_key)
        adapter.check(call)
        kept = _kept(call, adapter.config)
        call_id = derived_id(tenant, tool, idempotency_key)
        running = _Running(
            tenant, actor, call, call_id, adapter.config, timeout_s, correlation_id or call_id, time.monotonic()
        )
        begun = await self._begin(running, adapter, kept)
        if begun["status"] == "failed":
            raise ToolFailedBeforeError(begun["code"], begun["message"])
        if begun["status"] == "succeeded":
            return ToolOutcome(running.call_id, None, 0, 0, 0, begun["position"], repeated=True)
        return await self._run(running, adapter, on_delta, is_repeat=begun["repeat"] > 1)

    async def _begin(self, running: _Running, adapter: ToolAdapter[Any], kept: "_Kept") -> dict[str, Any]:
        command = RecordToolCall(
            call_id=running.call_id,
            tool=running.call.tool,
            adapter=running.config.adapter,
            time_max_us=int(running.timeout_s * 1e6),
            repeats_safely=adapter.repeats_safely(running.call),
            input_sha256=kept.sha256,
            input=kept.data,
        )
        ok = await self._asker.ask(running.tenant, command, actor=running.actor, correlation_id=running.correlation_id)
        return {**ok.result, "position": ok.position}

    async def _run(
        self,
        running: _Running,
        adapter: ToolAdapter[Any],
        on_delta: Callable[[dict[str, Any]], None] | None,
        *,
        is_repeat: bool,
    ) -> ToolOutcome:
        try:
            result = await self._through_policies(running, adapter, on_delta)
        except asyncio.CancelledError:
            self._record_cancelled(running, adapter)
            raise
        except Exception as error:
            await self._record_failure(running, error, adapter)
            raise
        return await self._succeed(running, result, is_repeat=is_repeat)

    async def _through_policies(
        self, running: _Running, adapter: ToolAdapter[Any], on_delta: Callable[[dict[str, Any]], None] | None
    ) -> ToolResult:
        pipeline = self.registry.pipeline(running.call.tool, running.tenant)
        is_idempotent = adapter.repeats_safely(running.call)

        def context() -> ToolContext:
            running.attempts += 1
            return ToolContext(running.tenant, running.call_id, running.attempts, on_delta)

        async def through() -> ToolResult:
            if adapter.is_blocking:
                return await pipeline.call_blocking(
                    lambda: adapter.execute_blocking(running.call, context()), idempotent=is_idempotent
                )
            return await pipeline.call(lambda: adapter.execute(running.call, context()), idempotent=is_idempotent)

        return await within(running.call.tool, running.timeout_s, through)

    async def _succeed(self, running: _Running, result: ToolResult, *, is_repeat: bool) -> ToolOutcome:
        latency_us, cost = running.latency_us, running.config.cost_nano_usd + result.cost_nano_usd
        kept = _kept_data(running.config, {"output": result.output})
        command = RecordToolSuccess(
            call_id=running.call_id,
            tool=running.call.tool,
            latency_us=latency_us,
            attempts=running.attempts,
            cost_nano_usd=cost,
            output_sha256=kept.sha256,
            output=kept.data,
        )
        position = await asyncio.shield(self._record(running, command))
        return ToolOutcome(running.call_id, result.output, cost, running.attempts, latency_us, position, is_repeat)

    async def _record_failure(self, running: _Running, error: Exception, adapter: ToolAdapter[Any]) -> None:
        is_known_by_default = isinstance(error, PolicyRefusal)  # the last attempt was none; those before it left a mark
        may_have_happened = running.attempts > 0 and getattr(error, "may_have_happened", not is_known_by_default)
        retryable = bool(getattr(error, "retryable", False))
        if may_have_happened and not adapter.repeats_safely(running.call):
            retryable = False
        command = RecordToolFailure(
            call_id=running.call_id,
            tool=running.call.tool,
            latency_us=running.latency_us,
            attempts=running.attempts,
            cost_nano_usd=getattr(error, "cost_nano_usd", 0),
            code=str(getattr(error, "code", "internal_error"))[:64],
            message=(str(error) if isinstance(error, PlatformError) else type(error).__name__)[:_MESSAGE_MAX],
            retryable=retryable,
            may_have_happened=may_have_happened,
            refused_by=error.policy if isinstance(error, PolicyRefusal) else "",
        )
        await asyncio.shield(self._record(running, command))

    def _record_cancelled(self, running: _Running, adapter: ToolAdapter[Any]) -> None:
        """Starts it and doesn't wait: who is being cancelled must not."""
        may_have_happened = running.attempts > 0
        command = RecordToolFailure(
            call_id=running.call_id,
            tool=running.call.tool,
            latency_us=running.latency_us,
            attempts=running.attempts,
            cost_nano_usd=0,
            code="cancelled",
            message="its caller left",
            retryable=not may_have_happened or adapter.repeats_safely(running.call),
            may_have_happened=may_have_happened,
        )
        self._record(running, command)

    def _record(self, running: _Running, command: RecordToolSuccess | RecordToolFailure) -> "asyncio.Task[int]":
        """Goes on if its caller is cancelled: what happened has to be in the log."""
        task = asyncio.create_task(self._recorded(running, command), name=f"record-{running.call_id}")
        self._recording.add(task)
        task.add_done_callback(self._recording.discard)
        return task

    async def _recorded(self, running: _Running, command: RecordToolSuccess | RecordToolFailure) -> int:
        """The position. Repeated under one command id until it is known; 0 where the tenant wants to hear no more of it."""
        command_id = self._asker.new_id()
        gives_up_at = time.monotonic() + _RECORD_PATIENCE_S
        while True:
            try:
                ok = await self._asker.ask(
                    running.tenant,
                    command,
                    actor=running.actor,
                    command_id=command_id,
                    correlation_id=running.correlation_id,
                )
                return ok.position
            except CommandRefusedError as refusal:
                if refusal.retry_after_s is None:
                    log.error("tools.result_refused tool=%s call=%s: %s", command.tool, command.call_id, refusal)
                    return 0
            except PlatformError as error:
                if time.monotonic() > gives_up_at:
                    raise
                log.warning("tools.result_retried tool=%s call=%s: %s", command.tool, command.call_id, error)
            await asyncio.sleep(_RECORD_RETRY_S)  # back-off; only asking again tells

    async def close(self) -> None:
        if self._recording:
            await asyncio.wait(self._recording)
        await self.registry.close()


class _Kept(msgspec.Struct, frozen=True):
    """What the log keeps of a payload."""

    sha256: bytes = b""
    data: dict[str, Any] | None = None


def _kept(call: ToolCall, config: ToolConfig) -> _Kept:
    """Of an input. Raises ToolInputError where it is not plain data, or too much of it."""
    try:
        size = len(msgspec.json.encode(call.input))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ToolInputError(call.tool, f"the input of {call.tool!r} is not plain data") from error
    if size > INPUT_BYTES_MAX:
        raise ToolInputError(call.tool, f"an input of {size} bytes, at most {INPUT_BYTES_MAX} are taken")
    return _kept_data(config, call.input)


def _kept_data(config: ToolConfig, data: dict[str, Any]) -> _Kept:
    match config.payloads:
        case "none":
            return _Kept()
        case "hash":
            return _Kept(hashlib.sha256(_canonical.encode(data)).digest())
        case "encrypted":
            return _Kept(data=data)
