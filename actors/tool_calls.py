"""The tool calls of a tenant: which tools it may call, and that no call takes effect twice. Pure.

A call is known by an id that is derived from its idempotency key. Remembered are the latest calls only: what is older than
that has long been answered, and its dependency remembers the idempotency key, too.
"""

from collections.abc import Mapping
from typing import Any, Literal, assert_never

import msgspec

from events.errors import NotFoundError, Refusal
from events.tools import (
    AllowTools,
    DescribeTools,
    RecordToolCall,
    RecordToolFailure,
    RecordToolSuccess,
    ToolCalled,
    ToolCommand,
    ToolFailed,
    ToolPayloadKept,
    ToolsAllowed,
    ToolsEvent,
    ToolSucceeded,
)

REMEMBERED_MAX = 512
_OPEN_KEPT_US = 48 * 3600 * 1_000_000  # an intent without a result is forgotten no earlier than a command's reply


class ToolNotAllowedError(Refusal):
    code = "tool_not_allowed"

    def __init__(self, tenant: str, tool: str) -> None:
        super().__init__(tenant, tool)
        self.tenant, self.tool = tenant, tool

    def __str__(self) -> str:
        return f"tenant {self.tenant!r} may not call {self.tool!r}: an operator allows it with `tenantry tool allow`"


class ToolCallInProgressError(Refusal):
    """Somebody else is at it."""

    code = "in_progress"

    def __init__(self, call_id: str, retry_after_s: float) -> None:
        super().__init__(call_id, retry_after_s)
        self.call_id, self.retry_after_s = call_id, retry_after_s

    def __str__(self) -> str:
        return f"the call {self.call_id} is under way: ask again in {self.retry_after_s:.3g} s at most"


class ToolCallLostError(Refusal):
    """It was begun, its result never came, and the tool can't be asked again without doing it again."""

    code = "tool_outcome_unknown"

    def __init__(self, call_id: str, tool: str) -> None:
        super().__init__(call_id, tool)
        self.call_id, self.tool = call_id, tool

    def __str__(self) -> str:
        return (
            f"whether the call {self.call_id} of {self.tool!r} took effect is unknown, and repeating it might do it twice: "
            "find out there, and call it under a new idempotency key if it did not"
        )


class Call(msgspec.Struct, frozen=True, array_like=True):
    """``until_us``: of an open call, when its caller will have given up."""

    tool: str
    status: Literal["open", "succeeded", "failed"]
    repeat: int
    until_us: int
    has_succeeded: bool = False
    code: str = ""
    message: str = ""
    retryable: bool = False


class ToolCalls(msgspec.Struct, frozen=True):
    """Folded from events. ``calls`` is in the order in which they were begun."""

    allowed: frozenset[str] = frozenset()
    calls: Mapping[str, Call] = {}


def decide(state: ToolCalls, tenant: str, command: ToolCommand, now_us: int) -> list[ToolsEvent]:
    """Raises Refusal."""
    match command:
        case AllowTools(tools):
            return [] if frozenset(tools) == state.allowed else [ToolsAllowed(tuple(sorted(set(tools))))]
        case RecordToolCall():
            return _begin(state, tenant, command, now_us)
        case RecordToolSuccess():
            call = _open_call(state, command.call_id)
            return [] if call is None else _succeed(call, command)
        case RecordToolFailure():
            return [] if _open_call(state, command.call_id) is None else [_failed(command)]
        case DescribeTools():
            return []
        case _:
            assert_never(command)


def _begin(state: ToolCalls, tenant: str, command: RecordToolCall, now_us: int) -> list[ToolsEvent]:
    if command.tool not in state.allowed:
        raise ToolNotAllowedError(tenant, command.tool)
    known = state.calls.get(command.call_id)
    if known is not None:
        if known.status == "open" and now_us < known.until_us:
            raise ToolCallInProgressError(command.call_id, (known.until_us - now_us) / 1e6)
        if known.status == "open" and not command.repeats_safely:
            raise ToolCallLostError(command.call_id, command.tool)
        if _is_final(known, repeats_safely=command.repeats_safely):
            return []
    called = ToolCalled(
        tool=command.tool,
        call_id=command.call_id,
        adapter=command.adapter,
        repeat=known.repeat + 1 if known else 1,
        until_us=now_us + command.time_max_us,
        input_sha256=command.input_sha256,
    )
    if command.input is None or called.repeat > 1:
        return [called]
    return [called, ToolPayloadKept(command.tool, command.call_id, "input", command.input)]


