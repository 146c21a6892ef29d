"""The root supervisor: gives every tenant that is asked for an actor, and wakes tenants whose timers are due.

It stands on no request's path: a tenant that is active is asked directly, and stays so while the supervisor is away.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import ray
from ray.exceptions import RayError

from actors.supervision.timers import TimerScan
from actors.tenant_actor import TenantActor
from events.ask import Asker
from events.bus import ACTIVATE
from events.clock import SystemClock
from events.errors import FencedError, IntegrityError, PlatformError
from events.failpoints import failpoint
from events.process import Connect, Connections, detached_actor, end_process
from events.slices import is_tenant_id, slice_of
from events.store import Placement

log = logging.getLogger(__name__)

ROOT_NAME = "root-supervisor"
_START_TIMEOUT_S = 60
_HOST_ATTEMPTS_S = 8.0
_RETRY_S = 0.1


def shard_name(tenant: str, placement: Placement, pool_shards: int) -> str:
    """The actor that serves the tenant: its own, or one of the pool, the same one every time."""
    return f"silo-{tenant}" if placement == "silo" else f"pool-{slice_of(tenant) % pool_shards}"


class RootSupervisor:
    """Detached, named, restarted for ever. Keeps no state of its own: Ray knows the actors, the store the tenants."""

    # async only so that a loop runs already; Ray awaits it
    async def __init__(self, connect: Connect, pool_shards: int) -> None:  # type: ignore[misc]
        self._connect, self._pool_shards = connect, pool_shards
        self._handles: dict[str, Any] = {}
        self._activating: dict[str, asyncio.Task[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: Connections | None = None
        self._starting = asyncio.create_task(self._start())

    async def _start(self) -> None:
        try:
            self._connections = await self._connect(ROOT_NAME)
            await self._connections.bus.subscribe(ACTIVATE, self._on_activate)
            timers = TimerScan(self._connections.store, Asker(self._connections.bus), SystemClock())
            self._spawn(timers.run())
        except Exception:
            log.exception("supervisor.start_failed")
            end_process()

    async def ready(self) -> None:
        """Returns when it listens."""
        await asyncio.shield(self._starting)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # asyncio itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    def _on_activate(self, data: bytes, reply_to: str) -> None:
        self._spawn(self._answer_activate(data.decode(errors="replace"), reply_to))

    async def _answer_activate(self, tenant: str, reply_to: str) -> None:
        """An empty answer: the tenant listens now. Otherwise the answer says why not."""
        assert self._connections is not None
        problem = await self.activate(tenant) if is_tenant_id(tenant) else f"{tenant[:80]!r} is not a tenant id"
        try:
            await self._connections.bus.publish(reply_to, problem.encode())
        except PlatformError as error:  # who asked will ask again
            log.warning("supervisor.answer_lost tenant=%s: %s", tenant, error)

    async def activate(self, tenant: str) -> str:
        """One activation at a time per tenant, however many ask for it. Returns "" or the reason it failed."""
        if tenant not in self._activating:
            task = asyncio.create_task(self._activate(tenant))
            self._activating[tenant] = task
            task.add_done_callback(lambda _: self._activating.pop(tenant, None))
        return await asyncio.shield(self._activating[tenant])

    async def _activate(self, tenant: str) -> str:
        assert self._connections is not None
        ends = asyncio.get_running_loop().time() + _HOST_ATTEMPTS_S
        problem = ""
        while asyncio.get_running_loop().time() < ends:
            try:
                head = await self._connections.store.head(tenant)
                failpoint("supervisor.before_host")
                await self._handle(tenant, head.placement if head else "pool").host.remote(tenant)
                return ""
            except FencedError as error:  # two activations met; the next try settles it
                problem, detail = error.code, str(error)
            except IntegrityError as error:  # trying again would not mend it
                log.exception("supervisor.tenant_unservable tenant=%s", tenant)
                return error.code
            except PlatformError as error:
                problem = error.code  # the caller is told no more than that: the text may name hosts and files
                detail = str(error)
            except RayError as error:
                # the actor is being restarted, or is gone for good and has to be created anew
                self._handles.clear()
                problem, detail = "its actor is being restarted", str(error)
            log.warning("supervisor.activation_retried tenant=%s: %s", tenant, detail)
            await asyncio.sleep(_RETRY_S)  # back-off; Ray has nothing to await that says "restarted"
        return problem

    def _handle(self, tenant: str, placement: Placement) -> Any:
        """The actor of the tenant's shard. Detached: it must outlive this supervisor."""
        name = shard_name(tenant, placement, self._pool_shards)
        if name not in self._handles:
            self._handles[name] = detached_actor(TenantActor, name, name, placement, self._connect)
        return self._handles[name]


def start_root_supervisor(connect: Connect, pool_shards: int) -> Callable[[], None]:
    """Start it, or find the one that runs; the returned function waits until it listens."""
    handle = detached_actor(RootSupervisor, ROOT_NAME, connect, pool_shards)

    def wait() -> None:
        ray.get(handle.ready.remote(), timeout=_START_TIMEOUT_S)

    return wait
