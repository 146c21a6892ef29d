"""The breaker's state machine: examples, and random schedules against a model written another way."""

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from actors.policies.breaker import BreakerRules
from actors.policies.refusals import BreakerOpenError
from actors.policies.window import CountWindow, TimeWindow
from actors.policies.wrappers.breaker import CircuitBreaker, Transition
from tests.kit.clock import ManualMonotonic

RULES = BreakerRules(
    failure_rate=0.5,
    slow_rate=0.8,
    slow_after_s=1.0,
    calls_min=4,
    window=CountWindow(10),
    open_s=10.0,
    open_jitter=0.5,
    probes=3,
    probe_timeout_s=30.0,
)


class Bench:
    """A breaker with a clock in hand."""

    def __init__(self, rules: BreakerRules = RULES, chance: float = 0.0) -> None:
        self.clock, self.transitions = ManualMonotonic(), list[Transition]()
        self.breaker = CircuitBreaker(
            "payments", rules, clock=self.clock, chance=lambda: chance, on_transition=self.transitions.append
        )

    def call(self, *, failed: bool = False, duration_s: float = 0.01) -> None:
        generation = self.breaker.permit()
        self.breaker.record(generation, failed=failed, duration_s=duration_s)

    def calls(self, good: int, bad: int) -> "Bench":
        for number in range(good + bad):
            self.call(failed=number >= good)
        return self

    @property
    def status(self) -> str:
        return self.breaker.state.status


def test_it_opens_when_the_rate_is_reached_on_enough_calls_and_says_why() -> None:
    bench = Bench().calls(2, 1)
    assert bench.status == "closed", "three calls are too few to judge by"
    bench.call(failed=True)
    assert bench.status == "open"
    transition = bench.transitions[-1]
    assert (transition.before, transition.after, transition.cause) == ("closed", "open", "2 of 4 calls failed")
    assert (transition.figures.calls, transition.figures.failures) == (4, 2)


def test_a_good_call_that_makes_the_volume_full_opens_it_too() -> None:
    bench = Bench()
    for failed in (True, True, True, False):
        bench.call(failed=failed)
    assert bench.status == "open"


def test_slow_success_opens_it_as_failures_do() -> None:
    bench = Bench()
    for _ in range(4):
        bench.call(duration_s=1.5)
    assert bench.status == "open"
    assert "took 1 s or longer" in bench.breaker.state.cause


def test_open_refuses_with_the_time_that_is_left() -> None:
    bench = Bench().calls(0, 4)
    bench.clock.advance(4)
    with pytest.raises(BreakerOpenError) as refusal:
        bench.breaker.permit()
    assert refusal.value.retry_after_s == pytest.approx(6)
    assert "4 of 4 calls failed" in str(refusal.value)


def test_chance_lengthens_the_opening_so_that_callers_do_not_probe_in_step() -> None:
    until = {Bench(chance=chance).calls(0, 4).breaker.state.until_s for chance in (0.0, 0.3, 0.9)}
    assert until == {1_010.0, 1_011.5, 1_014.5}


def test_half_open_lets_its_probes_through_and_no_more() -> None:
    bench = Bench().calls(0, 4)
    bench.clock.advance(10)
    probes = [bench.breaker.permit() for _ in range(3)]
    assert bench.status == "half_open"
    with pytest.raises(BreakerOpenError):
        bench.breaker.permit()
    for generation in probes:
        bench.breaker.record(generation, failed=False, duration_s=0.1)
    assert bench.status == "closed"
    assert bench.breaker.state.cause == "3 of 3 probes succeeded"


def test_it_opens_again_as_soon_as_the_probes_can_no_longer_pass() -> None:
    bench = Bench().calls(0, 4)
    bench.clock.advance(10)
    bench.call(failed=True)
    assert bench.status == "half_open", "one of three may fail"
    bench.call(failed=True)
    assert bench.status == "open"


def test_slow_probes_do_not_close_it() -> None:
    bench = Bench().calls(0, 4)
    bench.clock.advance(10)
    for _ in range(3):
        bench.call(duration_s=2)
    assert bench.status == "open"


def test_a_probe_that_was_cancelled_gives_its_place_back() -> None:
    bench = Bench().calls(0, 4)
    bench.clock.advance(10)
    for _ in range(20):
        bench.breaker.release(bench.breaker.permit())
    assert bench.status == "half_open"


def test_probes_that_never_report_count_as_failed_after_their_time() -> None:
    bench = Bench().calls(0, 4)
    bench.clock.advance(10)
    for _ in range(3):
        bench.breaker.permit()
    bench.clock.advance(31)
    with pytest.raises(BreakerOpenError):
        bench.breaker.permit()
    assert bench.status == "open"
    assert "3 probes did not come back" in bench.breaker.state.cause


def test_an_answer_from_before_the_opening_says_nothing_about_the_recovery() -> None:
    bench = Bench()
    late = [bench.breaker.permit() for _ in range(3)]
    bench.calls(0, 4)
    bench.clock.advance(10)
    bench.breaker.permit()
    for generation in late:
        bench.breaker.record(generation, failed=False, duration_s=0.1)
    assert bench.status == "half_open"


