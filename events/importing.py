"""Bringing an exported log into a store, event by event as they were written."""

from collections.abc import Iterator, Sequence

from events.codec import GENESIS, Entry, StoredEvent, check_chain, decode_record, next_hash
from events.errors import AlreadyExistsError, ChainBrokenError
from events.scan import read_range
from events.store import Append, EventStore

_IMPORT_EVENTS, _IMPORT_BYTES = 1_000, 256 * 1024  # of one append


def import_batches(events: Sequence[StoredEvent]) -> Iterator[list[StoredEvent]]:
    """Neighbours in parts that one append, and one request, may hold."""
    batch: list[StoredEvent] = []
    size = 0
    for event in events:
        size += len(event.record) + len(event.hash)
        if batch and (size > _IMPORT_BYTES or len(batch) >= _IMPORT_EVENTS):
            yield batch
            batch, size = [], len(event.record) + len(event.hash)
        batch.append(event)
    yield batch


async def import_events(store: EventStore, tenant: str, events: Sequence[StoredEvent]) -> int:
    """Append neighbouring events of an exported log, as they were written; returns where the log ends now. Those that
    the store has already are only compared, so repeating it is harmless. The tenant's timer is set so that it is woken
    and sets its own.

    Raises:
        AlreadyExistsError: The store has another log of that tenant.
        ChainBrokenError: They don't follow each other, or what the store has of the log ends before them.
    """
    head = await store.head(tenant)
    at, last = (head.position, head.hash) if head is not None else (0, GENESIS)
    first = events[0].position
    known = [event for event in events if event.position <= at]
    if known and await read_range(store, tenant, first - 1, known[-1].position) != known:
        raise AlreadyExistsError("tenant", tenant)
    new = events[len(known) :]
    if not new:
        return at
    if new[0].position > at + 1:
        raise ChainBrokenError(tenant, at + 1, f"missing; the next event has position {new[0].position}")
    if new[0].hash != next_hash(last, new[0].record):
        raise AlreadyExistsError("tenant", tenant)
    check_chain(tenant, last, at + 1, new)
    claimed = await store.claim(tenant)
    entries = [_entry_of(event) for event in new]
    await store.append(Append(tenant, claimed.epoch, at, last, entries, [], next_timer_us=1))
    return new[-1].position


def _entry_of(event: StoredEvent) -> Entry:
    record = decode_record(event.record)
    return Entry(event.record, event.hash, record.stream, record.version)
