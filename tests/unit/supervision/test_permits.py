"""Leases of permits against everything that can go wrong: the calls under way are counted, as the dependency would."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from actors.supervision import permits
from actors.supervision.permits import MARGIN_S, TTL_S, Pool

LIMIT, DRAIN_S = 7, 2.0
NAMES = ("a", "b", "c")


class Caller:
    """A process that uses all it may, and as long as it may. ``calls``: when each began."""

    def __init__(self) -> None:
        self.limit, self.ends_s = 0, 0.0
        self.calls: list[float] = []


class LeaseMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_000.0
        self.pool: Pool | None = Pool(LIMIT, DRAIN_S)  # None: the supervisor is away
        self.callers = {name: Caller() for name in NAMES}
        self.ghosts: list[float] = []  # calls of processes that died, still under way at the dependency

    def is_live(self, caller: Caller) -> bool:
        return self.now_s < caller.ends_s

    @rule(name=st.sampled_from(NAMES), wanted=st.integers(0, 9), lost=st.sampled_from(["", "request", "reply"]))
    def ask(self, name: str, wanted: int, lost: str) -> None:
        caller = self.callers[name]
        if not self.is_live(caller):
            caller.limit = 0
        if self.pool is None:
            if self.is_live(caller):
                caller.ends_s = self.now_s + TTL_S
            return
        if lost == "request":
            return
        held = max(caller.limit, len(caller.calls))
        self.pool, granted = permits.ask(self.pool, name, held, min(wanted, LIMIT), self.now_s)
        assert 0 <= granted <= LIMIT
        if lost != "reply":
            caller.limit, caller.ends_s = granted, self.now_s + TTL_S

    @rule(name=st.sampled_from(NAMES), count=st.integers(1, 9))
    def start_calls(self, name: str, count: int) -> None:
        caller = self.callers[name]
        for _ in range(count):
            if self.is_live(caller) and len(caller.calls) < caller.limit:
                caller.calls.append(self.now_s)

    @rule(name=st.sampled_from(NAMES), count=st.integers(1, 9))
    def finish_calls(self, name: str, count: int) -> None:
        del self.callers[name].calls[:count]

    @rule(name=st.sampled_from(NAMES))
    def kill(self, name: str) -> None:
        """Its calls go on at the dependency for as long as a call can; another process takes its name."""
        self.ghosts += self.callers[name].calls
        self.callers[name] = Caller()
        if self.pool is not None and name in self.pool.holders:  # a process has a name of its own
            holders = dict(self.pool.holders)
            holders[f"{name}-{self.now_s}-{len(holders)}"] = holders.pop(name)
            self.pool = Pool(self.pool.limit, self.pool.drain_s, self.pool.blind_until_s, holders)

    @rule()
    def supervisor_dies(self) -> None:
        self.pool = None

    @rule()
    def supervisor_starts(self) -> None:
        self.pool = permits.lost_time(Pool(LIMIT, DRAIN_S), self.now_s)

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, TTL_S - 0.01, TTL_S, TTL_S + DRAIN_S, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        for caller in self.callers.values():
            caller.calls = [began for began in caller.calls if self.now_s - began < DRAIN_S]
        self.ghosts = [began for began in self.ghosts if self.now_s - began < DRAIN_S]
        if self.pool is not None:
            self.pool = permits.expire(self.pool, self.now_s)

    @invariant()
    def never_more_calls_than_the_limit(self) -> None:
        under_way = sum(len(caller.calls) for caller in self.callers.values()) + len(self.ghosts)
        assert under_way <= LIMIT

    @invariant()
    def what_may_be_used_is_on_the_account(self) -> None:
        usable = sum(max(c.limit if self.is_live(c) else 0, len(c.calls)) for c in self.callers.values())
        assert usable + len(self.ghosts) <= LIMIT


TestLeaseMachine = LeaseMachine.TestCase
TestLeaseMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@given(
    st.integers(0, 50),
    st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 30), min_size=1),
    st.integers(0, 9),
)
def test_shares_are_max_min_fair(limit: int, wanted: dict[str, int], turn: int) -> None:
    shares = permits.fair_shares(limit, wanted, turn)
    assert sum(shares.values()) == min(limit, sum(wanted.values()))
    assert all(0 <= shares[name] <= wanted[name] for name in wanted)
    short = [name for name in wanted if shares[name] < wanted[name]]
    for name in short:  # who goes short gets at most one less than anybody else
        assert all(shares[other] <= shares[name] + 1 for other in wanted)


def test_what_cannot_be_divided_goes_round() -> None:
    lucky = {
        max(shares, key=shares.__getitem__)
        for turn in range(3)
        if (shares := permits.fair_shares(1, dict.fromkeys("abc", 1), turn))
    }
    assert lucky == {"a", "b", "c"}


def test_what_one_gives_up_another_gets_only_once_it_is_surely_not_used() -> None:
    pool, granted = permits.ask(Pool(10), "a", 0, 10, 0.0)
    assert granted == 10
    pool, granted = permits.ask(pool, "b", 0, 10, 0.1)
    assert granted == 0, "a still has all of them"
    pool, granted = permits.ask(pool, "a", 10, 10, 0.2)
    assert granted == 5, "a is told to come down"
    pool, granted = permits.ask(pool, "b", 0, 10, 0.3)
    assert granted == 0, "and has not yet said that it did"
    pool, granted = permits.ask(pool, "a", 5, 10, 0.4)
    pool, granted = permits.ask(pool, "b", 0, 10, 0.5)
    assert granted == 5


def test_a_holder_that_fell_silent_is_waited_out() -> None:
    pool, _ = permits.ask(Pool(10, drain_s=4.0), "dead", 0, 10, 0.0)
    ends_s = TTL_S + 4.0 + MARGIN_S
    pool, granted = permits.ask(pool, "b", 0, 10, ends_s - 0.01)
    assert granted == 0
    pool, granted = permits.ask(pool, "b", 0, 10, ends_s)
    assert granted == 10
