"""A run in memory: folded from its events, for as long as it is open. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, assert_never

import msgspec

from events.run import (
    CancelRequested,
    CompensationStuck,
    RunBlocked,
    RunEnded,
    RunEvents,
    RunFailing,
    RunPatched,
    RunReopened,
    RunStarted,
    RunStatus,
    RunUnblocked,
    SignalReceived,
    StepFailed,
    StepKept,
    StepOrder,
    StepQueued,
    StepRequeued,
    StepScheduled,
    StepSkipped,
    StepSucceeded,
    Used,
    unpack,
)

# queued: waits for room; scheduled: with a runner, or waiting for what it waits for; retrying: waits for its next
# attempt; stuck: a compensation that failed for good
StepStatus = Literal["queued", "scheduled", "retrying", "succeeded", "failed", "skipped", "stuck"]
WORK_KINDS = ("tool", "function", "model")
_UNDER_WAY = ("queued", "scheduled", "retrying")


class Step(msgspec.Struct, frozen=True):
    """``due_us``: when the next attempt begins (retrying), or since when it is with a runner (scheduled). ``finished`` counts
    the run's finished steps: compensation goes back along it. ``forgiven``: attempts before a person had it tried again.
    ``may_have_happened``: of one of its failed attempts nobody knows whether it took effect.
    """

    status: StepStatus
    order: StepOrder | None = None
    args: bytes = b""
    attempt: int = 0
    forgiven: int = 0
    due_us: int = 0
    result: bytes = b""
    code: str = ""
    message: str = ""
    finished: int = 0
    duration_us: int = 0
    used: Used = Used()
    may_have_happened: bool = False

    @property
    def is_under_way(self) -> bool:
        return self.status in _UNDER_WAY

    @property
    def is_done(self) -> bool:
        """What comes after it may begin."""
        if self.status == "failed":
            return self.order is not None and self.order.is_optional
        return self.status in ("succeeded", "skipped")


class Run(msgspec.Struct, frozen=True):
    """``steps`` by name, in the order they were first heard of. ``failing`` is set once the run is on its way back."""

    id: str = ""
    saga: str = ""
    version: int = 0
    status: RunStatus = "running"
    input: bytes = b""
    output: bytes = b""
    started_us: int = 0
    ended_us: int = 0
    deadline_us: int = 0
    priority: int = 0
    parent: str = ""
    key_id: str = ""
    tags: Mapping[str, str] = {}
    forked_from: str = ""
    steps: Mapping[str, Step] = {}
    signals: tuple[tuple[str, bytes], ...] = ()
    is_cancelled: bool = False
    failing: RunFailing | None = None
    blocked: str = ""
    code: str = ""
    message: str = ""
    used: Used = Used()
    finished: int = 0
    active: tuple[str, ...] = ()  # names of its steps under way, of which a long run has few
    broken: str = ""  # the first step that failed for good and that it can't do without
    blocked_code: str = ""

    def under_way(self) -> Iterator[tuple[str, Step]]:
        return ((name, self.steps[name]) for name in self.active)

    def result(self, step: str) -> Any:
        """A finished step's result as plain data. Raises KeyError where it has none."""
        found = self.steps[step]
        if found.status != "succeeded":
            raise KeyError(step)
        return unpack(found.result)


_decode_run = msgspec.msgpack.Decoder(Run).decode


def failed_for_good(run: Run) -> tuple[str, ...]:
    """Steps without which it can't go on."""
    return tuple(name for name, step in run.steps.items() if step.status == "failed" and not step.is_done)


def undo_name(step: str) -> str:
    """Under which name the compensation of a step is kept. No saga may name a step so."""
    return f"undo:{step}"


def evolve(run: Run, event: RunEvents) -> Run:
    """What is now true. History can't be refused, so no rule is checked here."""
    replace = msgspec.structs.replace
    match event:
        case RunStarted():
            names = ("saga", "version", "input", "started_us", "priority", "deadline_us", "parent", "key_id", "tags")
            copied = {name: getattr(event, name) for name in (*names, "forked_from")}
            return Run(id=event.run_id, **copied)
        case StepKept(order=order, args=args, result=result):
            return _finish(run, order.step, Step("succeeded", order, args, result=result), Used())
        case StepQueued(order=order, args=args):
            before = run.steps.get(order.step, Step("queued"))  # one that has failed waits for room to be tried again
            return _put(run, order.step, replace(before, status="queued", order=order, args=args, due_us=0))
        case StepScheduled(order=order, args=args, attempt=attempt, scheduled_us=at_us):
            before = run.steps.get(order.step, Step("scheduled"))
            begun = replace(before, status="scheduled", order=order, args=args, attempt=attempt, due_us=at_us)
            return _put(run, order.step, begun)
        case StepRequeued(step=name, requeued_us=at_us):
            return _put(run, name, replace(run.steps[name], due_us=at_us))
        case StepSucceeded():
            done = replace(
                run.steps[event.step], status="succeeded", result=event.result, duration_us=event.duration_us,
                used=_sum(run.steps[event.step].used, event.used), code="", message="",
            )  # fmt: skip
            return _without_signal(_finish(run, event.step, done, event.used), done)
        case StepFailed():
            return _evolve_failed(run, event)
        case StepSkipped(step=name):
            again = run.steps.get(name)
            return _put(run, name, replace(again, status="skipped") if again else Step("skipped"))
        case SignalReceived(name=name, payload=payload):
            return replace(run, signals=(*run.signals, (name, payload)))
        case CancelRequested():
            return replace(run, is_cancelled=True)
        case RunFailing(code=code, message=message):
            return replace(run, status="compensating", failing=event, code=code, message=message)
        case CompensationStuck(step=name):
            return _put(run, name, replace(run.steps[name], status="stuck"))
        case RunReopened():
            return _evolve_reopened(run, event)
        case RunBlocked(reason=reason, code=code):
            return replace(run, status="blocked", blocked=reason, blocked_code=code)
        case RunUnblocked():
            return replace(run, status="compensating" if run.failing else "running", blocked="", blocked_code="")
        case RunPatched(version=version):
            return replace(run, version=version)
        case RunEnded():
            code, message = event.code or run.code, event.message or run.message
            return replace(
                run, status=event.status, ended_us=event.ended_us, output=event.output, code=code, message=message
            )
    assert_never(event)


