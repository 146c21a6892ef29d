"""The same idea without the shells: the pure machine, a log as a list, runners and dependencies as functions, and a heap of
what happens next. A hundred times as many schedules in the same time as with everything around it.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import msgspec

from actors.run import dispatcher, machine, open_runs
from actors.run.open_runs import Runs
from events.errors import Refusal
from events.run import (
    CancelRun,
    FailStep,
    FinishStep,
    RunCommand,
    RunEnded,
    RunEvents,
    SignalRun,
    StartRun,
    StepRequeued,
    StepScheduled,
    Used,
    pack,
    unpack,
)
from events.work import ACK_WAIT_S, WorkItem
from tests.kit.checker import Violation
from tests.kit.factories import NOW_US
from tests.kit.run_checker import Attempt, Effect, Placed, amount_of, check_runs, ordered
from tests.simulation.planted import planted
from tests.simulation.sagas import NAMES, TIMEOUT_S, WAITS_FOR
from tests.simulation.world import Faults, Odds, Outcome

TENANT = "t"
_ASKED_AGAIN_S = 2.0
_TROUBLE_S = 20.0
_PATIENCE_S = 3_600.0
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RunEvents).decode


class World:
    """One tenant. ``runs`` is its memory (None: its process is dead), ``log`` what is durable."""

    def __init__(self, seed: int, odds: Odds) -> None:
        self.faults = Faults(seed, odds)
        self.now_us, self._numbers = NOW_US, count()
        self._next: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self.runs: Runs | None = None
        self.log: list[Placed] = []
        self._wire: list[bytes] = []
        self._known: set[str] = set()  # ids of commands whose events are in the log
        self._told: set[str] = set()  # and of those whose sender knows
        self._queue: dict[str, WorkItem] = {}
        self._deliveries: Counter[str] = Counter()
        self._wakes_us = 0
        self.done: dict[str, int] = {}
        self.effects: list[Effect] = []
        self.attempts: list[Attempt] = []

    # time

    def after(self, seconds: float, function: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._next, (self.now_us + int(seconds * 1e6), next(self._numbers), function, arguments))

    def run(self) -> None:
        """Until nothing more happens."""
        while self._next and self.now_us < NOW_US + _PATIENCE_S * 1e6:
            self.now_us, _, function, arguments = heapq.heappop(self._next)
            function(*arguments)

    # messages to the tenant

    def tell(self, command: RunCommand, command_id: str, then: Callable[[], None] | None = None) -> None:
        """Again and again under the same id, until the answer has come back; ``then`` is called once it has."""
        if command_id in self._told:
            return
        faults = self.faults
        if not faults.happens("message_lost"):
            late_s = faults.dice.random() * 4 if faults.happens("message_late") else 0.0
            self.after(faults.lag_s() + late_s, self._arrive, command, command_id, then)
            if faults.happens("message_doubled"):
                self.after(faults.dice.random() * 3, self._arrive, command, command_id, then)
        self.after(_ASKED_AGAIN_S, self.tell, command, command_id, then)

    def _arrive(self, command: RunCommand, command_id: str, then: Callable[[], None] | None) -> None:
        runs = self._activated()
        if command_id not in self._known:
            try:
                events = machine.decide(runs, command, self.now_us)
            except Refusal:
                events = []
            if not self._append(events, command_id):
                return
        if not self.faults.happens("message_lost"):
            self._told.add(command_id)
            if then is not None:
                then()

    # the tenant

    def _activated(self) -> Runs:
        if self.runs is None:
            self.runs = Runs()
            for wire in self._wire:
                self.runs = open_runs.fold(self.runs, _decode(wire))
            for run in self.runs.open.values():
                for step in run.steps.values():
                    if open_runs.is_with_runners(step):
                        self._put(dispatcher._item(TENANT, run, step, again=True))
        return self.runs

    def _append(self, events: Sequence[RunEvents], command_id: str = "") -> bool:
        """Whether the tenant lives to say so."""
        assert self.runs is not None
        if self.faults.happens("append_refused"):
            return False
        if self.faults.happens("tenant_died_before"):
            self.runs = None
            return False
        for event in events:
            wire = _encode(event)
            seen: RunEvents = _decode(wire)
            self._wire.append(wire)
            self.log.append(Placed(len(self._wire), self.now_us, seen))
            self.runs = open_runs.fold(self.runs, seen)
        if events:
            self._remember(command_id)
        self._wake_in_time()
        if self.faults.happens("tenant_died_after"):
            self.runs = None
            return False
        self._hand_out(self.runs, events)
        return True

    def _remember(self, command_id: str) -> None:
        """In the same append as its events."""
        if command_id:
            self._known.add(command_id)

    def _hand_out(self, runs: Runs, events: Sequence[RunEvents]) -> None:
        for event in events:
            if isinstance(event, StepScheduled | StepRequeued) and (run := runs.open.get(event.run_id)):
                step = run.steps[event.order.step if isinstance(event, StepScheduled) else event.step]
                if open_runs.is_with_runners(step):
                    self._put(dispatcher._item(TENANT, run, step, again=isinstance(event, StepRequeued)))

    def _wake_in_time(self) -> None:
        """The durable timer; it is late more often than not."""
        assert self.runs is not None
        due_us = self.runs.next_timer_us
        if due_us and not (self.now_us <= self._wakes_us <= due_us):
            self._wakes_us = max(due_us, self.now_us)
            self.after((self._wakes_us - self.now_us) / 1e6 + self.faults.dice.random(), self._wake)

    def _wake(self) -> None:
        self._wakes_us = 0
        events = machine.fire_timers(self._activated(), self.now_us)
        if not self._append(events):
            self.after(_ASKED_AGAIN_S, self._wake)

    # runners

    def _put(self, item: WorkItem) -> None:
        subject = f"{item.run_id}/{item.order.step}/{item.attempt}"
        if subject not in self._queue:
            self._queue[subject] = item
            self.after(self.faults.lag_s(), self._take, subject)

    def _take(self, subject: str) -> None:
        """A runner's whole way with a message. Where it ends before the acknowledgement, the message comes again."""
        item, faults = self._queue.get(subject), self.faults
        if item is None:
            return
        self._deliveries[subject] += 1
        again_s = faults.dice.random() if faults.happens("work_doubled") else ACK_WAIT_S
        self.after(again_s, self._take, subject)
        if faults.happens("runner_died_before"):
            return
        if self._deliveries[subject] > 1:
            item = msgspec.structs.replace(item, again=True)
        if item.again and not self._is_wanted(item):
            del self._queue[subject]
            return
        self.after(faults.lag_s(), self._carry_out, subject, item)

    def _is_wanted(self, item: WorkItem) -> bool:
        run = self._activated().open.get(item.run_id)
        step = run.steps.get(item.order.step) if run is not None else None
        return step is not None and step.status == "scheduled" and step.attempt == item.attempt

    def _carry_out(self, subject: str, item: WorkItem) -> None:
        command, took_s = self._do(item)
        if self.faults.happens("runner_died_after"):
            return

        def acknowledge() -> None:
            if not self.faults.happens("acknowledgement_lost"):
                self._queue.pop(subject, None)

        self.after(took_s, self.tell, command, f"{subject}/{type(command).__name__}", acknowledge)

    # dependencies

    def _do(self, item: WorkItem) -> tuple[FinishStep | FailStep, float]:
        """What the runner will tell, and how long it takes until then."""
        step, key, faults = item.order.step, item.idempotency_key, self.faults
        self.attempts.append(Attempt(key, item.run_id, step, item.attempt))
        if faults.is_broken(item.run_id, step):
            return self._failed(item, "refused", retryable=False, unknown=False), 0.0
        if faults.happens("busy"):
            return self._failed(item, "busy", retryable=True, unknown=False), 0.0
        if key not in self.done:
            args = unpack(item.args)
            assert args[0] == (item.order.undoes or step), args
            self.done[key] = len(self.done)
            amount = amount_of(item.run_id, step, self.effects)
            self.effects.append(Effect(key, item.run_id, step, amount, len(self._wire)))
        if faults.happens("effect_unanswered"):
            return self._failed(item, "timeout", retryable=True, unknown=True), TIMEOUT_S
        return FinishStep(item.run_id, step, item.attempt, pack([step, self.done[key]]), 1_000), faults.lag_s()

    @staticmethod
    def _failed(item: WorkItem, code: str, *, retryable: bool, unknown: bool) -> FailStep:
        again = item.again  # as a runner says it: an earlier one may have got further
        return FailStep(
            item.run_id, item.order.step, item.attempt, code, code, retryable, 1_000, 0, unknown or again, Used()
        )


