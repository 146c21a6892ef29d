"""Durable runs: what can be asked of one, and what can have happened to it. Each run is a stream of its tenant's log,
``run/<id>``.

Inputs, arguments and results are *payloads*: MessagePack of plain data. A payload too large for the log lies in the
object area, and a ``Reference`` to it stands in its place.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from events.messages import PERSONAL, Command, Event, Personal, Query

StepKind = Literal["tool", "function", "model", "signal", "timer", "child"]
# An end is completed (every step done), compensated (failed, and what was done is undone), cancelled (likewise, on
# request), timed out (likewise, at its deadline), or failed (nothing to undo, or something could not be undone).
RunStatus = Literal[
    "running", "compensating", "blocked", "completed", "compensated", "cancelled", "timed_out", "failed"
]
SAGA_MISSING = "saga_missing"  # why a run is blocked, where it is not for another reason
ENDS: frozenset[RunStatus] = frozenset({"completed", "compensated", "cancelled", "timed_out", "failed"})


Payload = Annotated[bytes, PERSONAL]


class Reference(msgspec.Struct, frozen=True, tag_field="$object", tag="v1"):
    """A payload in the object area. ``sha256`` is that of the stored (encrypted) bytes, in hex."""

    key: str
    sha256: str
    size_bytes: int


class RetryRule(msgspec.Struct, frozen=True, array_like=True):
    """Delays grow from ``first_us`` by ``factor`` up to ``max_us``, with full jitter; ``never`` lists error codes that no
    repeat can mend.
    """

    attempts_max: int = 3
    first_us: int = 1_000_000
    factor: float = 2.0
    max_us: int = 60_000_000
    never: tuple[str, ...] = ()


class StepOrder(msgspec.Struct, frozen=True):
    """What is to be done, but for its arguments (which are personal, and this is not). ``undoes`` names the step that a
    compensation undoes; a run does not fail with an ``is_optional`` step.
    """

    step: str
    kind: StepKind
    target: str
    timeout_us: int
    retry: RetryRule
    undoes: str = ""
    is_optional: bool = False


class KeptStep(msgspec.Struct, frozen=True):
    """A finished step that a fork takes over instead of doing it again."""

    order: StepOrder
    args: bytes
    result: bytes


class Used(msgspec.Struct, frozen=True, array_like=True):
    """What a step cost. Model calls count tokens; money is whole nano-USD."""

    cost_nano_usd: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class _Quiet(Command, frozen=True):
    """Answered by where the run stands, which is nobody's secret."""

    reply_is_personal: ClassVar[bool] = False


class StartRun(_Quiet, frozen=True, tag="run.start"):
    """``version`` 0: the newest. ``deadline_us`` 0: none; ``lasts_us`` says the same from its start on. ``kept`` and
    ``forked_from`` are a fork's.
    """

    run_id: str
    saga: str
    input: bytes
    version: int = 0
    priority: int = 0
    deadline_us: int = 0
    parent: str = ""
    key_id: str = ""
    tags: Mapping[str, str] = {}
    forked_from: str = ""
    kept: tuple[KeptStep, ...] = ()
    lasts_us: int = 0


class FinishStep(_Quiet, frozen=True, tag="run.finish_step"):
    run_id: str
    step: str
    attempt: int
    result: bytes
    duration_us: int
    used: Used = Used()


class FailStep(_Quiet, frozen=True, tag="run.fail_step"):
    """``retry_after_us`` is the dependency's own wish (0: none). ``may_have_happened``: nobody knows whether it took effect."""

    run_id: str
    step: str
    attempt: int
    code: str
    message: str
    is_retryable: bool
    duration_us: int
    retry_after_us: int = 0
    may_have_happened: bool = False
    used: Used = Used()


class SignalRun(_Quiet, frozen=True, tag="run.signal"):
    """Kept until a step waits for it. One signal, one wait."""

    run_id: str
    name: str
    payload: bytes


class CancelRun(_Quiet, frozen=True, tag="run.cancel"):
    run_id: str
    reason: str = ""


class RetryRun(_Quiet, frozen=True, tag="run.retry"):
    """Try again what failed for good: the step of a run that failed with nothing to undo, or stuck compensations."""

    run_id: str


class ReopenRun(Command, frozen=True, tag="run.reopen"):
    """A ``RetryRun`` together with the run as its stream has it: made by the tenant's actor, never sent."""

    run_id: str
    run: bytes


class CapRuns(Command, frozen=True, tag="run.cap"):
    """How many steps of a tenant may be with runners at once: in all, of any one target (a tool, a function, a model), and of
    targets by name. 0 and what is left out: as the platform has it.
    """

    steps_max: int = 0
    target_max: int = 0
    targets: Mapping[str, int] = {}


class DescribeRunCaps(Query, frozen=True, tag="run.describe_caps"):
    pass


class DescribeRun(Query, frozen=True, tag="run.describe"):
    run_id: str


class DescribeStep(Query, frozen=True, tag="run.describe_step"):
    """Where one step of an open run stands: its answer stays small, however long the run has become."""

    run_id: str
    step: str


RunCommand = StartRun | FinishStep | FailStep | SignalRun | CancelRun | RetryRun | DescribeRun | DescribeStep


