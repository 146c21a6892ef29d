"""Limits on how fast and how wide a tenant, a user or a key may go."""

from typing import Literal

import msgspec

from events.messages import Command, Event, Query
from events.tenant.words import TENANT_SCOPE

Resource = Literal["requests", "tokens", "concurrency"]
Strategy = Literal["token_bucket", "sliding_window", "fixed_window"]


class Limit(msgspec.Struct, frozen=True):
    """``limit`` requests or tokens per ``window_s`` seconds; for concurrency, calls at the same time.

    A token bucket fills at ``limit / window_s`` and holds ``burst`` (0: ``limit``). Tokens are counted at their maximum
    when a call starts; what it did not use is given back when it is settled.
    """

    resource: Resource
    limit: int
    window_s: int = 60
    strategy: Strategy = "token_bucket"
    burst: int = 0


class SetLimits(Command, frozen=True, tag="limits.set"):
    """All limits of the subject; an empty list removes them. They start to count anew."""

    limits: tuple[Limit, ...]
    subject: str = TENANT_SCOPE


class ListLimits(Query, frozen=True, tag="limits.list"):
    by_key: str = ""


class LimitsSet(Event, frozen=True, tag="limits.set.v1"):
    limits: tuple[Limit, ...]
    subject: str
    set_us: int


LimitCommand = SetLimits | ListLimits
LimitEvent = LimitsSet
