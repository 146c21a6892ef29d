"""Planned moves: of an actor to another node, of the pool's tenants when it grows or shrinks, and away from nodes that drain.

A move never takes a tenant from where it is served before the actor it goes to runs. Each tenant then goes by itself: what
it has accepted is finished there, and what is asked next is asked here. A supervisor that dies in the middle leaves what the
names of the actors tell (``homes``), and its successor goes on from them.
"""

import asyncio
import logging
from collections.abc import Coroutine, Sequence

import msgspec
from ray.exceptions import RayError

from actors.supervision.cluster import Cluster, Node, find
from actors.supervision.homes import ActorName, pool_home
from actors.supervision.placement import (
    Answer,
    AnyOrder,
    DrainNode,
    MoveShard,
    MoveTenant,
    NotPlaced,
    Placed,
    ScalePool,
    ShowPlacement,
    decode_order,
    encode,
)
from actors.supervision.shards import ShardActors
from events.errors import NotFoundError, NotPlacedError, PlatformError
from events.store import EventStore

log = logging.getLogger(__name__)

POOL_SHARDS_MAX = 1_000
_LOOK_PERIOD_S = 1.0
_SETTLE_PERIOD_S = 30.0
_LEAVING_AT_ONCE = 4  # actors: each successor is a process that starts


class Move(msgspec.Struct, frozen=True):
    """``node_id`` is "" where it does not matter."""

    node_id: str
    task: asyncio.Task[None]


