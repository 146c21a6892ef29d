"""Calls of tools: what may be called, what was called, how it ended.

The intent is in the log before the effect begins, the result after it: whoever finds an intent without a result knows
that the effect may have taken place.
"""

from typing import Annotated, Any, Literal

import msgspec

from events.messages import PERSONAL, Command, Event, Query

CallId = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
ToolId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Nat = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Digest = Annotated[bytes, msgspec.Meta(max_length=32)]  # SHA-256 of canonical JSON; empty where none is kept


class ToolsFact(Event, frozen=True):
    """Marks what is about tools. A stream per tool, and one for all of them."""

    @property
    def stream(self) -> str:
        return "tools"


class AllowTools(Command, frozen=True, tag="tools.allow"):
    """These, and no others. A tenant that was allowed none may call none."""

    tools: Annotated[tuple[ToolId, ...], msgspec.Meta(max_length=1000)]


class RecordToolCall(Command, frozen=True, tag="tool.record_call"):
    """Asked before the effect. ``time_max_us``: how long the call can take; until then nobody else may begin it.

    ``repeats_safely``: a second effect under the same idempotency key is none. ``input``: kept, encrypted, where given.
    """

    call_id: CallId
    tool: ToolId
    adapter: str
    time_max_us: Annotated[int, msgspec.Meta(gt=0, le=24 * 3600 * 1_000_000)]
    repeats_safely: bool
    input_sha256: Digest = b""
    input: dict[str, Any] | None = None


class RecordToolSuccess(Command, frozen=True, tag="tool.record_success"):
    call_id: CallId
    tool: ToolId
    latency_us: Nat
    attempts: Nat
    cost_nano_usd: Nat
    output_sha256: Digest = b""
    output: dict[str, Any] | None = None


class RecordToolFailure(Command, frozen=True, tag="tool.record_failure"):
    """``refused_by``: the policy that turned the call away, so that the tool was not called at all."""

    call_id: CallId
    tool: ToolId
    latency_us: Nat
    attempts: Nat
    cost_nano_usd: Nat
    code: Annotated[str, msgspec.Meta(max_length=64)]
    message: Annotated[str, msgspec.Meta(max_length=1000)]
    retryable: bool
    may_have_happened: bool
    refused_by: str = ""


class DescribeTools(Query, frozen=True, tag="tools.describe"):
    pass


ToolCommand = AllowTools | RecordToolCall | RecordToolSuccess | RecordToolFailure | DescribeTools


class ToolEvent(ToolsFact, frozen=True):
    """Of one tool."""

    tool: str

    @property
    def stream(self) -> str:
        return f"tool/{self.tool}"


class ToolsAllowed(ToolsFact, frozen=True, tag="tools.allowed.v1"):
    tools: tuple[str, ...]


class ToolCalled(ToolEvent, frozen=True, tag="tool.called.v1"):
    """``repeat`` counts from 1: how often a call with this id was begun. After ``until_us`` its caller has given up."""

    call_id: str
    adapter: str
    repeat: int
    until_us: int
    input_sha256: bytes


class ToolSucceeded(ToolEvent, frozen=True, tag="tool.succeeded.v1"):
    call_id: str
    latency_us: int
    attempts: int
    cost_nano_usd: int
    output_sha256: bytes


class ToolFailed(ToolEvent, frozen=True, tag="tool.failed.v1"):
    call_id: str
    latency_us: int
    attempts: int
    cost_nano_usd: int
    code: str
    message: str
    retryable: bool
    may_have_happened: bool
    refused_by: str


class ToolPayloadKept(ToolEvent, frozen=True, tag="tool.payload_kept.v1"):
    """What went in or came out, for tools whose payloads are kept: sealed under the tenant's key, and gone with it. An event
    of its own, so that the others stay in clear.
    """

    call_id: str
    direction: Literal["input", "output"]
    data: Annotated[dict[str, Any], PERSONAL]


ToolsEvent = ToolsAllowed | ToolCalled | ToolSucceeded | ToolFailed | ToolPayloadKept
