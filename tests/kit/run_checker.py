"""What must hold of runs, whatever happened to the processes: read from a tenant's log and from the ledger that the
dependencies keep for themselves. For the simulation, and for processes that are killed for real.

I10: every run ends, in a legal way; each step takes effect at most once, under one idempotency key however often it is
attempted; what is undone is undone once, in reverse order. I11: the money at the payment ledger is what the log says.
I17: no effect without its intent in the log before.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import msgspec

from actors.run import registry
from actors.run.definition import Node, Parallel, Saga, Sequential, leaves
from actors.run.state import Run, fold_stream, undo_name
from events.run import (
    ENDS,
    RunEnded,
    RunEvents,
    RunReopened,
    StepOrder,
    StepScheduled,
    StepSucceeded,
)
from tests.kit.checker import Violation

_SHOWN_MAX = 40  # events


class Effect(msgspec.Struct, frozen=True):
    """A line of the ledger: done under ``key``, for the first time. ``position`` is how long the tenant's log was then
    (-1: the dependency could not look), ``amount`` what it moved, in cents.
    """

    key: str
    run: str
    step: str
    amount: int = 0
    position: int = -1


def amount_of(run: str, step: str, ledger: Iterable[Effect]) -> int:
    """What a payment provider moves, in cents: a charge, or as much back as it has charged for the run."""
    if step == "charge":
        return 100
    return -sum(line.amount for line in ledger if line.run == run) if step == "undo:charge" else 0


class Attempt(msgspec.Struct, frozen=True):
    """The dependency was asked, whatever came of it."""

    key: str
    run: str
    step: str
    attempt: int


class Placed(msgspec.Struct, frozen=True):
    """An event of a run with its place in the tenant's log, and when it was written."""

    position: int
    time_us: int
    event: RunEvents


# Which steps of a saga are before which others, whatever happens.
Ordered = Callable[[str], Iterable[tuple[str, str]]]


def check_runs(
    tenant: str, log: Sequence[Placed], effects: Sequence[Effect], attempts: Sequence[Attempt], ordered: Ordered
) -> list[Violation]:
    """What is broken, of all runs in a tenant's log. Every run must have ended by then."""
    histories: dict[str, list[Placed]] = defaultdict(list)
    for placed in log:
        histories[placed.event.run_id].append(placed)
    done, asked = _by_run(effects), _by_run(attempts)
    found: list[Violation] = []
    for run_id in {**histories, **done}:
        history = _RunHistory(tenant, run_id, histories[run_id], done[run_id], asked[run_id])
        found += history.check(ordered)
    return found


def _by_run(lines: Iterable[Effect | Attempt]) -> dict[str, list[Effect | Attempt]]:
    found: dict[str, list[Effect | Attempt]] = defaultdict(list)
    for line in lines:
        found[line.run].append(line)
    return found


