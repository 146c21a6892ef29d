"""Limits: what is granted in any interval, and that a replayed log goes on where it was."""

from typing import Any

import pytest
from hypothesis import given as given_values
from hypothesis import strategies as st

from actors.tenant import answer, decide, evolve, fire_timers
from events.errors import InvalidCommandError, LimitExceededError, NotFoundError, Refusal, TooLargeError
from events.tenant import (
    CallReserved,
    KeyIssued,
    Limit,
    LimitsSet,
    ListLimits,
    ReserveCall,
    SetLimits,
    SettleCall,
    Strategy,
    TenantEvent,
    TokenPrice,
    UserAdded,
)
from tests.kit.factories import HOUR_US, NOW_US, created, key_issued
from tests.kit.scenario import given, replay, replay_in_pages

SECOND_US = 1_000_000
TENANT: tuple[TenantEvent, ...] = (
    created(),
    UserAdded("ada", "Ada", "user", NOW_US),
    key_issued("k1"),
    KeyIssued("k2", "k2", b"2" * 32, NOW_US, user_id="ada"),
)
STRATEGIES: tuple[Strategy, ...] = ("token_bucket", "sliding_window", "fixed_window")


def reserve(call: str, key_id: str = "k2", tokens: int = 0) -> ReserveCall:
    return ReserveCall(call, key_id, "small", 0, HOUR_US, tokens, 0, TokenPrice(0, 0))


def settle(call: str, tokens: int) -> SettleCall:
    return SettleCall(call, tokens, 0, 0, "ok", "measured")


def limited(*limits: Limit, subject: str = "tenant") -> LimitsSet:
    return LimitsSet(limits, subject, NOW_US)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("subject", ["tenant", "key:k2", "user:ada"])
