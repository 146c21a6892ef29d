"""Paid calls: the maximum is reserved before, what was used is settled after, what nobody knows is credited later."""

from collections.abc import Mapping
from typing import ClassVar

from events.messages import Command, Event, Personal, Query
from events.tenant.prices import TokenPrice
from events.tenant.words import Outcome, UsageSource


class ReserveCall(Command, frozen=True, omit_defaults=True, tag="call.reserve"):
    """Hold the most that a call can cost before it starts.

    A model call gives its token maxima and the list ``price``: its cost is then tokens times price, the tenant's own
    price where it has one. Other calls give ``cost_max_nano_usd`` only. ``tags``: what spend is reported by beside key,
    user and model; they are kept in clear.
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


class SettleCall(Command, frozen=True, tag="call.settle"):
    """Book what the call really used, and free the rest of its reservation.

    ``cost_nano_usd`` counts where the reservation holds no price; else the cost is tokens times that price, and of an
    unknown usage the maximum.
    """

    reply_is_personal: ClassVar[bool] = False

    reservation_id: str
    input_tokens: int
    output_tokens: int
    cost_nano_usd: int
    outcome: Outcome
    usage_source: UsageSource


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
    ``reserved_us`` never runs backwards in a log; 0: written before it was kept.
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


class CallSettled(Event, frozen=True, omit_defaults=True, tag="call.settled.v1"):
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


CallCommand = ReserveCall | SettleCall | CreditCall | ListUnknownCalls
CallEvent = CallReserved | CallSettled | ReservationExpired | CallCredited
