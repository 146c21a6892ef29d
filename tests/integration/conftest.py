"""A platform without Ray: a real Valkey, a real NATS, a shard in this process, and something that activates."""

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from actors.shard import Shard
from actors.supervision.shared import SharedSupervisors
from events.ask import Asker
from events.bus import Bus
from events.clock import SystemClock
from events.keys import Keys
from events.slices import SLICE_COUNT
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from projections.actor import PROJECTIONS
from projections.runner import ReadModels, Runner
from serve.gateway import Gateway
from serve.settings import Settings
from tests.kit.activator import activating
from tests.kit.cli import Cli
from tests.kit.cluster import A, FakeCluster
from tests.kit.gateway import ADMIN_KEY, METRICS_KEY, UPSTREAM_KEY, UPSTREAM_KEY_ENV, World, models_of
from tests.kit.servers import MASTER_KEY, OLD_MASTER_KEY, Servers
from tests.kit.upstream import running_upstream


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
async def cluster() -> FakeCluster:
    """Where the supervisor believes that actors run; tenants are in the ``shard`` and the ``silo`` all the same."""
    return FakeCluster({"pool-0": A}, {"pool-0": {"t1", "t2"}})


@pytest.fixture
async def asker(
    bus: Bus, shard: Shard, silo: Shard, valkey_store: ValkeyEventStore, cluster: FakeCluster
) -> AsyncIterator[Asker]:
    """Activates whoever is asked for and not there: in the ``shard``, or in the ``silo`` where the plan wants one."""
    async with activating(bus, shard, silo=silo, store=valkey_store, cluster=cluster):
        yield Asker(bus)


@pytest.fixture
def new_tenant() -> Callable[[], str]:
    return lambda: f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def supervisors(bus: Bus, asker: Asker) -> AsyncIterator[SharedSupervisors]:
    """The supervisors that a platform has. A test may close them before its end."""
    running = SharedSupervisors(bus, is_first=True)
    await running.start()
    yield running
    await running.close()


@pytest.fixture
async def world(
    servers: Servers,
    valkey_store: ValkeyEventStore,
    bus: Bus,
    asker: Asker,
    keys: Keys,
    supervisors: SharedSupervisors,
    monkeypatch: pytest.MonkeyPatch,
    new_tenant: Any,
    tmp_path: Path,
) -> AsyncIterator[World]:
    async with running_upstream() as upstream:
        settings = Settings(
            nats_url=servers.nats_url,
            valkey_url=servers.valkey_url,
            vault_url=servers.vault_url,
            master_key=f"{MASTER_KEY},{OLD_MASTER_KEY}",
            admin_key=ADMIN_KEY,
            metrics_key=METRICS_KEY,
            pepper="p" * 48,
            models=models_of(upstream),
            call_timeout_s=120,
            body_bytes_max=300_000,
            archive_url=str(tmp_path / "archive"),
            objects_url=str(tmp_path / "objects"),
        )
        for name, value in settings.to_environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv(UPSTREAM_KEY_ENV, UPSTREAM_KEY)
        models = ReadModels(connect(servers.valkey_url, db=settings.reads_db), keys)
        await models.open()
        projecting = asyncio.create_task(Runner(valkey_store, models, bus, PROJECTIONS, range(SLICE_COUNT)).run())
        gateway = Gateway()
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(gateway, log_config=None, lifespan="off"))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            world = World(f"http://127.0.0.1:{listener.getsockname()[1]}", upstream, asker, valkey_store)
            await world.new_tenant(new_tenant())
            yield world
            await world.admin.aclose()
            server.should_exit = True
            await serving
        await gateway.close()
        projecting.cancel()
        await asyncio.wait([projecting])
        await models.close()


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, world: World) -> Cli:
    return Cli(monkeypatch, world.base_url)
