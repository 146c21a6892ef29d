"""The Ray shell of a shard. Ray places it and restarts it; commands reach its tenants over NATS, never through Ray."""

import asyncio
from collections.abc import Sequence

from actors.run.dispatcher import Dispatcher
from actors.shard import Limits, Shard
from events.clock import SystemClock
from events.defects import described
from events.errors import NotServedError, PlatformError, TenantCrashedError
from events.process import Connect, end_process, end_when_stuck
from events.store import Placement
from events.work import WorkQueue

_HOST_ANSWERS_AFTER_S = 1.0


class TenantActor:
    """Hosts one tenant (silo) or many (pool). Async: calls interleave at every await, turns are locked per tenant."""

    def __init__(self, name: str, serves: Placement, connect: Connect, limits: Limits) -> None:
        self._name, self._serves, self._connect, self._limits = name, serves, connect, limits
        self._opening: asyncio.Task[Shard] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._is_retired = False

    async def _shard(self) -> Shard:
        """Opened on the first call, because a constructor of an async actor can't await."""
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> Shard:
        self._watching = asyncio.create_task(end_when_stuck())
        connections = await self._connect(f"shard-{self._name}")
        queue = WorkQueue(connections.bus)
        await queue.prepare()
        shard = Shard(
            self._name,
            self._serves,
            connections.store,
            connections.bus,
            SystemClock(),
            connections.keys,
            self._limits,
            Dispatcher(queue),
        )
        await shard.tell_load()
        return shard

    async def ready(self) -> None:
        """Returns when it could host: its process runs and is connected."""
        await self._shard()

    async def host(self, tenants: Sequence[str]) -> list[PlatformError | None]:
        """Serve these tenants from here. By tenant: None where it listens now, or why not; one that takes long to
        replay is no reason to keep the others waiting. Safe to repeat.
        """
        shard = await self._shard()
        if self._is_retired:  # and was not ended: whoever retired it died, or did not wait for the answer
            end_process()
        tasks = [asyncio.create_task(shard.host(tenant)) for tenant in tenants]
        await asyncio.wait(tasks, timeout=_HOST_ANSWERS_AFTER_S)
        return [_problem(tenant, task) for tenant, task in zip(tenants, tasks, strict=True)]

    async def tenants(self) -> list[str]:
        """Whom it serves."""
        return (await self._shard()).tenants

    async def move_out(self, tenants: Sequence[str]) -> None:
        """Let them go to the actor they belong to by now."""
        await (await self._shard()).move_out(tenants)

    async def retire(self) -> bool:
        """Close it if it serves nobody; False where it does. Its process is to be ended then."""
        shard = await self._shard()
        if not shard.is_vacant:
            return False
        self._is_retired = True
        await shard.close()
        return True

    async def close(self) -> None:
        """Before the platform stops: finish what was accepted, snapshot, host nobody any more."""
        if self._opening is not None:
            await (await self._shard()).close()


def _problem(tenant: str, hosting: asyncio.Task[None]) -> PlatformError | None:
    """Why the tenant does not listen. A defect is one tenant's, too: the others asked for with it are served."""
    if not hosting.done():
        hosting.cancel()  # the activation itself goes on
        return NotServedError(tenant, "its log is being replayed")
    error = hosting.exception()
    if error is None or isinstance(error, PlatformError):
        return error
    return TenantCrashedError(described(error))
