"""Tenants that move between real actors, and what a stop of the platform leaves of them."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from events.ask import Asker
from events.bus import Bus
from events.errors import StoreUnavailableError
from events.tenant import DescribeTenant, SetBudget
from events.valkey_store import ValkeyEventStore, connect
from events.verify import verify
from serve.installation import DataDir
from serve.local_servers import LocalServer, valkey_spec
from serve.ports import free_port
from tests.kit.platform import UpProcess, running_platform

CALLERS = 8


async def until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await asyncio.to_thread(holds):  # noqa: ASYNC110 - Ray tells nobody when an actor has come or gone
            await asyncio.sleep(0.1)  # what other processes do can only be asked for


async def load(asker: Asker, tenant: str, caller: int, stop: asyncio.Event) -> list[int]:
    """Positions of what was answered."""
    positions = []
    number = caller * 1_000_000
    while not stop.is_set():
        number += 1
        ok = await asker.ask(tenant, SetBudget(number, "day"), actor="test", timeout_s=60)
        positions.append(ok.position)
    return positions


async def move_under_load(platform: UpProcess, tenant: str) -> int:
    """To an actor of its own and back, while it is asked. Returns the position of its last event."""
    bus = await Bus.connect(platform.running.nats_url, "test", lambda: None)
    store = ValkeyEventStore(connect(platform.running.valkey_url))
    await store.open()
    asker, stop = Asker(bus), asyncio.Event()
    callers = [asyncio.create_task(load(asker, tenant, number, stop)) for number in range(CALLERS)]
    with platform.admin() as admin:
        pooled = len(await asyncio.to_thread(platform.pids_of, "ray::TenantActor"))
        for plan, actors in (("pro", pooled + 1), ("free", pooled)):
            changed = await asyncio.to_thread(admin.put, f"/tenants/{tenant}/plan", json={"plan": plan})
            assert changed.status_code == 200, changed.text
            await until(lambda actors=actors: len(platform.pids_of("ray::TenantActor")) == actors)  # type: ignore[misc]
    stop.set()
    answered = [position for positions in await asyncio.gather(*callers) for position in positions]
    assert len(answered) == len(set(answered))
    log = await store.read(tenant, 0, 1_000_000)
    assert sum(b"budget.set" in event.record for event in log) == len(answered)
    end = (await verify(store, tenant)).events
    assert (await asker.ask(tenant, DescribeTenant(), actor="test")).position == end
    await bus.close()
    await store.close()
    return end


async def opened(store: ValkeyEventStore) -> None:
    """Valkey listens before it has read its log, and says so."""
    async with asyncio.timeout(30):
        while True:
            try:
                await store.open()
                return
            except StoreUnavailableError:
                await asyncio.sleep(0.05)  # likewise


async def snapshot_position(data_dir: Path, tenant: str) -> int:
    """Of the newest snapshot in a stopped platform's store."""
    password, port = DataDir(data_dir).secrets().valkey_password, free_port()
    server = LocalServer(valkey_spec(data_dir, port, password))
    server.start()
    try:
        server.wait_ready()
        store = ValkeyEventStore(connect(f"redis://:{password}@127.0.0.1:{port}"))
        await opened(store)
        kept = await store.load_snapshots(tenant)
        await store.close()
        return kept[0].position
    finally:
        server.stop()


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_tenant_moves_between_actors_under_load_and_a_stop_leaves_its_snapshot(tmp_path: Path) -> None:
    """Nothing is lost or doubled, the actor it left has ended, and the next start has nothing to replay."""
    with running_platform(tmp_path / "data") as platform:
        with platform.admin() as admin:
            admin.post("/tenants", json={"id": "mover", "name": "Mover"}).raise_for_status()
        end = asyncio.run(move_under_load(platform, "mover"))
        began = time.monotonic()
        assert platform.stop() == 0
        assert time.monotonic() - began < 45
    assert asyncio.run(snapshot_position(tmp_path / "data", "mover")) == end
