"""Runs as the tenant's log has them, under way or ended."""

import msgspec

from actors.run.state import Run, fold_stream
from events.codec import StoredEvent, decode_event, decode_record
from events.errors import NotFoundError
from events.keys import Keys
from events.run import RunEvent, RunEvents, run_stream
from events.sealing import Cipher
from events.slices import TENANT_ID
from events.store import EventStore

_PAGE = 500


class Entry(msgspec.Struct, frozen=True):
    stored: StoredEvent
    event: RunEvents


class RunHistory:
    """A run's events are its stream of the tenant's log; what is acknowledged is in it."""

    def __init__(self, store: EventStore, keys: Keys) -> None:
        self._store, self._keys = store, keys

    async def run(self, tenant: str, run_id: str) -> Run:
        """Raises NotFoundError."""
        entries = await self.entries(tenant, run_id)
        if not entries:
            raise NotFoundError("run", run_id[:80])
        return fold_stream([entry.event for entry in entries])

    async def entries(self, tenant: str, run_id: str) -> list[Entry]:
        found: list[Entry] = []
        while page := await self.page(tenant, run_id, len(found)):
            found += page
        return found

    async def page(self, tenant: str, run_id: str, after: int, limit: int = _PAGE) -> list[Entry]:
        """Events after that version of the run's stream. Raises NotFoundError where the id can't be a tenant's."""
        if not TENANT_ID.fullmatch(tenant):
            raise NotFoundError("tenant", tenant[:80])
        stored = await self._store.read_stream(tenant, run_stream(run_id), after, limit)
        if not stored:
            return []
        cipher = await self._keys.cipher(tenant)
        return [Entry(each, _run_event(each, cipher)) for each in stored]


def _run_event(stored: StoredEvent, cipher: Cipher) -> RunEvents:
    event = decode_event(decode_record(stored.record).data, cipher)
    assert isinstance(event, RunEvent)
    return event
