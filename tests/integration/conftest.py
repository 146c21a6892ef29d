"""A platform without Ray: a real Valkey, a real NATS, a shard in this process, and something that activates."""

import uuid
from collections.abc import AsyncIterator, Callable

import pytest

from actors.shard import Shard
from events.ask import Asker
from events.bus import Bus
from events.clock import SystemClock
from events.keys import Keys
from events.valkey_store import ValkeyEventStore
from tests.kit.activator import activating
from tests.kit.servers import Servers


def bus_went_deaf() -> None:
    raise AssertionError("the bus watchdog fired")


@pytest.fixture
async def bus(servers: Servers) -> AsyncIterator[Bus]:
    connection = await Bus.connect(servers.nats_url, "test", bus_went_deaf)
    yield connection
    await connection.close()


@pytest.fixture
async def shard(valkey_store: ValkeyEventStore, bus: Bus, keys: Keys) -> AsyncIterator[Shard]:
    hosting = Shard("test", "pool", valkey_store, bus, SystemClock(), keys)
    yield hosting
    await hosting.close()


@pytest.fixture
async def silo(valkey_store: ValkeyEventStore, bus: Bus, keys: Keys) -> AsyncIterator[Shard]:
    """Where tenants go whose plan gives them an actor of their own."""
    hosting = Shard("test-silo", "silo", valkey_store, bus, SystemClock(), keys)
    yield hosting
    await hosting.close()


@pytest.fixture
async def asker(bus: Bus, shard: Shard, silo: Shard, valkey_store: ValkeyEventStore) -> AsyncIterator[Asker]:
    """Activates whoever is asked for and not there: in the ``shard``, or in the ``silo`` where the plan wants one."""
    async with activating(bus, shard, silo=silo, store=valkey_store):
        yield Asker(bus)


@pytest.fixture
def new_tenant() -> Callable[[], str]:
    return lambda: f"t{uuid.uuid4().hex[:12]}"
