"""Rows on a running platform: one `tenantry up`, and the ceilings as guests in its Ray, its Serve, its NATS, its Valkey.
So both sides have the same servers with the same settings, and every idle process is idle beside both.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import msgspec

from events.bus import Bus
from events.store import EventStore
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from serve import ray_runtime
from serve.client import AdminClient, AdminError
from serve.installation import Running
from tests.bench import access, bare_app, doors, servegen, tenants
from tests.bench.asks import IN_FLIGHT, Load, Send, ceiling_senders, drive, event_bytes, our_senders
from tests.bench.http_commands import Loads
from tests.bench.programs import environment_kept, model_server, platform
from tests.bench.responder import Responder, open_store
from tests.bench.results import Pairs, Say
from tests.bench.tells import CeilingQueue, Fetcher, Latencies, OurQueue

TENANT = "bench"
_REPEATS = 5
_WARMUP_S, _MEASURE_S = 1.0, 3.0
_PROJECTED_TIMEOUT_S = 120.0


class Stage(msgspec.Struct, frozen=True):
    """Where the rows are measured. ``responder`` is the Ray actor of the ceilings."""

    running: Running
    admin: AdminClient
    key_id: str
    key: str
    responder: Any
    say: Say
    instance: str
    model_url: str

    async def projected(self) -> None:
        """Returns when the projections have caught up: what ours left to do would otherwise slow down the ceiling."""
        ends = time.monotonic() + _PROJECTED_TIMEOUT_S
        while True:
            try:
                await asyncio.to_thread(self.admin.call, "GET", f"/tenants/{TENANT}/usage")
                return
            except AdminError as error:  # 503: not there after the five seconds that the platform itself waits
                if not str(error).startswith("HTTP 503") or time.monotonic() > ends:
                    raise


def measure(rows: Sequence[str], instance: str, say: Say) -> list[dict[str, Any]]:
    import uvloop

    say("starting the platform …")
    with (
        environment_kept(),
        model_server(instance) as model_url,
        platform(instance, model_url) as (_, running),
        _staged(running, say, instance, model_url) as stage,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        return runner.run(_measure(rows, stage))


@contextmanager
def _staged(running: Running, say: Say, instance: str, model_url: str) -> Iterator[Stage]:
    bare_app.set_environment()
    ray_runtime.connect_ray(running.ray_address)
    import ray

    try:
        admin = AdminClient(running.base_url, running.admin_key)
        admin.call("POST", "/tenants", {"id": TENANT, "name": "Bench", "plan": "pro"})
        key = admin.call("POST", f"/tenants/{TENANT}/keys", {"name": "bench"})
        admin.call("PUT", f"/tenants/{TENANT}/budget", {"limit_usd": "1000000.00", "window": "month"})
        kind: Any = ray.remote(Responder)
        responder = kind.options(num_cpus=0, max_concurrency=1_000).remote(running.nats_url, running.valkey_url)
        yield Stage(running, admin, key["key_id"], key["key"], responder, say, instance, model_url)
    finally:
        ray.shutdown()


async def _measure(rows: Sequence[str], stage: Stage) -> list[dict[str, Any]]:
    async with AsyncExitStack() as stack:
        bus = await Bus.connect(stage.running.nats_url, "bench", lambda: stage.say("NATS answers no more"))
        stack.push_async_callback(bus.close)
        store = ValkeyEventStore(connect(stage.running.valkey_url))
        stack.push_async_callback(store.close)
        results = []
        asks = [row for row in rows if row in _ASK_ROWS]
        if asks:
            results += await _measure_asks(asks, stage, bus, store)
        if tells := [row for row in rows if row in _TELL_ROWS]:
            results += await _measure_tells(tells, stage, bus, store)
        if wanted := [row for row in rows if row in doors.ROWS]:
            results += await _measure_doors(wanted, stage, store)
        if wanted := [row for row in rows if row in access.ROWS]:
            own_url = doors.own_url(stage.admin)
            results += await access.measure(wanted, own_url, stage.running.admin_key, stage.say)
        if wanted := [row for row in rows if row in tenants.ROWS]:
            running = stage.running
            ground = tenants.Ground(running, stage.instance, bus, store, stage.say)
            results += await tenants.measure(wanted, ground)
        if wanted := [row for row in rows if row in servegen.ROWS]:
            results += await servegen.measure(wanted, doors.own_url(stage.admin), stage.admin, stage.say)
        return results


# in flight, figure
_ASK_ROWS: dict[str, tuple[int, Callable[[Load], float]]] = {
    "ask_throughput": (IN_FLIGHT, lambda load: load.per_second),
    "ask_latency": (1, lambda load: load.p50_us),
}


async def _measure_asks(rows: Sequence[str], stage: Stage, bus: Bus, store: EventStore) -> list[dict[str, Any]]:
    ours = our_senders(bus, TENANT, stage.key_id)
    await drive(ours, _WARMUP_S)
    size = await event_bytes(store, TENANT)
    stage.say(f"an event of ours has {size} bytes: the ceiling appends as many")
    await stage.responder.listen.remote(size)
    ceilings = await ceiling_senders(stage.running.nats_url, size)
    await drive(ceilings, _WARMUP_S)
    return [await _measure_ask(row, stage, ours, ceilings) for row in rows]


async def _measure_ask(row: str, stage: Stage, ours: Sequence[Send], ceilings: Sequence[Send]) -> dict[str, Any]:
    in_flight, figure = _ASK_ROWS[row]

    async def load(senders: Sequence[Send]) -> float:
        return figure(await drive(senders[:in_flight], _MEASURE_S))

    return await _by_turns(row, stage, lambda: load(ours), lambda: load(ceilings))


_TELL_ROWS: dict[str, Callable[[Latencies], float]] = {
    "tell_throughput": lambda _: 0.0,
    "tell_latency": lambda found: found.p50_us,
    "tell_latency_p99": lambda found: found.p99_us,
}


async def _measure_tells(rows: Sequence[str], stage: Stage, bus: Bus, store: ValkeyEventStore) -> list[dict[str, Any]]:
    import ray

    ours = OurQueue(bus, store, TENANT)
    await ours.latencies()
    size = await event_bytes(store, TENANT)
    stage.say(f"an event of ours has {size} bytes: the ceiling appends as many")
    kind: Any = ray.remote(Fetcher)
    fetcher = kind.options(num_cpus=0, max_concurrency=100).remote(stage.running.nats_url, stage.running.valkey_url)
    ceiling = CeilingQueue(bus, fetcher, await open_store(stage.running.valkey_url), size)
    await ceiling.prepare(size)
    await ceiling.drain()
    results = []
    if "tell_throughput" in rows:
        results.append(await _by_turns("tell_throughput", stage, ours.drain, ceiling.drain))
    if latencies := [row for row in rows if row != "tell_throughput"]:
        results += await _measure_tell_latencies(latencies, stage, ours, ceiling)
    return results


async def _measure_tell_latencies(
    rows: Sequence[str], stage: Stage, ours: OurQueue, ceiling: CeilingQueue
) -> list[dict[str, Any]]:
    pairs = {row: Pairs(row, stage.say) for row in rows}
    for _ in range(_REPEATS):
        mine = await ours.latencies()
        await stage.projected()
        least = await ceiling.latencies()
        for row, pair in pairs.items():
            pair.add(_TELL_ROWS[row](mine), _TELL_ROWS[row](least))
    return [pair.verdict() for pair in pairs.values()]


async def _measure_doors(rows: Sequence[str], stage: Stage, store: EventStore) -> list[dict[str, Any]]:
    ceiling_url = await asyncio.to_thread(doors.deploy_ceiling, stage.running, stage.model_url)
    own_url = doors.own_url(stage.admin)
    loads = Loads(stage.running, TENANT, stage.key, own_url, ceiling_url, stage.model_url)
    await loads.ours("command", "own", _WARMUP_S)
    await loads.ours("chat", "own", _WARMUP_S)
    size = await event_bytes(store, TENANT)
    stage.say(f"an event of ours has {size} bytes: the ceiling appends as many")
    await stage.responder.listen.remote(size)
    await loads.ceiling("command", "own", _WARMUP_S)
    return await doors.measure(rows, loads, stage.say, stage.projected)


async def _by_turns(
    row: str, stage: Stage, ours: Callable[[], Awaitable[float]], ceiling: Callable[[], Awaitable[float]]
) -> dict[str, Any]:
    pairs = Pairs(row, stage.say)
    await stage.projected()
    for _ in range(_REPEATS):
        figure = await ours()
        await stage.projected()
        pairs.add(figure, await ceiling())
    return pairs.verdict()
