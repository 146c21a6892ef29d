"""Segments: Parquet files that hold a gap-free range of a tenant's log, with records and hashes as they were written and
the hash before the first event, so that each file proves itself and two neighbours prove each other.

Loads pyarrow, which takes a process a third of a second and 50 MiB: import this module where a file is read or written.
"""

import bisect
import functools
import os
import posixpath
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from events.codec import GENESIS, StoredEvent, check_chain, decode_record
from events.disk import sync_directory
from events.errors import ChainBrokenError, IntegrityError, NotFoundError

GROUP_EVENTS = 5_000  # of a file's row group: what is held in memory of a file, whatever its size
_GROUPS_KEPT = 4
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
_EVENT_COLUMNS = ["position", "record", "hash"]


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
            sync_directory(posixpath.dirname(self._target) or ".")
        return self._next - self._first

    def _make_durable(self) -> None:
        """The events are dropped elsewhere next. Object stores keep what they have accepted; a disk has to be told."""
        self._file.flush()
        if isinstance(self._filesystem, LocalFileSystem):
            os.fsync(self._file.fileno())


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


def write_segment(path: str, tenant: str, previous: bytes, events: Sequence[StoredEvent]) -> None:
    """Write a file whole or not at all, and read it back. ``previous`` is the hash before the first event.

    Raises:
        ChainBrokenError: The events don't form a chain, or the file does not hold what was written.
    """
    with SegmentWriter(path, tenant, previous, events[0].position) as writer:
        writer.write(events)
        writer.close()


def last_hash(path: str) -> bytes:
    """The hash of a file's last event, all of them verified."""
    reader = SegmentReader(path)
    last = reader.previous
    for events in reader:
        last = events[-1].hash
    return last


def _events(table: pa.Table | pa.RecordBatch) -> list[StoredEvent]:
    hashes = table.column("hash").cast(pa.binary())  # those of a fixed size take pyarrow six times as long to hand over
    columns = (column.to_pylist() for column in (table.column("position"), table.column("record"), hashes))
    return [StoredEvent(*row) for row in zip(*columns, strict=True)]


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


def read_segment(path: str, after_position: int, limit: int, *, whole: bool = False) -> list[StoredEvent]:
    """Up to ``limit`` events after a position, and those behind them in the same row group where that is wanted ``whole``.
    The file's name says where it begins.
    """
    first = int(posixpath.basename(path).partition("-")[0])
    row, ends = after_position + 1 - first, _group_ends(path)
    events: list[StoredEvent] = []
    while row < ends[-1] and len(events) < limit:
        number = bisect.bisect_right(ends, row)
        begins = ends[number - 1] if number else 0
        events += _events(_group(path, number).slice(row - begins, None if whole else limit - len(events)))
        row = ends[number]
    return events


def read_stream(path: str, stream: str, after_version: int) -> list[StoredEvent]:
    """A stream's events after a version. Reads two columns, and whole rows only where some match."""
    filesystem, target = fsspec.core.url_to_fs(path)
    with filesystem.open(target, "rb") as file:
        keys = pq.read_table(file, columns=["stream", "version"], read_dictionary=["stream"])
        wanted = pc.and_(pc.equal(keys.column("stream"), stream), pc.greater(keys.column("version"), after_version))
        if not pc.any(wanted).as_py():
            return []
        file.seek(0)
        return _events(pq.read_table(file, columns=_EVENT_COLUMNS).filter(wanted))
