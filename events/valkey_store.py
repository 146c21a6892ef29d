"""The event store on Valkey: streams for logs, one Lua function library for everything that must be atomic.

Keys of a tenant in slice 17: ``{s017}:log:<tenant>`` (stream), ``{s017}:meta:<tenant>`` (epoch, position, head hash,
status, placement), ``{s017}:replies:<tenant>`` (command id -> reply, 48 h), ``{s017}:streams:<tenant>`` (where in the log
each stream's events are), ``{s017}:snapshots:<tenant>``. Keys of a slice: ``{s017}:appends`` (a pointer per append, for
followers), ``{s017}:timers``, ``{s017}:tenants``.

An entry of a log holds the neighbouring events of one append, up to 32 of them: field ``b``, an array of record, hash,
record, hash. Its id is the position of the last of them, so that the entry that holds position p is the first at or
after ``p-0``. Entries of the first release hold one event each, in fields ``e`` and ``h``.
"""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Collection, Container, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any, cast

import msgspec
from redis.asyncio import RedisCluster
from redis.exceptions import RedisError

from events.codec import GENESIS, Entry, StoredEvent, decode_record
from events.errors import (
    FencedError,
    IntegrityError,
    PlatformError,
    StoreMismatchError,
)
from events.failpoints import failpoint
from events.slices import SLICE_COUNT, slice_of, slice_tag
from events.store import (
    REPLY_TTL_S,
    SNAPSHOTS_KEPT,
    TAIL_POINTERS_MAX,
    Append,
    Appended,
    AppendOutcome,
    Archived,
    CommandResult,
    Head,
    Known,
    Placement,
    Pointer,
    Snapshot,
    TenantStatus,
    check_caps,
)
from events.tasks import cancellable
from events.valkey_client import (
    FUNCTION_MISSING,
    Client,
    execute,
    load_library,
    not_swallowing,
    open_link,
    translate,
)
from events.valkey_link import Command, Link

LIBRARY = "tenantry_v3"
IDENTITY_KEY = "tenantry:store"
_CHUNK = 128  # events per field of a stream's index, as in library.lua
_POSITION_BYTES = 5
# One entry costs the server some 5 us whatever is in it; a reader that wants one event of it gets all.
_ENTRY_EVENTS_MAX, _ENTRY_BYTES_MAX = 32, 16 * 1024
_NEIGHBOUR_GAP = 8  # positions of a stream this close are read as one range
_CLUSTER_POLL_S = 0.05
_DUE_AT_ONCE = 100  # per slice and look
_DUE_SINCE_EVER = 1  # us; 0 would mean no timer
_encode = msgspec.msgpack.Encoder().encode
_decode_snapshot = msgspec.msgpack.Decoder(Snapshot).decode
_decode_entry = msgspec.msgpack.Decoder(list[bytes]).decode


def library_source() -> str:
    return files("events").joinpath("library.lua").read_text()


