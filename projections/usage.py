"""Usage: requests, tokens and cost of a tenant by model and day (UTC)."""

from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from events.catalog import DomainEvent
from events.codec import Record
from events.tenant import CallSettled, ReservationExpired
from projections.model import Add, Write

_COUNTERS = ("requests", "failed", "unknown", "input_tokens", "output_tokens", "cost_nano_usd")


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
        for counter in _COUNTERS:
            setattr(self, counter, getattr(self, counter) + getattr(other, counter))


class UsageProjection:
    name = "usage"
    generation = 1

    def apply(self, tenant: str, record: Record, event: DomainEvent) -> list[Write]:
        match event:
            case CallSettled():
                has_failed = event.outcome == "failed"
                used = Usage(
                    requests=int(not has_failed),
                    failed=int(has_failed),
                    unknown=int(event.usage_source == "unknown"),
                    input_tokens=event.input_tokens,
                    output_tokens=event.output_tokens,
                    cost_nano_usd=event.cost_nano_usd,
                )
                return _adds(record, event.model, used)
            case ReservationExpired(model=model, cost_nano_usd=cost):
                return _adds(record, model, Usage(requests=1, unknown=1, cost_nano_usd=cost))
            case _:
                return []


def _adds(record: Record, model: str, usage: Usage) -> list[Write]:
    day = datetime.fromtimestamp(record.time_us / 1e6, UTC).date().isoformat()
    # the model's name comes last: it is the only part that could hold a separator
    return [
        Add(f"{day}|{counter}|{model}", amount) for counter in _COUNTERS if (amount := getattr(usage, counter)) != 0
    ]


def read_usage(fields: Mapping[bytes, bytes]) -> dict[tuple[str, str], Usage]:
    """The read model's hash as usage by (day, model)."""
    found: dict[tuple[str, str], Usage] = {}
    for field, amount in fields.items():
        day, counter, model = field.decode().split("|", 2)
        setattr(found.setdefault((day, model), Usage()), counter, int(amount))
    return found
