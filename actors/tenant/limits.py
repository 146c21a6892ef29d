"""Limits of a tenant, its users and keys: decided here, exactly, on the arithmetic of ``policies.rate_limiter``.

The counters are folded from the calls in the log, so a tenant that moves or restarts goes on where it was.
"""

import math
from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from actors.persistent import Map
from actors.policies.rate_limiter import FixedWindow, SlidingWindow, TokenBucket
from actors.tenant.budgets import check_known_subject
from actors.tenant.state import Limits, Reservation, Tenant
from events.errors import InvalidCommandError, LimitExceededError, TooLargeError
from events.tenant import Limit, LimitEvent, LimitsSet, SetLimits, TenantEvent

RULES_MAX = 10
_WINDOW_S_MAX = 31 * 24 * 3600
_LIMIT_MAX = 10**12
_CONCURRENCY_RETRY_S = 1.0  # nobody knows when a call ends

Limiter = TokenBucket | FixedWindow | SlidingWindow


def set_limits(state: Tenant, command: SetLimits, now_us: int) -> list[TenantEvent]:
    check_known_subject(state, command.subject)
    if len(command.limits) > RULES_MAX:
        raise InvalidCommandError(f"at most {RULES_MAX} limits, got {len(command.limits)}")
    for rule in command.limits:
        _check_rule(rule)
    return [LimitsSet(command.limits, command.subject, state.now_us(now_us))]


def _check_rule(rule: Limit) -> None:
    if not 0 < rule.limit <= _LIMIT_MAX:
        raise InvalidCommandError(f"a limit is 1 to {_LIMIT_MAX}, got {rule.limit}")
    if not 0 < rule.window_s <= _WINDOW_S_MAX:
        raise InvalidCommandError(f"a window has 1 to {_WINDOW_S_MAX} seconds, got {rule.window_s}")
    if not 0 <= rule.burst <= _LIMIT_MAX:
        raise InvalidCommandError(f"a burst is 1 to {_LIMIT_MAX}, or 0 for as much as the limit, got {rule.burst}")
    if rule.burst and (rule.resource == "concurrency" or rule.strategy != "token_bucket"):
        raise InvalidCommandError("only a token bucket has a burst")


def _limiter(rule: Limit, now_s: float) -> Limiter | None:
    if rule.resource == "concurrency":
        return None
    match rule.strategy:
        case "token_bucket":
            return TokenBucket.full(rule.limit / rule.window_s, float(rule.burst or rule.limit), now_s)
        case "fixed_window":
            return FixedWindow(float(rule.limit), float(rule.window_s))
        case "sliding_window":
            return SlidingWindow(float(rule.limit), float(rule.window_s))


def check(state: Tenant, subjects: Iterable[str], tokens_max: int, at_us: int) -> None:
    """
    Raises:
        LimitExceededError: Of the limit that has to be waited for longest.
        TooLargeError: The call alone is more than a limit ever allows.
    """
    refusals = []
    for subject in subjects:
        limits = state.limits.get(subject)
        for rule, limiter in zip(limits.rules, limits.limiters, strict=True) if limits else ():
            assert limits is not None
            wait_s = _wait_s(rule, limiter, limits.calls_open, tokens_max, at_us)
            if math.isinf(wait_s):
                raise TooLargeError(
                    f"the most tokens this call can use, for the limit of {subject},", tokens_max, _most(rule)
                )
            if wait_s > 0:
                refusals.append(LimitExceededError(subject, rule.resource, rule.limit, rule.window_s, wait_s))
    if refusals:
        raise max(refusals, key=lambda refusal: refusal.retry_after_s)


def _wait_s(rule: Limit, limiter: Limiter | None, calls_open: int, tokens_max: int, at_us: int) -> float:
    if limiter is None:
        return _CONCURRENCY_RETRY_S if calls_open >= rule.limit else 0.0
    return limiter.take(_cost(rule, tokens_max), at_us / 1e6)[1]


def _cost(rule: Limit, tokens: int) -> int:
    return tokens if rule.resource == "tokens" else 1


def _most(rule: Limit) -> int:
    return rule.burst or rule.limit


def reserved(limits: Map[str, Limits], held: Reservation) -> Map[str, Limits]:
    for subject in held.subjects if limits else ():
        if (before := limits.get(subject)) is not None:
            limiters = tuple(
                limiter and limiter.take(_cost(rule, held.tokens_max), held.at_us / 1e6)[0]
                for rule, limiter in zip(before.rules, before.limiters, strict=True)
            )
            limits = limits.set(subject, replace(before, limiters=limiters, calls_open=before.calls_open + 1))
    return limits


def booked(limits: Map[str, Limits], held: Reservation, tokens_unused: int) -> Map[str, Limits]:
    for subject in held.subjects if limits else ():
        if (before := limits.get(subject)) is not None:
            limiters = before.limiters
            if tokens_unused > 0 and held.version > before.version:
                limiters = tuple(
                    limiter.give_back(tokens_unused, held.at_us / 1e6)
                    if limiter and rule.resource == "tokens"
                    else limiter
                    for rule, limiter in zip(before.rules, before.limiters, strict=True)
                )
            limits = limits.set(subject, replace(before, limiters=limiters, calls_open=before.calls_open - 1))
    return limits


def evolve(state: Tenant, event: LimitEvent, version: int) -> Tenant:
    match event:
        case LimitsSet(rules, subject, set_us):
            if not rules:
                cleared = state.limits.delete(subject) if subject in state.limits else state.limits
                return replace(state, version=version, limits=cleared)
            calls_open = sum(subject in held.subjects for held in state.reservations.values())
            limiters = tuple(_limiter(rule, set_us / 1e6) for rule in rules)
            limits = state.limits.set(subject, Limits(rules, limiters, calls_open, version))
            return replace(state, version=version, limits=limits)


def left(state: Tenant, subjects: Iterable[str], now_us: int) -> dict[str, tuple[int, int, float]]:
    """By resource: limit, what is left of it, and in how many seconds all of it could be used; of the tightest limit."""
    found: dict[str, tuple[int, int, float]] = {}
    for subject in subjects if state.limits else ():
        limits = state.limits.get(subject)
        for rule, limiter in zip(limits.rules, limits.limiters, strict=True) if limits else ():
            if limiter is None:
                continue
            free, reset_s = limiter.left(state.now_us(now_us) / 1e6)
            if rule.resource not in found or free < found[rule.resource][1]:
                found[rule.resource] = (_most(rule), max(0, int(free)), round(reset_s, 3))
    return found


def row(state: Tenant, subject: str, now_us: int) -> dict[str, Any] | None:
    """The limits of a subject as an operator sees them; None where there are none."""
    limits = state.limits.get(subject)
    if limits is None:
        return None
    rules = []
    for rule, limiter in zip(limits.rules, limits.limiters, strict=True):
        free = _most(rule) - limits.calls_open if limiter is None else limiter.left(state.now_us(now_us) / 1e6)[0]
        rules.append(
            {
                "resource": rule.resource,
                "limit": rule.limit,
                "window_s": rule.window_s,
                "strategy": rule.strategy,
                "burst": rule.burst,
                "left": max(0, int(free)),
            }
        )
    return {"subject": subject, "limits": rules}