class ValkeyEventStore:
    """``EventStore`` over one Valkey server, with an archive of old events where there is one. ``open`` before use."""

    def __init__(self, client: Client, archive: Archived | None = None) -> None:
        self._client, self._archive = client, archive
        self._is_cluster = isinstance(client, RedisCluster)
        # pages of a replay would hold up the short calls behind them
        self._calls, self._pages = open_link(client), open_link(client)
        self._tails: list[Link] = []  # that nobody waits on: a blocking read has its connection to itself

    async def open(self) -> None:
        """Load the function library and check that the store was created with this layout.

        Raises:
            StoreMismatchError: Another slice count, or another library under our name.
        """
        try:
            await load_library(self._client, LIBRARY, library_source())
            await execute(self._client, "HSETNX", IDENTITY_KEY, "slices", SLICE_COUNT)
            await execute(self._client, "HSETNX", IDENTITY_KEY, "incarnation", uuid.uuid4().hex)
            slices = int(await execute(self._client, "HGET", IDENTITY_KEY, "slices"))
        except RedisError as error:
            raise translate(error, "", 0) from error
        if slices != SLICE_COUNT:
            raise StoreMismatchError(f"the store has {slices} slices, this release uses {SLICE_COUNT}")

    async def incarnation(self) -> str:
        """Tells this store from what it was restored from, and from others."""
        found: bytes = await self._call("", "HGET", IDENTITY_KEY, "incarnation")
        return found.decode()

    async def renew_incarnation(self) -> str:
        """It is another store from now on."""
        incarnation = uuid.uuid4().hex
        await self._call("", "HSET", IDENTITY_KEY, "incarnation", incarnation)
        return incarnation

    async def close(self) -> None:
        for link in (self._calls, self._pages, *self._tails):
            if link is not None:
                await link.close()
        await self._client.aclose()

    async def claim(self, tenant: str) -> Head:
        key = f"{slice_tag(slice_of(tenant))}:meta:{tenant}"
        epoch, position, head, status, placement = await self._one(
            self._calls, tenant, "FCALL", "tenantry_v3_claim", 1, key, tenant
        )
        return Head(epoch, position, head or GENESIS, _status(status), _placement(placement))

    async def check(self, tenant: str, epoch: int) -> None:
        current = await self._one(self._calls, tenant, "HGET", f"{slice_tag(slice_of(tenant))}:meta:{tenant}", "epoch")
        if current is None or int(current) != epoch:
            raise FencedError(tenant, epoch, f"epoch is {current and int(current)}")

    async def epochs(self, tenants: Sequence[str]) -> list[int | None]:
        calls = [["HGET", f"{slice_tag(slice_of(tenant))}:meta:{tenant}", "epoch"] for tenant in tenants]
        answers = await self._send(calls, self._calls) if calls else []
        for tenant, answer in zip(tenants, answers, strict=True):
            if isinstance(answer, Exception):
                raise translate(answer, tenant, 0) from answer
        return [None if answer is None else int(answer) for answer in answers]

    async def append(self, request: Append) -> Appended | Known:
        outcome = (await self.append_many([request]))[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def append_many(self, requests: Sequence[Append]) -> list[AppendOutcome]:
        outcomes: list[AppendOutcome | None] = [None] * len(requests)
        calls: list[tuple[int, list[Any]]] = []
        for index, request in enumerate(requests):
            try:
                check_caps(request)
            except Exception as error:  # noqa: BLE001 - returned to the caller whose request it is
                outcomes[index] = error
            else:
                calls.append((index, _append_args(request)))
        answers = await self._send([args for _, args in calls], self._calls)
        for (index, _), answer in zip(calls, answers, strict=True):
            request = requests[index]
            if isinstance(answer, Exception):
                outcomes[index] = await self._error(answer, request.tenant, request.epoch)
            elif answer[0] == 1:
                outcomes[index] = Appended(answer[1], answer[2])
            else:
                outcomes[index] = Known(
                    {key.decode(): reply for key, reply in zip(answer[1][::2], answer[1][1::2], strict=True)}
                )
        return cast("list[AppendOutcome]", outcomes)

    async def _send(self, calls: Sequence[Command], link: Link | None = None) -> list[Any]:
        """Answers or errors, one per call. A broken connection is every call's error."""
        try:
            if link is not None:
                return await link.call(calls)
            if len(calls) == 1:
                return [await execute(self._client, *calls[0])]
            pipeline = cast("Any", self._client).pipeline(transaction=None if self._is_cluster else False)
            for call in calls:
                pipeline.execute_command(*call)
            answers: list[Any] = await not_swallowing(pipeline.execute(raise_on_error=False))
            return answers
        except (RedisError, OSError) as error:
            return [error] * len(calls)

    async def replies(self, tenant: str, command_ids: Sequence[str]) -> dict[str, CommandResult]:
        key = f"{slice_tag(slice_of(tenant))}:replies:{tenant}"
        answers = await self._one(self._calls, tenant, "HMGET", key, *command_ids)
        return {
            command_id: CommandResult(command_id, stored[:32], stored[32:])
            for command_id, stored in zip(command_ids, answers, strict=True)
            if stored is not None
        }

    async def head(self, tenant: str) -> Head | None:
        key = f"{slice_tag(slice_of(tenant))}:meta:{tenant}"
        epoch, position, head, status, placement, why = await self._one(
            self._calls, tenant, "HMGET", key, "epoch", "position", "head", "status", "placement", "halted_because"
        )
        if position is None:
            return None
        reason = why.decode() if why is not None and status == b"halted" else ""
        return Head(int(epoch), int(position), head, _status(status), _placement(placement), reason)

    async def read(self, tenant: str, after_position: int, limit: int = 500) -> list[StoredEvent]:
        if self._archive is not None and (following := self._archive.read_on(tenant, after_position, limit)):
            return following
        events = await self._read_log(tenant, after_position, limit)
        if self._archive is None or (events and events[0].position == after_position + 1):
            return events
        head = await self.head(tenant)
        if head is None or head.position <= after_position:
            return []
        older = await self._archive.read(tenant, after_position, limit)
        if not older:
            return events  # a gap: whoever checks the chain finds it
        return older + await self.read(tenant, older[-1].position, limit - len(older)) if len(older) < limit else older

    async def _read_log(self, tenant: str, after_position: int, limit: int) -> list[StoredEvent]:
        """What the server holds itself. How many events lie in an entry shows only when some have been read."""
        key = f"{slice_tag(slice_of(tenant))}:log:{tenant}"
        events: list[StoredEvent] = []
        at, wanted = after_position, -(-limit // _ENTRY_EVENTS_MAX)
        while len(events) < limit:
            rows = await self._one(self._pages, tenant, "XRANGE", key, f"{at + 1}-0", "+", "COUNT", wanted)
            page = [event for row in rows for event in _events_of(row)]
            events += page if not page or page[0].position > at else page[at + 1 - page[0].position :]
            if len(rows) < wanted:
                break
            at = events[-1].position
            wanted = max(1, (limit - len(events)) * len(rows) // len(page))
        return events[:limit] if len(events) > limit else events

    async def read_stream(self, tenant: str, stream: str, after_version: int, limit: int = 500) -> list[StoredEvent]:
        tag = slice_tag(slice_of(tenant))
        first, last = after_version // _CHUNK, (after_version + limit - 1) // _CHUNK
        fields = [f"{stream}#{number}" for number in range(first, last + 1)]
        chunks = await self._one(self._calls, tenant, "HMGET", f"{tag}:streams:{tenant}", *fields)
        # a field that is not there: its events lie in the archive, or not at all
        packed = b"".join(chunk or bytes(_CHUNK * _POSITION_BYTES) for chunk in chunks)
        begin = (after_version - first * _CHUNK) * _POSITION_BYTES
        places = packed[begin : begin + limit * _POSITION_BYTES]
        positions = [
            int.from_bytes(places[at : at + _POSITION_BYTES], "big") for at in range(0, len(places), _POSITION_BYTES)
        ]
        events = await self._read_at(tenant, [position for position in positions if position])
        if self._archive is None or (events and decode_record(events[0].record).version == after_version + 1):
            return events
        older = await self._archive.read_stream(tenant, stream, after_version, limit)
        known = {event.position for event in older}
        return (older + [event for event in events if event.position not in known])[:limit]

    async def _read_at(self, tenant: str, positions: Sequence[int]) -> list[StoredEvent]:
        """The events at these rising positions that the server holds itself, in one round trip."""
        key = f"{slice_tag(slice_of(tenant))}:log:{tenant}"
        calls: list[Command] = []
        for begin, end in _ranges(positions):
            if begin < end:
                calls.append(("XRANGE", key, f"{begin}-0", f"{end - 1}-0"))
            calls.append(("XRANGE", key, f"{end}-0", "+", "COUNT", 1))  # the entry of the last one may end behind it
        wanted, found = set(positions), dict[int, StoredEvent]()
        for rows in await self._send(calls, self._pages) if calls else []:
            if isinstance(rows, Exception):
                raise translate(rows, tenant, 0)
            for row in rows:
                found |= _some_events_of(row, wanted)
        return [found[position] for position in positions if position in found]

    async def trim(self, tenant: str, through_position: int) -> None:
        tag = slice_tag(slice_of(tenant))
        keys = [f"{tag}:{kind}:{tenant}" for kind in ("log", "meta", "streams")]
        await self._call(tenant, "FCALL", "tenantry_v3_trim", 3, *keys, tenant, through_position)
        cursor = 0
        while True:
            cursor, index = await self._call(tenant, "HSCAN", keys[2], cursor, "COUNT", 500)
            old = [
                field
                for field, value in index.items()
                if b"#" in field and int.from_bytes(value[-_POSITION_BYTES:], "big") <= through_position
            ]
            if old:  # the function looks again: the stream may have grown meanwhile
                await self._call(tenant, "FCALL", "tenantry_v3_trim", 3, *keys, tenant, through_position, *old)
            if int(cursor) == 0:
                return

    async def load_snapshots(self, tenant: str) -> list[Snapshot]:
        key = f"{slice_tag(slice_of(tenant))}:snapshots:{tenant}"
        rows = await self._one(self._pages, tenant, "HVALS", key)  # every activation asks, and a snapshot may be large
        snapshots = filter(None, map(_readable_snapshot, rows))
        return sorted(snapshots, key=lambda kept: kept.position, reverse=True)

    async def save_snapshot(self, tenant: str, snapshot: Snapshot) -> None:
        key = f"{slice_tag(slice_of(tenant))}:snapshots:{tenant}"
        await self._call(tenant, "HSET", key, snapshot.position, _encode(snapshot))
        failpoint("snap.mid_write")
        kept = sorted(map(int, await self._call(tenant, "HKEYS", key)))
        if old := kept[:-SNAPSHOTS_KEPT]:
            await self._call(tenant, "HDEL", key, *old)

    async def tenants(self, slice_number: int) -> list[str]:
        return sorted(name.decode() for name in await self._call("", "SMEMBERS", f"{slice_tag(slice_number)}:tenants"))

    async def newest_cursors(self, slices: Sequence[int]) -> dict[int, str]:
        calls = [["XREVRANGE", _appends_key(number), "+", "-", "COUNT", 1] for number in slices]
        cursors = {}
        for number, rows in zip(slices, await self._send(calls), strict=True):
            if isinstance(rows, Exception):
                raise translate(rows, "", 0)
            cursors[number] = rows[0][0].decode() if rows else "0"
        return cursors

    async def tail(self, cursors: dict[int, str], block_ms: int) -> dict[int, list[Pointer]]:
        if self._is_cluster:
            return await self._tail_cluster(cursors, block_ms)
        keys = map(_appends_key, cursors)
        args = ("XREAD", "COUNT", TAIL_POINTERS_MAX, "BLOCK", block_ms, "STREAMS", *keys, *cursors.values())
        link = self._tails.pop() if self._tails else open_link(self._client)
        if link is None:
            answer = await cancellable(self._call("", *args))
        else:
            answer = await self._tail_over(link, args)
        return dict(_pointers(key, rows) for key, rows in answer or [])

    async def _tail_over(self, link: Link, args: Command) -> Any:
        """Who is cancelled leaves a read on the wire that the next one would wait for: that connection is closed."""
        is_answered = False
        try:
            answer = await self._one(link, "", *args)
            is_answered = True
            return answer
        finally:
            if is_answered:
                self._tails.append(link)
            else:
                await link.close()

    async def _tail_cluster(self, cursors: dict[int, str], block_ms: int) -> dict[int, list[Pointer]]:
        """Slices lie in different slots there, and one blocking read can't wait for several: ask all, and again."""
        calls = [
            ["XREAD", "COUNT", TAIL_POINTERS_MAX, "STREAMS", _appends_key(number), cursor]
            for number, cursor in cursors.items()
        ]
        ends = time.monotonic() + block_ms / 1000
        while True:
            found: dict[int, list[Pointer]] = {}
            for answer in await self._send(calls):
                if isinstance(answer, Exception):
                    raise translate(answer, "", 0)
                found |= dict(_pointers(key, rows) for key, rows in answer or [])
            if found or time.monotonic() > ends:
                return found
            await asyncio.sleep(_CLUSTER_POLL_S)

    async def due(self, now_us: int, passed_over: Collection[str] = ()) -> list[str]:
        counts = Counter(map(slice_of, passed_over))
        calls = [
            ["ZRANGEBYSCORE", f"{slice_tag(number)}:timers", "-inf", now_us, "LIMIT", 0, _DUE_AT_ONCE + counts[number]]
            for number in range(SLICE_COUNT)
        ]
        found = []
        for answer in await self._send(calls):
            if isinstance(answer, Exception):
                raise translate(answer, "", 0)
            found += [tenant.decode() for tenant in answer]
        return [tenant for tenant in found if tenant not in passed_over]

    async def set_timer(self, tenant: str, epoch: int, timer_us: int) -> None:
        tag = slice_tag(slice_of(tenant))
        keys = (f"{tag}:meta:{tenant}", f"{tag}:timers")
        await self._call(tenant, "FCALL", "tenantry_v3_set_timer", 2, *keys, tenant, epoch, timer_us)

    async def halt(self, tenant: str, epoch: int, reason: str) -> None:
        tag = slice_tag(slice_of(tenant))
        keys = (f"{tag}:meta:{tenant}", f"{tag}:timers")
        await self._call(tenant, "FCALL", "tenantry_v3_halt", 2, *keys, tenant, epoch, reason)

    async def resume(self, tenant: str) -> None:
        key = f"{slice_tag(slice_of(tenant))}:meta:{tenant}"
        if await self._call(tenant, "HGET", key, "status") != b"erased":
            await self._call(tenant, "HSET", key, "status", "active", "halted_because", "")
            await self._call(tenant, "ZADD", f"{slice_tag(slice_of(tenant))}:timers", _DUE_SINCE_EVER, tenant)

    async def erase(self, tenant: str) -> None:
        tag = slice_tag(slice_of(tenant))
        await self._call(tenant, "HSET", f"{tag}:meta:{tenant}", "status", "erased")
        await self._call(tenant, "DEL", f"{tag}:replies:{tenant}", f"{tag}:snapshots:{tenant}")
        await self._call(tenant, "ZREM", f"{tag}:timers", tenant)

    async def leftovers(self, tenant: str) -> dict[str, int]:
        tag = slice_tag(slice_of(tenant))
        has_timer = await self._call(tenant, "ZSCORE", f"{tag}:timers", tenant) is not None
        return {
            "replies": await self._call(tenant, "HLEN", f"{tag}:replies:{tenant}"),
            "snapshots": await self._call(tenant, "HLEN", f"{tag}:snapshots:{tenant}"),
            "timers": int(has_timer),
        }

    async def server_info(self) -> dict[str, str]:
        """The server's version and the settings that durability depends on."""
        info = await self._call("", "INFO", "server")
        settings = await self._call("", "CONFIG", "GET", "append*", "maxmemory-policy")
        texts = [text.decode() for text in settings]
        plain = dict(zip(texts[::2], texts[1::2], strict=True))
        return {"version": str(info.get("valkey_version", info.get("redis_version"))), **plain}

    async def _one(self, link: Link | None, tenant: str, *args: Any) -> Any:
        """One call over a bare connection, where there is one."""
        (answer,) = await self._send([args], link)
        if isinstance(answer, Exception):
            raise await self._error(answer, tenant) from answer
        return answer

    async def _call(self, tenant: str, *args: Any) -> Any:
        """One call by redis-py, ten times as slow: for what is rare, or whose reply is a map."""
        try:
            return await execute(self._client, *args)
        except (RedisError, OSError) as error:
            raise await self._error(error, tenant) from error

    async def _error(self, error: Exception, tenant: str, epoch: int = 0) -> Exception:
        """The platform's error for the server's. Where somebody has flushed the functions, or a server came back without
        them, they are loaded again: who is told that the store is unavailable repeats the call, and it works.
        """
        if FUNCTION_MISSING in str(error):
            try:
                await self.open()
            except PlatformError as failure:
                return failure
        return translate(error, tenant, epoch)


@lru_cache(maxsize=SLICE_COUNT)
def _appends_key(slice_number: int) -> str:
    return f"{slice_tag(slice_number)}:appends"


@lru_cache(maxsize=10_000)
def _append_keys(tenant: str) -> tuple[str, ...]:
    """The keys, and the first argument, which is the tenant."""
    tag = slice_tag(slice_of(tenant))
    return (
        f"{tag}:log:{tenant}", f"{tag}:meta:{tenant}", f"{tag}:replies:{tenant}", f"{tag}:streams:{tenant}",
        f"{tag}:timers", f"{tag}:appends", f"{tag}:tenants", tenant,
    )  # fmt: skip


def _append_args(request: Append) -> list[Any]:
    entries, streams = _log_entries(request.entries), _positions(request)
    args: list[Any] = [
        "FCALL", "tenantry_v3_append", 7, *_append_keys(request.tenant),
        request.epoch, request.expected_position, request.previous_hash, request.entries[-1].hash,
        REPLY_TTL_S * 1000, request.status, request.placement,
        "" if request.next_timer_us is None else request.next_timer_us,
        len(request.commands), len(entries), len(streams),
    ]  # fmt: skip
    for command in request.commands:
        args += (command.command_id, command.body_hash + command.reply)
    for events in entries:
        args += (len(events) // 2, _encode(events))
    for stream in streams:
        args += stream
    return args


def _log_entries(entries: Sequence[Entry]) -> list[list[bytes]]:
    """Events as they go into the log: record, hash, record, hash ... of neighbours that share an entry."""
    groups: list[list[bytes]] = []
    for start in range(0, len(entries), _ENTRY_EVENTS_MAX):
        part = entries[start : start + _ENTRY_EVENTS_MAX]
        if sum([len(entry.record) for entry in part]) <= _ENTRY_BYTES_MAX or len(part) == 1:
            groups.append([text for entry in part for text in (entry.record, entry.hash)])
        else:  # large events share with fewer
            middle = len(part) // 2
            groups += _log_entries(part[:middle]) + _log_entries(part[middle:])
    return groups


def _positions(request: Append) -> list[tuple[str, int, bytes]]:
    """By stream: its version before the append, and where its new events will be, five bytes each."""
    entries, position = request.entries, request.expected_position
    if len({entry.stream for entry in entries}) == 1:  # as most are
        packed = [at.to_bytes(_POSITION_BYTES, "big") for at in range(position + 1, position + 1 + len(entries))]
        return [(entries[0].stream, entries[0].version - 1, b"".join(packed))]
    places: dict[str, list[bytes]] = {}
    before: dict[str, int] = {}
    for at, entry in enumerate(entries, position + 1):
        stream = entry.stream
        if stream not in places:
            places[stream], before[stream] = [], entry.version - 1
        places[stream].append(at.to_bytes(_POSITION_BYTES, "big"))
    return [(stream, before[stream], b"".join(found)) for stream, found in places.items()]


def _pointers(key: bytes, rows: Sequence[tuple[bytes, list[bytes]]]) -> tuple[int, list[Pointer]]:
    """Of a slice's entries: fields ``t``, tenant, and ``p``, position."""
    return int(key[2:5]), [Pointer(row.decode(), fields[1].decode(), int(fields[3])) for row, fields in rows]


def _events_of(row: tuple[bytes, list[bytes]]) -> list[StoredEvent]:
    """The events of a log's entry."""
    row_id, fields = row
    last = int(row_id[:-2])  # "17-0"
    parts = _entry_parts(last, fields)
    first = last + 1 - len(parts) // 2
    return list(map(StoredEvent, range(first, last + 1), parts[::2], parts[1::2]))


def _some_events_of(row: tuple[bytes, list[bytes]], wanted: Container[int]) -> dict[int, StoredEvent]:
    """Those of an entry's events whose positions are wanted: of 32, mostly one is."""
    last, fields = int(row[0][:-2]), row[1]
    parts = _entry_parts(last, fields)
    first = last + 1 - len(parts) // 2
    return {
        position: StoredEvent(position, parts[2 * (position - first)], parts[2 * (position - first) + 1])
        for position in range(first, last + 1)
        if position in wanted
    }


def _entry_parts(last: int, fields: list[bytes]) -> list[bytes]:
    """Record, hash, record, hash ... of an entry."""
    if fields[0] != b"b":
        return [fields[1], fields[3]]
    try:
        return _decode_entry(fields[1])
    except msgspec.DecodeError as error:
        raise IntegrityError(f"the log's entry at position {last} can't be read: {error}") from error


def _ranges(positions: Sequence[int]) -> list[tuple[int, int]]:
    """Rising positions as ranges of those that lie close together: one read for each."""
    ranges: list[tuple[int, int]] = []
    for position in positions:
        if ranges and position <= ranges[-1][1] + _NEIGHBOUR_GAP:
            ranges[-1] = (ranges[-1][0], position)
        else:
            ranges.append((position, position))
    return ranges


def _readable_snapshot(row: bytes) -> Snapshot | None:
    """None: it has rotted. A cache is done without."""
    try:
        return _decode_snapshot(row)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _status(raw: bytes) -> TenantStatus:
    return cast("TenantStatus", raw.decode())


def _placement(raw: bytes) -> Placement:
    return cast("Placement", raw.decode())
