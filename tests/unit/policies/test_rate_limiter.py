"""Whatever the schedule: never more than allowed, never refused for ever, and the wait it names is long enough."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.policies.rate_limiter import FixedWindow, Limiter, SlidingWindow, TokenBucket
from actors.policies.refusals import RateLimitedError
from actors.policies.wrappers.rate_limiter import RateLimiter
from tests.kit.clock import ManualMonotonic

LIMIT, WINDOW_S = 10.0, 2.0
START_S = 1_790_000_000.0  # also with the coarse floats of wall-clock time

schedules = st.lists(
    st.tuples(st.one_of(st.just(0.0), st.floats(0, 3)), st.one_of(st.just(1.0), st.floats(0.1, 12))), max_size=80
)
Grants = list[tuple[float, float]]


def run(limiter: Limiter, schedule: list[tuple[float, float]]) -> Grants:
    """Times and costs that were granted; along the way, refusals are checked for what they promise."""
    now_s, granted = START_S, []
    for pause_s, cost in schedule:
        now_s += pause_s
        after, wait_s = limiter.take(cost, now_s)
        assert (wait_s == math.inf) == (cost > LIMIT)
        if wait_s > 0:
            assert after == limiter, "a refusal takes nothing"
            if wait_s < math.inf:
                assert limiter.take(cost, now_s + wait_s)[1] == 0, "granted after the wait, if nobody else comes"
            continue
        limiter = after
        granted.append((now_s, cost))
    return granted


@given(schedules)
def test_a_token_bucket_grants_at_most_burst_plus_rate_times_any_interval(schedule: list[tuple[float, float]]) -> None:
    rate = 3.0
    granted = run(TokenBucket.full(rate, LIMIT, START_S), schedule)
    for first in range(len(granted)):
        for last in range(first, len(granted)):
            interval_s = granted[last][0] - granted[first][0]
            assert sum(cost for _, cost in granted[first : last + 1]) <= LIMIT + rate * interval_s + 1e-5


@given(schedules)
def test_a_fixed_window_grants_at_most_its_limit_per_window(schedule: list[tuple[float, float]]) -> None:
    per_window: dict[float, float] = {}
    for now_s, cost in run(FixedWindow(LIMIT, WINDOW_S), schedule):
        per_window[now_s // WINDOW_S] = per_window.get(now_s // WINDOW_S, 0.0) + cost
    assert all(used <= LIMIT + 1e-6 for used in per_window.values())


@given(schedules)
def test_a_sliding_window_grants_at_most_its_limit_in_any_interval_of_its_length(
    schedule: list[tuple[float, float]],
) -> None:
    granted = run(SlidingWindow(LIMIT, WINDOW_S), schedule)
    for end_s, _ in granted:
        used = sum(cost for now_s, cost in granted if end_s - WINDOW_S < now_s <= end_s)
        assert used <= LIMIT + 1e-6


@given(schedules)
def test_a_sliding_window_lets_go_of_what_is_older_and_stays_small(schedule: list[tuple[float, float]]) -> None:
    limiter, now_s = SlidingWindow(LIMIT, WINDOW_S), START_S
    for pause_s, cost in schedule:
        now_s += pause_s
        limiter, _ = limiter.take(cost, now_s)
        assert len(limiter.slots) <= 21
    assert limiter.take(LIMIT, now_s + WINDOW_S * 1.06)[1] == 0


@pytest.mark.parametrize(
    "limiter",
    [TokenBucket.full(1, 2, 50.0), FixedWindow(2, 10.0), SlidingWindow(2, 10.0)],
    ids=lambda x: type(x).__name__,
)
def test_a_clock_that_runs_back_grants_nothing_extra(limiter: Limiter) -> None:
    limiter, _ = limiter.take(2, 55.0)
    assert limiter.take(1, 41.0)[1] > 0


async def test_acquire_waits_up_to_its_maximum_and_then_refuses_with_the_wait() -> None:
    clock = ManualMonotonic()
    limiter = RateLimiter("mail", TokenBucket.full(1, 1, clock()), wait_max_s=1.5, clock=clock, sleep=clock.sleep)
    await limiter.acquire()
    await limiter.acquire()
    assert clock.slept == [pytest.approx(1.0, abs=1e-3)]
    with pytest.raises(RateLimitedError) as refusal:
        await limiter.acquire(2)
    assert "never granted" in str(refusal.value)
    limiter.wait_max_s = 0.5
    with pytest.raises(RateLimitedError) as refusal:
        await limiter.acquire()
    assert refusal.value.retry_after_s == pytest.approx(1.0, abs=1e-3)
    assert refusal.value.code == "dependency_rate_limited"
