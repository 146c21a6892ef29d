"""A tenant's open runs in memory, folded from its events; and, kept up with them, what is due when and who waits for room. Pure."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any

import msgspec

from actors.persistent import EMPTY, Map
from actors.run.state import WORK_KINDS, Run, Step, evolve
from events.run import (
    CompensationStuck,
    RunEnded,
    RunEvents,
    RunReopened,
    RunsCapped,
    StepFailed,
    StepQueued,
    StepScheduled,
    StepSkipped,
    StepSucceeded,
)

STEPS_UNDER_WAY_MAX = 256
STEPS_OF_TARGET_MAX = 64
# Work that nobody has answered for this long, beyond the step's own time-out, is handed out again.
REQUEUE_AFTER_US = 120_000_000


class Caps(msgspec.Struct, frozen=True):
    """How many steps may be with runners at once; ``targets`` by name, the others at most ``target_max`` each."""

    steps_max: int = STEPS_UNDER_WAY_MAX
    target_max: int = STEPS_OF_TARGET_MAX
    targets: Mapping[str, int] = {}

    def of_target(self, target: str) -> int:
        return self.targets.get(target, self.target_max)


class Runs(msgspec.Struct, frozen=True):
    """``open`` by id; runs that have ended are in the log only. ``under_way`` counts steps with runners by target. ``due`` says
    when something about a run is due by itself, for those where something is: (time, run), the earliest first. ``queued`` is
    (-priority, run, step), in the order they get their turn.
    """

    open: Map[str, Run] = EMPTY
    under_way: Mapping[str, int] = {}
    due: tuple[tuple[int, str], ...] = ()
    queued: tuple[tuple[int, str, str], ...] = ()
    caps: Caps = Caps()

    @property
    def next_timer_us(self) -> int:
        return self.due[0][0] if self.due else 0

    @property
    def is_full(self) -> bool:
        """No step may go to a runner before another has come back."""
        return sum(self.under_way.values()) >= self.caps.steps_max

    def has_room(self, target: str) -> bool:
        return self.under_way.get(target, 0) < self.caps.of_target(target) and not self.is_full


def next_due_us(run: Run) -> int:
    """When something about the run is due by itself; 0: never."""
    if is_to_stop(run):
        return 1
    first_us = run.deadline_us if run.failing is None else 0
    for name in run.active:
        due_us = step_due_us(run.steps[name])
        if due_us and (due_us < first_us or not first_us):
            first_us = due_us
    return first_us


def is_to_stop(run: Run | None) -> bool:
    """A child that fails with its parent, and has not yet been cancelled: that is due at once."""
    return run is not None and run.failing is not None and run.failing.end == "cancelled" and not run.is_cancelled


def step_due_us(step: Step) -> int:
    order = step.order
    if order is None or step.status == "queued":
        return 0
    if step.status == "retrying":
        return max(1, step.due_us)
    if order.kind == "timer" or (order.kind == "signal" and order.timeout_us):
        return step.due_us + order.timeout_us
    return step.due_us + order.timeout_us + REQUEUE_AFTER_US if order.kind in WORK_KINDS else 0


def fold(runs: Runs, event: RunEvents) -> Runs:
    """What is now true of a tenant's runs."""
    run_id, has_ended = event.run_id, isinstance(event, RunEnded)
    before = runs.open.get(run_id)
    after = evolve(before or Run(id=run_id), event)
    return Runs(
        _with_run(runs.open, after, has_ended=has_ended),
        _count(runs.under_way, before, after, event),
        _with_due(runs.due, run_id, next_due_us(before) if before else 0, 0 if has_ended else next_due_us(after)),
        _with_queued(runs.queued, after, event),
        runs.caps,
    )


def _with_run(opened: Map[str, Run], run: Run, *, has_ended: bool) -> Map[str, Run]:
    if has_ended:
        return opened.delete(run.id) if run.id in opened else opened
    return opened.set(run.id, run)


def capped(runs: Runs, event: RunsCapped) -> Runs:
    caps = Caps(event.steps_max or STEPS_UNDER_WAY_MAX, event.target_max or STEPS_OF_TARGET_MAX, event.targets)
    return msgspec.structs.replace(runs, caps=caps)


def describe_caps(runs: Runs) -> dict[str, Any]:
    return {
        "steps_max": runs.caps.steps_max,
        "target_max": runs.caps.target_max,
        "targets": dict(runs.caps.targets),
        "under_way": dict(runs.under_way),
        "queued": len(runs.queued),
    }


def _with_due(
    due: tuple[tuple[int, str], ...], run_id: str, before_us: int, after_us: int
) -> tuple[tuple[int, str], ...]:
    if before_us == after_us:
        return due
    changed = list(due)
    if before_us:
        del changed[bisect_left(changed, (before_us, run_id))]
    if after_us:
        insort(changed, (after_us, run_id))
    return tuple(changed)


def _with_queued(
    queued: tuple[tuple[int, str, str], ...], run: Run, event: RunEvents
) -> tuple[tuple[int, str, str], ...]:
    if isinstance(event, StepQueued):
        waiting = list(queued)
        insort(waiting, (-run.priority, run.id, event.order.step), key=itemgetter(0))
        return tuple(waiting)
    if queued and isinstance(event, RunEnded):
        return tuple(item for item in queued if item[1] != run.id)
    if queued and isinstance(event, StepScheduled | StepSkipped | StepSucceeded):
        name = event.order.step if isinstance(event, StepScheduled) else event.step
        return tuple(item for item in queued if item[1:] != (run.id, name))
    return queued


def _count(under_way: Mapping[str, int], before: Run | None, after: Run, event: RunEvents) -> Mapping[str, int]:
    """``under_way`` after the event: steps come and go with runners, and with their run."""
    match event:
        case StepScheduled():
            names: Iterable[str] = (event.order.step,)
        case StepSucceeded() | StepFailed() | StepSkipped() | CompensationStuck():
            names = (event.step,)
        case RunEnded() | RunReopened():
            names = {*(before.active if before is not None else ()), *after.active}
        case _:
            return under_way
    has_ended, counts = isinstance(event, RunEnded), dict(under_way)
    for name in names:
        was, now = before.steps.get(name) if before else None, after.steps.get(name)
        change = (not has_ended and is_with_runners(now)) - is_with_runners(was)
        order = now.order if now is not None else None
        if change and order is not None:
            counts[order.target] = counts.get(order.target, 0) + change
    return {target: count for target, count in counts.items() if count}


def is_with_runners(step: Step | None) -> bool:
    return step is not None and step.status == "scheduled" and step.order is not None and step.order.kind in WORK_KINDS