class _RunHistory:
    def __init__(
        self,
        tenant: str,
        run_id: str,
        placed: Sequence[Placed],
        effects: Sequence[Effect | Attempt],
        attempts: Sequence[Effect | Attempt],
    ) -> None:
        self._tenant, self._id, self._placed, self._attempts = tenant, run_id, placed, attempts
        self._effects = [line for line in effects if isinstance(line, Effect)]
        self._run: Run = fold_stream([one.event for one in placed])
        self._found: list[Violation] = []
        self._scheduled: dict[str, list[Placed]] = defaultdict(list)
        self._succeeded: dict[str, list[Placed]] = defaultdict(list)
        for one in placed:
            if isinstance(one.event, StepScheduled):
                self._scheduled[one.event.order.step].append(one)
            elif isinstance(one.event, StepSucceeded):
                self._succeeded[one.event.step].append(one)

    def check(self, ordered: Ordered) -> list[Violation]:
        self._check_intents()
        if not self._placed:
            return self._found
        self._check_end()
        self._check_steps()
        self._check_timers()
        self._check_undone()
        self._check_order(ordered(self._run.saga))
        self._check_money()
        return self._found

    def _say(self, invariant: str, message: str) -> None:
        excerpt = [] if self._found else self._excerpt()
        self._found.append(Violation(invariant, self._tenant, f"run {self._id}: {message}", excerpt))

    def _excerpt(self) -> list[str]:
        shown = [f"{one.position} {one.time_us} {_brief(one.event)}" for one in self._placed[:_SHOWN_MAX]]
        return [*shown, *(f"ledger at {line.position}: {line.step} {line.key[:8]}" for line in self._effects)]

    def _order(self, step: str) -> StepOrder | None:
        found = self._run.steps.get(step)
        return found.order if found is not None else None

    def _count(self, step: str) -> int:
        return sum(line.step == step for line in self._effects)

    def _check_intents(self) -> None:
        for line in self._effects:
            intents = self._scheduled.get(line.step, [])
            before = [one for one in intents if line.position < 0 or one.position <= line.position]
            if not before:
                self._say("I17", f"step {line.step!r} took effect at {line.position} and its intent is not in the log")

    def _check_end(self) -> None:
        if self._run.status not in ENDS:
            waiting = [f"{name} is {step.status}" for name, step in self._run.under_way()]
            self._say("I10", f"it never ended: {self._run.status}; {', '.join(waiting) or 'and nothing is under way'}")
        ends = sum(isinstance(one.event, RunEnded) for one in self._placed)
        reopened = sum(isinstance(one.event, RunReopened) for one in self._placed)
        if self._run.status in ENDS and ends != reopened + 1:
            self._say("I10", f"it ended {ends} times and was reopened {reopened} times")

    def _check_steps(self) -> None:
        reopened = [name for one in self._placed if isinstance(one.event, RunReopened) for name in one.event.steps]
        for name in self._scheduled:
            if len(self._succeeded[name]) > 1:
                self._say("I10", f"step {name!r} was finished {len(self._succeeded[name])} times")
            keys = {line.key for line in self._attempts if line.step == name}
            if len(keys) > 1 + reopened.count(name):
                self._say("I10", f"step {name!r} was attempted under {len(keys)} idempotency keys")
            if self._count(name) > 1 + reopened.count(name):
                self._say("I10", f"step {name!r} took effect {self._count(name)} times")
            done = self._succeeded[name]
            if done and self._scheduled[name][-1].position > done[0].position:
                self._say("I10", f"step {name!r} was begun again after it had finished")
            order = self._order(name)
            if done and order is not None and order.kind in ("function", "tool") and not self._count(name):
                self._say("I10", f"step {name!r} is finished in the log and has no effect at the ledger")

    def _check_timers(self) -> None:
        for name, done in self._succeeded.items():
            order = self._order(name)
            if order is None or order.kind != "timer" or not done:
                continue
            waited_us = done[0].time_us - self._scheduled[name][0].time_us
            if waited_us < order.timeout_us:
                self._say("I10", f"timer {name!r} of {order.timeout_us} us ended after {waited_us} us")

    def _check_undone(self) -> None:
        run, program = self._run, registry.find(self._run.saga, self._run.version)
        is_failed = run.status == "failed"
        for name, step in run.steps.items():
            undone = self._count(undo_name(name))
            if step.order is None or step.order.undoes:
                continue
            if run.status == "completed":
                if undone:
                    self._say("I10", f"it is completed and step {name!r} was undone")
                continue
            if step.status == "succeeded" and program.has_undo(run, name) and not undone and not is_failed:
                self._say("I10", f"it is {run.status} and step {name!r} was not undone")
            if is_failed and step.status == "succeeded" and program.has_undo(run, name) and not undone:
                undo = run.steps.get(undo_name(name))
                if undo is None or undo.status != "stuck":
                    self._say("I10", f"it has failed and step {name!r} is neither undone nor stuck")
            is_told = step.may_have_happened and (is_failed or not program.has_undo(run, name))
            happened = step.status == "failed" and self._count(name) and not undone
            if happened and not is_told and not step.order.is_optional:
                self._say("I10", f"step {name!r} took effect, the log says it failed, and nobody undid it or is told")

    def _check_order(self, ordered: Iterable[tuple[str, str]]) -> None:
        """A step is undone only after those behind it are, or are stuck for good."""
        for before, after in ordered:
            first, then = undo_name(before), undo_name(after)
            if not self._scheduled[first] or not self._scheduled[then]:
                continue
            undone = self._succeeded[then]
            if undone and self._scheduled[first][0].position < undone[0].position and not self._stuck(then):
                self._say("I10", f"{before!r} was undone before {after!r} was")

    def _stuck(self, undo: str) -> bool:
        return any(isinstance(one.event, RunReopened) and undo in one.event.steps for one in self._placed)

    def _check_money(self) -> None:
        paid = sum(line.amount for line in self._effects)
        charge = self._run.steps.get("charge")
        if self._run.status == "completed":
            owed = sum(line.amount for line in self._effects if line.step == "charge")
            if paid != owed or (charge is not None and charge.status == "succeeded" and not owed):
                self._say("I11", f"it is completed and {paid} cents were paid, {owed} were charged")
        elif self._run.status in ENDS - {"failed"} and paid:
            self._say("I11", f"it is {self._run.status} and {paid} cents were kept")


def _brief(event: RunEvents) -> str:
    named = event.order.step if isinstance(event, StepScheduled) else getattr(event, "step", "")
    more = [str(value) for name in ("attempt", "status", "code") if (value := getattr(event, name, ""))]
    return " ".join([type(event).__name__, named, *more])


def ordered(saga: str) -> list[tuple[str, str]]:
    """Pairs of steps of a declared saga of which the first is before the second, whatever happens."""
    program = registry.find(saga)
    found: list[tuple[str, str]] = []
    if isinstance(program, Saga):
        _order(program.steps, found)
    return found


def _order(nodes: Sequence[Node], found: list[tuple[str, str]]) -> None:
    names = [[leaf.name for leaf in leaves((node,))] for node in nodes]
    for at, before in enumerate(names):
        found += [(one, other) for after in names[at + 1 :] for one in before for other in after]
    for node in nodes:
        if isinstance(node, Sequential):
            _order(node.branches, found)
        elif isinstance(node, Parallel):
            for branch in node.branches:
                _order((branch,), found)
