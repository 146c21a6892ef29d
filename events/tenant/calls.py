"""Paid calls: the maximum is reserved before, what was used is settled after, what nobody knows is credited later."""

from collections.abc import Mapping
from typing import ClassVar

import msgspec

from events.messages import Command, Event, Personal, Query
from events.tenant.prices import TokenPrice
from events.tenant.words import Outcome, UsageSource


class Target(msgspec.Struct, frozen=True, array_like=True):
    """A model that a call may be served by, the most tokens it can use there, and what they cost."""

    model: str
    input_tokens_max: int
    output_tokens_max: int
    price: TokenPrice

    @property
    def cost_max_nano_usd(self) -> int:
        return self.price.cost_nano_usd(self.input_tokens_max, self.output_tokens_max)


class Route(msgspec.Struct, frozen=True):
    """Which upstreams were to be tried, in this order, and why the first was first. ``propensity``: how probable that
    was, 0 to 1, when it was decided.
    """

    upstreams: tuple[str, ...]
    reason: str
    propensity: float = 1.0


class Attempt(msgspec.Struct, frozen=True):
    """One try at one upstream. ``result``: ok, or the code of what went wrong."""

    upstream: str
    model: str
    result: str
    duration_ms: int


class ReserveCall(Command, frozen=True, omit_defaults=True, tag="call.reserve"):
    """Hold the most that a call can cost before it starts.

    A model call gives its token maxima and the list ``price``: its cost is then tokens times price, the tenant's own
    price where it has one. Other calls give ``cost_max_nano_usd`` only. ``tags``: what spend is reported by beside key,
    user and model; they are kept in clear. ``fallbacks``: models that may serve it in its place; those that the key may
    not call are left out, and what is held covers the dearest of the rest.
    """

    reply_is_personal: ClassVar[bool] = False

    reservation_id: str
    key_id: str
    model: str
    cost_max_nano_usd: int
    ttl_us: int
    input_tokens_max: int = 0
    output_tokens_max: int = 0
    price: TokenPrice | None = None
    tags: Mapping[str, str] = {}
    fallbacks: tuple[Target, ...] = ()
    route: Route | None = None


class SettleCall(Command, frozen=True, omit_defaults=True, tag="call.settle"):
    """Book what the call really used, and free the rest of its reservation.

    ``cost_nano_usd`` counts where the reservation holds no price; else the cost is tokens times the price of the ``model``
    that served it (empty: the one that was asked for), and of an unknown usage that model's maximum.
    """

    reply_is_personal: ClassVar[bool] = False

    reservation_id: str
    input_tokens: int
    output_tokens: int
    cost_nano_usd: int
    outcome: Outcome
    usage_source: UsageSource
    model: str = ""
    attempts: tuple[Attempt, ...] = ()


class ServeCached(Command, frozen=True, omit_defaults=True, tag="call.serve_cached"):
    """Record a call that is answered from the cache: it costs nothing and uses no tokens, but whoever may not call the
    model, or has no call left, is refused as for any other.
    """

    reply_is_personal: ClassVar[bool] = False

    reservation_id: str
    key_id: str
    model: str
    tags: Mapping[str, str] = {}


class CreditCall(Command, frozen=True, tag="call.credit"):
    """Correct a call that was booked at its maximum because nobody knew: ``cost_nano_usd`` is what it really cost."""

    reservation_id: str
    cost_nano_usd: int
    reason: str
    input_tokens: int = 0
    output_tokens: int = 0


class ListUnknownCalls(Query, frozen=True, tag="call.list_unknown"):
    pass


class CallReserved(Event, frozen=True, omit_defaults=True, tag="call.reserved.v1"):
    """``window_start_us`` is the tenant's budget window that pays, also for a call that ends in the next one.
    ``reserved_us`` never runs backwards in a log; 0: written before it was kept. ``targets``: all models that may serve it,
    ``model`` among them; empty where it is the only one.
    """

    reservation_id: str
    key_id: str
    model: str
    cost_max_nano_usd: int
    expires_us: int
    window_start_us: int
    reserved_us: int = 0
    user_id: str = ""
    tokens_max: int = 0
    price: TokenPrice | None = None
    tags: Mapping[str, str] = {}
    targets: tuple[Target, ...] = ()
    route: Route | None = None


class CallSettled(Event, frozen=True, omit_defaults=True, tag="call.settled.v1"):
    """``model`` is the one that served it, at whose price it is booked; ``asked_model`` the one that was asked for, where
    that is another. ``attempts``: what was tried before and with it, where there was more to it than one that went well.
    """

    reservation_id: str
    key_id: str
    model: str
    input_tokens: int
    output_tokens: int
    cost_nano_usd: int
    outcome: Outcome
    usage_source: UsageSource
    user_id: str = ""
    tags: Mapping[str, str] = {}
    asked_model: str = ""
    attempts: tuple[Attempt, ...] = ()
    from_cache: bool = False


class ReservationExpired(Event, frozen=True, omit_defaults=True, tag="call.reservation_expired.v1"):
    """Its gateway died: the provider may have billed the call, so it is booked at its maximum."""

    reservation_id: str
    key_id: str
    model: str
    cost_nano_usd: int
    user_id: str = ""
    tags: Mapping[str, str] = {}


class CallCredited(Event, frozen=True, omit_defaults=True, tag="call.credited.v1"):
    """The call is known now: ``credited_nano_usd`` of what was booked comes back, the tokens are its real ones."""

    reservation_id: str
    key_id: str
    model: str
    credited_nano_usd: int
    input_tokens: int
    output_tokens: int
    reason: Personal
    user_id: str = ""
    tags: Mapping[str, str] = {}


CallCommand = ReserveCall | SettleCall | ServeCached | CreditCall | ListUnknownCalls
CallEvent = CallReserved | CallSettled | ReservationExpired | CallCredited