CapsCommand = CapRuns | DescribeRunCaps


class RunsCapped(Event, frozen=True, tag="run.capped.v1"):
    """Of all runs of the tenant together; see ``CapRuns``."""

    steps_max: int
    target_max: int
    targets: Mapping[str, int] = {}


class RunEvent(Event, frozen=True):
    run_id: str

    @property
    def stream(self) -> str:
        return run_stream(self.run_id)


class RunStarted(RunEvent, frozen=True, tag="run.started.v1"):
    saga: str
    version: int
    input: Payload
    started_us: int
    priority: int = 0
    deadline_us: int = 0
    parent: str = ""
    key_id: str = ""
    tags: Mapping[str, str] = {}
    forked_from: str = ""


class StepKept(RunEvent, frozen=True, tag="run.step_kept.v1"):
    """Taken over from the run that this one was forked from."""

    order: StepOrder
    args: Payload
    result: Payload


class StepScheduled(RunEvent, frozen=True, tag="run.step_scheduled.v1"):
    """The intent: durable before anything is done. The idempotency key of the effect is the same at every attempt."""

    order: StepOrder
    args: Payload
    attempt: int
    scheduled_us: int


class StepQueued(RunEvent, frozen=True, tag="run.step_queued.v1"):
    """Ready, but the tenant has as many steps under way as it may (in all, or of this target)."""

    order: StepOrder
    args: Payload


class StepRequeued(RunEvent, frozen=True, tag="run.step_requeued.v1"):
    """No runner has answered for long: the work is handed out again, as the same attempt."""

    step: str
    requeued_us: int


class StepSucceeded(RunEvent, frozen=True, tag="run.step_succeeded.v1"):
    step: str
    attempt: int
    result: Payload
    duration_us: int
    used: Used


class StepFailed(RunEvent, frozen=True, tag="run.step_failed.v1"):
    """``retry_at_us`` 0: for good."""

    step: str
    attempt: int
    code: str
    message: Personal
    retry_at_us: int
    duration_us: int
    used: Used
    may_have_happened: bool = False


class StepSkipped(RunEvent, frozen=True, tag="run.step_skipped.v1"):
    """Its condition did not hold, or the run ended before it had to be done."""

    step: str


class SignalReceived(RunEvent, frozen=True, tag="run.signal_received.v1"):
    name: str
    payload: Payload


class CancelRequested(RunEvent, frozen=True, tag="run.cancel_requested.v1"):
    reason: Personal


class RunFailing(RunEvent, frozen=True, tag="run.failing.v1"):
    """From here on nothing new is started, and what was done is undone in reverse order. ``end`` is where it leads."""

    code: str
    message: Personal
    end: RunStatus


class CompensationStuck(RunEvent, frozen=True, tag="run.compensation_stuck.v1"):
    """All attempts to undo a step failed: a person has to look, and may have it tried again."""

    step: str
    message: Personal


class RunReopened(RunEvent, frozen=True, tag="run.reopened.v1"):
    """A person had it tried again: these steps get all their attempts anew. ``is_forward``: it no longer fails. ``run`` is
    the run as it was, because the tenant's actor has forgotten it.
    """

    steps: tuple[str, ...]
    is_forward: bool
    run: Payload


class RunBlocked(RunEvent, frozen=True, tag="run.blocked.v1"):
    """The code that it needs is not there, or is not what the run has begun with (``code`` says which); it goes on by itself
    where code that fits is registered again.
    """

    reason: Personal
    code: str = SAGA_MISSING


class RunUnblocked(RunEvent, frozen=True, tag="run.unblocked.v1"):
    pass


class RunPatched(RunEvent, frozen=True, tag="run.patched.v1"):
    """From here on it goes by this version of its saga, which declares that it takes over runs of the one before."""

    version: int


class RunEnded(RunEvent, frozen=True, tag="run.ended.v1"):
    """The tenant's actor forgets the run: its history is in the log. Only ``RunReopened`` can follow."""

    ends_stream: ClassVar[bool] = True

    status: RunStatus
    ended_us: int
    output: Payload = b""
    code: str = ""
    message: Personal = ""


RunEvents = (
    RunStarted
    | StepKept
    | StepQueued
    | StepScheduled
    | StepRequeued
    | StepSucceeded
    | StepFailed
    | StepSkipped
    | SignalReceived
    | CancelRequested
    | RunFailing
    | CompensationStuck
    | RunReopened
    | RunBlocked
    | RunUnblocked
    | RunPatched
    | RunEnded
)


def run_stream(run_id: str) -> str:
    return f"run/{run_id}"


_encoder = msgspec.msgpack.Encoder()


def pack(value: Any) -> bytes:
    """Plain data, or structs of it, as a payload."""
    return _encoder.encode(value)


def unpack(payload: bytes) -> Any:
    """A payload as plain data; a ``Reference`` where it lies in the object area."""
    return with_reference(msgspec.msgpack.decode(payload))


def with_reference(plain: Any) -> Any:
    """Plain data, or the reference that it is. What only begins like one is data: anybody may send such."""
    if not isinstance(plain, dict) or plain.get("$object") != "v1":
        return plain
    try:
        return msgspec.convert(plain, Reference)
    except msgspec.ValidationError:
        return plain
