"""Old events in files: sealed ranges of a tenant's log as Parquet, so that the store's memory doesn't grow with history.

A segment holds a gap-free range of positions with records and hashes as they were written, and the hash before its
first event, so that each file proves itself and two neighbours prove each other. An export is a segment of the whole
log. Paths are fsspec's: a directory, s3://..., gs://...
"""

import asyncio
import bisect
import functools
import os
import posixpath
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import fsspec
import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from events.codec import GENESIS, Entry, StoredEvent, decode_record, next_hash
from events.errors import AlreadyExistsError, ChainBrokenError, IntegrityError, NotFoundError
from events.scan import scan
from events.store import Append, EventStore

SEGMENT_EVENTS_MAX = 50_000
GROUP_EVENTS = 5_000  # of a file's row group: what is held in memory of a file, whatever its size
_IMPORT_EVENTS, _IMPORT_BYTES = 1_000, 256 * 1024  # of one append of an import
_GROUPS_KEPT = 4
_DRAFT_AGE_MAX = timedelta(hours=1)
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

Progress = Callable[[int, int], None]  # events done, events in all


class Segment(msgspec.Struct, frozen=True, order=True):
    """A sealed range of a tenant's log in a file."""

    first: int
    last: int
    path: str


class Policy(msgspec.Struct, frozen=True):
    """When a log's old events leave the store: the newest ``keep`` stay, and fewer than ``least`` are not worth a file."""

    keep: int = 100_000
    least: int = 50_000


def check_chain(tenant: str, previous: bytes, first_position: int, events: Sequence[StoredEvent]) -> bytes:
    """The hash of the last event. Raises ChainBrokenError at the first that does not follow."""
    for expected, event in enumerate(events, first_position):
        if event.position != expected:
            raise ChainBrokenError(tenant, expected, f"missing; the next event has position {event.position}")
        previous = next_hash(previous, event.record)
        if event.hash != previous:
            raise ChainBrokenError(tenant, expected, "its hash does not follow from its bytes and the hash before")
    return previous


