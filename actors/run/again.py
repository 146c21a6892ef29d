"""Runs that have ended, begun again: a retry goes on in place, a fork takes over what had been done. Pure."""

import msgspec

from actors.run import registry
from actors.run.consequences import Consequences, child_id, step_of_child
from actors.run.open_runs import Runs
from actors.run.state import Run, undo_name
from events.errors import (
    NotFoundError,
    PlatformError,
    RunClosedError,
)
from events.run import (
    ENDS,
    KeptStep,
    ReopenRun,
    RunEvents,
    RunReopened,
    pack,
)

_decode_run = msgspec.msgpack.Decoder(Run).decode


def run_of(command: ReopenRun) -> Run:
    return _decode_run(command.run)


def reopen(run: Run, now_us: int, runs: Runs = Runs()) -> list[RunEvents]:  # noqa: B008 - frozen
    """Events that have a run tried again which had ended; ``run`` is folded from its stream, ``runs`` are the open ones.

    Compensations that are stuck are tried again; else the run goes on where it failed, if nothing of it has been undone.

    Raises:
        RunClosedError: Nothing of it can be tried again in place.
    """
    if run.status not in ENDS or run.id in runs.open:
        raise RunClosedError(run.id, "it is under way: it retries by itself")
    if run.parent and not _is_awaited(runs, run):
        raise RunClosedError(run.id, f"run {run.parent!r}, whose step it was, no longer waits for it: retry that one")
    stuck = tuple(name for name, step in run.steps.items() if step.status == "stuck")
    again = stuck or _to_try_again(run)
    for name in again:
        if (child := child_id(run.id, name, run.steps[name].attempt)) in runs.open:
            raise RunClosedError(run.id, f"its child {child!r} is under way: wait until that has ended")
    consequences = Consequences(runs, now_us)
    consequences.emit(RunReopened(run.id, again, not stuck, pack(run)))
    consequences.fire(run.id)
    return consequences.events


def _is_awaited(runs: Runs, child: Run) -> bool:
    parent = runs.open.get(child.parent)
    return parent is not None and step_of_child(parent, child.id) is not None


def _to_try_again(run: Run) -> tuple[str, ...]:
    """Steps that failed for good and without which the run could not go on. Raises RunClosedError."""
    if any(step.order is not None and step.order.undoes for step in run.steps.values()):
        raise RunClosedError(run.id, "what it had done is undone, it can't go on from there; fork it instead")
    failed: tuple[str, ...] = ()
    if run.status == "failed":
        try:
            program = registry.patch_of(run.saga, run.version) or registry.find(run.saga, run.version)
            failed = program.gave_up_at(run)
        except PlatformError as error:
            raise RunClosedError(run.id, f"its code can't say where it failed: {error}") from error
    if not failed:
        raise RunClosedError(run.id, f"it is {run.status}, nothing of it can be tried again in place; fork it instead")
    return failed


def kept_until(run: Run, step: str) -> tuple[KeptStep, ...]:
    """What a fork that begins anew at ``step`` takes over: what had finished before that step was begun.

    Raises:
        NotFoundError: The run never came to that step.
        RunClosedError: A step before it has been undone: that one has to be done anew too, with what came after it and may
            rest on its result.
    """
    if step not in run.steps:
        raise NotFoundError("step", step)
    names = list(run.steps)[: list(run.steps).index(step)]
    if undone := next((name for name in names if undo_name(name) in run.steps), None):
        raise RunClosedError(run.id, f"its step {undone!r} has been undone: fork it at that step, or at one before")
    return tuple(
        KeptStep(found.order, found.args, found.result)
        for name in names
        if (found := run.steps[name]).status == "succeeded" and found.order is not None and not found.order.undoes
    )
