"""Asks: the path of every command behind the doors, and the same trip without a platform.

Ours is ``Asker`` in this process -> NATS -> a TenantActor that the root supervisor activated -> decide -> append -> reply;
one silo tenant, calls reserved and settled in turn as the gateway does, one durable event per command. Projections
follow, as always: that is part of what a command costs. The ceiling is asked by plain ``request`` of nats-py from here.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from statistics import fmean, median

import msgspec
import nats

from events.ask import Asker
from events.bus import Bus
from events.store import EventStore
from events.tenant import ReserveCall, SettleCall
from tests.bench.responder import SUBJECT
from tests.bench.results import BenchError

IN_FLIGHT = 64
_SAMPLE_EVENTS = 500

Send = Callable[[], Awaitable[object]]


class Load(msgspec.Struct, frozen=True):
    """What a load of asks found: how many, in which time, and how long each took."""

    seconds: float
    latencies_s: Sequence[float]

    @property
    def per_second(self) -> float:
        return len(self.latencies_s) / self.seconds

    @property
    def p50_us(self) -> float:
        return median(self.latencies_s) * 1e6


async def drive(senders: Sequence[Send], seconds: float, pause_s: float = 0.0) -> Load:
    """Each sender asks again as soon as it is answered, or ``pause_s`` later."""
    latencies: list[float] = []
    began = time.perf_counter()
    ends = began + seconds

    async def work(send: Send) -> None:
        while (asked := time.perf_counter()) < ends:
            await send()
            latencies.append(time.perf_counter() - asked)
            if pause_s:
                await asyncio.sleep(pause_s)  # the load's own rhythm

    async with asyncio.TaskGroup() as group:
        for send in senders:
            group.create_task(work(send))
    return Load(time.perf_counter() - began, latencies)


class Caller:
    """A gateway's asks for one model call after the other: reserve, settle, reserve, settle."""

    def __init__(self, asker: Asker, tenant: str, key_id: str) -> None:
        self._asker, self._tenant, self._key_id = asker, tenant, key_id
        self._open: str | None = None

    async def __call__(self) -> object:
        call_id, command_id = self._open, self._asker.new_id()
        command: ReserveCall | SettleCall
        if call_id is None:
            call_id = self._open = command_id
            command = ReserveCall(call_id, self._key_id, "small", 1_000, 600_000_000)
        else:
            self._open = None
            command = SettleCall(call_id, 120, 40, 700, "ok", "measured")
        return await self._asker.ask(
            self._tenant, command, actor=f"key:{self._key_id}", command_id=command_id, correlation_id=call_id
        )


def our_senders(bus: Bus, tenant: str, key_id: str) -> list[Send]:
    asker = Asker(bus)
    return [Caller(asker, tenant, key_id) for _ in range(IN_FLIGHT)]


async def ceiling_senders(nats_url: str, command_bytes: int) -> list[Send]:
    client = await nats.connect(nats_url)
    command = b"c" * command_bytes

    async def send() -> object:
        return await client.request(SUBJECT, command, timeout=10)

    return [send] * IN_FLIGHT


async def event_bytes(store: EventStore, tenant: str) -> int:
    """Mean size of the tenant's newest events as they lie in the log: record and hash."""
    head = await store.head(tenant)
    assert head is not None
    newest = await store.read(tenant, max(0, head.position - _SAMPLE_EVENTS))
    if not newest:
        raise BenchError(f"tenant {tenant!r} has no events to measure")
    return round(fmean(len(stored.record) + len(stored.hash) for stored in newest))
