"""A shard: the tenants that share one process, one store connection and one group commit. No Ray in here."""

import asyncio
import logging
from collections.abc import Coroutine

from nats.aio.subscription import Subscription

from actors.activation import Activation, Respond
from actors.commit import Committer
from events.bus import Bus, ask_subject, unsubscribe
from events.clock import Clock
from events.errors import NotServedError
from events.failpoints import failpoint
from events.slices import is_tenant_id
from events.store import EventStore, Placement

log = logging.getLogger(__name__)


class Shard:
    """Hosts tenants. A tenant is subscribed to only after its replay, so nobody is answered from half a history."""

    def __init__(self, name: str, serves: Placement, store: EventStore, bus: Bus, clock: Clock) -> None:
        self.name, self._serves = name, serves
        self._store, self._bus, self._clock = store, bus, clock
        self._committer = Committer(store)
        self._active: dict[str, tuple[Activation, Subscription]] = {}
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._respond: Respond = bus.publish
        self._tasks: set[asyncio.Task[None]] = set()

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
        activation = Activation(
            tenant,
            self._store,
            self._committer,
            self._clock,
            self._respond,
            self._ended,
            self._serves,
            self._move_out,
        )
        await activation.start()
        failpoint("activation.after_load_before_subscribe")
        subscription = await self._bus.subscribe(ask_subject(tenant), activation.deliver)
        failpoint("activation.after_subscribe_before_register")
        if activation.has_ended:  # fenced before it was even registered
            await unsubscribe(subscription)
            raise NotServedError(tenant, "another activation took over")
        self._active[tenant] = (activation, subscription)
        log.info("tenant.activated tenant=%s position=%s shard=%s", tenant, activation.position, self.name)

    def _ended(self, activation: Activation) -> None:
        """Only its own registration: by now another activation may serve the tenant from here."""
        hosted = self._active.get(activation.tenant)
        if hosted is not None and hosted[0] is activation:
            del self._active[activation.tenant]
            self._spawn(unsubscribe(hosted[1]))

    def _move_out(self, activation: Activation) -> None:
        """Its plan wants another kind of shard: finish what it has accepted; the next ask activates it there."""
        hosted = self._active.get(activation.tenant)
        if hosted is not None and hosted[0] is activation:
            self._spawn(self.release(activation.tenant))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # asyncio itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    async def release(self, tenant: str) -> None:
        """Stop serving the tenant after what it has accepted is done."""
        hosted = self._active.get(tenant)
        if hosted is None:
            return
        activation, subscription = hosted
        await unsubscribe(subscription)
        failpoint("drain.mid")
        await activation.drain()
        await activation.save_snapshot()
        failpoint("drain.before_end")
        activation.end()

    async def close(self) -> None:
        await asyncio.gather(*(self.release(tenant) for tenant in self.tenants))
