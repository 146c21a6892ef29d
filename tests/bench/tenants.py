"""Tenants that come, go, move, crash and flood, on one running platform."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count, pairwise
from statistics import quantiles
from typing import Any

import msgspec
import nats
import ray
from ray.exceptions import RayError

from actors.activation import Activation
from actors.commit import Committer
from actors.fairness import Share
from actors.supervision.cluster import Node
from actors.supervision.placement import (
    PLACEMENT,
    AnyOrder,
    MoveTenant,
    NotPlaced,
    ShowPlacement,
    decode_answer,
    encode,
)
from events.ask import Asker
from events.bus import Bus, NoOneListensError
from events.clock import SystemClock
from events.codec import GENESIS, Record, chain
from events.process import NAMESPACE
from events.slices import slice_of, slice_tag
from events.store import Append
from events.tenant import ChangePlan, CreateTenant, DescribeTenant, SetBudget
from events.valkey_store import ValkeyEventStore
from serve.installation import Running
from tests.bench.asks import IN_FLIGHT, Load, drive
from tests.bench.flood import Counts, counts
from tests.bench.programs import ROOT, idle_mib
from tests.bench.responder import Store, open_store
from tests.bench.results import BenchError, Pairs, Say
from tests.kit.factories import created, in_clear, key_issued, reserved, settled
from tests.kit.second_node import second_node
from tests.kit.servers import keys_in_memory

POOLED = 10_000
_ACTIVATION_REPEATS = 7
_ACTIVATIONS = {"activation_1": 1, "activation_1e3": 1_000, "activation_1e5": 100_000}
_FILL_EVENTS = 2_000
_KEYS = keys_in_memory()
_RESTARTS = 5
_RESTART_TIMEOUT_S = 60.0
_MOVES, _NODE_MOVES = 20, 10
_NEIGHBOURS = 10
_NEIGHBOUR_S, _NEIGHBOUR_REPEATS = 3.0, 5
# A client that thinks between two questions; what it is kept waiting shows beside that.
_NEIGHBOUR_PAUSE_S = 0.1
_FLOOD_SHARE_MIN, _FLOOD_TIMEOUT_S = 0.9, 60.0

ACTIVATION_ROWS = (*_ACTIVATIONS, "activation_1e5_snapshot")
POOL_ROWS = ("pool_activations", "pool_ask_p99", "tenant_memory")
MOVE_ROWS = ("move_pause_p50", "move_pause_p99")
NODE_MOVE_ROWS = ("node_move_pause_p50", "node_move_pause_p99")
ROWS = ("restart", *ACTIVATION_ROWS, *POOL_ROWS, *MOVE_ROWS, *NODE_MOVE_ROWS, "noisy_neighbour")


class Ground(msgspec.Struct, frozen=True):
    """Where the rows are measured: the platform, and the cookie of its processes."""

    running: Running
    instance: str
    bus: Bus
    store: ValkeyEventStore
    say: Say

    @property
    def asker(self) -> Asker:
        return Asker(self.bus)


async def measure(rows: Sequence[str], ground: Ground) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    if "restart" in rows:
        results.append(await _measure_restart(ground))
    results += [await _measure_activation(row, ground) for row in ACTIVATION_ROWS if row in rows]
    for group, measure_group in (
        (POOL_ROWS, _measure_pool),
        (MOVE_ROWS, _measure_moves),
        (NODE_MOVE_ROWS, _measure_node_moves),
    ):
        if wanted := [row for row in group if row in rows]:
            found = await measure_group(ground)
            results += [found[row] for row in wanted]
    if "noisy_neighbour" in rows:
        results.append(await _measure_neighbours(ground))
    return results


async def _create(asker: Asker, tenant: str, plan: Any = "free") -> None:
    await asker.ask(tenant, CreateTenant(tenant, plan), actor="bench", timeout_s=60)


class Bare:
    """A Ray actor that does nothing but answer."""

    async def pid(self) -> int:
        return os.getpid()


async def _measure_restart(ground: Ground) -> dict[str, Any]:
    """From kill -9 until there is an answer again: a silo tenant's, asked over the bus, and a bare Ray actor's."""
    kind: Any = ray.remote(Bare)
    bare = kind.options(num_cpus=0, max_restarts=-1).remote()
    asker, tenant, pairs = ground.asker, "bench-restart", Pairs("restart", ground.say)
    await _create(asker, tenant, "pro")
    await _in_silo(tenant)
    for _ in range(_RESTARTS):
        pid: int = await _actor(f"silo-{tenant}").__ray_call__.remote(_pid)
        os.kill(pid, signal.SIGKILL)
        began = time.perf_counter()
        await asker.ask(tenant, DescribeTenant(), actor="bench", timeout_s=_RESTART_TIMEOUT_S)
        ours = time.perf_counter() - began
        os.kill(await bare.pid.remote(), signal.SIGKILL)
        began = time.perf_counter()
        await _answers(bare)
        pairs.add(ours, time.perf_counter() - began)
    ray.kill(bare)
    return pairs.verdict()


def _actor(name: str) -> Any:
    return ray.get_actor(name, namespace=NAMESPACE)


def _pid(_self: object) -> int:
    return os.getpid()


async def _answers(bare: Any) -> None:
    async with asyncio.timeout(_RESTART_TIMEOUT_S):
        while True:
            with suppress(RayError):
                await bare.pid.remote()
                return
            await asyncio.sleep(0.01)  # Ray says only when asked that an actor is back


async def _in_silo(tenant: str) -> None:
    """Returns when the tenant is served by an actor of its own, and nowhere else."""
    async with asyncio.timeout(_RESTART_TIMEOUT_S):
        while True:
            with suppress(ValueError, RayError):
                if await _actor(f"silo-{tenant}").tenants.remote() == [tenant]:
                    return
            await asyncio.sleep(0.02)  # an actor says whom it serves only when asked


async def _in_pool(tenant: str) -> None:
    async with asyncio.timeout(_RESTART_TIMEOUT_S):
        while tenant not in await _actor("pool-0").tenants.remote():  # noqa: ASYNC110 - nothing tells when it has moved
            await asyncio.sleep(0.02)  # as in ``_in_silo``


async def _fill(store: ValkeyEventStore, tenant: str, events: int) -> None:
    """A log of calls reserved and settled, as a gateway leaves it."""
    head = await store.claim(tenant)
    position, previous, version = 0, GENESIS, 0
    history = iter(_history())
    while position < events:
        records = []
        for _ in range(min(_FILL_EVENTS, events - position)):
            version += 1
            event = next(history)
            data = in_clear(event)
            records.append(
                Record("tenant", version, SystemClock().now_us(), "bench", "bench", "", "", head.epoch, data)
            )
        entries = chain(previous, records)
        await store.append(Append(tenant, head.epoch, position, previous, entries, []))
        position, previous = position + len(entries), entries[-1].hash


def _history() -> Any:
    yield created()
    yield key_issued()
    for number in count():
        yield reserved(f"call-{number:08}-and-as-long-as-a-uuid")
        yield settled(f"call-{number:08}-and-as-long-as-a-uuid")


async def _measure_activation(row: str, ground: Ground) -> dict[str, Any]:
    """Claim and replay in this process, and beside it the least that could do so: one durable write, and the log's bytes
    read and decoded as MessagePack in pages.
    """
    events = _ACTIVATIONS.get(row, 100_000)
    tenant, pairs = f"bench-{row.replace('_', '-')}", Pairs(row, ground.say)
    await _fill(ground.store, tenant, events)
    if row.endswith("_snapshot"):
        first = await _activated(ground.store, tenant)
        await first.save_snapshot()
    bare = await open_store(ground.running.valkey_url)
    for _ in range(_ACTIVATION_REPEATS):
        began = time.perf_counter()
        active = await _activated(ground.store, tenant)
        ours = (time.perf_counter() - began) * 1e3
        assert active.position == events
        began = time.perf_counter()
        await _bare_replay(bare, tenant, events - 1 if row.endswith("_snapshot") else 0)
        pairs.add(ours, (time.perf_counter() - began) * 1e3)
    return pairs.verdict()


async def _activated(store: ValkeyEventStore, tenant: str) -> Activation:
    active = Activation(
        tenant, store, Committer(store), Share(), SystemClock(),
        lambda _reply_to, _data: None, lambda _: None, "pool", lambda _: None, _KEYS,
    )  # fmt: skip
    await active.start()
    return active


async def _bare_replay(bare: Store, tenant: str, after: int) -> None:
    tag = slice_tag(slice_of(tenant))
    await bare.call("HINCRBY", f"{tag}:bench", "epoch", 1)
    at, decode = f"{after + 1}-0", msgspec.msgpack.Decoder().decode
    while rows := await bare.call("XRANGE", f"{tag}:log:{tenant}", at, "+", "COUNT", 16):
        for _, fields in rows:
            for record in decode(fields[1])[::2]:
                decode(record)
        at = f"({rows[-1][0].decode()}"


async def _measure_pool(ground: Ground) -> dict[str, dict[str, Any]]:
    """Ten thousand tenants, created, activated and asked, 64 at a time. Beside it, per tenant: one durable write, one
    read, a subscription and a request to it, by the plainest clients there are.
    """
    say, asker = ground.say, ground.asker
    await _create(asker, "bench-pool-first")
    before = await asyncio.to_thread(idle_mib, ground.instance)
    names = [f"bench-pool-{number:05}" for number in range(POOLED)]
    began = time.perf_counter()
    await _each(names, lambda name: _create(asker, name))
    per_second = POOLED / (time.perf_counter() - began)
    latencies: list[float] = []

    async def ask(name: str) -> None:
        asked = time.perf_counter()
        await asker.ask(name, SetBudget(10**9, "month"), actor="bench", timeout_s=60)
        latencies.append(time.perf_counter() - asked)

    await _each(names, ask)
    after = await asyncio.to_thread(idle_mib, ground.instance)
    each_kib = (after - before) * 1024 / POOLED
    bare_per_second, bare_p99_ms = await _bare_pool(ground, names)
    rows = {
        "pool_activations": (per_second, bare_per_second),
        "pool_ask_p99": (_p99(latencies) * 1e3, bare_p99_ms),
        "tenant_memory": (each_kib, None),
    }
    found = {}
    for row, (ours, ceiling) in rows.items():
        pairs = Pairs(row, say)
        pairs.add(ours, ceiling)
        found[row] = pairs.verdict()
    return found


async def _bare_pool(ground: Ground, names: Sequence[str]) -> tuple[float, float]:
    bare = await open_store(ground.running.valkey_url)
    serving, asking = await nats.connect(ground.running.nats_url), await nats.connect(ground.running.nats_url)
    latencies: list[float] = []

    async def serve(name: str) -> None:
        key = f"{slice_tag(slice_of(name))}:bench:{name}"

        async def answer(message: Any) -> None:
            await bare.call("XADD", key, "*", "e", message.data)
            await serving.publish(message.reply, b"1")

        await bare.call("XADD", key, "*", "e", b"created")
        await bare.call("XRANGE", key, "-", "+")
        await serving.subscribe(f"bench.t.{name}", cb=answer)
        for _ in range(2):  # nats-py's PING overtakes its SUB: the first PONG says nothing, the second one does
            await serving.flush()
        await asking.request(f"bench.t.{name}", b"x" * 200, timeout=10)

    async def ask(name: str) -> None:
        asked = time.perf_counter()
        await asking.request(f"bench.t.{name}", b"x" * 200, timeout=10)
        latencies.append(time.perf_counter() - asked)

    began = time.perf_counter()
    await _each(names, serve)
    per_second = len(names) / (time.perf_counter() - began)
    await _each(names, ask)
    await asyncio.gather(serving.close(), asking.close())
    return per_second, _p99(latencies) * 1e3


async def _each(names: Sequence[str], work: Any) -> None:
    waiting = iter(names)

    async def worker() -> None:
        for name in waiting:
            await work(name)

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(worker())


def _p99(values: Sequence[float]) -> float:
    return quantiles(values, n=100)[-1]


async def _measure_moves(ground: Ground) -> dict[str, dict[str, Any]]:
    """Plans changed to and fro while sixteen callers ask: the longest time of each move in which nobody was answered.
    Beside it the longest such time while nothing moves, in windows as long as the moves took.
    """
    asker, tenant = ground.asker, "bench-move"
    await _create(asker, tenant)
    pauses: list[float] = []
    quiet: list[float] = []
    async with _answered(asker, tenant) as answers:
        for number in range(_MOVES):
            begin = time.perf_counter()
            await asker.ask(tenant, ChangePlan("free" if number % 2 else "pro"), actor="bench", timeout_s=60)
            await (_in_pool if number % 2 else _in_silo)(tenant)
            moved = time.perf_counter()
            await asyncio.sleep(max(0.2, moved - begin))  # the window to compare with
            pauses.append(_longest_gap(answers, begin, moved))
            quiet.append(_longest_gap(answers, moved, time.perf_counter()))
            ground.say(
                f"move {number + 1}: {pauses[-1] * 1e3:.1f} ms without an answer, {quiet[-1] * 1e3:.1f} before any"
            )
    return _pauses(MOVE_ROWS, pauses, ground.say)


async def _measure_node_moves(ground: Ground) -> dict[str, dict[str, Any]]:
    """A tenant with an actor of its own goes to a second node of this machine and back, while sixteen callers ask."""
    asker, tenant = ground.asker, "bench-node-move"
    await _create(asker, tenant, "pro")
    await _in_silo(tenant)
    pauses: list[float] = []
    with second_node(ground.instance, ground.running.ray_address) as other:
        head = next(node.id for node in await _placed(ground, ShowPlacement()) if node.is_head)
        async with _answered(asker, tenant) as answers:
            for number in range(_NODE_MOVES):
                begin = time.perf_counter()
                await _placed(ground, MoveTenant(tenant, head if number % 2 else other.id))
                moved = time.perf_counter()
                pauses.append(_longest_gap(answers, begin, moved))
                ground.say(
                    f"move {number + 1}: {pauses[-1] * 1e3:.1f} ms without an answer, {moved - begin:.1f} s in all"
                )
        await _placed(ground, MoveTenant(tenant, head))
    return _pauses(NODE_MOVE_ROWS, pauses, ground.say)


async def _placed(ground: Ground, order: AnyOrder) -> list[Node]:
    answer = decode_answer(await ground.bus.request(PLACEMENT, encode(order), _RESTART_TIMEOUT_S))
    if isinstance(answer, NotPlaced):
        raise BenchError(answer.message)
    nodes: list[Node] = answer.nodes
    return nodes


def _pauses(rows: tuple[str, str], pauses: Sequence[float], say: Say) -> dict[str, dict[str, Any]]:
    found = {}
    for row, cut in zip(rows, (49, 98), strict=True):
        pairs = Pairs(row, say)
        pairs.add(quantiles(pauses, n=100, method="inclusive")[cut] * 1e3, None)
        found[row] = pairs.verdict()
    return found


@asynccontextmanager
async def _answered(asker: Asker, tenant: str) -> AsyncIterator[list[float]]:
    """When answers came, while callers ask for one thing after the other."""
    times: list[float] = []
    numbers = count(10**9)

    async def call() -> None:
        while True:
            await asker.ask(tenant, SetBudget(next(numbers), "month"), actor="bench", timeout_s=60)
            times.append(time.perf_counter())

    tasks = [asyncio.create_task(call()) for _ in range(16)]
    try:
        yield times
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _longest_gap(times: Sequence[float], begin: float, end: float) -> float:
    inside = [begin, *(at for at in times if begin < at < end), end]
    return max(later - earlier for earlier, later in pairwise(inside))


async def _measure_neighbours(ground: Ground) -> dict[str, Any]:
    """Ten tenants of a pool, each asking one thing after the other at its leisure, with and without another one's flood
    beside them. In the order of arrival each of theirs would stand behind a whole mailbox of the flooder's.
    """
    asker, flooder = ground.asker, "bench-flooder"
    names = [f"bench-neighbour-{number}" for number in range(_NEIGHBOURS)]
    for name in (*names, flooder):
        await _create(asker, name)
    numbers, pairs, floods = count(10**9), Pairs("noisy_neighbour", ground.say), list[Flood]()

    def sender(name: str) -> Any:
        async def send() -> object:
            return await asker.ask(name, SetBudget(next(numbers), "month"), actor="bench")

        return send

    senders = [sender(name) for name in names]
    await drive(senders, _NEIGHBOUR_S, _NEIGHBOUR_PAUSE_S)
    for _ in range(_NEIGHBOUR_REPEATS):
        solo = await drive(senders, _NEIGHBOUR_S, _NEIGHBOUR_PAUSE_S)
        async with _flooded(ground, flooder):
            before = await counts(ground.bus)
            beside = await drive(senders, _NEIGHBOUR_S, _NEIGHBOUR_PAUSE_S)
            flood = Flood((await counts(ground.bus)).since(before), beside)
        floods.append(flood)
        ground.say(f"the flood: {flood}; p50 of the others {solo.p50_us:,.0f} -> {beside.p50_us:,.0f} us")
        pairs.add(beside.per_second, solo.per_second)
    found = pairs.verdict()
    return {**found, "ok": found["ok"] and all(flood.is_one for flood in floods), "flood": str(floods[-1])}


class Flood(msgspec.Struct, frozen=True):
    """What the flooder asked for and got while the others did their ``load``."""

    counts: Counts
    load: Load

    @property
    def share(self) -> float:
        """Of all that was asked for: what it would get in the order of arrival."""
        return self.counts.offered / (self.counts.offered + len(self.load.latencies_s))

    @property
    def is_one(self) -> bool:
        """Otherwise the row proves nothing: it has to be most of what is asked for, and more than the mailbox holds."""
        return self.share >= _FLOOD_SHARE_MIN and self.counts.refused > 0

    def __str__(self) -> str:
        offered, served, refused = (
            round(number / self.load.seconds) for number in msgspec.structs.astuple(self.counts)
        )
        return (
            f"{offered:,}/s offered ({self.share:.1%} of all commands), {served:,}/s served, "
            f"{refused:,}/s refused with 429"
        )


@asynccontextmanager
async def _flooded(ground: Ground, tenant: str) -> AsyncIterator[None]:
    """Entered once the mailbox has overflowed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.flood", ground.running.nats_url, tenant, cwd=ROOT, stderr=asyncio.subprocess.DEVNULL
    )  # fmt: skip
    try:
        async with asyncio.timeout(_FLOOD_TIMEOUT_S):
            while not await _overflows(ground.bus):  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(0.05)  # it tells its counts only when asked
        yield
    finally:
        process.kill()
        await process.wait()


async def _overflows(bus: Bus) -> bool:
    with suppress(NoOneListensError):
        return (await counts(bus)).refused > 0
    return False
