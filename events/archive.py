"""Old events in files: sealed ranges of a tenant's log as Parquet, so that the store's memory doesn't grow with history.

A segment holds a gap-free range of positions with records and hashes as they were written, and the hash before its
first event, so that each file proves itself and two neighbours prove each other. An export is a segment of the whole
log. Paths are fsspec's: a directory, s3://..., gs://...
"""

import asyncio
import bisect
import functools
import posixpath
import uuid
from collections.abc import Sequence

import fsspec
import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from events.codec import GENESIS, Entry, StoredEvent, decode_record, next_hash
from events.errors import AlreadyExistsError, ChainBrokenError, IntegrityError, NotFoundError
from events.store import Append, EventStore

SEGMENT_EVENTS_MAX = 50_000
_TABLES_KEPT = 4
_IMPORT_EVENTS = 1_000
_FORMAT = b"tenantry-segment-1"
_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("stream", pa.string()),
        ("version", pa.int64()),
        ("record", pa.binary()),
        ("hash", pa.binary(32)),
    ]
)


class Segment(msgspec.Struct, frozen=True, order=True):
    """A sealed range of a tenant's log in a file."""

    first: int
    last: int
    path: str


def check_chain(tenant: str, previous: bytes, first_position: int, events: Sequence[StoredEvent]) -> bytes:
    """The hash of the last event. Raises ChainBrokenError at the first that does not follow."""
    for expected, event in enumerate(events, first_position):
        if event.position != expected:
            raise ChainBrokenError(tenant, expected, f"missing; the next event has position {event.position}")
        previous = next_hash(previous, event.record)
        if event.hash != previous:
            raise ChainBrokenError(tenant, expected, "its hash does not follow from its bytes and the hash before")
    return previous


def write_segment(path: str, tenant: str, previous: bytes, events: Sequence[StoredEvent]) -> None:
    """Write a file whole or not at all, and read it back. ``previous`` is the hash before the first event.

    Raises:
        ChainBrokenError: The events don't form a chain, or the file does not hold what was written.
    """
    check_chain(tenant, previous, events[0].position, events)
    records = [decode_record(event.record) for event in events]
    table = pa.table(
        {
            "position": [event.position for event in events],
            "stream": [record.stream for record in records],
            "version": [record.version for record in records],
            "record": [event.record for event in events],
            "hash": [event.hash for event in events],
        },
        schema=_SCHEMA.with_metadata({"format": _FORMAT, "tenant": tenant, "previous_hash": previous.hex()}),
    )
    filesystem, target = fsspec.core.url_to_fs(path)
    filesystem.makedirs(posixpath.dirname(target), exist_ok=True)
    draft = f"{target}.{uuid.uuid4().hex}"
    with filesystem.open(draft, "wb") as file:
        pq.write_table(table, file, compression="zstd", use_dictionary=["stream"])
    found_tenant, found_previous, found = _read(filesystem, draft)
    if (found_tenant, found_previous, found) != (tenant, previous, list(events)):
        raise ChainBrokenError(tenant, events[0].position, f"{path} does not hold what was written to it")
    filesystem.mv(draft, target)


def read_segment(path: str) -> tuple[str, bytes, list[StoredEvent]]:
    """Tenant, hash before the first event, events. Verified.

    Raises:
        NotFoundError: No such file.
        IntegrityError: Not a segment.
        ChainBrokenError: Its events are not those that were written.
    """
    filesystem, target = fsspec.core.url_to_fs(path)
    if not filesystem.exists(target):
        raise NotFoundError("file", path)
    tenant, previous, events = _read(filesystem, target)
    check_chain(tenant, previous, events[0].position if events else 1, events)
    return tenant, previous, events


def _read(filesystem: fsspec.AbstractFileSystem, target: str) -> tuple[str, bytes, list[StoredEvent]]:
    try:
        with filesystem.open(target, "rb") as file:
            table = pq.read_table(file)
        metadata = table.schema.metadata or {}
        if metadata.get(b"format") != _FORMAT:
            raise IntegrityError(f"{target} is not a segment of a log")
        return metadata[b"tenant"].decode(), bytes.fromhex(metadata[b"previous_hash"].decode()), _events(table)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise IntegrityError(f"{target} can't be read as a segment of a log: {error}") from error


def _events(table: pa.Table) -> list[StoredEvent]:
    columns = (table.column(name).to_pylist() for name in ("position", "record", "hash"))
    return [StoredEvent(*row) for row in zip(*columns, strict=True)]


class Archive:
    """The segments under one fsspec path: ``<base>/<tenant>/<first>-<last>.parquet``. Nothing is ever changed there."""

    def __init__(self, base: str) -> None:
        self._base = base.rstrip("/")

    async def segments(self, tenant: str) -> list[Segment]:
        return await asyncio.to_thread(self._segments, tenant)

    def _segments(self, tenant: str) -> list[Segment]:
        filesystem, directory = fsspec.core.url_to_fs(f"{self._base}/{tenant}")
        if not filesystem.exists(directory):
            return []
        found = []
        for name in filesystem.ls(directory, detail=False):
            bounds, dot, rest = posixpath.basename(name).partition(".")
            if dot and rest == "parquet":
                first, _, last = bounds.partition("-")
                found.append(Segment(int(first), int(last), f"{self._base}/{tenant}/{posixpath.basename(name)}"))
        return sorted(found)

    async def add(self, tenant: str, previous: bytes, events: Sequence[StoredEvent]) -> Segment:
        """Seal a range. Repeating it is harmless."""
        first, last = events[0].position, events[-1].position
        segment = Segment(first, last, f"{self._base}/{tenant}/{first:012d}-{last:012d}.parquet")
        await asyncio.to_thread(write_segment, segment.path, tenant, previous, events)
        return segment

    async def read(self, tenant: str, after_position: int, limit: int) -> list[StoredEvent]:
        """Up to ``limit`` events after a position, from the one segment that holds the first of them."""
        segments = await self.segments(tenant)
        at = bisect.bisect_right([segment.last for segment in segments], after_position)
        if at == len(segments) or segments[at].first > after_position + 1:
            return []
        return await asyncio.to_thread(_slice_of_segment, segments[at].path, after_position, limit)

    async def read_stream(self, tenant: str, stream: str, after_version: int, limit: int) -> list[StoredEvent]:
        """A stream's archived events after a version. Reads one column of each segment, and whole rows of those with
        matches only.
        """
        found: list[StoredEvent] = []
        for segment in await self.segments(tenant):
            found += await asyncio.to_thread(_stream_in_segment, segment.path, stream, after_version)
            if len(found) >= limit:
                break
        return found[:limit]


