"""What becomes of a command to one of a tenant's runs, and of time that goes by. Pure.

Whatever a step's end makes possible is decided together with it, in one append: the next steps, the parent's step of a
finished child, the place in the queue that came free.
"""

import hashlib
from typing import Any, assert_never

from actors.run.consequences import FIRED_AT_ONCE_MAX, Consequences, open_run
from actors.run.open_runs import Runs, capped
from actors.run.state import describe
from events.errors import (
    InvalidCommandError,
    RunClosedError,
)
from events.run import (
    CancelRun,
    CapRuns,
    DescribeRun,
    DescribeStep,
    FailStep,
    FinishStep,
    ReopenRun,
    RetryRun,
    RunCommand,
    RunEvents,
    RunsCapped,
    SignalRun,
    StartRun,
)

# What is due of one run has to fit into an append (events.store.EVENTS_MAX).
OF_ONE_RUN_MAX = 1_700
CAP_MAX, CAPPED_TARGETS_MAX = 10_000, 256


def cap(runs: Runs, command: CapRuns, now_us: int) -> list[RunEvents | RunsCapped]:
    """Set them; what has waited for room begins where there is some now. What is under way is let finish. Raises
    InvalidCommandError.
    """
    numbers = [command.steps_max, command.target_max, *command.targets.values()]
    if not all(0 <= number <= CAP_MAX for number in numbers) or 0 in command.targets.values():
        raise InvalidCommandError(f"a cap is 1 to {CAP_MAX}, got {sorted(numbers)}; without runners nothing would run")
    if len(command.targets) > CAPPED_TARGETS_MAX:
        raise InvalidCommandError(
            f"at most {CAPPED_TARGETS_MAX} targets have caps of their own, got {len(command.targets)}"
        )
    event = RunsCapped(command.steps_max, command.target_max, dict(command.targets))
    after = capped(runs, event)
    if after.caps == runs.caps:
        return []
    consequences = Consequences(after, now_us)
    consequences.fill_room()
    return [event, *consequences.events]


def decide(runs: Runs, command: RunCommand, now_us: int) -> list[RunEvents]:
    """What should happen. Raises Refusal."""
    return act(runs, command, now_us)[0]


def act(runs: Runs, command: RunCommand, now_us: int) -> tuple[list[RunEvents], Runs]:
    """What should happen, and the runs as they are after it: known already, because what follows is decided on them."""
    consequences = Consequences(runs, now_us)
    match command:
        case StartRun():
            consequences.start(command)
        case FinishStep():
            consequences.finish_step(command)
        case FailStep():
            consequences.fail_step(command)
        case SignalRun():
            consequences.signal(command)
        case CancelRun(run_id, reason):
            consequences.cancel(run_id, reason)
        case RetryRun(run_id):
            open_run(runs, run_id)
            raise RunClosedError(run_id, "it is under way: it retries by itself")
        case DescribeRun(run_id) | DescribeStep(run_id):
            open_run(runs, run_id)
        case _:
            assert_never(command)
    return consequences.events, consequences.runs


def fire_timers(
    runs: Runs, now_us: int, events_max: int = FIRED_AT_ONCE_MAX, room: int = OF_ONE_RUN_MAX
) -> list[RunEvents]:
    """What is due by itself: retries, time-outs, timers, deadlines. No more runs once there are ``events_max`` events; a run of
    which alone more is due than there is ``room`` for stays where it is, and the others go on.
    """
    consequences = Consequences(runs, now_us)
    for due_us, run_id in runs.due:
        if due_us > now_us or len(consequences.events) >= events_max:
            break
        if run_id not in consequences.runs.open:
            continue
        before, count = consequences.runs, len(consequences.events)
        consequences.begins_at = count
        consequences.fire(run_id)
        if len(consequences.events) > room:
            consequences.runs = before
            del consequences.events[count:]
            if count:  # it is the first of the next time
                break
    return consequences.events


def follow(runs: Runs, run_id: str, now_us: int) -> list[RunEvents]:
    """What follows for an open run from what has happened to it: nothing, unless its code has changed since that was decided."""
    consequences = Consequences(runs, now_us)
    consequences.advance(run_id)
    return consequences.events


def resume(runs: Runs, now_us: int) -> list[RunEvents]:
    """What a tenant does when it is activated: runs whose code has come back go on."""
    consequences = Consequences(runs, now_us)
    for run_id in sorted(run_id for run_id, run in runs.open.items() if run.status == "blocked"):
        consequences.advance(run_id)
    return consequences.events


def answer(runs: Runs, command: RunCommand | ReopenRun) -> dict[str, Any]:
    """Of a query the whole run. Of a command, whose answer is kept for days, only where it stands; no status where it has ended."""
    run = runs.open.get(command.run_id)
    if run is None:
        return {"id": command.run_id}
    if isinstance(command, DescribeStep):
        step = run.steps.get(command.step)
        return {"status": step.status, "attempt": step.attempt} if step is not None else {}
    return describe(run) if isinstance(command, DescribeRun) else {"id": run.id, "status": run.status}


def idempotency_key(tenant: str, run_id: str, step: str, forgiven: int) -> str:
    """What makes an effect happen once however often it is attempted: the same for all attempts of a step, until a person
    has it tried anew after ``forgiven`` attempts that failed for good.
    """
    parts = (tenant, run_id, step, str(forgiven))
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:40]
