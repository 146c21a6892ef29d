"""Carries out steps: takes them from the work queue, fair between tenants, does them, tells the tenant.

Keeps no state of its own. A runner that dies in the middle leaves its messages to the next one, which asks the tenant
whether the step is still wanted before it does it again, under the same idempotency key.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec

from actors.policies.refusals import PolicyRefusal
from actors.run.dispatcher import SEALED_AS
from actors.run.fair_queue import FairQueue
from actors.run.functions import StepContext, StepFailure, find_function
from actors.run.spending import counting
from actors.tools.errors import ToolError
from actors.tools.runner import ToolFailedBeforeError
from events.ask import Asker
from events.errors import CommandRefusedError, PlatformError, Refusal, TooLargeError
from events.failpoints import failpoint
from events.ids import derived_id
from events.objects import INLINE_BYTES_MAX
from events.run import DescribeStep, FailStep, FinishStep, Reference, Used, pack, unpack
from events.sealing import Cipher, open_bytes
from events.work import ACK_WAIT_S, Taken, WorkItem, WorkQueue

log = logging.getLogger(__name__)

STEPS_AT_ONCE = 64
_HELD_MAX = 512  # more than run at once: so a runner can be fair between those that wait
_RETRY_S = 0.5
_TELL_PATIENCE_S = 300.0
_RETRY_AFTER_S_MAX = 30 * 86_400.0  # whatever a dependency asks for
_decode_item = msgspec.msgpack.Decoder(WorkItem).decode


class Done(msgspec.Struct, frozen=True):
    """What a step returned: plain data, and what it cost."""

    result: Any
    used: Used = Used()


class ResultUnusableError(PlatformError):
    """A step has returned what the log can't hold: no plain data, or too much of it."""

    code = "result_unusable"


class Ciphers(Protocol):
    async def cipher(self, tenant: str) -> Cipher: ...


class ObjectArea(Protocol):
    async def put(self, tenant: str, payload: bytes) -> Reference: ...

    async def get(self, tenant: str, reference: Reference) -> bytes: ...


# Does the work of one kind of step, with its arguments fetched; cancelled when the step's time is over. What it pays for
# before it returns it says to ``spend``.
Handler = Callable[[WorkItem, Any], Awaitable[Done]]


async def call_function(item: WorkItem, args: Any) -> Done:
    """Steps of kind ``function``."""
    context = StepContext(item.tenant, item.run_id, item.order.step, item.attempt, item.idempotency_key)
    return Done(await find_function(item.order.target)(args, context))


