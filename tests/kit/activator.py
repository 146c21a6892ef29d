"""What the root supervisor does, without Ray: whoever is asked for and not there is activated in one shard."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from actors.shard import Shard
from events.bus import ACTIVATE, Bus
from events.errors import PlatformError


@asynccontextmanager
async def activating(bus: Bus, shard: Shard) -> AsyncIterator[None]:
    tasks: set[asyncio.Task[None]] = set()

    async def activate(tenant: str, reply_to: str) -> None:
        try:
            await shard.host(tenant)
        except PlatformError as error:
            await bus.publish(reply_to, error.code.encode())
        else:
            await bus.publish(reply_to, b"")

    def on_activate(data: bytes, reply_to: str) -> None:
        task = asyncio.create_task(activate(data.decode(), reply_to))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    subscription = await bus.subscribe(ACTIVATE, on_activate)
    yield
    await subscription.unsubscribe()
