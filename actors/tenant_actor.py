"""The Ray shell of a shard. Ray places it and restarts it; commands reach its tenants over NATS, never through Ray."""

import asyncio

from actors.shard import Shard
from events.clock import SystemClock
from events.process import Connect


class TenantActor:
    """Hosts one tenant (silo) or many (pool). Async: calls interleave at every await, turns are locked per tenant."""

    def __init__(self, name: str, connect: Connect) -> None:
        self._name, self._connect = name, connect
        self._opening: asyncio.Task[Shard] | None = None

    async def _shard(self) -> Shard:
        """Opened on the first call, because a constructor of an async actor can't await."""
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> Shard:
        connections = await self._connect(f"shard-{self._name}")
        return Shard(self._name, connections.store, connections.bus, SystemClock())

    async def host(self, tenant: str) -> None:
        """Serve ``tenant`` from here; returns when it listens. Safe to repeat."""
        await (await self._shard()).host(tenant)

    async def release(self, tenant: str) -> None:
        """Finish what the tenant has accepted, then let it go. Safe to repeat."""
        await (await self._shard()).release(tenant)

    async def tenants(self) -> list[str]:
        return (await self._shard()).tenants

    async def drain(self) -> None:
        await (await self._shard()).close()
