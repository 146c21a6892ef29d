"""The Ray shell of a shard. Ray places it and restarts it; commands reach its tenants over NATS, never through Ray."""

import asyncio

from actors.shard import Shard
from events.clock import SystemClock
from events.process import Connect
from events.store import Placement


class TenantActor:
    """Hosts one tenant (silo) or many (pool). Async: calls interleave at every await, turns are locked per tenant."""

    def __init__(self, name: str, serves: Placement, connect: Connect) -> None:
        self._name, self._serves, self._connect = name, serves, connect
        self._opening: asyncio.Task[Shard] | None = None

    async def _shard(self) -> Shard:
        """Opened on the first call, because a constructor of an async actor can't await."""
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> Shard:
        connections = await self._connect(f"shard-{self._name}")
        return Shard(self._name, self._serves, connections.store, connections.bus, SystemClock())

    async def host(self, tenant: str) -> None:
        """Serve ``tenant`` from here; returns when it listens. Safe to repeat."""
        await (await self._shard()).host(tenant)
