"""Tells: a queue that is worked off, and one command's way through it, beside the least that does the same physical work.

Ours is the queue of one silo tenant -> relay -> TenantActor -> decide -> append -> reply -> acknowledgement; one durable
event per command. The ceiling is a Ray actor that fetches 100 messages, makes as many bytes durable with one function call
in Valkey, and acknowledges each. Both queues lie in the same broker, which syncs every message to disk, and messages
of our events' size; a run begins with a full queue and ends with an empty one.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from statistics import quantiles
from typing import Any

import msgspec
import nats
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, RetentionPolicy, StorageType, StreamConfig

from events.bus import Bus
from events.inbox import TELL_STREAM, Inbox
from events.slices import slice_of
from events.tell import Teller
from events.tenant import SetBudget
from events.valkey_store import ValkeyEventStore
from tests.bench.responder import Store, open_store
from tests.bench.results import BenchError

QUEUED = 6_000
_PUBLISHERS = 64
_STREAM, _SUBJECT, _CONSUMER = "BENCH", "bench.told", "bench"
_BATCH = 100
_LOG, _META = "{bench}:told", "{bench}:told-meta"
_PAUSED_UNTIL = "2100-01-01T00:00:00Z"
_TIMEOUT_S = 60.0
SAMPLES = 200


class Latencies(msgspec.Struct, frozen=True):
    """Microseconds from telling to durable, one at a time."""

    samples_us: list[float]

    @property
    def p50_us(self) -> float:
        return quantiles(self.samples_us, n=100)[49]

    @property
    def p99_us(self) -> float:
        return quantiles(self.samples_us, n=100)[98]


class OurQueue:
    """The tenant's queue in the running platform, and the relay that serves it."""

    def __init__(self, bus: Bus, store: ValkeyEventStore, tenant: str) -> None:
        self._inbox, self._store, self._tenant = Inbox(bus), store, tenant
        self._teller, self._jetstream = Teller(self._inbox), bus.jetstream()
        self._number = 0

    async def drain(self) -> float:
        """Commands per second, from a full queue to an empty one."""
        (consumer,) = await self._inbox.consumers_of(range(slice_of(self._tenant), slice_of(self._tenant) + 1))
        await self._jetstream.pause_consumer(TELL_STREAM, consumer.name, _PAUSED_UNTIL)
        await _in_parallel(self._tell, QUEUED)
        began = time.perf_counter()
        await self._jetstream.resume_consumer(TELL_STREAM, consumer.name)
        await _emptied(self._jetstream, TELL_STREAM)
        return QUEUED / (time.perf_counter() - began)

    async def latencies(self) -> Latencies:
        number = slice_of(self._tenant)
        cursor = (await self._store.newest_cursors([number]))[number]
        samples = []
        for _ in range(SAMPLES):
            began = time.perf_counter()
            await self._tell()
            cursor = await self._appended(number, cursor)
            samples.append((time.perf_counter() - began) * 1e6)
        return Latencies(samples)

    async def _appended(self, number: int, cursor: str) -> str:
        while True:
            pointers = (await self._store.tail({number: cursor}, 1_000)).get(number, [])
            for pointer in pointers:
                cursor = pointer.cursor
                if pointer.tenant == self._tenant:
                    return cursor

    async def _tell(self) -> None:
        self._number += 1
        limit = 1_000_000_000_000_000 + self._number
        await self._teller.tell(self._tenant, SetBudget(limit, "month"), actor="bench")


class Fetcher:
    """The ceiling: an async Ray actor, as ours."""

    def __init__(self, nats_url: str, valkey_url: str) -> None:
        self._nats_url, self._valkey_url = nats_url, valkey_url
        self._working: asyncio.Task[None] | None = None
        self._event_bytes = 0

    async def work(self, event_bytes: int) -> None:
        """Returns when it fetches, for ever."""
        self._event_bytes = event_bytes
        if self._working is None:
            store, client = await open_store(self._valkey_url), await nats.connect(self._nats_url)
            subscription = await client.jetstream().pull_subscribe_bind(_CONSUMER, _STREAM)
            self._working = asyncio.create_task(self._work(store, subscription))

    async def _work(self, store: Store, subscription: JetStreamContext.PullSubscription) -> None:
        position = 0
        while True:
            with contextlib.suppress(TimeoutError):
                messages = await subscription.fetch(_BATCH, timeout=0.5)
                events = [message.data[: self._event_bytes].ljust(self._event_bytes, b".") for message in messages]
                if events:
                    position = await store.call("FCALL", "bench_v1_append", 2, _LOG, _META, position, *events)
                for message in messages:
                    await message.ack()


class CeilingQueue:
    def __init__(self, bus: Bus, actor: Any, store: Store, message_bytes: int) -> None:
        self._jetstream, self._actor, self._store = bus.jetstream(), actor, store
        self._message = b"c" * message_bytes

    async def prepare(self, event_bytes: int) -> None:
        config = StreamConfig(
            name=_STREAM, subjects=[_SUBJECT], retention=RetentionPolicy.WORK_QUEUE, storage=StorageType.FILE
        )
        await self._jetstream.add_stream(config)
        consumer = ConsumerConfig(
            name=_CONSUMER, durable_name=_CONSUMER, ack_policy=AckPolicy.EXPLICIT, max_ack_pending=1_000
        )
        await self._jetstream.add_consumer(_STREAM, consumer)
        await self._actor.work.remote(event_bytes)

    async def drain(self) -> float:
        await self._jetstream.pause_consumer(_STREAM, _CONSUMER, _PAUSED_UNTIL)
        await _in_parallel(self._publish, QUEUED)
        began = time.perf_counter()
        await self._jetstream.resume_consumer(_STREAM, _CONSUMER)
        await _emptied(self._jetstream, _STREAM)
        return QUEUED / (time.perf_counter() - began)

    async def latencies(self) -> Latencies:
        rows = await self._store.call("XREVRANGE", _LOG, "+", "-", "COUNT", 1)
        cursor, samples = rows[0][0].decode(), []
        for _ in range(SAMPLES):
            began = time.perf_counter()
            await self._publish()
            found = await self._store.call("XREAD", "BLOCK", 5_000, "STREAMS", _LOG, cursor)
            cursor = found[0][1][-1][0].decode()
            samples.append((time.perf_counter() - began) * 1e6)
        return Latencies(samples)

    async def _publish(self) -> None:
        await self._jetstream.publish(_SUBJECT, self._message)


async def _in_parallel(send: Callable[[], Awaitable[None]], count: int) -> None:
    async def work() -> None:
        nonlocal count
        while count > 0:
            count -= 1
            await send()

    await asyncio.gather(*(work() for _ in range(_PUBLISHERS)))


async def _emptied(jetstream: JetStreamContext, stream: str) -> None:
    ends = time.monotonic() + _TIMEOUT_S
    while (await jetstream.stream_info(stream)).state.messages:
        if time.monotonic() > ends:
            raise BenchError(f"the queue {stream!r} was not worked off within {_TIMEOUT_S:g} s")
        await asyncio.sleep(0.005)  # the broker pushes no event for an empty stream: its count can only be asked for