class Runner:
    """``run`` until cancelled; ``drain`` finishes what has begun and gives the rest back."""

    def __init__(
        self,
        queue: WorkQueue,
        asker: Asker,
        ciphers: Ciphers,
        objects: ObjectArea,
        handlers: Mapping[str, Handler],
        steps_at_once: int = STEPS_AT_ONCE,
    ) -> None:
        self._queue, self._asker, self._ciphers, self._objects = queue, asker, ciphers, objects
        self._handlers, self._steps_at_once = handlers, steps_at_once
        self._waiting: FairQueue[Taken] = FairQueue()
        self._held: set[Taken] = set()
        self._let_slip: set[Taken] = set()  # held too late: somebody else may have been given them meanwhile
        self._held_at = time.monotonic()
        self._running: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._is_draining = False
        self._taking: asyncio.Task[None] | None = None

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._taking = group.create_task(self._take())
            group.create_task(self._hold())
            group.create_task(self._start())

    async def drain(self) -> None:
        """Take nothing more; give back what has not begun; return when what has begun is told."""
        self._is_draining = True
        self._changed.set()
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.wait((self._taking,))
        while len(self._waiting):
            taken = self._waiting.pop()
            self._held.discard(taken)
            taken.give_back(0.0)
        if self._running:
            await asyncio.wait(self._running)

    async def _take(self) -> None:
        while True:
            try:
                await self._queue.pull(self._keep, lambda: _HELD_MAX - len(self._held))
            except PlatformError as error:
                log.warning("runner.take_retried: %s", error)
            await asyncio.sleep(_RETRY_S)  # back-off; only asking again tells

    def _keep(self, taken: Taken) -> None:
        self._held.add(taken)
        message = taken.message
        self._waiting.push(message.tenant, taken, priority=message.priority, weight=message.weight)
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _hold(self) -> None:
        """What waits or runs here stays ours."""
        while True:
            await asyncio.sleep(ACK_WAIT_S / 3)  # the beat itself
            self._note_stall()
            for taken in list(self._held):
                taken.hold()
            self._held_at = time.monotonic()

    def _note_stall(self) -> None:
        """Where this process stood still for longer than the queue waits, what it held is perhaps no longer its alone."""
        if time.monotonic() - self._held_at > ACK_WAIT_S:
            self._let_slip |= self._held

    async def _start(self) -> None:
        while not self._is_draining:
            if len(self._waiting) and len(self._running) < self._steps_at_once:
                taken = self._waiting.pop()
                task = asyncio.create_task(self._serve(taken), name=f"step-{taken.message.tenant}")
                self._running.add(task)
                task.add_done_callback(self._ended)
            else:
                await self._change()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("runner.step_crashed", exc_info=error)

    async def _serve(self, taken: Taken) -> None:
        """One message from here to its acknowledgement. It is acknowledged only when the tenant knows, or wants no more."""
        try:
            item = await self._open(taken)
            if item is not None and (not item.again or await self._is_wanted(item)):
                await self._carry_out(item, taken)
            taken.done()
        except PlatformError as error:
            log.warning("runner.step_given_back tenant=%s: %s", taken.message.tenant, error)
            taken.give_back(_RETRY_S)
        finally:
            self._held.discard(taken)
            self._let_slip.discard(taken)
            self._queue.look()

    async def _open(self, taken: Taken) -> WorkItem | None:
        """None: its tenant was erased."""
        cipher = await self._ciphers.cipher(taken.message.tenant)
        body = open_bytes(cipher, SEALED_AS, taken.message.body)
        if body is None:
            return None
        item = _decode_item(body)
        return msgspec.structs.replace(item, again=True) if taken.is_redelivered else item

    async def _is_wanted(self, item: WorkItem) -> bool:
        """Whether the tenant still waits for this attempt. Raises PlatformError where that can't be learnt."""
        try:
            ok = await self._asker.ask(item.tenant, DescribeStep(item.run_id, item.order.step), actor="runner")
        except CommandRefusedError as refusal:
            if refusal.retry_after_s is not None:
                raise
            return False  # the run has ended, or its tenant is gone
        return bool(ok.result == {"status": "scheduled", "attempt": item.attempt})

    async def _carry_out(self, item: WorkItem, taken: Taken) -> None:
        began = time.monotonic()
        command: FinishStep | FailStep
        failpoint("saga.before_effect", item.tenant)
        with counting() as spent:
            try:
                done = await self._do(item)
                spent.used = done.used  # all of it: most kinds of steps count only what they return
                payload = await self._payload(item.tenant, done.result)
                duration_us = int((time.monotonic() - began) * 1e6)
                command = FinishStep(item.run_id, item.order.step, item.attempt, payload, duration_us, done.used)
            except Exception as error:  # noqa: BLE001 - whatever a step raises is that step's failure
                self._note_stall()
                if taken in self._let_slip:
                    item = msgspec.structs.replace(item, again=True)
                command = _failure(item, error, int((time.monotonic() - began) * 1e6), spent.used)
        if item.order.undoes:
            failpoint("saga.mid_compensation", item.tenant)
        failpoint("saga.after_effect_before_record", item.tenant)
        await self._tell(item, command)
        failpoint("saga.after_record_before_ack", item.tenant)

    async def _do(self, item: WorkItem) -> Done:
        """Raises what the step raises; TimeoutError when its time is over."""
        handler = self._handlers.get(item.order.kind)
        if handler is None:
            raise StepFailure("no_handler", f"no runner here carries out steps of kind {item.order.kind!r}")
        async with asyncio.timeout(item.order.timeout_us / 1e6):
            args = unpack(item.args)
            if isinstance(args, Reference):
                args = unpack(await self._objects.get(item.tenant, args))
            return await handler(item, args)

    async def _payload(self, tenant: str, result: Any) -> bytes:
        """Raises ResultUnusableError: the step has done what it does, and a repeat would return the same."""
        try:
            payload = pack(result)
            if len(payload) <= INLINE_BYTES_MAX:
                return payload
            return pack(await self._objects.put(tenant, payload))
        except (TypeError, ValueError, OverflowError, RecursionError, TooLargeError) as error:
            raise ResultUnusableError(f"{type(error).__name__}: {error}") from error

    async def _tell(self, item: WorkItem, command: FinishStep | FailStep) -> None:
        """Until the tenant has it in its log. The command id is the attempt's own: telling it twice changes nothing."""
        command_id = derived_id(item.tenant, item.run_id, item.order.step, str(item.attempt), type(command).__name__)
        gives_up_at = time.monotonic() + _TELL_PATIENCE_S
        while True:
            try:
                await self._asker.ask(
                    item.tenant, command, actor="runner", command_id=command_id, correlation_id=item.run_id
                )
                return
            except CommandRefusedError as refusal:
                if refusal.retry_after_s is None:  # the run has ended meanwhile
                    log.info("runner.result_unwanted run=%s step=%s: %s", item.run_id, item.order.step, refusal)
                    return
            except PlatformError as error:
                if time.monotonic() > gives_up_at:
                    raise
                log.warning("runner.result_retried run=%s step=%s: %s", item.run_id, item.order.step, error)
            await asyncio.sleep(_RETRY_S)  # back-off; only asking again tells


