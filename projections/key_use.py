"""When each key last started a call. From the calls' own events, so it costs the log nothing; reads don't count."""

from collections.abc import Mapping

from events.catalog import DomainEvent
from events.codec import Record
from events.tenant import CallReserved
from projections.model import Put, Write


class KeyUseProjection:
    name = "key_use"
    generation = 1

    def apply(self, tenant: str, record: Record, event: DomainEvent) -> list[Write]:
        return (
            [Put(event.key_id, str(record.time_us).encode())]
            if isinstance(event, CallReserved) and event.key_id
            else []
        )


def read_last_used(fields: Mapping[bytes, bytes]) -> dict[str, int]:
    """Microseconds, UTC, by key id."""
    return {key_id.decode(): int(time_us) for key_id, time_us in fields.items()}
