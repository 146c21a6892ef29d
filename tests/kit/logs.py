"""Whole logs out to a file and back, as ``tenantry export`` and ``import`` do it page by page over HTTP."""

import asyncio

from events.codec import GENESIS
from events.errors import AlreadyExistsError, NotFoundError
from events.importing import import_batches, import_events
from events.scan import scan
from events.segments import SegmentWriter, open_export
from events.store import EventStore


async def export_log(store: EventStore, tenant: str, path: str) -> int:
    """Write a tenant's whole log into one verified file; returns how many events it has.

    Raises:
        NotFoundError: No such tenant.
        ChainBrokenError: The log is damaged.
    """
    head = await store.head(tenant)
    if head is None:
        raise NotFoundError("tenant", tenant)
    with SegmentWriter(path, tenant, GENESIS) as writer:
        async for page in scan(store, tenant, 0, head.position):
            await asyncio.to_thread(writer.write, page)
        return await asyncio.to_thread(writer.close)


async def import_log(store: EventStore, path: str) -> tuple[str, int]:
    """Write an exported log into a store that has none of that tenant; returns the tenant and the number of events.

    An import that was killed goes on where it stopped.

    Raises:
        AlreadyExistsError: The store has another log of that tenant.
        IntegrityError: The file is damaged, or no export of a whole log.
    """
    reader = await asyncio.to_thread(open_export, path)
    head = await store.head(reader.tenant)
    if head is not None and head.position > reader.events:
        raise AlreadyExistsError("tenant", reader.tenant)
    groups = iter(reader)
    while (events := await asyncio.to_thread(next, groups, None)) is not None:
        for batch in import_batches(events):
            await import_events(store, reader.tenant, batch)
    return reader.tenant, reader.events
