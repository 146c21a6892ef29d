"""A Ray cluster without Ray."""

import asyncio
from typing import cast

from actors.supervision.cluster import Cluster, Node
from actors.supervision.homes import ActorName, Homes
from actors.supervision.moves import Moves
from actors.supervision.shards import ShardActors
from events.store import EventStore, Head

A, B, C = "aaaa", "bbbb", "cccc"


class FakeCluster:
    """Stands for ``Cluster``, ``ShardActors`` and ``EventStore``: three nodes with actors, and who is active in each."""

    def __init__(self, places: dict[str, str], tenants: dict[str, set[str]]) -> None:
        self.homes = Homes(1)
        self.places, self.tenants = places, tenants
        self.leaving_nodes: set[str] = set()
        self.kept: list[int] = []
        self.can_start = asyncio.Event()
        self.can_start.set()
        self.fails: list[Exception] = []

    # as Cluster
    def nodes(self) -> list[Node]:
        return [Node(node, "127.0.0.1", node == A, node in self.leaving_nodes, self.on(node)) for node in (A, B, C)]

    def on(self, node: str) -> list[str]:
        return sorted(name for name, place in self.places.items() if place == node)

    def draining(self) -> set[str]:
        return set(self.leaving_nodes)

    def drain(self, node_id: str) -> None:
        self.leaving_nodes.add(node_id)

    def keep_pool_shards(self, number: int) -> None:
        assert self.homes.pool_shards != number, "it is kept before anybody acts on it"
        self.kept.append(number)

    # as EventStore
    async def head(self, tenant: str) -> Head | None:
        if tenant not in set().union(*self.tenants.values()):
            return None
        return Head(1, 1, b"", placement="silo" if tenant == "acme" else "pool")

    # as ShardActors
    def names(self) -> list[str]:
        return sorted(self.places)

    async def start_in_pool(self, shard: int) -> None:
        self._start(ActorName(f"pool-{shard}"), A)

    def _start(self, actor: ActorName, node: str) -> None:
        if self.fails:
            raise self.fails.pop()
        self.places[str(actor)] = node
        self.tenants.setdefault(str(actor), set())

    async def succeed(self, home: str, node: str) -> ActorName:
        await self.can_start.wait()
        before, actor = self.homes.actor(home), self.homes.successor(home)
        self._start(actor, node)
        self.homes.succeeded([actor])
        return before

    async def leaving(self, name: str) -> list[str]:
        if name not in self.tenants:
            raise ValueError(name)
        serves = ActorName.parse(name).serves
        return [tenant for tenant in self.tenants[name] if str(self.homes.actor_for(tenant, serves)) != name]

    async def move_out(self, name: str) -> int:
        leaving = await self.leaving(name)
        for tenant in leaving:
            self.tenants[name].discard(tenant)
            self.tenants[str(self.homes.actor_for(tenant, ActorName.parse(name).serves))].add(tenant)
        return len(leaving)

    async def end(self, name: str) -> None:
        assert not self.tenants.pop(name), "whoever is active there is served"
        del self.places[name]

    def moves(self) -> Moves:
        return Moves(cast("EventStore", self), cast("ShardActors", self), cast("Cluster", self))
