"""Up or down, with thresholds: one bad check doesn't take a dependency out, one good check doesn't bring it back.

Source: the ``rise`` and ``fall`` of HAProxy's health checks.
"""

import msgspec


class HealthRules(msgspec.Struct, frozen=True, kw_only=True):
    """``fall`` failures in a row and it is down, ``rise`` successes in a row and it is up again."""

    rise: int = 2
    fall: int = 3
    period_s: float = 5.0
    timeout_s: float = 2.0


class Health(msgspec.Struct, frozen=True):
    """``streak`` counts the latest observations in a row that speak against the present verdict."""

    is_up: bool = True
    streak: int = 0
    since_s: float = 0.0
    cause: str = ""


def observed(rules: HealthRules, health: Health, *, ok: bool, now_s: float, cause: str = "") -> Health:
    """The verdict after one more check (active) or call (passive)."""
    if ok == health.is_up:
        return Health(health.is_up, 0, health.since_s, health.cause) if health.streak else health
    streak = health.streak + 1
    if streak < (rules.fall if health.is_up else rules.rise):
        return Health(health.is_up, streak, health.since_s, health.cause)
    return Health(ok, 0, now_s, cause or f"{streak} checks in a row {'succeeded' if ok else 'failed'}")
