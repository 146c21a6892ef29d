"""Which upstream is tried first, and in which order the others follow."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.router.balance import (
    MEMORY_S,
    Candidate,
    Gauge,
    Strategy,
    ended,
    failed,
    measured,
    order,
    started,
)

gauges = st.builds(
    Gauge,
    under_way=st.integers(0, 50),
    latency_s=st.floats(0, 60),
    measured_s=st.floats(0, 100),
    away_until_s=st.floats(0, 200),
)
candidates = st.lists(
    st.builds(Candidate, weight=st.integers(0, 10), gauge=gauges, is_refused=st.booleans()), min_size=1, max_size=8
)
strategies = st.sampled_from(["weighted", "least_busy", "fastest"])


@given(strategies, candidates, st.floats(100, 300), st.randoms(use_true_random=False))
def test_everyone_is_tried_once_and_who_is_away_comes_last(
    strategy: Strategy, some: list[Candidate], now_s: float, dice: random.Random
) -> None:
    chosen = order(strategy, some, now_s, dice.random)
    assert sorted(chosen.indices) == list(range(len(some)))
    assert 0 < chosen.propensity <= 1
    away = [
        float("inf") if some[i].is_refused else max(0, some[i].gauge.away_until_s - now_s) for i in chosen.indices
    ]  # fmt: skip
    assert away == sorted(away), "and of those, who is back first comes first"


@given(strategies, candidates, st.integers(0, 2**32))
def test_the_same_dice_give_the_same_order(strategy: Strategy, some: list[Candidate], seed: int) -> None:
    assert order(strategy, some, 100, random.Random(seed).random) == order(
        strategy, some, 100, random.Random(seed).random
    )


@given(candidates)
def test_least_busy_is_least_busy_for_its_weight(some: list[Candidate]) -> None:
    here = [c for c in some if not c.is_refused and c.gauge.away_until_s <= 100 and c.weight]
    if not here:
        return
    first = some[order("least_busy", some, 100, random.Random(1).random).indices[0]]
    assert first.gauge.under_way / first.weight == min(c.gauge.under_way / c.weight for c in here)


def test_weights_are_shares_and_the_propensity_says_which() -> None:
    dice, some = random.Random(7), [Candidate(1), Candidate(3), Candidate(0)]
    orders = [order("weighted", some, 0, dice.random) for _ in range(4_000)]
    share = Counter(chosen.indices[0] for chosen in orders)
    assert share[2] == 0
    assert 0.70 < share[1] / 4_000 < 0.80
    assert {chosen.indices[0]: chosen.propensity for chosen in orders} == {0: 0.25, 1: 0.75}


def test_a_reserve_is_used_when_all_others_are_away() -> None:
    chosen = order("weighted", [Candidate(5, is_refused=True), Candidate(0)], 0, random.random)
    assert chosen.indices == (1, 0)
    assert "1 away" in chosen.reason


def test_the_fastest_is_who_is_expected_to_begin_first_and_the_unmeasured_is_tried() -> None:
    slow, quick, new = measured(Gauge(), 2.0, 100), measured(Gauge(), 0.1, 100), Gauge()
    some = [Candidate(1, slow), Candidate(1, quick)]
    assert order("fastest", some, 100, random.random).indices == (1, 0)
    assert order("fastest", [*some, Candidate(1, new)], 100, random.random).indices[0] == 2
    busy = quick
    for _ in range(30):
        busy = started(busy)
    assert order("fastest", [Candidate(1, slow), Candidate(1, busy)], 100, random.random).indices[0] == 0
    for _ in range(30):
        busy = ended(busy)
    assert busy == quick


def test_a_peak_is_believed_at_once_and_forgotten_by_and_by() -> None:
    gauge = measured(measured(Gauge(), 0.1, 0), 4.0, 1)
    assert gauge.latency_s == 4.0
    better = measured(gauge, 0.1, 2)
    assert 0.1 < better.latency_s < 4.0
    assert gauge.expected_s(1 + 5 * MEMORY_S) < 0.04


@given(st.lists(st.tuples(st.floats(0, 60), st.floats(0, 30)), max_size=30))
def test_an_estimate_is_never_above_the_worst_that_was_measured(steps: list[tuple[float, float]]) -> None:
    gauge, now_s, worst = Gauge(), 0.0, 0.0
    for latency_s, wait_s in steps:
        now_s += wait_s
        gauge, worst = measured(gauge, latency_s, now_s), max(worst, latency_s)
        assert 0 <= gauge.expected_s(now_s) <= worst


@pytest.mark.parametrize(("retry_after_s", "away_s"), [(None, 0), (3.0, 3), (9_999.0, 60)])
def test_who_fails_is_slow_and_who_asks_for_patience_is_left_alone(retry_after_s: float | None, away_s: float) -> None:
    gauge = failed(measured(Gauge(), 0.01, 100), 100, retry_after_s)
    assert gauge.expected_s(100) >= 5
    assert max(0, gauge.away_until_s - 100) == away_s