class SegmentWriter:
    """Writes a file group by group, whole or not at all: ``close`` reads it back, then gives it its name.

    Use as a context; what is left without ``close`` is no file. Not for several threads at once.
    """

    def __init__(self, path: str, tenant: str, previous: bytes, first_position: int = 1) -> None:
        self._path, self._tenant = path, tenant
        self._before, self._previous, self._first, self._next = previous, previous, first_position, first_position
        self._filesystem, self._target = fsspec.core.url_to_fs(path)
        self._draft = f"{self._target}.{uuid.uuid4().hex}"
        self._waiting: list[StoredEvent] = []
        self._file: Any = None
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        self._filesystem.makedirs(posixpath.dirname(self._target) or ".", exist_ok=True)
        metadata = {"format": _FORMAT, "tenant": self._tenant, "previous_hash": self._before.hex()}
        self._file = self._filesystem.open(self._draft, "wb")
        schema = _SCHEMA.with_metadata(metadata)
        self._writer = pq.ParquetWriter(self._file, schema, compression="zstd", use_dictionary=["stream"])
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._writer is not None:
            self._writer.close()
            self._file.close()
        if self._filesystem.exists(self._draft):
            self._filesystem.rm(self._draft)

    def write(self, events: Sequence[StoredEvent]) -> None:
        """Raises ChainBrokenError where they don't follow what was written before."""
        self._previous = check_chain(self._tenant, self._previous, self._next, events)
        self._next += len(events)
        self._waiting += events
        while len(self._waiting) >= GROUP_EVENTS:
            self._write_group(self._waiting[:GROUP_EVENTS])
            self._waiting = self._waiting[GROUP_EVENTS:]

    def _write_group(self, events: Sequence[StoredEvent]) -> None:
        assert self._writer is not None
        records = [decode_record(event.record) for event in events]
        columns = {
            "position": [event.position for event in events],
            "stream": [record.stream for record in records],
            "version": [record.version for record in records],
            "record": [event.record for event in events],
            "hash": [event.hash for event in events],
        }
        self._writer.write_table(pa.table(columns, schema=self._writer.schema), row_group_size=GROUP_EVENTS)

    def close(self) -> int:
        """How many events the file has. Raises ChainBrokenError where it does not hold what was written to it."""
        if self._waiting:
            self._write_group(self._waiting)
        assert self._writer is not None
        self._writer.close()
        self._writer = None
        self._make_durable()
        self._file.close()
        found = SegmentReader(self._draft, self._filesystem)
        last = self._before
        for events in found:
            last = events[-1].hash
        if (found.tenant, found.previous, last) != (self._tenant, self._before, self._previous):
            raise ChainBrokenError(self._tenant, self._first, f"{self._path} does not hold what was written to it")
        self._filesystem.mv(self._draft, self._target)
        if isinstance(self._filesystem, LocalFileSystem):
            _sync_directory(posixpath.dirname(self._target) or ".")
        return self._next - self._first

    def _make_durable(self) -> None:
        """The events are dropped elsewhere next. Object stores keep what they have accepted; a disk has to be told."""
        self._file.flush()
        if isinstance(self._filesystem, LocalFileSystem):
            os.fsync(self._file.fileno())


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SegmentReader:
    """A file's events, group by group, each verified to follow the one before.

    Raises:
        NotFoundError: No such file.
        IntegrityError: Not a segment.
        ChainBrokenError, while iterating: Its events are not those that were written.
    """

    def __init__(self, path: str, filesystem: fsspec.AbstractFileSystem | None = None) -> None:
        self._path = path
        self._target: str
        self._filesystem, self._target = (filesystem, path) if filesystem else fsspec.core.url_to_fs(path)
        if not self._filesystem.exists(self._target):
            raise NotFoundError("file", path)
        with self._errors_explained(), self._filesystem.open(self._target, "rb") as file:
            found = pq.ParquetFile(file)
            metadata = found.schema_arrow.metadata or {}
            if metadata.get(b"format") != _FORMAT:
                raise IntegrityError(f"{path} is not a segment of a log")
            self.tenant = metadata[b"tenant"].decode()
            self.previous = bytes.fromhex(metadata[b"previous_hash"].decode())
            self.events: int = found.metadata.num_rows

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise IntegrityError(f"{self._path} can't be read as a segment of a log: {error}") from error

    def __iter__(self) -> Iterator[list[StoredEvent]]:
        previous, expected = self.previous, 0
        with self._errors_explained(), self._filesystem.open(self._target, "rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(GROUP_EVENTS, columns=_EVENT_COLUMNS):
                events = _events(batch)
                previous = check_chain(self.tenant, previous, expected or events[0].position, events)
                expected = events[-1].position + 1
                yield events


_EVENT_COLUMNS = ["position", "record", "hash"]


def write_segment(path: str, tenant: str, previous: bytes, events: Sequence[StoredEvent]) -> None:
    """Write a file whole or not at all, and read it back. ``previous`` is the hash before the first event.

    Raises:
        ChainBrokenError: The events don't form a chain, or the file does not hold what was written.
    """
    with SegmentWriter(path, tenant, previous, events[0].position) as writer:
        writer.write(events)
        writer.close()


def _last_hash(path: str) -> bytes:
    """Of a whole file's events, verified."""
    reader = SegmentReader(path)
    last = reader.previous
    for events in reader:
        last = events[-1].hash
    return last


def _events(table: pa.Table | pa.RecordBatch) -> list[StoredEvent]:
    hashes = table.column("hash").cast(pa.binary())  # those of a fixed size take pyarrow six times as long to hand over
    columns = (column.to_pylist() for column in (table.column("position"), table.column("record"), hashes))
    return [StoredEvent(*row) for row in zip(*columns, strict=True)]


class Archive:
    """The segments under one fsspec path: ``<base>/<tenant>/<first>-<last>.parquet``. Nothing is ever changed there."""

    def __init__(self, base: str) -> None:
        self.base = base.rstrip("/")
        self._known: dict[str, list[Segment]] = {}  # by tenant; segments never change, and new ones are looked for

    async def segments(self, tenant: str) -> list[Segment]:
        """In order, without gap."""
        self._known[tenant] = await asyncio.to_thread(self._segments, tenant)
        return self._known[tenant]

    def _segments(self, tenant: str) -> list[Segment]:
        filesystem, directory = fsspec.core.url_to_fs(f"{self.base}/{tenant}")
        if not filesystem.exists(directory):
            return []
        found = []
        for name in filesystem.ls(directory, detail=False, refresh=True):
            bounds, dot, rest = posixpath.basename(name).partition(".")
            if dot and rest == "parquet":
                first, _, last = bounds.partition("-")
                found.append(Segment(int(first), int(last), f"{self.base}/{tenant}/{posixpath.basename(name)}"))
        return _without_covered(found)

    async def _holding(self, tenant: str, position: int) -> Segment | None:
        """The segment with this position, if there is one."""
        found = _segment_at(self._known.get(tenant, ()), position)
        return found or _segment_at(await self.segments(tenant), position)

    async def tenants(self) -> list[str]:
        """Who has archived events."""
        return await asyncio.to_thread(self._tenants)

    def _tenants(self) -> list[str]:
        filesystem, directory = fsspec.core.url_to_fs(self.base)
        if not filesystem.exists(directory):
            return []
        return sorted(posixpath.basename(name.rstrip("/")) for name in filesystem.ls(directory, detail=False))

    async def size(self, segment: Segment) -> int:
        """Of the file, in bytes."""
        filesystem, target = fsspec.core.url_to_fs(segment.path)
        return int(await asyncio.to_thread(filesystem.size, target))

    async def add(self, tenant: str, previous: bytes, events: Sequence[StoredEvent]) -> Segment:
        """Seal a range. Repeating it is harmless."""
        first, last = events[0].position, events[-1].position
        segment = Segment(first, last, f"{self.base}/{tenant}/{first:012d}-{last:012d}.parquet")
        await asyncio.to_thread(self._remove_old_drafts, tenant)
        await asyncio.to_thread(write_segment, segment.path, tenant, previous, events)
        return segment

    def _remove_old_drafts(self, tenant: str) -> None:
        """What runs that were killed have left. Nobody writes a segment for an hour."""
        filesystem, directory = fsspec.core.url_to_fs(f"{self.base}/{tenant}")
        if not filesystem.exists(directory):
            return
        for name in filesystem.ls(directory, detail=False, refresh=True):
            if not name.endswith(".parquet") and _age(filesystem.modified(name)) > _DRAFT_AGE_MAX:
                filesystem.rm(name)

    async def read(self, tenant: str, after_position: int, limit: int) -> list[StoredEvent]:
        """Up to ``limit`` events after a position, from the one segment that holds the first of them."""
        segment = await self._holding(tenant, after_position + 1)
        if segment is None:
            return []
        return await asyncio.to_thread(_slice_of_segment, segment.path, after_position, limit)

    async def read_stream(self, tenant: str, stream: str, after_version: int, limit: int) -> list[StoredEvent]:
        """A stream's archived events after a version. Reads one column of each segment, and whole rows of those with
        matches only.
        """
        found: list[StoredEvent] = []
        for segment in await self.segments(tenant):
            found += await asyncio.to_thread(_stream_in_segment, segment.path, stream, after_version + len(found))
            if len(found) >= limit:
                break
        return found[:limit]


def _age(modified: datetime) -> timedelta:
    return datetime.now(UTC) - (modified if modified.tzinfo else modified.replace(tzinfo=UTC))


def _without_covered(segments: Sequence[Segment]) -> list[Segment]:
    """Two archivers at once may have sealed ranges that overlap: of those, the ones that reach further."""
    kept: list[Segment] = []
    for segment in sorted(segments, key=lambda each: (each.first, -each.last)):
        if not kept or segment.last > kept[-1].last:
            kept.append(segment)
    return kept


def _segment_at(segments: Sequence[Segment], position: int) -> Segment | None:
    at = bisect.bisect_left([segment.last for segment in segments], position)
    return segments[at] if at < len(segments) and segments[at].first <= position else None


@functools.lru_cache(maxsize=_GROUPS_KEPT)
def _group(path: str, number: int) -> pa.Table:
    """A replay asks for a row group page by page; segments never change."""
    filesystem, target = fsspec.core.url_to_fs(path)
    with filesystem.open(target, "rb") as file:
        return pq.ParquetFile(file).read_row_group(number, columns=_EVENT_COLUMNS)


@functools.lru_cache(maxsize=1_000)
def _group_ends(path: str) -> list[int]:
    """How many rows a file has up to the end of each row group."""
    filesystem, target = fsspec.core.url_to_fs(path)
    with filesystem.open(target, "rb") as file:
        metadata = pq.ParquetFile(file).metadata
    ends, end = [], 0
    for number in range(metadata.num_row_groups):
        end += metadata.row_group(number).num_rows
        ends.append(end)
    return ends


def _slice_of_segment(path: str, after_position: int, limit: int) -> list[StoredEvent]:
    first = int(posixpath.basename(path).partition("-")[0])
    row, ends = after_position + 1 - first, _group_ends(path)
    events: list[StoredEvent] = []
    while row < ends[-1] and len(events) < limit:
        number = bisect.bisect_right(ends, row)
        begins = ends[number - 1] if number else 0
        events += _events(_group(path, number).slice(row - begins, limit - len(events)))
        row = ends[number]
    return events


def _stream_in_segment(path: str, stream: str, after_version: int) -> list[StoredEvent]:
    filesystem, target = fsspec.core.url_to_fs(path)
    with filesystem.open(target, "rb") as file:
        keys = pq.read_table(file, columns=["stream", "version"], read_dictionary=["stream"])
        wanted = pc.and_(pc.equal(keys.column("stream"), stream), pc.greater(keys.column("version"), after_version))
        if not pc.any(wanted).as_py():
            return []
        file.seek(0)
        return _events(pq.read_table(file, columns=_EVENT_COLUMNS).filter(wanted))


async def archive_log(
    store: EventStore, archive: Archive, tenant: str, *, keep: int, least: int, segments_max: int | None = None
) -> int:
    """Move a tenant's old events into segments; returns how many.

    The newest ``keep`` events stay where they are, and a segment is begun only for ``least`` events or more. Each file
    is read back and verified before its events are dropped from the store; a run that was killed is simply repeated.

    Raises:
        ChainBrokenError: What the store or a file holds is not what was written; nothing more is dropped.
    """
    segments = await archive.segments(tenant)
    head = await store.head(tenant)
    if head is None or (segments and head.position < segments[-1].last):
        return 0  # another store's tenant, or one that has lost events: its activation halts it
    at, previous, moved, sealed = 0, GENESIS, 0, 0
    if segments:
        at, previous = segments[-1].last, await asyncio.to_thread(_last_hash, segments[-1].path)
        await store.trim(tenant, at)  # a run that was killed may have sealed them and not dropped them
    while head.position - keep - at >= max(least, 1) and (segments_max is None or sealed < segments_max):
        events = await read_range(store, tenant, at, min(at + SEGMENT_EVENTS_MAX, head.position - keep))
        segment = await archive.add(tenant, previous, events)
        await store.trim(tenant, segment.last)
        moved, sealed = moved + len(events), sealed + 1
        at, previous = segment.last, events[-1].hash
    return moved


async def read_range(store: EventStore, tenant: str, after_position: int, through: int) -> list[StoredEvent]:
    """All events of a range. Raises ChainBrokenError where the log ends before it."""
    return [event async for page in scan(store, tenant, after_position, through) for event in page]


async def export_log(store: EventStore, tenant: str, path: str, progress: Progress | None = None) -> int:
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
            if progress is not None:
                progress(page[-1].position, head.position)
        return await asyncio.to_thread(writer.close)


def open_export(path: str) -> SegmentReader:
    """An exported file, verified to the last event.

    Raises:
        NotFoundError: No such file.
        IntegrityError: It is damaged, or not a whole log.
    """
    reader = SegmentReader(path)
    if reader.previous != GENESIS or not reader.events:
        raise IntegrityError(f"{path} is not an export of a whole log")
    seen = 0
    for events in reader:
        seen += len(events)
        if events[-1].position != seen:
            raise IntegrityError(f"{path} is not an export of a whole log")
    return reader


async def import_log(store: EventStore, path: str, progress: Progress | None = None) -> tuple[str, int]:
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
        if progress is not None:
            progress(events[-1].position, reader.events)
    return reader.tenant, reader.events


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
    entries = [entry_of(event) for event in new]
    await store.append(Append(tenant, claimed.epoch, at, last, entries, [], next_timer_us=1))
    return new[-1].position


def entry_of(event: StoredEvent) -> Entry:
    record = decode_record(event.record)
    return Entry(event.record, event.hash, record.stream, record.version)
