"""Upstreams of one model in the order in which a request tries them. Pure: clock and chance are arguments.

Whoever is away (its breaker is open, or it asked for patience) comes last, whatever the strategy: it is tried only when
all others have failed. A weight is a share of the requests: an upstream of weight 3 is as good as three of weight 1. Weight
0 is a reserve: after all that have a weight.

Source: random order by weight is Efraimidis and Spirakis, Weighted random sampling with a reservoir (2006); the
estimate that follows a peak at once and forgets by time is Finagle's peak EWMA.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

Strategy = Literal["weighted", "least_busy", "fastest"]
Chance = Callable[[], float]  # 0 to 1, 1 never

MEMORY_S = 10.0  # an estimate fades to a third in so long, so that a slow upstream is tried again
_FAILED_S = 5.0  # what a failure counts as, in the measure of latency: an upstream that fails fast is not fast
_COOL_S_MAX = 60.0


class Gauge(msgspec.Struct, frozen=True):
    """What one gateway knows of an upstream. ``latency_s``: until its answer began, smoothed, as of ``measured_s``; 0: not
    measured yet.
    """

    under_way: int = 0
    latency_s: float = 0.0
    measured_s: float = 0.0
    away_until_s: float = 0.0

    def expected_s(self, now_s: float) -> float:
        """The latency to reckon with: the older the measurement, the less it counts."""
        return self.latency_s * math.exp(-max(0.0, now_s - self.measured_s) / MEMORY_S)


def started(gauge: Gauge) -> Gauge:
    return msgspec.structs.replace(gauge, under_way=gauge.under_way + 1)


def ended(gauge: Gauge) -> Gauge:
    return msgspec.structs.replace(gauge, under_way=gauge.under_way - 1)


def measured(gauge: Gauge, latency_s: float, now_s: float) -> Gauge:
    """An answer began after ``latency_s``. A peak is believed at once, an improvement little by little."""
    expected_s = gauge.expected_s(now_s)
    if latency_s < expected_s:
        kept = math.exp(-max(0.0, now_s - gauge.measured_s) / MEMORY_S)
        latency_s = gauge.latency_s * kept + latency_s * (1.0 - kept) if gauge.latency_s else latency_s
        latency_s = min(latency_s, gauge.latency_s)
    return msgspec.structs.replace(gauge, latency_s=latency_s, measured_s=now_s)


def failed(gauge: Gauge, now_s: float, retry_after_s: float | None = None) -> Gauge:
    """It failed, and perhaps asked to be left alone for a while."""
    gauge = measured(gauge, max(_FAILED_S, gauge.expected_s(now_s)), now_s)
    if not retry_after_s:
        return gauge
    return msgspec.structs.replace(gauge, away_until_s=now_s + min(retry_after_s, _COOL_S_MAX))


class Candidate(msgspec.Struct, frozen=True):
    """An upstream at the moment of a decision."""

    weight: int
    gauge: Gauge = Gauge()
    is_refused: bool = False  # its breaker lets no call through


class Order(msgspec.Struct, frozen=True):
    """``indices`` into the candidates, each once. ``propensity``: how probable its first was to be first, 0 to 1."""

    indices: tuple[int, ...]
    reason: str
    propensity: float = 1.0


def order(strategy: Strategy, candidates: Sequence[Candidate], now_s: float, chance: Chance) -> Order:
    """All candidates, the one to try first in front."""
    assert candidates, "a model has at least one upstream"
    if len(candidates) == 1:
        return Order((0,), "the only one")
    away = [_away_s(candidate, now_s) for candidate in candidates]
    costs = [_cost(strategy, candidate, now_s) for candidate in candidates]
    ranks = [(away[i], candidates[i].weight == 0, costs[i]) for i in range(len(candidates))]
    draws = [_draw(candidate.weight, chance()) for candidate in candidates]
    indices = sorted(range(len(candidates)), key=lambda i: (ranks[i], draws[i]))
    first = indices[0]
    rivals = [i for i in indices if ranks[i] == ranks[first]]
    total = sum(candidates[i].weight for i in rivals)
    propensity = candidates[first].weight / total if total else 1.0 / len(rivals)
    reason = _reason(strategy, candidates[first], sum(wait_s > 0 for wait_s in away), now_s)
    return Order(tuple(indices), reason, propensity)


def _away_s(candidate: Candidate, now_s: float) -> float:
    """For how long it should be left alone, 0: not at all. Who is back first is tried first, an open breaker last."""
    return math.inf if candidate.is_refused else max(0.0, candidate.gauge.away_until_s - now_s)


def _draw(weight: int, chance: float) -> float:
    """Sorting by it puts ``i`` first with probability weight / sum of weights."""
    return -math.log(1.0 - chance) / (weight or 1)


def _cost(strategy: Strategy, candidate: Candidate, now_s: float) -> float:
    """What a request is spared by going elsewhere; equals are told apart by chance."""
    gauge, weight = candidate.gauge, candidate.weight or 1
    match strategy:
        case "weighted":
            return 0.0
        case "least_busy":
            return gauge.under_way / weight
        case "fastest":
            return gauge.expected_s(now_s) * (gauge.under_way + 1) / weight


def _reason(strategy: Strategy, first: Candidate, away: int, now_s: float) -> str:
    gauge = first.gauge
    match strategy:
        case "weighted":
            why = f"by weight, {first.weight}"
        case "least_busy":
            why = f"least busy, {gauge.under_way} under way"
        case "fastest":
            why = f"fastest, {gauge.expected_s(now_s) * 1e3:.0f} ms expected, {gauge.under_way} under way"
    return f"{why}; {away} away" if away else why
