"""Where tenants belong, and the names of the actors that serve there.

A home is a tenant's own (``silo-acme``) or one of the pool (``pool-3``). An actor that is to run on another node gets a
successor of a later generation (``pool-3.1``): both run while the tenants go from one to the other, and whoever comes to
it later, a supervisor that was restarted for one, sees from the names which of them the home is served by.
"""

import hashlib
from collections.abc import Iterable

import msgspec

from events.store import Placement

_SILO, _POOL = "silo-", "pool-"


class ActorName(msgspec.Struct, frozen=True, order=True):
    """``str`` of it is what Ray knows the actor by. Tenant ids hold no dots."""

    home: str
    generation: int = 0

    def __str__(self) -> str:
        return f"{self.home}.{self.generation}" if self.generation else self.home

    @classmethod
    def parse(cls, text: str) -> "ActorName":
        home, _, generation = text.partition(".")
        return cls(home, int(generation or 0))

    @property
    def serves(self) -> Placement:
        return "silo" if self.home.startswith(_SILO) else "pool"

    @property
    def tenant(self) -> str:
        """A silo's; "" of the pool."""
        return self.home.removeprefix(_SILO) if self.serves == "silo" else ""

    @property
    def shard(self) -> int:
        """The number in the pool; -1 of a silo."""
        return int(self.home.removeprefix(_POOL)) if self.serves == "pool" else -1


def is_tenant_actor(name: str) -> bool:
    return name.startswith((_SILO, _POOL))


def pool_home(shard: int) -> str:
    return f"{_POOL}{shard}"


def home_of(tenant: str, placement: Placement, pool_shards: int) -> str:
    return f"{_SILO}{tenant}" if placement == "silo" else pool_home(shard_of(tenant, pool_shards))


def shard_of(tenant: str, pool_shards: int) -> int:
    """The tenant's shard, 0 up to ``pool_shards`` - 1: even, and where the pool grows from n to n + 1 shards, only one
    tenant in n + 1 moves, all of them to the new one. Jump consistent hash (Lamping and Veach 2014, arXiv:1406.2294).
    """
    key = int.from_bytes(hashlib.blake2b(tenant.encode(), digest_size=8).digest(), "big")
    shard, following = 0, 0
    while following < pool_shards:
        shard = following
        key = (key * 2862933555777941757 + 1) % 2**64
        following = int((shard + 1) * (2**31 / ((key >> 33) + 1)))
    return shard


class Homes:
    """By which actor each home is served. Knows what it is told; Ray knows what runs."""

    def __init__(self, pool_shards: int) -> None:
        self.pool_shards = pool_shards
        self._generations: dict[str, int] = {}

    def actor(self, home: str) -> ActorName:
        return ActorName(home, self._generations.get(home, 0))

    def actor_for(self, tenant: str, placement: Placement) -> ActorName:
        return self.actor(home_of(tenant, placement, self.pool_shards))

    def successor(self, home: str) -> ActorName:
        """The next generation's name; it serves nobody before ``succeeded``."""
        return ActorName(home, self.actor(home).generation + 1)

    def succeeded(self, names: Iterable[ActorName]) -> None:
        """These run: of each home the latest generation serves it from now on."""
        for name in names:
            self._generations[name.home] = max(name.generation, self._generations.get(name.home, 0))

    def is_wanted(self, name: ActorName, placement: Placement | None) -> bool:
        """Whether the actor has a purpose: ``placement`` is its tenant's; None where a silo's tenant doesn't exist.
        A generation that is not there yet is on its way.
        """
        if name.generation < self.actor(name.home).generation:
            return False
        return placement == "silo" if name.serves == "silo" else name.shard < self.pool_shards
