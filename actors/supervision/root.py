"""The root supervisor: gives every tenant that is asked for an actor, and wakes tenants whose timers are due.

It stands on no request's path: a tenant that is active is asked directly, and stays so while the supervisor is away.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence

import ray
from ray.exceptions import ActorDiedError, RayError

from actors.shard import Limits
from actors.supervision.cluster import Cluster
from actors.supervision.homes import ActorName, Homes
from actors.supervision.janitor import Janitor
from actors.supervision.moves import Moves
from actors.supervision.placement import PLACEMENT
from actors.supervision.shards import ShardActors
from actors.supervision.timers import TimerScan
from actors.supervision.wardens import Warden
from events.ask import Asker
from events.bus import ACTIVATE, PREPARE, VACANT, Subscription, unsubscribe
from events.clock import SystemClock
from events.errors import (
    FencedError,
    IntegrityError,
    InvalidCommandError,
    NotServedError,
    PlatformError,
    TenantErasedError,
)
from events.failpoints import failpoint
from events.process import NAMESPACE, Connect, Connections, detached_actor, end_process
from events.slices import is_tenant_id
from events.unserved import Unserved, encode_unserved

log = logging.getLogger(__name__)

ROOT_NAME = "root-supervisor"
_START_TIMEOUT_S, _STOP_TIMEOUT_S = 60, 15
_HOST_ATTEMPTS_S = 8.0
_RETRY_S = 0.1


class RootSupervisor:
    """Detached, named, restarted for ever. Keeps no state of its own: Ray knows the actors and the pool's size, the store
    the tenants.
    """

    # async only so that a loop runs already; Ray awaits it
    async def __init__(self, connect: Connect, pool_shards: int, limits: Limits) -> None:  # type: ignore[misc]
        self._connect = connect
        self._shards = ShardActors(connect, limits, Homes(pool_shards))
        self._subscriptions: list[Subscription] = []
        self._activating: dict[str, asyncio.Task[Unserved | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: Connections | None = None
        self._starting = asyncio.create_task(self._start())

    async def _start(self) -> None:
        try:
            self._connections = await self._connect(ROOT_NAME)
            cluster = Cluster()
            await self._learn(cluster)
            self._moves = Moves(self._connections.store, self._shards, cluster)
            for subject, handler in (
                (ACTIVATE, self._on_activate),
                (PREPARE, self._on_prepare),
                (VACANT, self._on_vacant),
                (PLACEMENT, self._on_order),
            ):
                self._subscriptions.append(await self._connections.bus.subscribe(subject, handler))
            asker, clock = Asker(self._connections.bus), SystemClock()
            self._warden = Warden(self._connections.bus, asker, clock)
            self._subscriptions += await self._warden.start()
            self._spawn(TimerScan(self._connections.store, asker, clock).run())
            self._spawn(Janitor(self._connections.store, self._shards).run())
            self._spawn(self._moves.keep_settled())
            self._spawn(self._moves.leave_draining_nodes())
        except Exception:
            log.exception("supervisor.start_failed")
            end_process()

    async def renew(self, names: Sequence[str]) -> None:
        """See ``Moves.renew``."""
        await asyncio.shield(self._starting)
        await self._moves.renew(names)

    async def _learn(self, cluster: Cluster) -> None:
        """What supervisors before this one left: how large the pool is, and which actors have a successor."""
        names = await asyncio.to_thread(self._shards.names)
        self._shards.homes.succeeded(map(ActorName.parse, names))
        if (shards := await asyncio.to_thread(cluster.pool_shards)) is not None:
            self._shards.homes.pool_shards = shards

    async def ready(self, pool_shards: int) -> None:
        """Returns when it listens, and the pool has so many actors: whoever deploys the platform says so, also of one that
        runs already.
        """
        await asyncio.shield(self._starting)
        if pool_shards != self._shards.homes.pool_shards:
            await self._moves.scale(pool_shards)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # asyncio itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Activate nobody any more, and have every tenant actor finish what it accepted and snapshot."""
        await asyncio.shield(self._starting)  # Ray may have restarted it a moment ago
        await asyncio.gather(*(unsubscribe(subscription) for subscription in self._subscriptions))
        self._warden.close()
        await self._shards.close()

    def _on_activate(self, data: bytes, reply_to: str) -> None:
        self._spawn(self._answer(self.activate, data.decode(errors="replace"), reply_to))

    def _on_prepare(self, data: bytes, reply_to: str) -> None:
        self._spawn(self._answer(self._prepare, data.decode(errors="replace"), reply_to))

    def _on_vacant(self, data: bytes, _reply_to: str) -> None:
        self._spawn(self._shards.retire(data.decode(errors="replace")))

    def _on_order(self, data: bytes, reply_to: str) -> None:
        self._spawn(self._carry_out(data, reply_to))

    async def _carry_out(self, data: bytes, reply_to: str) -> None:
        assert self._connections is not None
        answer = await self._moves.answer(data)
        try:
            self._connections.bus.publish(reply_to, answer)
        except PlatformError as error:  # who asked can look at what became of it
            log.warning("supervisor.answer_lost order: %s", error)

    async def _answer(self, do: Callable[[str], Awaitable[Unserved | None]], tenant: str, reply_to: str) -> None:
        """An empty answer: it is done. Otherwise the answer says why not."""
        assert self._connections is not None
        if is_tenant_id(tenant):
            problem = await do(tenant)
        else:
            problem = Unserved(InvalidCommandError.code, f"{tenant[:80]!r} is not a tenant id", is_final=True)
        try:
            self._connections.bus.publish(reply_to, encode_unserved(problem))
        except PlatformError as error:  # who asked will ask again
            log.warning("supervisor.answer_lost tenant=%s: %s", tenant, error)

    async def activate(self, tenant: str) -> Unserved | None:
        """One activation at a time per tenant, however many ask for it. Returns None, or why it failed."""
        if tenant not in self._activating:
            task = asyncio.create_task(self._activate(tenant))
            self._activating[tenant] = task
            task.add_done_callback(lambda _: self._activating.pop(tenant, None))
        return await asyncio.shield(self._activating[tenant])

    async def _activate(self, tenant: str) -> Unserved | None:
        assert self._connections is not None
        ends = asyncio.get_running_loop().time() + _HOST_ATTEMPTS_S
        problem, epoch = "", -1
        while (left_s := ends - asyncio.get_running_loop().time()) > 0:
            if barred := await self._warden.admit(tenant, left_s):
                return barred
            try:
                if epoch < 0:
                    head, epoch = await asyncio.gather(self._connections.store.head(tenant), self._epoch(tenant))
                else:
                    head = await self._connections.store.head(tenant)
                failpoint("supervisor.before_host")
                host = self._shards.host_alone if self._warden.is_suspect(tenant) else self._shards.host
                await host(tenant, head.placement if head else "pool")
                return None
            except FencedError as error:  # two activations met; the next try settles it
                problem, detail = error.code, str(error)
            except TenantErasedError as error:
                return Unserved(error.code, str(error), is_final=True)
            except IntegrityError as error:  # trying again would not mend it
                log.exception("supervisor.tenant_unservable tenant=%s", tenant)
                message = f"an operator has to look first ({error.code}): `tenantry doctor` says more"
                return Unserved(error.code, message, is_final=True)
            except PlatformError as error:
                problem = error.code  # the caller is told no more than that: the text may name hosts and files
                detail = str(error)
            except RayError as error:
                # the actor is being restarted, or is gone for good and has to be created anew
                self._shards.forget_handles()
                problem, detail = "its actor is being restarted", str(error)
                if isinstance(error, ActorDiedError) and error.actor_init_failed:
                    self._warden.crashed(tenant, "its actor could not be started")
                elif await self._was_claimed(tenant, epoch):
                    self._warden.crashed(tenant, "its actor's process died while activating it")
                    epoch = -1
            log.warning("supervisor.activation_retried tenant=%s: %s", tenant, detail)
            await asyncio.sleep(_RETRY_S)  # back-off; Ray has nothing to await that says "restarted"
        return Unserved(NotServedError.code, problem)

    async def _was_claimed(self, tenant: str, before: int) -> bool:
        """Whether an activation had begun, after epoch ``before``, when its process died: only then may it be the reason. A process that is
        being restarted refuses at once, and says nothing about the tenants that are asked for meanwhile.
        """
        try:
            return await self._epoch(tenant) > before
        except PlatformError as error:
            log.warning("supervisor.claim_unread tenant=%s: %s", tenant, error)
            return False

    async def _epoch(self, tenant: str) -> int:
        """Also of a tenant that has no events yet; 0: nobody has claimed it."""
        assert self._connections is not None
        (epoch,) = await self._connections.store.epochs([tenant])
        return epoch or 0

    async def _prepare(self, tenant: str) -> Unserved | None:
        """Start the actor that the tenant is about to move to. Returns None, or why it failed."""
        assert self._connections is not None
        try:
            head = await self._connections.store.head(tenant)
            await self._shards.prepare(tenant, head.placement if head else "pool")
        except PlatformError as error:
            return Unserved(error.code, error.code)
        except RayError as error:
            log.warning("supervisor.prepare_failed tenant=%s: %s", tenant, error)
            return Unserved(NotServedError.code, "its actor could not be started")
        return None


def start_root_supervisor(connect: Connect, pool_shards: int, limits: Limits) -> Callable[[], None]:
    """Start it, or find the one that runs; the returned function waits until it listens."""
    handle = detached_actor(RootSupervisor, ROOT_NAME, connect, pool_shards, limits)

    def wait() -> None:
        ray.get(handle.ready.remote(pool_shards), timeout=_START_TIMEOUT_S)

    return wait


def renew_tenant_actors(names: Sequence[str]) -> None:
    """Have these actors of tenants followed by ones with the code and the settings of today, one by one, while their
    tenants are served.

    Raises:
        PlatformError, RayError: A successor could not be started: its tenants are served where they were.
    """
    ray.get(ray.get_actor(ROOT_NAME, namespace=NAMESPACE).renew.remote(names))


def stop_tenant_actors() -> None:
    """Have every tenant's actor finish what it accepted and snapshot; they host nobody afterwards."""
    try:
        supervisor = ray.get_actor(ROOT_NAME, namespace=NAMESPACE)
        ray.get(supervisor.close.remote(), timeout=_STOP_TIMEOUT_S)
    except (ValueError, RayError) as error:  # not there, or being restarted: the logs hold all that matters
        log.warning("supervisor.close_failed: %s", error)