def test_what_is_over_a_limit_waits_as_long_as_it_is_told_and_no_longer(strategy: Strategy, subject: str) -> None:
    scenario = given(*TENANT, limited(Limit("requests", 3, 60, strategy), subject=subject))
    for number in range(3):
        scenario.when(reserve(f"c{number}"))
    with pytest.raises(LimitExceededError) as refusal:
        scenario.when(reserve("c4"))
    assert refusal.value.code == "rate_limit_exceeded"
    wait_us = int(refusal.value.retry_after_s * SECOND_US)
    with pytest.raises(LimitExceededError):
        scenario.when(reserve("c4"), NOW_US + wait_us - 2 * SECOND_US // 1000)
    assert len(scenario.when(reserve("c4"), NOW_US + wait_us + 1)) == 1


def test_a_limit_of_one_binds_no_other() -> None:
    scenario = given(*TENANT, limited(Limit("requests", 1), subject="key:k2"))
    scenario.when(reserve("c1"))
    assert len(scenario.when(reserve("c2", "k1"))) == 1


def test_concurrency_counts_open_calls_also_those_from_before_the_limit() -> None:
    scenario = given(*TENANT)
    scenario.when(reserve("c1"))
    scenario.when(SetLimits((Limit("concurrency", 2),)))
    scenario.when(reserve("c2"))
    with pytest.raises(LimitExceededError) as refusal:
        scenario.when(reserve("c3"))
    assert (refusal.value.code, refusal.value.retry_after_s) == ("concurrency_limit_exceeded", 1.0)
    scenario.when(settle("c1", 0))
    assert len(scenario.when(reserve("c3"))) == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_tokens_count_at_their_maximum_and_what_was_not_used_comes_back(strategy: Strategy) -> None:
    scenario = given(*TENANT, limited(Limit("tokens", 100, 60, strategy)))
    scenario.when(reserve("c1", tokens=80))
    with pytest.raises(LimitExceededError) as refusal:
        scenario.when(reserve("c2", tokens=30))
    assert refusal.value.code == "tokens_limit_exceeded"
    scenario.when(settle("c1", 10))
    assert len(scenario.when(reserve("c2", tokens=90))) == 1
    with pytest.raises(LimitExceededError):
        scenario.when(reserve("c3", tokens=1))


def test_a_call_from_before_a_limit_gives_nothing_back_to_it() -> None:
    scenario = given(*TENANT)
    scenario.when(reserve("c1", tokens=50))
    scenario.when(SetLimits((Limit("tokens", 100),)))
    scenario.when(reserve("c2", tokens=100))
    scenario.when(settle("c1", 0))
    with pytest.raises(LimitExceededError):
        scenario.when(reserve("c3", tokens=1))


def test_a_call_that_no_wait_would_let_in_is_told_so() -> None:
    with pytest.raises(TooLargeError, match="101, the limit is 100"):
        given(*TENANT, limited(Limit("tokens", 100))).when(reserve("c1", tokens=101))


def test_the_longest_wait_of_several_limits_is_told() -> None:
    scenario = given(*TENANT, limited(Limit("requests", 1, 10)), limited(Limit("requests", 1, 60), subject="user:ada"))
    scenario.when(reserve("c1"))
    with pytest.raises(LimitExceededError, match="user:ada"):
        scenario.when(reserve("c2"))


def test_a_refused_call_takes_nothing_from_any_limit() -> None:
    scenario = given(*TENANT, limited(Limit("requests", 5)), limited(Limit("concurrency", 1), subject="key:k2"))
    scenario.when(reserve("c1"))
    for _ in range(10):
        with pytest.raises(LimitExceededError):
            scenario.when(reserve("c2"))
    assert answer(scenario.state, "acme", reserve("c1"), NOW_US)["limits"]["requests"][:2] == (5, 4)


def test_an_answer_tells_what_is_left_of_the_tightest_limit() -> None:
    scenario = given(*TENANT, limited(Limit("requests", 100)), limited(Limit("requests", 3, 60), subject="key:k2"))
    scenario.when(reserve("c1"))
    assert answer(scenario.state, "acme", reserve("c1"), NOW_US)["limits"] == {"requests": (3, 2, 20.0)}


def test_cleared_limits_bind_nobody() -> None:
    scenario = given(*TENANT, limited(Limit("requests", 1)))
    scenario.when(reserve("c1"))
    scenario.when(SetLimits(()))
    assert len(scenario.when(reserve("c2"))) == 1
    assert answer(scenario.state, "acme", ListLimits(), NOW_US) == {"limits": []}


@pytest.mark.parametrize(
    "bad",
    [
        SetLimits((Limit("requests", 0),)),
        SetLimits((Limit("requests", 1, 0),)),
        SetLimits((Limit("concurrency", 1, burst=2),)),
        SetLimits((Limit("requests", 1, 60, "fixed_window", 2),)),
        SetLimits((Limit("requests", 1),) * 11),
    ],
)
def test_limits_that_make_no_sense_are_refused(bad: SetLimits) -> None:
    with pytest.raises(InvalidCommandError):
        given(*TENANT).when(bad)


def test_limits_for_nobody_are_refused() -> None:
    with pytest.raises(NotFoundError):
        given(*TENANT).when(SetLimits((), "key:nobody"))


calls = st.sampled_from("abcdefgh")
steps = st.one_of(
    st.builds(reserve, calls, st.sampled_from(["k1", "k2"]), st.integers(0, 40)),
    st.builds(settle, calls, st.integers(0, 40)),
    st.none(),  # timers fire
)


@given_values(
    st.sampled_from(STRATEGIES),
    st.integers(1, 6),
    st.lists(st.tuples(steps, st.integers(0, 20 * SECOND_US)), max_size=80),
)
def test_no_interval_sees_more_than_its_limits_allow_and_a_replay_goes_on_the_same(
    strategy: Strategy, most: int, steps: list[tuple[Any, int]]
) -> None:
    """Requests in any window (twice the limit where windows are fixed, a bucket's content besides), calls at once; and
    the state folded from the log is the state it was decided on.
    """
    history: list[TenantEvent] = [*TENANT, limited(Limit("requests", most, 60, strategy), Limit("concurrency", 4))]
    state, now_us, granted = replay(history), NOW_US, []
    for command, wait_us in steps:
        now_us += wait_us
        try:
            events = decide(state, "acme", command, now_us) if command else fire_timers(state, now_us)
        except Refusal:
            continue
        for event in events:
            state = evolve(state, event)
            history.append(event)
            granted += [now_us] if isinstance(event, CallReserved) else []
        assert len(state.reservations) <= 4
    allowed = most if strategy == "sliding_window" else 2 * most
    for start in granted:
        assert sum(start <= at < start + 60 * SECOND_US for at in granted) <= allowed
    assert replay(history) == state
    assert [replay_in_pages(history, size) for size in (1, 7, 500)] == [state] * 3
