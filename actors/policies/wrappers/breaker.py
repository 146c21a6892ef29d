"""A circuit breaker for callers of this process."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import msgspec

from actors.policies import breaker as machine
from actors.policies.breaker import Breaker, BreakerRules, Status
from actors.policies.refusals import BreakerOpenError
from actors.policies.window import Counts
from actors.policies.wrappers.timing import Chance, Monotonic


class Transition(msgspec.Struct, frozen=True):
    """``cause`` says why in words, ``figures`` what it was decided on."""

    name: str
    before: Status
    after: Status
    cause: str
    figures: Counts


class Observer(Protocol):
    """Hears of each call, in the middle of it: it must be quick."""

    def on_outcome(self, *, failed: bool, slow: bool) -> None: ...

    def on_refused(self) -> None: ...

    def on_probe(self, under_way: int) -> None:
        """So many probes are under way now; 0 also where those that are belong to a state that is over."""


class CircuitBreaker:
    """Every call: ``permit`` before it, then ``record`` or ``release``, exactly once, with the number ``permit`` gave.

    ``on_transition`` hears of each change of state.
    """

    def __init__(
        self,
        name: str,
        rules: BreakerRules,
        *,
        clock: Monotonic = time.monotonic,
        chance: Chance = random.random,
        on_transition: Callable[[Transition], None] | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.name, self.rules = name, rules
        self._clock, self._chance = clock, chance
        self._on_transition, self._observer = on_transition, observer
        self._state = machine.closed(rules, clock())
        self._probing = 0  # permits that are out in this half-open state

    @property
    def state(self) -> Breaker:
        return self._state

    @property
    def is_open(self) -> bool:
        """Would refuse a call for lack of health, not for lack of probes to give away."""
        state = self._state
        return state.status == "forced_open" or (state.status == "open" and self._clock() < state.until_s)

    def permit(self) -> int:
        """The number to report the outcome under. Raises BreakerOpenError, which says when to try again."""
        state = self._state
        if state.status != "closed":
            after, wait_s = machine.permit(self.rules, state, self._clock(), self._chance())
            self._become(after)
            if wait_s > 0:
                if self._observer is not None:
                    self._observer.on_refused()
                raise BreakerOpenError(self.name, f"its breaker is {after.status} ({after.cause})", wait_s)
            if after.status == "half_open":
                self._count_probes(self._probing + 1)
        return self._state.generation

    def _count_probes(self, under_way: int) -> None:
        """Counted here: an adopted state says that probes have started which nobody here began."""
        if under_way != self._probing:
            self._probing = under_way
            if self._observer is not None:
                self._observer.on_probe(under_way)

    def _ended(self, generation: int) -> None:
        if self._probing and generation == self._state.generation:
            self._count_probes(self._probing - 1)

    @contextmanager
    def judging(self, counts: Callable[[BaseException], bool | None]) -> Iterator[None]:
        """Around a call: what is raised inside is judged by ``counts`` (True: a failure, False: none, None: says nothing).
        Raises BreakerOpenError before the call.
        """
        generation, began_s = self.permit(), self._clock()
        try:
            yield
        except BaseException as error:
            failed = counts(error)
            if failed is None:
                self.release(generation)
            else:
                self.record(generation, failed=failed, duration_s=self._clock() - began_s)
            raise
        self.record(generation, failed=False, duration_s=self._clock() - began_s)

    def record(self, generation: int, *, failed: bool, duration_s: float, now_s: float | None = None) -> None:
        """The call has ended and says something about the dependency. ``now_s`` spares a look at the clock."""
        state = self._state
        # what began before the breaker opened is no probe, though it ends among them
        if self._observer is not None and (generation == state.generation or state.status != "half_open"):
            self._observer.on_outcome(failed=failed, slow=duration_s >= self.rules.slow_after_s)
        self._ended(generation)
        after = machine.record(
            self.rules,
            self._state,
            generation,
            failed=failed,
            duration_s=duration_s,
            now_s=self._clock() if now_s is None else now_s,
            chance=self._chance(),
        )
        self._become(after)

    def release(self, generation: int) -> None:
        """The call has ended and says nothing (cancelled, or refused by a policy further in)."""
        self._state = machine.release(self._state, generation)
        self._ended(generation)

    def force(self, status: Status, reason: str) -> None:
        """By an operator: ``forced_open``, ``forced_closed``, or ``closed`` to start afresh."""
        self._become(machine.force(self.rules, self._state, status, reason, self._clock()))

    def adopt(self, state: Breaker) -> None:
        """Take over a state that somebody else decided (the cluster's breaker)."""
        self._become(state)

    def _become(self, after: Breaker) -> None:
        before = self._state
        if before is after:
            return
        self._state = after
        if before.generation != after.generation:
            self._count_probes(0)
        if self._on_transition is not None and before.status != after.status:
            self._on_transition(Transition(self.name, before.status, after.status, after.cause, after.figures))
