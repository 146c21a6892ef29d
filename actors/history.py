"""A tenant as it was: the log folded up to a position."""

from actors.aggregate import State, fold
from events.codec import open_record
from events.errors import NotFoundError
from events.scan import scan
from events.sealing import Cipher
from events.store import EventStore


async def state_at(store: EventStore, cipher: Cipher, tenant: str, position: int) -> tuple[State, int]:
    """The state after the event at ``position``, and that event's time in microseconds. An erased tenant's holds
    placeholders where its personal data was.

    Raises:
        NotFoundError: The log does not reach that position.
        ChainBrokenError: Events before it are missing.
    """
    head = await store.head(tenant)
    if head is None or head.position < position:
        raise NotFoundError("position", str(position))
    state, time_us = State(), 0
    async for page in scan(store, tenant, 0, position):
        records = [open_record(stored.record, cipher) for stored in page]
        state = fold(state, [record.event for record in records])
        time_us = records[-1].time_us
    return state, time_us
