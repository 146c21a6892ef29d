"""The event store's rows: one Valkey of their own with the platform's settings, and in it the plainest programs that do
the same physical work. Ours goes through the store's own interface; the ceilings through a bare connection.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from actors.activation import Activation
from actors.commit import Committer
from actors.fairness import Share
from events.archive import Archive, archive_log
from events.clock import SystemClock
from events.codec import GENESIS, Entry, Record, chain
from events.ids import uuid7
from events.messages import Event
from events.scan import scan
from events.store import Append, CommandResult
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from events.verify import verify
from serve.local_servers import LocalServer
from tests.bench import responder
from tests.bench.programs import scratch
from tests.bench.results import Pairs, Say
from tests.kit.factories import NOW_US, created, key_issued, record, reserved, settled
from tests.kit.servers import Servers, keys_in_memory, running_servers

IN_FLIGHT, BATCH = 16, 10
EVENT_BYTES = 300
LARGE = 1_000_000
_REPEATS = 5
_APPENDS = 60  # of each in flight, per repeat
_LOG_EVENTS = 50_000
_FILL_EVENTS = 500
_RUN_EVENTS = 20
_STREAM_READS = 300

Pair = tuple[Callable[[], Awaitable[float]], Callable[[], Awaitable[float]]]


class Bench:
    """A store, a bare connection to the same server, and what rows share."""

    def __init__(self, servers: Servers, directory: Path, say: Say) -> None:
        self.servers, self.directory, self.say = servers, directory, say
        self.archive = Archive(str(directory / "archive"))
        self._made = 0

    async def open(self) -> None:
        self.store = ValkeyEventStore(connect(self.servers.valkey_url, timeout_s=60), self.archive)
        await self.store.open()
        self.bare = await responder.open_store(self.servers.valkey_url)

    async def close(self) -> None:
        await self.store.close()
        self.bare.close()

    def name(self) -> str:
        """Of a tenant or a key nobody has used."""
        self._made += 1
        return f"bench-{self._made}"

    async def used_bytes(self) -> int:
        info: bytes = await self.bare.call("INFO", "memory")
        return next(int(line[12:]) for line in info.split(b"\r\n") if line.startswith(b"used_memory:"))

    async def fill(self, tenant: str, records: Iterator[Record]) -> None:
        """Write the records as a log, some hundred an append."""
        head, position = await self.store.claim(tenant), 0
        previous = head.hash
        while part := list(islice(records, _FILL_EVENTS)):
            entries = chain(previous, part)
            await self.store.append(Append(tenant, head.epoch, position, previous, entries, []))
            position, previous = position + len(entries), entries[-1].hash

    async def bare_fill(self, key: str, events: Sequence[bytes]) -> None:
        for start in range(0, len(events), _FILL_EVENTS):
            part = events[start : start + _FILL_EVENTS]
            await self.bare.call("FCALL", "bench_v1_append", 2, f"{key}:log", f"{key}:meta", start, *part)


def events_of_calls(count: int) -> Iterator[Event]:
    """What a tenant's log is made of: calls reserved and settled."""
    yield created()
    yield key_issued()
    for number in range((count - 2) // 2):
        yield reserved(f"call-{number}")
        yield settled(f"call-{number}")


def records_of(events: Iterator[Event]) -> Iterator[Record]:
    for version, event in enumerate(events, 1):
        yield record(event, version, command_id=uuid7(NOW_US, version.to_bytes(8, "big")))  # type: ignore[arg-type]


def padded(version: int, stream: str = "tenant") -> Record:
    """A record of 300 bytes."""
    made = msgspec.structs.replace(record(reserved(f"call-{version}"), version), stream=stream)
    size = len(msgspec.msgpack.encode(made))
    return msgspec.structs.replace(made, causation_id="." * max(0, EVENT_BYTES - size - 2))


async def append(bench: Bench) -> Pair:
    """Appends of ten events and one command, 16 in flight, each of another tenant; a bare function that adds as many
    events of as many bytes to as many logs. Requests are made beforehand: the store's part is what is measured.
    """
    tenants = [bench.name() for _ in range(IN_FLIGHT)]
    heads = {tenant: await bench.store.claim(tenant) for tenant in tenants}
    at = dict.fromkeys(tenants, (0, GENESIS))
    keys = {f"{{{bench.name()}}}": 0 for _ in range(IN_FLIGHT)}

    def requests(tenant: str) -> list[Append]:
        made = []
        for _ in range(_APPENDS):
            position, previous = at[tenant]
            entries = chain(previous, [padded(position + number) for number in range(1, BATCH + 1)])
            command = CommandResult(uuid7(NOW_US + position, tenant.encode()[-8:].rjust(8)), bytes(32), b"r" * 60)
            made.append(Append(tenant, heads[tenant].epoch, position, previous, entries, [command]))
            at[tenant] = (position + BATCH, entries[-1].hash)
        return made

    event = b"e" * (EVENT_BYTES + 32)

    async def ours() -> float:
        prepared = [requests(tenant) for tenant in tenants]

        async def one(mine: list[Append]) -> None:
            for request in mine:
                await bench.store.append(request)

        return await _per_second(IN_FLIGHT * _APPENDS * BATCH, [one(mine) for mine in prepared])

    async def ceiling() -> float:
        async def one(key: str) -> None:
            for _ in range(_APPENDS):
                keys[key] = await bench.bare.call(
                    "FCALL", "bench_v1_append", 2, f"{key}:log", f"{key}:meta", keys[key], *[event] * BATCH
                )

        return await _per_second(IN_FLIGHT * _APPENDS * BATCH, [one(key) for key in keys])

    return ours, ceiling


async def _per_second(count: int, work: Sequence[Awaitable[None]]) -> float:
    began = time.perf_counter()
    await asyncio.gather(*work)
    return count / (time.perf_counter() - began)


async def _log(bench: Bench) -> tuple[str, list[bytes]]:
    """A tenant's log, and a bare log of the same records."""
    tenant = bench.name()
    await bench.fill(tenant, records_of(events_of_calls(_LOG_EVENTS)))
    rows = [event.record async for page in scan(bench.store, tenant, 0, _LOG_EVENTS) for event in page]
    await bench.bare_fill(tenant, rows)
    return tenant, rows


async def _bare_replay(bench: Bench, key: str, fold: Callable[[bytes], object]) -> float:
    began, last, count = time.perf_counter(), b"0", 0
    while rows := await bench.bare.call("XRANGE", f"{key}:log", b"(" + last, "+", "COUNT", 500):
        for _, fields in rows:
            fold(fields[1])
        last, count = rows[-1][0], count + len(rows)
    assert count == _LOG_EVENTS
    return count / (time.perf_counter() - began)


async def replay(bench: Bench) -> Pair:
    """An activation's replay: read, decode, verify each hash, evolve. The ceiling reads and decodes."""
    tenant, _ = await _log(bench)
    decode, keys = msgspec.msgpack.Decoder(Record).decode, keys_in_memory()

    async def ours() -> float:
        began = time.perf_counter()
        activation = Activation(
            tenant, bench.store, Committer(bench.store), Share(), SystemClock(), _nobody, _nobody, "pool", _nobody, keys
        )
        await activation.start()
        assert activation.position == _LOG_EVENTS
        return _LOG_EVENTS / (time.perf_counter() - began)

    return ours, lambda: _bare_replay(bench, tenant, decode)


def _nobody(*_arguments: object) -> None:
    """Answers to nobody: a replay has no callers."""


async def verifying(bench: Bench) -> Pair:
    """`tenantry verify`: read, hash, decode record and event, check versions. The ceiling reads, decodes and hashes."""
    from hashlib import sha256

    tenant, _ = await _log(bench)
    decode = msgspec.msgpack.Decoder(Record).decode

    async def ours() -> float:
        began = time.perf_counter()
        assert (await verify(bench.store, tenant)).events == _LOG_EVENTS
        return _LOG_EVENTS / (time.perf_counter() - began)

    async def ceiling() -> float:
        last = GENESIS

        def fold(raw: bytes) -> None:
            nonlocal last
            last = sha256(last + raw).digest()
            decode(raw)

        return await _bare_replay(bench, tenant, fold)

    return ours, ceiling


async def archiving(bench: Bench) -> Pair:
    """A log moved to files: read, verified, written, read back and verified, dropped. The ceiling reads the events and
    writes a file of them.
    """

    async def ours() -> float:
        tenant = bench.name()
        await bench.fill(tenant, records_of(events_of_calls(_LOG_EVENTS)))
        began = time.perf_counter()
        assert await archive_log(bench.store, bench.archive, tenant, keep=0, least=1) == _LOG_EVENTS
        return _LOG_EVENTS / (time.perf_counter() - began)

    key, _ = await _log(bench)

    async def ceiling() -> float:
        began = time.perf_counter()
        records: list[bytes] = []
        await _bare_replay(bench, key, records.append)
        table = pa.table({"position": range(len(records)), "record": records})
        await asyncio.to_thread(pq.write_table, table, bench.directory / "bare.parquet", compression="zstd")
        return _LOG_EVENTS / (time.perf_counter() - began)

    return ours, ceiling


async def unarchiving(bench: Bench) -> Pair:
    """An archived log read back through the store, as replay, verify and export do. The ceiling reads a file of the same
    events whole.
    """
    tenant, records = await _log(bench)
    await archive_log(bench.store, bench.archive, tenant, keep=0, least=1)
    path = bench.directory / "whole.parquet"
    pq.write_table(
        pa.table({"position": range(len(records)), "record": records, "hash": [b"h" * 32] * len(records)}), path
    )

    async def ours() -> float:
        began, count = time.perf_counter(), 0
        async for page in scan(bench.store, tenant, 0, _LOG_EVENTS):
            count += len(page)
        assert count == _LOG_EVENTS
        return _LOG_EVENTS / (time.perf_counter() - began)

    async def ceiling() -> float:
        began = time.perf_counter()
        rows = await asyncio.to_thread(lambda: pq.read_table(path).to_pylist())
        assert len(rows) == _LOG_EVENTS
        return _LOG_EVENTS / (time.perf_counter() - began)

    return ours, ceiling


async def stream_read(bench: Bench) -> Pair:
    """One run's 20 events out of a log of a million, p99. The ceiling knows where in a bare log its 20 events lie, and
    reads each from there.
    """
    tenant, runs = bench.name(), LARGE // _RUN_EVENTS

    def interleaved() -> Iterator[Record]:
        """Fifty runs at a time take turns."""
        for group in range(runs // 50):
            for version in range(1, _RUN_EVENTS + 1):
                for run in range(50):
                    yield padded(version, f"run/{group * 50 + run}")

    bench.say("writing a million events …")
    await bench.fill(tenant, interleaved())
    await bench.bare_fill("{runs}", [b"e" * (EVENT_BYTES + 32)] * _LOG_EVENTS)

    async def p99(read: Callable[[int], Awaitable[int]]) -> float:
        took = []
        for number in range(_STREAM_READS):
            began = time.perf_counter()
            assert await read(number) == _RUN_EVENTS
            took.append(time.perf_counter() - began)
        return sorted(took)[int(_STREAM_READS * 0.99)] * 1e6

    async def our_read(number: int) -> int:
        return len(await bench.store.read_stream(tenant, f"run/{number * (runs // _STREAM_READS)}", 0))

    async def bare_read(number: int) -> int:
        places = range(number + 1, number + 1 + _RUN_EVENTS * 50, 50)
        return len(
            await asyncio.gather(*(bench.bare.call("XRANGE", "{runs}:log", f"{at}-0", f"{at}-0") for at in places))
        )

    return lambda: p99(our_read), lambda: p99(bare_read)


async def memory(bench: Bench) -> Pair:
    """What an event of 300 bytes costs in Valkey, hash, index and all, appended ten at a time; the ceiling is a stream of
    events of 300 bytes and nothing else.
    """
    count = 50_000

    async def ours() -> float:
        tenant, before = bench.name(), await bench.used_bytes()
        head, position, previous = await bench.store.claim(tenant), 0, GENESIS
        while position < count:
            entries: list[Entry] = chain(previous, [padded(position + number) for number in range(1, BATCH + 1)])
            await bench.store.append(Append(tenant, head.epoch, position, previous, entries, []))
            position, previous = position + BATCH, entries[-1].hash
        return (await bench.used_bytes() - before) / count

    async def ceiling() -> float:
        key, before = f"{{{bench.name()}}}", await bench.used_bytes()
        await bench.bare_fill(key, [b"e" * EVENT_BYTES] * count)
        return (await bench.used_bytes() - before) / count

    return ours, ceiling


async def restart(directory: Path, say: Say) -> tuple[float, float]:
    """Seconds from the start of Valkey on a million events until the first append is acknowledged; the ceiling: of a
    bare stream's, until the bare function has added to it.
    """

    async def fill_ours(bench: Bench) -> None:
        await bench.fill("restarted", (padded(version) for version in range(1, LARGE + 1)))

    async def append_ours(bench: Bench) -> None:
        head = await bench.store.claim("restarted")
        entries = chain(head.hash, [padded(LARGE + 1)])
        await bench.store.append(Append("restarted", head.epoch, LARGE, head.hash, entries, []))

    async def fill_bare(bench: Bench) -> None:
        for start in range(0, LARGE, _FILL_EVENTS):
            await bench.bare.call(
                "FCALL", "bench_v1_append", 2, "{r}:log", "{r}:meta", start, *[b"e" * 332] * _FILL_EVENTS
            )

    async def append_bare(bench: Bench) -> None:
        await bench.bare.call("FCALL", "bench_v1_append", 2, "{r}:log", "{r}:meta", LARGE, b"e")

    found = []
    for name, fill, first in (("ours", fill_ours, append_ours), ("bare", fill_bare, append_bare)):
        say(f"restart: writing a million events, {name} …")
        with running_servers(directory / name) as servers:
            await _with(servers, directory / name, say, fill)
            servers.valkey.stop()
            again = LocalServer(servers.valkey.spec)
            began = time.perf_counter()
            try:
                again.start()
                again.wait_ready(120)
                await _with(servers, directory / name, say, first)
                found.append(time.perf_counter() - began)
            finally:
                again.stop()
    return found[0], found[1]


async def _with(servers: Servers, directory: Path, say: Say, work: Callable[[Bench], Awaitable[None]]) -> None:
    bench = Bench(servers, directory, say)
    await bench.open()
    try:
        await work(bench)
    finally:
        await bench.close()


_ROWS: dict[str, Callable[[Bench], Awaitable[Pair]]] = {
    "append": append,
    "replay": replay,
    "verify": verifying,
    "archive": archiving,
    "unarchive": unarchiving,
    "store_memory": memory,
    "stream_read": stream_read,
}
ROWS = (*_ROWS, "store_restart")


def measure(rows: Sequence[str], instance: str, say: Say) -> list[dict[str, Any]]:
    import uvloop

    with scratch() as directory, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(rows, directory, say))


async def _measure(rows: Sequence[str], directory: Path, say: Say) -> list[dict[str, Any]]:
    results = []
    for row in rows:
        if row in _ROWS:
            with running_servers(directory / row) as servers:
                bench = Bench(servers, directory / row, say)
                await bench.open()
                try:
                    results.append(await _by_turns(row, await _ROWS[row](bench), say))
                finally:
                    await bench.close()
    if "store_restart" in rows:
        pairs = Pairs("store_restart", say)
        pairs.add(*await restart(directory, say))
        results.append(pairs.verdict())
    return results


async def _by_turns(row: str, pair: Pair, say: Say) -> dict[str, Any]:
    ours, ceiling = pair
    pairs = Pairs(row, say)
    await ours()  # the first of each warms up
    await ceiling()
    for _ in range(_REPEATS):
        pairs.add(await ours(), await ceiling())
    return pairs.verdict()
