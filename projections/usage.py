"""Usage: requests, tokens and cost of a tenant by model and day (UTC)."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from events.catalog import DomainEvent
from events.codec import Record
from events.tenant import CallCredited, CallSettled, ReservationExpired
from projections.model import Add, Write

Booking = CallSettled | ReservationExpired | CallCredited
BOOKINGS = frozenset(Booking.__args__)  # most events are none of these, which a set says at once
_DAY_US = 24 * 3600 * 1_000_000
COUNTERS = ("requests", "failed", "unknown", "input_tokens", "output_tokens", "cost_nano_usd")


class Usage(msgspec.Struct, kw_only=True):
    """``failed`` calls are not among ``requests``; most cost nothing, one that broke in the middle what it had used.
    ``unknown`` calls were booked at their maximum, because nobody can know what they used (their gateway died, say).
    """

    requests: int = 0
    failed: int = 0
    unknown: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano_usd: int = 0

    def add(self, other: "Usage") -> None:
        for counter in COUNTERS:
            setattr(self, counter, getattr(self, counter) + getattr(other, counter))


class UsageProjection:
    name = "usage"
    generation = 1

    def apply(self, tenant: str, record: Record, event: DomainEvent) -> list[Write]:
        if type(event) not in BOOKINGS:
            return []
        assert isinstance(event, Booking)
        return _adds(day_of(record), event.model, usage_of_event(event))


def usage_of_event(event: Booking) -> Usage:
    """What a booking adds. A credit corrects, on its own day, a call that was booked as unknown before."""
    match event:
        case CallSettled():
            has_failed = event.outcome == "failed"
            return Usage(
                requests=int(not has_failed),
                failed=int(has_failed),
                unknown=int(event.usage_source == "unknown"),
                input_tokens=event.input_tokens,
                output_tokens=event.output_tokens,
                cost_nano_usd=event.cost_nano_usd,
            )
        case ReservationExpired():
            return Usage(requests=1, unknown=1, cost_nano_usd=event.cost_nano_usd)
        case CallCredited():
            return Usage(
                unknown=-1,
                input_tokens=event.input_tokens,
                output_tokens=event.output_tokens,
                cost_nano_usd=-event.credited_nano_usd,
            )


def day_of(record: Record) -> str:
    """The day that the event happened on (UTC), as ISO 8601 writes it."""
    return _day(record.time_us // _DAY_US)


@lru_cache(maxsize=64)
def _day(number: int) -> str:
    return datetime.fromtimestamp(number * _DAY_US / 1e6, UTC).date().isoformat()


def _adds(day: str, model: str, usage: Usage) -> list[Write]:
    # the model's name comes last: it is the only part that could hold a separator
    return [Add(f"{day}|{counter}|{model}", amount) for counter in COUNTERS if (amount := getattr(usage, counter)) != 0]


def read_usage(fields: Mapping[bytes, bytes]) -> dict[tuple[str, str], Usage]:
    """The read model's hash as usage by (day, model)."""
    found: dict[tuple[str, str], Usage] = {}
    for field, amount in fields.items():
        day, counter, model = field.decode().split("|", 2)
        setattr(found.setdefault((day, model), Usage()), counter, int(amount))
    return found
