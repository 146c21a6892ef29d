"""A relay, its tenants and its streams in one process, on real servers of their own."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from actors.relay import Relay
from actors.shard import Shard
from events.ask import Asker
from events.bus import Bus
from events.clock import Clock, SystemClock
from events.courier import Courier
from events.dead_letters import DeadLetters
from events.inbox import Inbox
from events.outcomes import Outcomes
from events.slices import SLICE_COUNT
from events.tell import Teller
from events.valkey_client import connect, execute
from events.valkey_store import ValkeyEventStore
from tests.kit.activator import activating
from tests.kit.servers import Servers, open_vault, running_servers

WAIT_S = 60.0


class InboxWorld:
    """What a deployment has around its queue. ``clock`` is that of relays and dead letters."""

    def __init__(self, servers: Servers, clock: Clock, queue_max: int, *, with_shard: bool) -> None:
        self.servers, self.clock, self.queue_max, self._with_shard = servers, clock, queue_max, with_shard
        self._stack = AsyncExitStack()

    async def open(self) -> None:
        self.bus = await self.connect("world")
        self.store = ValkeyEventStore(connect(self.servers.valkey_url))
        await self.store.open()
        self._stack.push_async_callback(self.store.close)
        self.outcomes = Outcomes(connect(self.servers.valkey_url))
        self._stack.push_async_callback(self.outcomes.close)
        self.inbox = Inbox(self.bus, self.queue_max)
        await self.inbox.prepare()
        self.teller, self.asker = Teller(self.inbox), Asker(self.bus)
        self.dead_letters = DeadLetters(self.inbox, self.outcomes, self.clock)
        if not self._with_shard:
            return
        vault, keys = await open_vault(self.servers.vault_url)
        self._stack.push_async_callback(vault.close)
        self.shard = Shard("test", "pool", self.store, self.bus, SystemClock(), keys)
        self._stack.push_async_callback(self.shard.close)
        await self._stack.enter_async_context(activating(self.bus, self.shard))

    async def close(self) -> None:
        await self._stack.aclose()

    async def connect(self, name: str) -> Bus:
        bus = await Bus.connect(self.servers.nats_url, name, lambda: None)
        self._stack.push_async_callback(bus.close)
        return bus

    def relay(
        self,
        slices: range = range(SLICE_COUNT),
        *,
        bus: Bus | None = None,
        patience_s: float = 60.0,
        courier: Courier | None = None,
    ) -> Relay:
        bus = bus or self.bus
        inbox, courier = Inbox(bus, self.queue_max), courier or Courier(bus, patience_s)
        letters = DeadLetters(inbox, self.outcomes, self.clock)
        return Relay(slices, inbox, self.store, self.outcomes, letters, courier, self.clock)

    @asynccontextmanager
    async def relaying(self, relay: Relay | None = None) -> AsyncIterator[Relay]:
        """A relay at work."""
        relay, ready = relay or self.relay(), asyncio.Event()
        running = asyncio.create_task(relay.run(ready.set))
        try:
            async with asyncio.timeout(WAIT_S):
                await ready.wait()
            yield relay
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await relay.close()

    async def pause_store(self, milliseconds: int) -> None:
        """Writes wait for that long."""
        await execute(self.store._client, "CLIENT", "PAUSE", milliseconds, "WRITE")

    async def queued(self) -> int:
        info = await self.bus.jetstream().stream_info("TELL")
        return info.state.messages

    async def until_empty(self) -> None:
        await until(self._is_empty, "the queue is empty")

    async def _is_empty(self) -> bool:
        return await self.queued() == 0


async def until(condition: Callable[[], Awaitable[bool]], what: str, timeout_s: float = WAIT_S) -> None:
    ends = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < ends, f"not in {timeout_s:g} s: {what}"
        await asyncio.sleep(0.02)  # other processes' state: looking is all there is


@asynccontextmanager
async def inbox_world(
    directory: Path, *, clock: Clock | None = None, queue_max: int = 1_000, with_shard: bool = True
) -> AsyncIterator[InboxWorld]:
    with running_servers(directory) as servers:
        world = InboxWorld(servers, clock or SystemClock(), queue_max, with_shard=with_shard)
        await world.open()
        try:
            yield world
        finally:
            await world.close()