def _failure(item: WorkItem, error: Exception, duration_us: int, used: Used) -> FailStep:
    """How the step failed, in the saga's words. ``may_have_happened`` is the question that matters for money and mail; where
    the attempt was handed out before, a runner that died may have got further with it than this one. ``used``: what was
    counted; where that is nothing, the error may know of a cost.
    """
    code, message, retryable, retry_after_s, unknown = "failed", f"{type(error).__name__}: {error}", True, 0.0, True
    match error:
        case TimeoutError():
            code, message = "timeout", f"no answer within {item.order.timeout_us / 1e6:g} s"
        case StepFailure():
            code, message, retryable, retry_after_s = error.code, error.message, error.retryable, error.retry_after_s
            unknown = bool(getattr(error, "may_have_happened", False))
        case ResultUnusableError():
            code, message, retryable = error.code, f"the step was done, but its result can't be kept: {error}", False
        case PlatformError():
            code, message = error.code, str(error)
            retry_after_s = getattr(error, "retry_after_s", None) or 0.0
            is_final = isinstance(error, Refusal | ToolError | ToolFailedBeforeError)
            retryable = error.retryable or retry_after_s > 0 or not is_final
            unknown = bool(getattr(error, "may_have_happened", not isinstance(error, Refusal | PolicyRefusal)))
    if used == Used():
        used = Used(cost_nano_usd=getattr(error, "cost_nano_usd", 0))
    return FailStep(
        item.run_id, item.order.step, item.attempt, _text(code, 64), _text(message, 1_000), retryable, duration_us,
        int(min(max(retry_after_s, 0.0), _RETRY_AFTER_S_MAX) * 1e6), unknown or item.again, used,
    )  # fmt: skip


def _text(text: str, chars_max: int) -> str:
    """What a step raises may hold characters that no encoding has."""
    return text[:chars_max].encode(errors="replace").decode()