class Moves:
    def __init__(self, store: EventStore, shards: ShardActors, cluster: Cluster) -> None:
        self._store, self._shards, self._cluster = store, shards, cluster
        self._moving: dict[str, Move] = {}
        self._scaling, self._scaled = asyncio.Lock(), asyncio.Event()

    async def answer(self, order: bytes) -> bytes:
        """``do`` as it goes over the bus."""
        answer: Answer
        try:
            answer = await self.do(decode_order(order))
        except PlatformError as error:
            answer = NotPlaced(error.code, str(error))
        except (RayError, RuntimeError) as error:
            log.warning("supervisor.order_failed: %s", error)
            answer = NotPlaced("tenant_unavailable", "an actor could not be started: everybody is served where it was")
        except Exception:  # a defect: who asked must not wait for it in vain
            log.exception("supervisor.order_crashed")
            answer = NotPlaced("internal_error", "something went wrong in the supervisor; its log says what")
        return encode(answer)

    async def do(self, order: AnyOrder) -> Placed:
        """Carry it out. Returns when it is done, of a drain or a new scale when it has begun. Safe to repeat: who does not
        know whether a supervisor lives that was told asks again.

        Raises:
            Refusal: It can't be done as things are; nothing has changed.
            NotServedError, RayError: An actor could not be started, or does not answer; tenants are served where they were.
            RuntimeError: Ray does not answer.
        """
        match order:
            case MoveTenant(tenant, node):
                await self._move(await self._silo_of(tenant), node)
            case MoveShard(shard, node):
                if not 0 <= shard < self._shards.homes.pool_shards:
                    raise NotFoundError("actor", pool_home(shard))
                await self._move(pool_home(shard), node)
            case DrainNode(node):
                await asyncio.to_thread(self._cluster.drain, node)
            case ScalePool(shards):
                await self.scale(shards)
            case ShowPlacement():
                pass
        return Placed(await self._nodes(), self._shards.homes.pool_shards, sorted(self._moving))

    async def _nodes(self) -> list[Node]:
        return await asyncio.to_thread(self._cluster.nodes)

    async def _silo_of(self, tenant: str) -> str:
        head = await self._store.head(tenant)
        if head is None:
            raise NotFoundError("tenant", tenant)
        home = self._shards.homes.actor_for(tenant, head.placement).home
        if head.placement != "silo":
            raise NotPlacedError(
                f"tenant {tenant!r} shares its actor with others: move that, with `tenantry pool move {home} NODE`, "
                f"or give it one of its own, with `tenantry tenant plan {tenant} pro`"
            )
        return home

    async def _move(self, home: str, node_id: str) -> None:
        node = find(await self._nodes(), node_id)
        if node.draining:
            raise NotPlacedError(f"node {node.id[:12]} is being drained: choose another")
        if str(self._shards.homes.actor(home)) not in node.actors:
            await self._move_to(home, node.id)

    async def _move_to(self, home: str, node_id: str) -> None:
        """Who asks again for a move that is under way waits for it."""
        while (under_way := self._moving.get(home)) is not None:
            if under_way.node_id == node_id:
                break
            if under_way.node_id:
                raise NotPlacedError(
                    f"{home} is on its way to node {under_way.node_id[:12]}: wait until it has arrived"
                )
            await asyncio.wait([under_way.task])
        else:
            under_way = self._begin(home, node_id, self._go(home, node_id))
        await asyncio.shield(under_way.task)

    async def _go(self, home: str, node_id: str) -> None:
        before = await self._shards.succeed(home, node_id)
        await self._leave(before)
        log.info("supervisor.moved home=%s node=%s", home, node_id)

    def _begin(self, home: str, node_id: str, work: Coroutine[None, None, None]) -> "Move":
        task = asyncio.create_task(work, name=f"move-{home}")
        move = self._moving[home] = Move(node_id, task)
        task.add_done_callback(lambda _: self._moving.pop(home))
        return move

    async def _leave(self, actor: ActorName) -> None:
        """Have everybody go who does not belong there any more, and end the actor if nobody does."""
        name = str(actor)
        try:
            moved = await self._shards.move_out(name)
        except ValueError:  # it does not run, so nobody was there
            return
        except (PlatformError, RayError) as error:
            log.warning("supervisor.move_interrupted actor=%s: %s", name, error)  # `settle` and the janitor go on
            return
        if moved:
            log.info("supervisor.moved_out actor=%s tenants=%s", name, moved)
        if not self._shards.homes.is_wanted(actor, actor.serves):
            await self._shards.end(name)

    async def scale(self, pool_shards: int) -> None:
        """Have so many actors share the pool's tenants. Returns when all of them run; tenants then go where they belong.

        Raises as ``do``.
        """
        if not 1 <= pool_shards <= POOL_SHARDS_MAX:
            raise NotPlacedError(f"a pool has 1 to {POOL_SHARDS_MAX} actors, not {pool_shards}")
        async with self._scaling:
            for shard in range(self._shards.homes.pool_shards, pool_shards):
                await self._shards.start_in_pool(shard)
            if pool_shards == self._shards.homes.pool_shards:
                return
            # kept first: a supervisor that starts after this one must not know less than the actors do
            await asyncio.to_thread(self._cluster.keep_pool_shards, pool_shards)
            self._shards.homes.pool_shards = pool_shards
        self._scaled.set()
        log.info("supervisor.scaled pool_shards=%s", pool_shards)

    async def renew(self, names: Sequence[str]) -> None:
        """Have each of these actors followed by another one, which has the code and the settings of today; one that has a
        successor already is left alone. Raises as ``do``.
        """
        slots = asyncio.Semaphore(_LEAVING_AT_ONCE)

        async def follow(actor: ActorName) -> None:
            async with slots:
                while (under_way := self._moving.get(actor.home)) is not None:
                    await asyncio.wait([under_way.task])
                if actor == self._shards.homes.actor(actor.home):
                    await asyncio.shield(self._begin(actor.home, "", self._go(actor.home, "")).task)

        await asyncio.gather(*map(follow, map(ActorName.parse, names)))

    async def settle(self) -> None:
        """Have the pool's tenants go where they belong, if they are elsewhere, and end the actors that are too many."""
        names = await asyncio.to_thread(self._shards.names)
        pooled = [name for name in map(ActorName.parse, names) if name.serves == "pool"]
        await asyncio.gather(*(self._settle(actor) for actor in pooled if actor.home not in self._moving))

    async def _settle(self, actor: ActorName) -> None:
        try:
            if self._shards.homes.is_wanted(actor, actor.serves) and not await self._shards.leaving(str(actor)):
                return
        except ValueError:  # it has ended meanwhile
            return
        if actor.home not in self._moving:  # by now
            await asyncio.shield(self._begin(actor.home, "", self._leave(actor)).task)

    async def keep_settled(self) -> None:
        """Goes on for ever. After a change of scale at once; now and then besides, for what a supervisor before left."""
        while True:
            self._scaled.clear()
            try:
                await self.settle()
            except (PlatformError, RayError, RuntimeError) as error:
                log.warning("supervisor.settling_postponed: %s", error)
            except Exception:  # a defect must not keep later changes of scale from being carried out
                log.exception("supervisor.settling_failed")
            try:
                async with asyncio.timeout(_SETTLE_PERIOD_S):
                    await self._scaled.wait()
            except TimeoutError:
                continue

    async def leave_draining_nodes(self) -> None:
        """Goes on for ever."""
        while True:
            try:
                if leaving := await asyncio.to_thread(self._cluster.draining):
                    await self._leave_nodes(leaving)
            except (PlatformError, RayError, RuntimeError) as error:
                log.warning("supervisor.drain_postponed: %s", error)
            except Exception:  # likewise
                log.exception("supervisor.drain_failed")
            await asyncio.sleep(_LOOK_PERIOD_S)  # the beat of it: Ray tells nobody that a node is to be left

    async def _leave_nodes(self, leaving: set[str]) -> None:
        found = await self._nodes()
        staying = {node.id: len(node.actors) for node in found if node.id not in leaving}
        homes = [
            actor.home
            for node in found
            if node.id in leaving
            for actor in map(ActorName.parse, node.actors)
            if actor == self._shards.homes.actor(actor.home) and actor.home not in self._moving
        ]
        if homes and not staying:
            log.warning("supervisor.nowhere_to_go actors=%s: every node is being drained", len(homes))
            return
        moves = []
        for home in homes[:_LEAVING_AT_ONCE]:  # the others at the next look
            least = min(staying, key=lambda node_id: (staying[node_id], node_id))
            staying[least] += 1
            moves.append(self._move_to(home, least))
        for outcome in await asyncio.gather(*moves, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
