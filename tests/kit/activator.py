"""What the root supervisor does for tenants that are asked for, without Ray."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from actors.shard import Shard
from actors.supervision.cluster import Cluster
from actors.supervision.moves import Moves
from actors.supervision.placement import PLACEMENT
from actors.supervision.shards import ShardActors
from events.bus import ACTIVATE, Bus
from events.errors import PlatformError
from events.store import EventStore
from tests.kit.cluster import FakeCluster


@asynccontextmanager
async def activating(
    bus: Bus,
    shard: Shard,
    *,
    silo: Shard | None = None,
    store: EventStore | None = None,
    cluster: FakeCluster | None = None,
) -> AsyncIterator[None]:
    """Inside, whoever is asked for and not there is activated in the ``shard``; with ``silo`` and ``store``, in the
    ``silo`` where the ``store`` says that the tenant's plan wants one. What operators ask about nodes is answered of the
    ``cluster``.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def home(tenant: str) -> Shard:
        head = await store.head(tenant) if store is not None else None
        return silo if silo is not None and head is not None and head.placement == "silo" else shard

    async def activate(tenant: str, reply_to: str) -> None:
        try:
            await (await home(tenant)).host(tenant)
        except PlatformError as error:
            bus.publish(reply_to, error.code.encode())
        else:
            bus.publish(reply_to, b"")

    def on_activate(data: bytes, reply_to: str) -> None:
        task = asyncio.create_task(activate(data.decode(), reply_to))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    subscriptions = [await bus.subscribe(ACTIVATE, on_activate)]
    if cluster is not None and store is not None:
        moves = Moves(store, cast("ShardActors", cluster), cast("Cluster", cluster))

        async def place(data: bytes, reply_to: str) -> None:
            bus.publish(reply_to, await moves.answer(data))

        def on_order(data: bytes, reply_to: str) -> None:
            task = asyncio.create_task(place(data, reply_to))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        subscriptions.append(await bus.subscribe(PLACEMENT, on_order))
    yield
    for subscription in subscriptions:
        await subscription.unsubscribe()