def _is_final(call: Call, *, repeats_safely: bool) -> bool:
    """Nothing is to be done again. A success is asked for again where that is harmless: it is how to get its output."""
    match call.status:
        case "open":
            return False
        case "succeeded":
            return not repeats_safely
        case "failed":
            return not call.retryable
        case _:
            assert_never(call.status)


def _open_call(state: ToolCalls, call_id: str) -> Call | None:
    """None: its result is known already."""
    call = state.calls.get(call_id)
    if call is None:
        raise NotFoundError("tool call", call_id)
    return call if call.status == "open" else None


def _succeed(call: Call, command: RecordToolSuccess) -> list[ToolsEvent]:
    succeeded = ToolSucceeded(
        tool=command.tool,
        call_id=command.call_id,
        latency_us=command.latency_us,
        attempts=command.attempts,
        # the repeat of a success was answered from the dependency's memory, and paid for the first time
        cost_nano_usd=0 if call.has_succeeded else command.cost_nano_usd,
        output_sha256=command.output_sha256,
    )
    if command.output is None or call.has_succeeded:
        return [succeeded]
    return [succeeded, ToolPayloadKept(command.tool, command.call_id, "output", command.output)]


def _failed(command: RecordToolFailure) -> ToolFailed:
    return ToolFailed(
        tool=command.tool,
        call_id=command.call_id,
        latency_us=command.latency_us,
        attempts=command.attempts,
        cost_nano_usd=command.cost_nano_usd,
        code=command.code,
        message=command.message,
        retryable=command.retryable,
        may_have_happened=command.may_have_happened,
        refused_by=command.refused_by,
    )


def evolve(state: ToolCalls, event: ToolsEvent) -> ToolCalls:
    match event:
        case ToolsAllowed(tools):
            return ToolCalls(frozenset(tools), state.calls)
        case ToolCalled():
            known = state.calls.get(event.call_id)
            call = Call(event.tool, "open", event.repeat, event.until_us, known is not None and known.has_succeeded)
            others = {key: other for key, other in state.calls.items() if key != event.call_id}
            return ToolCalls(state.allowed, {**_trimmed(others, event.until_us), event.call_id: call})
        case ToolSucceeded():
            return _with(state, event.call_id, status="succeeded", has_succeeded=True)
        case ToolFailed(code=code, message=message, retryable=retryable):
            return _with(state, event.call_id, status="failed", code=code, message=message, retryable=retryable)
        case ToolPayloadKept():
            return state
        case _:
            assert_never(event)


def _with(state: ToolCalls, call_id: str, **changes: Any) -> ToolCalls:
    call = state.calls.get(call_id)
    if call is None:
        return state  # forgotten meanwhile
    return ToolCalls(state.allowed, {**state.calls, call_id: msgspec.structs.replace(call, **changes)})


def _trimmed(calls: dict[str, Call], now_us: int) -> dict[str, Call]:
    """Room for one more: the oldest that has ended goes, or whose caller has been gone for days."""
    if len(calls) >= REMEMBERED_MAX:
        for key, call in calls.items():
            if call.status != "open" or now_us - call.until_us > _OPEN_KEPT_US:
                return {other: kept for other, kept in calls.items() if other != key}
    return calls


def answer(state: ToolCalls, command: ToolCommand) -> dict[str, Any]:
    """The result of a granted command, as plain data; ``state`` is the one after its events."""
    match command:
        case AllowTools() | DescribeTools():
            opened = [key for key, call in state.calls.items() if call.status == "open"]
            return {"allowed": sorted(state.allowed), "calls_open": opened}
        case RecordToolCall(call_id=call_id):
            call = state.calls[call_id]
            shown = ("status", "repeat", "code", "message", "retryable")
            return {name: getattr(call, name) for name in shown}
        case RecordToolSuccess() | RecordToolFailure():
            return {"status": state.calls[command.call_id].status}
        case _:
            assert_never(command)
