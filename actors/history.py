"""A tenant as it was: the log folded up to a position."""

from actors.aggregate import State, fold
from events.codec import open_record
from events.errors import NotFoundError
from events.sealing import Cipher
from events.store import EventStore


async def state_at(store: EventStore, cipher: Cipher, tenant: str, position: int) -> tuple[State, int]:
    """The state after the event at ``position``, and that event's time in microseconds. An erased tenant's holds
    placeholders where its personal data was.

    Raises:
        NotFoundError: The log does not reach that position.
    """
    state, at, time_us = State(), 0, 0
    while at < position:
        page = await store.read(tenant, at, min(500, position - at))
        if not page:
            raise NotFoundError("position", str(position))
        records = [open_record(stored.record, cipher) for stored in page]
        state = fold(state, [record.event for record in records])
        at, time_us = page[-1].position, records[-1].time_us
    return state, time_us
