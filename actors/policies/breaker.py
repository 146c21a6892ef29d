"""The circuit breaker as a pure state machine: closed, open, half-open, and forced by an operator.

    closed ──rate over threshold, enough calls──▶ open ──open_s over──▶ half_open ──probes well──▶ closed
                                                    ▲                        │
                                                    └────probes failed───────┘

Every transition raises ``generation``. A call carries the generation it was let through in, and its outcome counts in
that one only: an answer that was under way when the breaker opened says nothing about the dependency's recovery.

Source: M. Nygard, Release It! (2007); the rates over windows and the slow calls are Resilience4j's.
"""

from typing import Literal

import msgspec

from actors.policies.window import Counts, CountWindow, Window

Status = Literal["closed", "open", "half_open", "forced_open", "forced_closed"]

_PROBE_WAIT_MAX_S = 1.0  # what a caller is told to wait while others probe


class BreakerRules(msgspec.Struct, frozen=True, kw_only=True):
    """When to open, and how to close again. Rates are 0 to 1; a rate of 1.0 or less opens when it is *reached*.

    ``window`` is an empty window of the kind to use. ``open_jitter``: an opening lasts up to this much longer, by chance,
    so that callers that opened together don't probe together. ``probe_timeout_s``: a probe that reports nothing for so
    long counts as failed.
    """

    failure_rate: float = 0.5
    slow_rate: float = 1.0
    slow_after_s: float = float("inf")
    calls_min: int = 20
    window: Window = CountWindow(100)
    open_s: float = 10.0
    open_jitter: float = 0.2
    probes: int = 3
    probe_timeout_s: float = 60.0


class Breaker(msgspec.Struct, frozen=True):
    """``until_s``: open: when probes may start; half-open: when probes that reported nothing count as failed."""

    status: Status
    window: Window
    since_s: float = 0.0
    until_s: float = 0.0
    generation: int = 0
    cause: str = ""
    figures: Counts = Counts()  # that the last transition was decided on
    probes_started: int = 0
    probes_done: Counts = Counts()


def closed(rules: BreakerRules, now_s: float = 0.0) -> Breaker:
    return Breaker("closed", rules.window.empty(), now_s)


def permit(rules: BreakerRules, breaker: Breaker, now_s: float, chance: float = 0.0) -> tuple[Breaker, float]:
    """May a call start now? The state afterwards and the seconds to wait; 0: yes, under the state's ``generation``."""
    match breaker.status:
        case "closed" | "forced_closed":
            return breaker, 0.0
        case "forced_open":
            return breaker, rules.open_s
        case "open":
            if now_s < breaker.until_s:
                return breaker, breaker.until_s - now_s
            return _permit_probe(rules, _half_open(rules, breaker, now_s), now_s, chance)
        case "half_open":
            return _permit_probe(rules, breaker, now_s, chance)


def _permit_probe(rules: BreakerRules, breaker: Breaker, now_s: float, chance: float) -> tuple[Breaker, float]:
    if breaker.probes_started < rules.probes:
        return msgspec.structs.replace(breaker, probes_started=breaker.probes_started + 1), 0.0
    if now_s < breaker.until_s:
        return breaker, min(_PROBE_WAIT_MAX_S, breaker.until_s - now_s)
    missing = breaker.probes_started - breaker.probes_done.calls
    reopened = _opened(rules, breaker, breaker.probes_done, f"{missing} probes did not come back", now_s, chance)
    return reopened, reopened.until_s - now_s


def record(
    rules: BreakerRules,
    breaker: Breaker,
    generation: int,
    *,
    failed: bool,
    duration_s: float,
    now_s: float,
    chance: float,
) -> Breaker:
    """The state after a call that was let through under ``generation`` has ended. ``chance`` is random, 0 to 1."""
    if generation != breaker.generation or breaker.status in ("open", "forced_open", "forced_closed"):
        return breaker
    slow = duration_s >= rules.slow_after_s
    if breaker.status == "half_open":
        return _after_probe(rules, breaker, Counts(1, int(failed), int(slow)), now_s, chance)
    window = breaker.window.add(failed=failed, slow=slow, now_s=now_s)
    if window is breaker.window:
        return breaker
    cause, counts = too_bad(rules, window.counts(now_s))
    if cause:
        return _opened(rules, breaker, counts, cause, now_s, chance)
    return Breaker(breaker.status, window, breaker.since_s, breaker.until_s, generation, breaker.cause, breaker.figures)


def release(breaker: Breaker, generation: int) -> Breaker:
    """A call was let through and ended without a verdict (cancelled, or an error that doesn't count): a probe's place is
    free again.
    """
    if generation == breaker.generation and breaker.status == "half_open":
        return msgspec.structs.replace(breaker, probes_started=breaker.probes_started - 1)
    return breaker


def force(rules: BreakerRules, breaker: Breaker, status: Status, reason: str, now_s: float) -> Breaker:
    """By an operator: forced_open and forced_closed hold until the next ``force``; closed starts afresh."""
    assert status in ("forced_open", "forced_closed", "closed"), status
    counts = breaker.window.counts(now_s)
    return Breaker(status, rules.window.empty(), now_s, 0.0, breaker.generation + 1, reason, counts)


def too_bad(rules: BreakerRules, counts: Counts) -> tuple[str, Counts]:
    """Why these figures open a breaker, "" where they don't."""
    if counts.calls >= rules.calls_min:
        if counts.failures and counts.failure_rate >= rules.failure_rate:
            return f"{counts.failures} of {counts.calls} calls failed", counts
        if counts.slow and counts.slow_rate >= rules.slow_rate:
            return f"{counts.slow} of {counts.calls} calls took {rules.slow_after_s:g} s or longer", counts
    return "", counts


def _half_open(rules: BreakerRules, breaker: Breaker, now_s: float) -> Breaker:
    until_s, cause = now_s + rules.probe_timeout_s, f"open for {now_s - breaker.since_s:.3g} s"
    return Breaker("half_open", rules.window.empty(), now_s, until_s, breaker.generation + 1, cause, breaker.figures)


def _after_probe(rules: BreakerRules, breaker: Breaker, probe: Counts, now_s: float, chance: float) -> Breaker:
    """All probes are awaited before it closes; it opens as soon as no further probe could save it."""
    done = breaker.probes_done.plus(probe)
    if done.failures and done.failures >= rules.failure_rate * rules.probes:
        return _opened(rules, breaker, done, f"{done.failures} of {rules.probes} probes failed", now_s, chance)
    if done.slow and done.slow >= rules.slow_rate * rules.probes:
        return _opened(rules, breaker, done, f"{done.slow} of {rules.probes} probes were slow", now_s, chance)
    if done.calls < rules.probes:
        return msgspec.structs.replace(breaker, probes_done=done)
    cause = f"{done.calls - done.failures} of {done.calls} probes succeeded"
    return Breaker("closed", rules.window.empty(), now_s, 0.0, breaker.generation + 1, cause, done)


def _opened(rules: BreakerRules, breaker: Breaker, figures: Counts, cause: str, now_s: float, chance: float) -> Breaker:
    until_s = now_s + rules.open_s * (1 + rules.open_jitter * chance)
    return Breaker("open", rules.window.empty(), now_s, until_s, breaker.generation + 1, cause, figures)
