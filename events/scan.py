"""Reading a log from a position on, page by page: the next page is on its way while the last one is worked on."""

import asyncio
from collections.abc import AsyncIterator

from events.codec import StoredEvent
from events.errors import ChainBrokenError
from events.store import EventStore

PAGE_EVENTS = 500  # larger ones are slower: they no longer fit the processor's caches


async def scan(
    store: EventStore, tenant: str, after_position: int, through: int | None = None
) -> AsyncIterator[list[StoredEvent]]:
    """The events after a position, as gap-free pages, through another one or to the end of the log.

    Raises:
        ChainBrokenError: The log has a gap, or ends before ``through``.
    """

    def read_on() -> asyncio.Task[list[StoredEvent]] | None:
        wanted = PAGE_EVENTS if through is None else min(PAGE_EVENTS, through - at)
        return asyncio.create_task(store.read(tenant, at, wanted)) if wanted > 0 else None

    at = after_position
    reading = read_on()
    try:
        while reading is not None:
            page, reading = await reading, None
            if not page and through is None:
                return
            if not page or page[0].position != at + 1 or page[-1].position != at + len(page):
                raise _gap(tenant, at, through, page)
            at = page[-1].position
            if through is not None or len(page) == PAGE_EVENTS:
                reading = read_on()
                await asyncio.sleep(0)  # so that it is sent before the page is worked on
            yield page
    finally:
        if reading is not None:
            reading.cancel()
            await asyncio.wait([reading])


async def read_range(store: EventStore, tenant: str, after_position: int, through: int) -> list[StoredEvent]:
    """All events of a range. Raises ChainBrokenError where the log ends before it."""
    return [event async for page in scan(store, tenant, after_position, through) for event in page]


def _gap(tenant: str, after_position: int, through: int | None, page: list[StoredEvent]) -> ChainBrokenError:
    for expected, event in enumerate(page, after_position + 1):
        if event.position != expected:
            return ChainBrokenError(tenant, expected, f"missing; the next event has position {event.position}")
    return ChainBrokenError(tenant, after_position + 1, f"missing; the log should reach {through}")
