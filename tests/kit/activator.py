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
from events.bus import ACTIVATE, PREPARE, Bus
from events.errors import FencedError, IntegrityError, PlatformError
from events.store import EventStore
from events.unserved import Unserved, encode_unserved
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
            is_final = isinstance(error, IntegrityError) and not isinstance(error, FencedError)
            bus.publish(reply_to, encode_unserved(Unserved(error.code, str(error), is_final=is_final)))
        else:
            bus.publish(reply_to, encode_unserved(None))

    def on_activate(data: bytes, reply_to: str) -> None:
        task = asyncio.create_task(activate(data.decode(), reply_to))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def on_prepare(_data: bytes, reply_to: str) -> None:
        bus.publish(reply_to, encode_unserved(None))  # both are there

    subscriptions = [await bus.subscribe(ACTIVATE, on_activate), await bus.subscribe(PREPARE, on_prepare)]
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