class HandsOutFirst(World):
    """A known bug: work goes out before its intent is durable."""

    def _append(self, events: Sequence[RunEvents], command_id: str = "") -> bool:
        runs = self.runs
        assert runs is not None
        for event in events:
            runs = open_runs.fold(runs, event)
        self._hand_out(runs, events)
        return super()._append(events, command_id)


class Forgets(World):
    """Half of a known bug (the other half is in ``planted``): the store keeps no answers."""

    def _remember(self, command_id: str) -> None:
        pass


_WITH_BUG: dict[str, type[World]] = {"handed-out-first": HandsOutFirst, "result-applied-twice": Forgets}


def simulate(seeds: Sequence[int], odds: Odds | None = None, bug: str = "") -> Iterator[Outcome]:
    """What came of each schedule. The same seed gives the same, every time."""
    with planted(bug):
        for seed in seeds:
            world = _WITH_BUG.get(bug, World)(seed, odds or Odds())
            yield _simulate_one(seed, world)


def _simulate_one(seed: int, world: World) -> Outcome:
    dice = world.faults.dice
    for number in range(2 if dice.random() < 0.2 else 1):
        _plan(world, f"r{number}")
    world.after(_TROUBLE_S, world.faults.calm)
    world.run()
    world.faults.calm()
    violations = check_runs(TENANT, world.log, world.effects, world.attempts, ordered)
    if not violations and world._activated() != Runs():
        violations.append(Violation("I13", TENANT, f"runs have ended and left something behind: {world.runs}", []))
    seen = Counter(placed.event.status for placed in world.log if isinstance(placed.event, RunEnded))
    return Outcome(seed, violations, seen + Counter(world.faults.happened) + Counter(effects=len(world.effects)))


def _plan(world: World, run: str) -> None:
    """What callers will do about a run: start it, perhaps signal to it, perhaps cancel it."""
    dice = world.faults.dice
    saga, begins_s = dice.choice(NAMES), dice.random() * 3
    lasts_us = dice.choice((0, 0, 0, 0, 8_000_000))
    world.after(begins_s, world.tell, StartRun(run, saga, pack(dice.randrange(10)), lasts_us=lasts_us), f"{run}-start")
    if saga in WAITS_FOR and dice.random() < 0.8:
        signal = SignalRun(run, WAITS_FOR[saga], pack("yes"))
        world.after(begins_s + dice.random() * 15, world.tell, signal, f"{run}-signal")
    if dice.random() < 0.12:
        world.after(begins_s + dice.random() * 10, world.tell, CancelRun(run, "no more"), f"{run}-cancel")
