"""Old events in files: sealed ranges of a tenant's log as Parquet, so that the store's memory doesn't grow with history.
Paths are fsspec's: a directory, s3://..., gs://...

Every process with a store comes here, and few ever read a file: those load ``events.segments``, in a thread.
"""

import asyncio
import bisect
import posixpath
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import fsspec
import msgspec

from events.codec import GENESIS, StoredEvent, check_chain
from events.errors import ChainBrokenError
from events.scan import read_range
from events.store import EventStore, Head

SEGMENT_EVENTS_MAX = 50_000
_DRAFT_AGE_MAX = timedelta(hours=1)
_READS_ON_EVENTS = 100  # who asks for so many at once will want what follows them
_RESTS_KEPT = 4  # of row groups


class Segment(msgspec.Struct, frozen=True, order=True):
    """A sealed range of a tenant's log in a file."""

    first: int
    last: int
    path: str


class Policy(msgspec.Struct, frozen=True):
    """When a log's old events leave the store: the newest ``keep`` stay, and fewer than ``least`` are not worth a file."""

    keep: int = 100_000
    least: int = 50_000


class Archive:
    """The segments under one fsspec path: ``<base>/<tenant>/<first>-<last>.parquet``. Nothing is ever changed there."""

    def __init__(self, base: str) -> None:
        self.base = base.rstrip("/")
        self._known: dict[str, list[Segment]] = {}  # by tenant; segments never change, and new ones are looked for
        # by tenant and position of the end of a page that was read: what follows it in its row group
        self._rests: OrderedDict[tuple[str, int], list[StoredEvent]] = OrderedDict()

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
        await asyncio.to_thread(_write_segment, segment.path, tenant, previous, events)
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
        whole = limit >= _READS_ON_EVENTS
        events = await asyncio.to_thread(_read_segment, segment.path, after_position, limit, whole=whole)
        return self._page(tenant, events, limit)

    def read_on(self, tenant: str, after_position: int, limit: int) -> list[StoredEvent]:
        """What follows a page that was read, as long as the rest of its row group lasts; empty for whoever does not go on
        where that page ended.
        """
        return self._page(tenant, self._rests.pop((tenant, after_position), []), limit)

    def _page(self, tenant: str, events: list[StoredEvent], limit: int) -> list[StoredEvent]:
        if len(events) <= limit:
            return events
        self._rests[tenant, events[limit - 1].position] = events[limit:]
        while len(self._rests) > _RESTS_KEPT:
            self._rests.popitem(last=False)
        return events[:limit]

    async def read_stream(self, tenant: str, stream: str, after_version: int, limit: int) -> list[StoredEvent]:
        """A stream's archived events after a version. Reads one column of each segment, and whole rows of those with
        matches only.
        """
        found: list[StoredEvent] = []
        for segment in await self.segments(tenant):
            found += await asyncio.to_thread(_read_stream, segment.path, stream, after_version + len(found))
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


def _write_segment(path: str, tenant: str, previous: bytes, events: Sequence[StoredEvent]) -> None:
    from events.segments import write_segment  # noqa: PLC0415 - pyarrow

    write_segment(path, tenant, previous, events)


def _read_segment(path: str, after_position: int, limit: int, *, whole: bool) -> list[StoredEvent]:
    from events.segments import read_segment  # noqa: PLC0415 - pyarrow

    return read_segment(path, after_position, limit, whole=whole)


def _read_stream(path: str, stream: str, after_version: int) -> list[StoredEvent]:
    from events.segments import read_stream  # noqa: PLC0415 - pyarrow

    return read_stream(path, stream, after_version)


def _last_hash(path: str) -> bytes:
    from events.segments import last_hash  # noqa: PLC0415 - pyarrow

    return last_hash(path)


async def archive_log(
    store: EventStore, archive: Archive, tenant: str, *, keep: int, least: int, segments_max: int | None = None
) -> int:
    """Move a tenant's old events into segments; returns how many.

    The newest ``keep`` events stay where they are, and a segment is begun only for ``least`` events or more. Each file
    is read back and verified before its events are dropped from the store; a run that was killed is simply repeated.

    Raises:
        ChainBrokenError: What the store or a file holds is not what was written, or they are not of one log (the store
            was set back, and has grown past its archive since); nothing more is dropped.
    """
    segments = await archive.segments(tenant)
    head = await store.head(tenant)
    if head is None or (segments and head.position < segments[-1].last):
        return 0  # another store's tenant, or one that has lost events: its activation halts it
    at, previous, moved, sealed = 0, GENESIS, 0, 0
    if segments:
        at, previous = segments[-1].last, await asyncio.to_thread(_last_hash, segments[-1].path)
        await _check_follows(store, tenant, at, previous, head)
        await store.trim(tenant, at)  # a run that was killed may have sealed them and not dropped them
    while head.position - keep - at >= max(least, 1) and (segments_max is None or sealed < segments_max):
        events = await read_range(store, tenant, at, min(at + SEGMENT_EVENTS_MAX, head.position - keep))
        segment = await archive.add(tenant, previous, events)
        await store.trim(tenant, segment.last)
        moved, sealed = moved + len(events), sealed + 1
        at, previous = segment.last, events[-1].hash
    return moved


async def _check_follows(store: EventStore, tenant: str, at: int, previous: bytes, head: Head) -> None:
    """The store's log goes on where the archived one ends. What comes next tells, for it is surely not read from a file."""
    if head.position == at and head.hash != previous:
        raise ChainBrokenError(tenant, at, "the archive holds another event there than the store")
    try:
        check_chain(tenant, previous, at + 1, await store.read(tenant, at, 1))
    except ChainBrokenError as error:
        raise ChainBrokenError(
            tenant, at + 1, f"the store's log does not follow the archive's: {error.detail}"
        ) from error
