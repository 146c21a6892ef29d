"""What an activation remembers of its tenant's log: the state it adds up to, and where the log ends. Pure.

It moves by whole pages that were read, and by whole turns that were written: what does not follow, it never takes in.
"""

from collections.abc import Mapping, Sequence

from actors.aggregate import State, fold
from events.catalog import DomainEvent
from events.codec import GENESIS, StoredEvent, next_hash, open_record
from events.errors import ChainBrokenError
from events.sealing import Cipher


class Memory:
    """``versions``: how many events each stream has that has not ended. ``head``: the hash of the event at ``position``."""

    __slots__ = ("head", "position", "state", "versions")

    def __init__(self) -> None:
        self.state = State()
        self.versions: dict[str, int] = {}
        self.position, self.head = 0, GENESIS

    def begin_at(self, state: State, versions: dict[str, int], position: int, head: bytes) -> None:
        """Where a snapshot ends."""
        self.state, self.versions, self.position, self.head = state, versions, position, head

    def written(
        self, state: State, versions: Mapping[str, int], events: Sequence[DomainEvent], position: int, head: bytes
    ) -> None:
        """A turn is durable: the state after it, the streams it has added to, and where the log ends now."""
        self.state, self.position, self.head = state, position, head
        self.versions.update(versions)
        for stream, is_over in {event.stream: event.ends_stream for event in events}.items():  # its last one says so
            if is_over:
                self.versions.pop(stream, None)

    def replay(self, tenant: str, page: Sequence[StoredEvent], cipher: Cipher) -> None:
        """Fold a page in, all of it or nothing. Raises ChainBrokenError where an event does not follow."""
        versions: dict[str, int] = {}
        ended: set[str] = set()
        events: list[DomainEvent] = []
        head = self.head
        for stored in page:
            written = stored.record
            head = next_hash(head, written)
            if head != stored.hash:
                raise ChainBrokenError(tenant, stored.position, "it does not follow what was replayed before")
            record = open_record(written, cipher)
            stream, event = record.stream, record.event
            events.append(event)
            versions[stream] = record.version
            if event.ends_stream:
                ended.add(stream)
            elif ended:
                ended.discard(stream)
        self.state, self.position, self.head = fold(self.state, events), page[-1].position, head
        self.versions |= versions
        for stream in ended:
            del self.versions[stream]