@functools.lru_cache(maxsize=_TABLES_KEPT)
def _table(path: str) -> pa.Table:
    """A replay asks for a segment page by page; segments never change."""
    filesystem, target = fsspec.core.url_to_fs(path)
    with filesystem.open(target, "rb") as file:
        return pq.read_table(file, columns=["position", "record", "hash"])


def _slice_of_segment(path: str, after_position: int, limit: int) -> list[StoredEvent]:
    table = _table(path)
    first: int = table.column("position")[0].as_py()
    return _events(table.slice(max(0, after_position + 1 - first), limit))


def _stream_in_segment(path: str, stream: str, after_version: int) -> list[StoredEvent]:
    filesystem, target = fsspec.core.url_to_fs(path)
    with filesystem.open(target, "rb") as file:
        keys = pq.read_table(file, columns=["stream", "version"], read_dictionary=["stream"])
        wanted = pc.and_(pc.equal(keys.column("stream"), stream), pc.greater(keys.column("version"), after_version))
        if not pc.any(wanted).as_py():
            return []
        file.seek(0)
        return _events(pq.read_table(file, columns=["position", "record", "hash"]).filter(wanted))


async def archive_log(store: EventStore, archive: Archive, tenant: str, *, keep: int, least: int) -> int:
    """Move a tenant's old events into segments; returns how many.

    The newest ``keep`` events stay where they are, and a segment is begun only for ``least`` events or more. Each file
    is read back and verified before its events are dropped from the store; a run that was killed is simply repeated.

    Raises:
        ChainBrokenError: What the store or a file holds is not what was written; nothing more is dropped.
    """
    segments = await archive.segments(tenant)
    at, previous, moved = 0, GENESIS, 0
    if segments:
        _, _, last_events = await asyncio.to_thread(read_segment, segments[-1].path)
        at, previous = segments[-1].last, last_events[-1].hash
        await store.trim(tenant, at)  # a run that was killed may have sealed them and not dropped them
    head = await store.head(tenant)
    while head is not None and head.position - keep - at >= least:
        events = await read_range(store, tenant, at, min(at + SEGMENT_EVENTS_MAX, head.position - keep))
        segment = await archive.add(tenant, previous, events)
        await store.trim(tenant, segment.last)
        moved += len(events)
        at, previous = segment.last, events[-1].hash
    return moved


async def read_range(store: EventStore, tenant: str, after_position: int, through: int) -> list[StoredEvent]:
    """All events of a range. Raises ChainBrokenError where the log ends before it."""
    events: list[StoredEvent] = []
    while (at := after_position + len(events)) < through:
        page = await store.read(tenant, at, min(500, through - at))
        if not page:
            raise ChainBrokenError(tenant, at + 1, f"missing; the log should reach {through}")
        events += page
    return events


async def export_log(store: EventStore, tenant: str, path: str) -> int:
    """Write a tenant's whole log into one verified file; returns how many events it has.

    Raises:
        NotFoundError: No such tenant.
        ChainBrokenError: The log is damaged.
    """
    head = await store.head(tenant)
    if head is None:
        raise NotFoundError("tenant", tenant)
    events = await read_range(store, tenant, 0, head.position)
    await asyncio.to_thread(write_segment, path, tenant, GENESIS, events)
    return len(events)


async def import_log(store: EventStore, path: str) -> tuple[str, int]:
    """Write an exported log into a store that has none of that tenant; returns the tenant and the number of events.

    An import that was killed goes on where it stopped. Timers are set anew by the tenant's next command.

    Raises:
        AlreadyExistsError: The store has another log of that tenant.
        IntegrityError: The file is damaged, or no export of a whole log.
    """
    tenant, previous, events = await asyncio.to_thread(read_segment, path)
    if previous != GENESIS or not events or events[0].position != 1:
        raise IntegrityError(f"{path} is not an export of a whole log")
    claimed = await store.claim(tenant)
    if claimed.position > len(events) or (claimed.position and claimed.hash != events[claimed.position - 1].hash):
        raise AlreadyExistsError("tenant", tenant)
    for start in range(claimed.position, len(events), _IMPORT_EVENTS):
        part = events[start : start + _IMPORT_EVENTS]
        entries = [entry_of(event) for event in part]
        before = events[start - 1].hash if start else GENESIS
        await store.append(Append(tenant, claimed.epoch, start, before, entries, []))
    return tenant, len(events)


def entry_of(event: StoredEvent) -> Entry:
    record = decode_record(event.record)
    return Entry(event.record, event.hash, record.stream, record.version)
