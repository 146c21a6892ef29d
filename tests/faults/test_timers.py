"""Timers outlive every process: they lie in the store, written by the append that made them."""

import asyncio
from pathlib import Path

from actors.shard import Shard
from actors.supervision.timers import TimerScan
from events.ask import Asker
from events.bus import Bus
from events.clock import SystemClock
from events.keys import Keys, parse_master_keys
from events.memory_vault import MemoryVault
from events.tenant import CreateTenant, IssueKey, ReserveCall
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from tests.kit.activator import activating
from tests.kit.servers import MASTER_KEY, Servers, kill_and_wait, running_servers

WAIT_S = 30.0


async def test_a_timer_fires_after_all_processes_were_killed_and_wakes_a_tenant_that_sleeps(tmp_path: Path) -> None:
    """Nobody asks the tenant after the restart: the timer alone activates it, and books the dead gateway's call."""
    keys = Keys(MemoryVault(), parse_master_keys(MASTER_KEY))  # the vault lies elsewhere, and lives
    with running_servers(tmp_path) as servers:
        await _reserve_for_a_moment(servers, keys)
        for server in (servers.valkey, servers.nats):
            await asyncio.to_thread(kill_and_wait, server)
        bus, store = await _connected(servers)
        shard = Shard("next", "pool", store, bus, SystemClock(), keys)
        async with activating(bus, shard):
            scan = asyncio.create_task(TimerScan(store, Asker(bus), SystemClock()).run())
            async with asyncio.timeout(WAIT_S):
                while len(events := await store.read("sleeper", 0)) < 4:  # noqa: ASYNC110 - a log tells nobody when it grows
                    await asyncio.sleep(0.05)
            scan.cancel()
        assert b"call.reservation_expired.v1" in events[-1].record
        assert shard.tenants == ["sleeper"]
        assert await store.due(2**52) == []
        await shard.close()
        await bus.close()
        await store.close()


async def _connected(servers: Servers) -> tuple[Bus, ValkeyEventStore]:
    store = ValkeyEventStore(connect(servers.valkey_url))
    await store.open()
    return await Bus.connect(servers.nats_url, "test", lambda: None), store


async def _reserve_for_a_moment(servers: Servers, keys: Keys) -> None:
    """A call that nobody will settle; then everything that knew of it is gone but for what is on disk."""
    bus, store = await _connected(servers)
    shard = Shard("first", "pool", store, bus, SystemClock(), keys)
    async with activating(bus, shard):
        asker = Asker(bus)
        await asker.ask("sleeper", CreateTenant("Sleeper"), actor="test")
        await asker.ask("sleeper", IssueKey("k1", "default", b"d" * 32), actor="test")
        await asker.ask("sleeper", ReserveCall("c1", "k1", "small", 10, 1_000_000), actor="test")
    await shard.close()
    await bus.close()
    await store.close()
