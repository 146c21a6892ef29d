"""The tenant actors of the cluster: by name, created where there is none, ended where they are vacant."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from actors.shard import Limits
from actors.supervision.homes import ActorName, Homes, is_tenant_actor, pool_home
from actors.tenant_actor import TenantActor
from events.errors import NotServedError, PlatformError
from events.process import NAMESPACE, Connect, detached_actor
from events.store import Placement

log = logging.getLogger(__name__)

_TENANTS_PER_CALL_MAX = 256
_CALLS_AT_ONCE = 4  # per actor: tenants that wait for one of these to return share the next
# A new actor's process is up within some seconds, and activations take less; one that was stopped answers never, and must
# not keep the calls behind it waiting. Whoever is told so asks again, and finds what was going on still going on.
ANSWER_TIMEOUT_S = 15.0
START_TIMEOUT_S = 60.0  # of a process that nobody waits for yet: a move goes on where the tenant is served until then
_MOVED_PER_CALL, _MOVE_TIMEOUT_S = 64, 60.0  # tenants that leave an actor together
_CLOSE_TIMEOUT_S = 10.0


def _silent(tenant: str, name: str, waited_s: float) -> NotServedError:
    return NotServedError(tenant, f"its actor {name} has not answered for {waited_s:g} s")


class ShardActors:
    """Where tenants are hosted. A Ray call takes a millisecond, so tenants that wait for the same actor share one."""

    def __init__(self, connect: Connect, limits: Limits, homes: Homes) -> None:
        self._connect, self._limits, self.homes = connect, limits, homes
        self._handles: dict[str, Any] = {}
        self._waiting: dict[str, list[tuple[str, asyncio.Future[None]]]] = {}
        self._calling: dict[str, set[asyncio.Task[None]]] = {}
        self._alone: dict[str, asyncio.Lock] = {}

    def forget_handles(self) -> None:
        """After a RayError: an actor is being restarted, or is gone for good and has to be created anew."""
        self._handles.clear()

    def _name(self, tenant: str, placement: Placement) -> str:
        return str(self.homes.actor_for(tenant, placement))

    def _handle(self, name: str, node: str = "") -> Any:
        """Detached: it must outlive the supervisor."""
        if name not in self._handles:
            serves = ActorName.parse(name).serves
            self._handles[name] = detached_actor(
                TenantActor, name, name, serves, self._connect, self._limits, node=node
            )
        return self._handles[name]

    async def prepare(self, tenant: str, placement: Placement) -> None:
        """Start the actor that the tenant belongs to. Raises as ``host``."""
        await self._start(self.homes.actor_for(tenant, placement), tenant)

    async def _start(self, actor: ActorName, tenant: str = "", node: str = "") -> None:
        name = str(actor)
        try:
            await asyncio.wait_for(self._handle(name, node).ready.remote(), START_TIMEOUT_S)
        except TimeoutError as error:
            raise _silent(tenant or actor.home, name, START_TIMEOUT_S) from error

    async def start_in_pool(self, shard: int) -> None:
        """Start that actor of the pool, or find it. Raises as ``host``."""
        await self._start(self.homes.actor(pool_home(shard)))

    async def succeed(self, home: str, node: str) -> ActorName:
        """Start another actor for the home on the node, and from then on have everybody served there who is not active in
        the one before, whose name is returned. Where it can't be started all stays as it was. Raises as ``host``.
        """
        before, actor = self.homes.actor(home), self.homes.successor(home)
        try:
            await self._start(actor, node=node)
        except (PlatformError, RayError):
            self._discard(str(actor))
            raise
        self.homes.succeeded([actor])
        return before

    def _discard(self, name: str) -> None:
        """End a process that has served nobody yet."""
        with contextlib.suppress(ValueError):  # it was not even begun
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))
        self._handles.pop(name, None)

    async def move_out(self, name: str) -> int:
        """Have all tenants of this actor that belong to another one go there, some at a time, each as soon as what it has
        accepted is done. Returns how many did.

        Raises:
            ValueError: There is no such actor.
            RayError: It is being restarted, or has ended: nobody is active there any more.
            NotServedError: It does not answer.
        """
        handle: Any = ray.get_actor(name, namespace=NAMESPACE)
        moved = 0
        while leaving := await self.leaving(name):
            for first in range(0, len(leaving), _MOVED_PER_CALL):
                group = leaving[first : first + _MOVED_PER_CALL]
                await self._answer(handle.move_out.remote(group), name)
                moved += len(group)
        return moved

    async def leaving(self, name: str) -> list[str]:
        """Tenants that are active in this actor and belong to another one. Raises as ``move_out``."""
        handle: Any = ray.get_actor(name, namespace=NAMESPACE)
        tenants: list[str] = await self._answer(handle.tenants.remote(), name)
        return [tenant for tenant in tenants if self._name(tenant, ActorName.parse(name).serves) != name]

    @staticmethod
    async def _answer(call: Any, name: str) -> Any:
        try:
            return await asyncio.wait_for(call, _MOVE_TIMEOUT_S)
        except TimeoutError as error:
            raise _silent(ActorName.parse(name).home, name, _MOVE_TIMEOUT_S) from error

    async def host(self, tenant: str, placement: Placement) -> None:
        """Have the tenant served by the actor it belongs to.

        Raises:
            RayError: The actor is being restarted, or could not be started.
            NotServedError: It does not answer, or says so.
            PlatformError: What the activation ended with.
        """
        name = self._name(tenant, placement)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(name, []).append((tenant, future))
        calling = self._calling.setdefault(name, set())
        if len(calling) < _CALLS_AT_ONCE:
            task = asyncio.create_task(self._host_waiting(name), name=f"host-{name}")
            calling.add(task)
            task.add_done_callback(calling.discard)
        await future

    async def host_alone(self, tenant: str, placement: Placement) -> None:
        """As ``host``, and no other tenant that is suspected of killing its process is activated there meanwhile: where
        that happens again, it is clear which of them did it. Raises as ``host``.
        """
        name = self._name(tenant, placement)
        async with self._alone.setdefault(name, asyncio.Lock()):
            (outcome,) = await self._outcomes(name, [tenant])
        if outcome is not None:
            raise outcome

    async def _host_waiting(self, name: str) -> None:
        while waiting := self._waiting.pop(name, []):
            group, rest = waiting[:_TENANTS_PER_CALL_MAX], waiting[_TENANTS_PER_CALL_MAX:]
            if rest:
                self._waiting[name] = rest
            outcomes = await self._outcomes(name, [tenant for tenant, _ in group])
            for (_, future), outcome in zip(group, outcomes, strict=True):
                if future.done():
                    continue
                if outcome is None:
                    future.set_result(None)
                else:
                    future.set_exception(outcome)

    async def _outcomes(self, name: str, tenants: Sequence[str]) -> Sequence[Exception | None]:
        try:
            answer = self._handle(name).host.remote(tenants)
            outcomes: list[PlatformError | None] = await asyncio.wait_for(answer, ANSWER_TIMEOUT_S)
            return outcomes
        except TimeoutError:
            return [_silent(tenant, name, ANSWER_TIMEOUT_S) for tenant in tenants]
        except Exception as error:  # noqa: BLE001 - each caller gets it, and knows what to do about which
            return [error] * len(tenants)

    def _is_hosting(self, name: str) -> bool:
        alone = self._alone.get(name)
        return bool(self._calling.get(name)) or (alone is not None and alone.locked())

    async def retire(self, name: str) -> None:
        """End a silo's process that says it has lost its tenant, unless one is on its way to it."""
        if not is_tenant_actor(name) or not ActorName.parse(name).tenant or self._is_hosting(name):
            return
        try:
            handle: Any = ray.get_actor(name, namespace=NAMESPACE)
            if await asyncio.wait_for(handle.retire.remote(), ANSWER_TIMEOUT_S):
                # without a restart, and whoever is on the way to it by now: it hosts nobody any more, and is to be found
                # under that name as long as it lives. The next call gets a new one.
                ray.kill(handle)
                log.info("supervisor.retired shard=%s", name)
        except (ValueError, RayError, TimeoutError) as error:  # ended already, being restarted, or stopped
            log.info("supervisor.retire_failed shard=%s: %s", name, error)
        finally:
            self._handles.pop(name, None)
            self._calling.pop(name, None)

    @staticmethod
    def names() -> list[str]:
        """Of all tenant actors that Ray knows, whoever created them."""
        rows = ray.util.list_named_actors(all_namespaces=True)
        names = [row["name"] for row in rows if row["namespace"] == NAMESPACE]
        return [name for name in names if is_tenant_actor(name)]

    def is_wanted(self, name: str, placement: Placement | None) -> bool:
        """Whether the actor has a purpose, see ``Homes.is_wanted``, or is about to get one."""
        return self.homes.is_wanted(ActorName.parse(name), placement) or self._is_hosting(name)

    async def end(self, name: str) -> None:
        """Have it finish what it accepted, then end its process. Whoever asks its tenants next finds them elsewhere."""
        try:
            handle: Any = ray.get_actor(name, namespace=NAMESPACE)
            await asyncio.wait_for(handle.close.remote(), _CLOSE_TIMEOUT_S)
            ray.kill(handle)
            log.info("supervisor.ended shard=%s", name)
        except ValueError:
            log.debug("supervisor.ended_before shard=%s", name)
        except (RayError, TimeoutError) as error:
            log.warning("supervisor.end_failed shard=%s: %s", name, error)
        finally:
            self._handles.pop(name, None)
            self._calling.pop(name, None)

    async def close(self) -> None:
        """Have all tenant actors finish what they accepted and snapshot, within some seconds."""
        closing = [asyncio.create_task(self._close(name)) for name in self.names()]
        if closing:
            _, late = await asyncio.wait(closing, timeout=_CLOSE_TIMEOUT_S)
            for task in late:
                log.warning("supervisor.close_timed_out task=%s after_s=%s", task.get_name(), _CLOSE_TIMEOUT_S)
                task.cancel()

    @staticmethod
    async def _close(name: str) -> None:
        try:
            await ray.get_actor(name, namespace=NAMESPACE).close.remote()
        except (ValueError, RayError) as error:
            log.warning("supervisor.close_failed shard=%s: %s", name, error)
