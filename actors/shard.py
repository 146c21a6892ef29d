"""A shard: the tenants that share one process, one store connection and one group commit. No Ray in here."""

import asyncio
import logging

from nats.aio.subscription import Subscription

from actors.activation import Activation, Respond
from actors.commit import Committer
from events.bus import Bus, ask_subject, unsubscribe
from events.clock import Clock
from events.slices import is_tenant_id
from events.store import EventStore

log = logging.getLogger(__name__)


class Shard:
    """Hosts tenants. A tenant is subscribed to only after its replay, so nobody is answered from half a history."""

    def __init__(self, name: str, store: EventStore, bus: Bus, clock: Clock) -> None:
        self.name = name
        self._store, self._bus, self._clock = store, bus, clock
        self._committer = Committer(store)
        self._active: dict[str, tuple[Activation, Subscription]] = {}
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._respond: Respond = bus.publish

    @property
    def tenants(self) -> list[str]:
        return sorted(self._active)

    async def host(self, tenant: str) -> None:
        """Serve the tenant from here. Calls for the same tenant share one activation.

        Raises:
            StoreUnavailableError, BusUnavailableError: Not now.
            IntegrityError: Its log can't be replayed.
        """
        assert is_tenant_id(tenant), tenant
        if tenant in self._active:
            return
        if tenant not in self._starting:
            task = asyncio.create_task(self._activate(tenant), name=f"activate-{tenant}")
            self._starting[tenant] = task
            task.add_done_callback(lambda _: self._starting.pop(tenant, None))
        await asyncio.shield(self._starting[tenant])

    async def _activate(self, tenant: str) -> None:
        activation = Activation(tenant, self._store, self._committer, self._clock, self._respond, self._ended)
        await activation.start()
        subscription = await self._bus.subscribe(ask_subject(tenant), activation.deliver)
        self._active[tenant] = (activation, subscription)
        log.info("tenant.activated tenant=%s position=%s shard=%s", tenant, activation.position, self.name)

    def _ended(self, tenant: str) -> None:
        hosted = self._active.pop(tenant, None)
        if hosted is not None:
            task = asyncio.ensure_future(unsubscribe(hosted[1]))
            task.add_done_callback(lambda _: log.info("tenant.let_go tenant=%s shard=%s", tenant, self.name))

    async def release(self, tenant: str) -> None:
        """Stop serving the tenant after what it has accepted is done."""
        hosted = self._active.get(tenant)
        if hosted is None:
            return
        activation, subscription = hosted
        await unsubscribe(subscription)
        await activation.drain()
        await activation.save_snapshot()
        activation.end()

    async def close(self) -> None:
        await asyncio.gather(*(self.release(tenant) for tenant in self.tenants))