def test_an_operator_holds_it_open_and_closed_until_it_is_reset() -> None:
    bench = Bench()
    bench.breaker.force("forced_open", "maintenance")
    bench.clock.advance(1_000)
    with pytest.raises(BreakerOpenError, match="maintenance"):
        bench.breaker.permit()
    bench.breaker.force("forced_closed", "false alarm")
    bench.calls(0, 100)
    assert bench.status == "forced_closed"
    bench.breaker.force("closed", "reset")
    bench.calls(3, 0)
    assert bench.status == "closed", "it starts afresh"
    bench.calls(0, 3)
    assert bench.status == "open"


class BreakerMachine(RuleBasedStateMachine):
    """Any order of calls, outcomes, waits and commands. The model keeps a list of outcomes and judges it anew each time."""

    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(msgspec.structs.replace(RULES, window=self.window()))
        self.status = "closed"
        self.era = 0  # counts the model's own transitions
        self.judged: list[tuple[float, bool, bool]] = []
        self.out: set[int] = set()  # probes under way, by number
        self.probed: list[tuple[bool, bool]] = []
        self.since_s = self.bench.clock()
        self.number = 0

    def window(self) -> CountWindow | TimeWindow:
        return CountWindow(10)

    def remembered(self) -> list[tuple[bool, bool]]:
        return [(failed, slow) for _, failed, slow in self.judged[-10:]]

    def enter(self, status: str) -> None:
        self.status, self.since_s = status, self.bench.clock()
        self.era += 1
        self.judged, self.out, self.probed = [], set(), []

    @rule(target=calls)
    def start(self) -> tuple[int, int, int]:
        now_s = self.bench.clock()
        if self.status == "open" and now_s >= self.since_s + RULES.open_s:
            self.enter("half_open")
        full = len(self.out) + len(self.probed) >= RULES.probes
        if self.status == "half_open" and full and now_s >= self.since_s + RULES.probe_timeout_s:
            self.enter("open")
        allowed = self.status in ("closed", "forced_closed") or (self.status == "half_open" and not full)
        self.number += 1
        if not allowed:
            with pytest.raises(BreakerOpenError) as refusal:
                self.bench.breaker.permit()
            assert refusal.value.retry_after_s
            return (-1, -1, -1)
        generation = self.bench.breaker.permit()
        if self.status == "half_open":
            self.out.add(self.number)
        return (self.number, self.era, generation)

    @rule(call=consumes(calls), failed=st.booleans(), slow=st.booleans())
    def finish(self, call: tuple[int, int, int], failed: bool, slow: bool) -> None:
        number, era, generation = call
        if number < 0:
            return
        self.bench.breaker.record(generation, failed=failed, duration_s=2.0 if slow else 0.1)
        if era != self.era:
            return
        if self.status == "closed":
            self.judged.append((self.bench.clock(), failed, slow))
            if self.is_bad(self.remembered(), RULES.calls_min):
                self.enter("open")
        elif self.status == "half_open":
            self.out.discard(number)
            self.probed.append((failed, slow))
            worst = self.probed + [(False, False)] * (RULES.probes - len(self.probed))
            if self.is_bad(worst, 0):
                self.enter("open")
            elif len(self.probed) == RULES.probes:
                self.enter("closed")

    @rule(call=consumes(calls))
    def cancel(self, call: tuple[int, int, int]) -> None:
        number, era, generation = call
        if number < 0:
            return
        self.bench.breaker.release(generation)
        if era == self.era:
            self.out.discard(number)

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 10.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)

    @rule(status=st.sampled_from(["forced_open", "forced_closed", "closed"]))
    def command(self, status: str) -> None:
        self.bench.breaker.force(status, "told to")  # type: ignore[arg-type]
        self.enter(status)

    @staticmethod
    def is_bad(outcomes: list[tuple[bool, bool]], calls_min: int) -> bool:
        if len(outcomes) < calls_min:
            return False
        failures, slow = sum(f for f, _ in outcomes), sum(s for _, s in outcomes)
        return bool(failures / len(outcomes) >= 0.5 or slow / len(outcomes) >= 0.8)

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.bench.status == self.status

    @invariant()
    def never_more_probes_than_allowed(self) -> None:
        state = self.bench.breaker.state
        assert 0 <= state.probes_started <= RULES.probes


class TimeWindowBreakerMachine(BreakerMachine):
    """The same over a time window: its slots are 1 s, the model keeps what lies in the last ten of them."""

    def window(self) -> TimeWindow:
        return TimeWindow(10.0)

    def remembered(self) -> list[tuple[bool, bool]]:
        slot = int(self.bench.clock())
        return [(failed, slow) for at, failed, slow in self.judged if int(at) > slot - 10]


TestBreakerMachine = BreakerMachine.TestCase
TestTimeWindowBreakerMachine = TimeWindowBreakerMachine.TestCase
TestBreakerMachine.settings = TestTimeWindowBreakerMachine.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None
)