def _evolve_failed(run: Run, event: StepFailed) -> Run:
    before = run.steps[event.step]
    failed = msgspec.structs.replace(
        before,
        status="retrying" if event.retry_at_us else "failed",
        due_us=event.retry_at_us,
        code=event.code,
        message=event.message,
        # a later attempt that surely did nothing says nothing about the earlier one
        may_have_happened=before.may_have_happened or event.may_have_happened,
        duration_us=event.duration_us,
        used=_sum(before.used, event.used),
    )
    run = msgspec.structs.replace(run, used=_sum(run.used, event.used))
    if not run.broken and not failed.is_under_way and not failed.is_done:
        run = msgspec.structs.replace(run, broken=event.step)
    return _put(run, event.step, failed)


def _evolve_reopened(run: Run, event: RunReopened) -> Run:
    replace = msgspec.structs.replace
    if event.run:  # of an erased tenant nothing is left of it
        run = _decode_run(event.run)
    steps = _with_stopped_anew(run.steps) if event.is_forward else dict(run.steps)
    for name in event.steps:
        before = steps.get(name, Step("failed"))
        steps[name] = replace(before, status="retrying", due_us=0, forgiven=before.attempt)
    active = tuple(name for name, step in steps.items() if step.is_under_way)
    run = replace(run, steps=steps, active=active, broken="", ended_us=0, deadline_us=0)
    if event.is_forward:
        return replace(run, status="running", is_cancelled=False, failing=None, code="", message="")
    return replace(run, status="compensating")


def _with_stopped_anew(steps: Mapping[str, Step]) -> dict[str, Step]:
    """What the failing run stopped waiting for is planned anew (a step that its condition skipped was never ordered); what waited
    for its next attempt has that one.
    """
    kept: dict[str, Step] = {}
    for name, step in steps.items():
        if step.status != "skipped" or step.order is None:
            kept[name] = step
        elif step.attempt and step.order.kind in WORK_KINDS:
            kept[name] = msgspec.structs.replace(step, status="retrying", due_us=0)
    return kept


def _put(run: Run, name: str, step: Step) -> Run:
    active = run.active
    if step.is_under_way != (name in active):
        active = (*active, name) if step.is_under_way else tuple(other for other in active if other != name)
    return msgspec.structs.replace(run, steps={**run.steps, name: step}, active=active)


def _finish(run: Run, name: str, step: Step, used: Used) -> Run:
    count = run.finished + 1
    run = msgspec.structs.replace(run, finished=count, used=_sum(run.used, used))
    return _put(run, name, msgspec.structs.replace(step, finished=count))


def _without_signal(run: Run, step: Step) -> Run:
    """A signal that a step has waited for is used up."""
    if step.order is None or step.order.kind != "signal":
        return run
    for at, (name, _) in enumerate(run.signals):
        if name == step.order.target:
            return msgspec.structs.replace(run, signals=run.signals[:at] + run.signals[at + 1 :])
    return run


def _sum(one: Used, other: Used) -> Used:
    return Used(
        one.cost_nano_usd + other.cost_nano_usd,
        one.input_tokens + other.input_tokens,
        one.output_tokens + other.output_tokens,
    )


def describe(run: Run) -> dict[str, Any]:
    """What an application sees: ``{id, saga, status, steps: [{name, status, attempts, …}], output?, error?}``."""
    error = {"error": {"code": run.code, "message": run.message}} if run.code else {}
    if run.blocked:
        error = {"error": {"code": run.blocked_code, "message": run.blocked}}
    return {
        "id": run.id,
        "saga": run.saga,
        "version": run.version,
        "status": run.status,
        "input": _shown(run.input),
        "started_us": run.started_us,
        "ended_us": run.ended_us,
        "parent": run.parent,
        "forked_from": run.forked_from,
        "tags": dict(run.tags),
        "cost_nano_usd": run.used.cost_nano_usd,
        "input_tokens": run.used.input_tokens,
        "output_tokens": run.used.output_tokens,
        "signals_waiting": [name for name, _ in run.signals],
        "steps": [_describe_step(name, step) for name, step in run.steps.items()],
        **({"output": _shown(run.output)} if run.status == "completed" else {}),
        **error,
    }


def _describe_step(name: str, step: Step) -> dict[str, Any]:
    order = step.order
    return {
        "name": name,
        "status": step.status,
        "attempts": step.attempt,
        "kind": order.kind if order else "",
        "target": order.target if order else "",
        "undoes": order.undoes if order else "",
        "next_attempt_us": step.due_us if step.status == "retrying" else 0,
        "duration_us": step.duration_us,
        "cost_nano_usd": step.used.cost_nano_usd,
        **({"result": _shown(step.result)} if step.status == "succeeded" else {}),
        **({"error": {"code": step.code, "message": step.message}} if step.code else {}),
    }


def _shown(payload: bytes) -> Any:
    return msgspec.to_builtins(unpack(payload)) if payload else None


def fold_stream(events: Iterable[RunEvents]) -> Run:
    """A run from its whole stream, open or ended."""
    run = Run()
    for event in events:
        run = evolve(run, event)
    return run
