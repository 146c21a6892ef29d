"""Spend: requests, tokens and cost of a tenant by key, user, model and tag, a day (UTC) at a time."""

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

from events.catalog import DomainEvent
from events.codec import Record
from projections.model import Add, Write
from projections.usage import BOOKINGS, COUNTERS, Booking, Usage, day_of, usage_of_event

SpendBy = Literal["key", "user", "model", "tag"]


class SpendProjection:
    name = "spend"
    generation = 1

    def apply(self, tenant: str, record: Record, event: DomainEvent) -> list[Write]:
        if type(event) not in BOOKINGS:
            return []
        assert isinstance(event, Booking)
        day, usage = day_of(record), usage_of_event(event)
        amounts = [(counter, amount) for counter in COUNTERS if (amount := getattr(usage, counter)) != 0]
        return [
            # the name comes last: it is the only part that could hold a separator
            Add(f"{day}|{by}|{counter}|{name}", amount)
            for by, name in _names(event)
            for counter, amount in amounts
        ]


def _names(event: Booking) -> Iterator[tuple[SpendBy, str]]:
    """All that the call's cost is reported under. A call without a key, user or tag is under none of that kind."""
    if event.key_id:
        yield "key", event.key_id
    yield "model", event.model
    if event.user_id:
        yield "user", event.user_id
    for tag, value in event.tags.items():
        yield "tag", f"{tag}={value}"


def read_spend(
    fields: Mapping[bytes, bytes], by: SpendBy, first_day: str = "", last_day: str = "9999"
) -> dict[str, Usage]:
    """The read model's hash as usage by name, of the days from ``first_day`` to ``last_day`` (ISO dates, both included)."""
    assert by in get_args(SpendBy)
    found: dict[str, Usage] = {}
    for field, amount in fields.items():
        day, kind, counter, name = field.decode().split("|", 3)
        if kind == by and first_day <= day <= last_day:
            usage = found.setdefault(name, Usage())
            setattr(usage, counter, getattr(usage, counter) + int(amount))
    return found
