"""Tenants that come and go: passivated when idle or too many, moved when their plan changes, always under load.

The full count of tenants in one shard: ``TENANTRY_TEST_TENANTS=10000 uv run pytest tests/integration/test_shards.py``.
"""

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import psutil
import pytest

from actors.shard import Limits, Shard
from events.ask import Asker
from events.bus import Bus
from events.clock import SystemClock
from events.keys import Keys
from events.tenant import ChangePlan, CreateTenant, DescribeTenant, IssueKey, ReserveCall, SetBudget
from events.valkey_store import ValkeyEventStore
from events.verify import verify
from tests.kit.activator import activating
from tests.kit.factories import HOUR_US
from tests.kit.servers import keys_in_memory

NewTenant = Callable[[], str]
TENANTS = int(os.environ.get("TENANTRY_TEST_TENANTS", "300"))
# An ask is repeated by its asker after two seconds without an answer: one that was answered faster was never lost.
ATTEMPT_S = 2.0
KEYS = keys_in_memory()


@asynccontextmanager
async def hosting(store: ValkeyEventStore, bus: Bus, limits: Limits) -> AsyncIterator[tuple[Shard, Asker]]:
    shard = Shard("limited", "pool", store, bus, SystemClock(), KEYS, limits)
    async with activating(bus, shard):
        yield shard, Asker(bus)
    await shard.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - nothing tells when a tenant has come or gone
            await asyncio.sleep(0.01)


class Load:
    """Callers that reserve calls one after the other; ``done`` are the calls that were granted, by tenant."""

    def __init__(self, asker: Asker, tenants: list[str], callers: int) -> None:
        self._asker, self._tenants, self._callers = asker, tenants, callers
        self.done: dict[str, list[int]] = defaultdict(list)
        self.slowest_s = 0.0
        self._stopped = False

    async def _call(self, number: int) -> None:
        tenant = self._tenants[number % len(self._tenants)]
        count = 0
        while not self._stopped:
            count += 1
            began = time.monotonic()
            command = ReserveCall(f"c{number}-{count}", "k1", "small", 1, HOUR_US)
            ok = await self._asker.ask(tenant, command, actor="test")
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.done[tenant].append(ok.position)

    async def during(self, work: Awaitable[None]) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self._callers):
                group.create_task(self._call(number))
            await work
            self._stopped = True

    async def check(self, store: ValkeyEventStore, before: int) -> None:
        """Every answer is one event of its own, and there are no others: nothing lost, nothing doubled."""
        for tenant in self._tenants:
            positions = sorted(self.done[tenant])
            kinds = [b"call.reserved" in event.record for event in await store.read(tenant, before, 1_000_000)]
            events = await verify(store, tenant)
            assert len(positions) == len(set(positions)) == sum(kinds)
            assert events.events == before + len(kinds)


async def create(asker: Asker, tenant: str) -> None:
    await asker.ask(tenant, CreateTenant("Test"), actor="test")
    await asker.ask(tenant, IssueKey("k1", "default", b"d" * 32), actor="test")


async def test_an_idle_tenant_leaves_memory_with_a_snapshot_and_wakes_when_it_is_asked(
    valkey_store: ValkeyEventStore, bus: Bus, new_tenant: NewTenant
) -> None:
    tenant = new_tenant()
    async with hosting(valkey_store, bus, Limits(idle_after_s=0.2)) as (shard, asker):
        await create(asker, tenant)
        before = await asker.ask(tenant, DescribeTenant(), actor="test")
        await until(lambda: shard.tenants == [])
        assert [kept.position for kept in await valkey_store.load_snapshots(tenant)] == [2]
        assert await asker.ask(tenant, DescribeTenant(), actor="test") == before
        assert shard.tenants == [tenant]


async def test_a_tenant_that_is_asked_stays(valkey_store: ValkeyEventStore, bus: Bus, new_tenant: NewTenant) -> None:
    busy, idle = new_tenant(), new_tenant()
    async with hosting(valkey_store, bus, Limits(idle_after_s=0.5)) as (shard, asker):
        await create(asker, busy)
        await create(asker, idle)
        while shard.tenants != [busy]:
            await asker.ask(busy, DescribeTenant(), actor="test")
            assert busy in shard.tenants


async def test_beyond_the_cap_those_asked_least_recently_leave(
    valkey_store: ValkeyEventStore, bus: Bus, new_tenant: NewTenant
) -> None:
    tenants = sorted(new_tenant() for _ in range(12))
    async with hosting(valkey_store, bus, Limits(active_max=4)) as (shard, asker):
        for tenant in tenants:
            await create(asker, tenant)
            assert len(shard.tenants) <= 4
        assert shard.tenants == tenants[-4:]
        await asker.ask(tenants[-4], DescribeTenant(), actor="test")
        await asker.ask(tenants[0], DescribeTenant(), actor="test")
        assert shard.tenants == sorted([tenants[0], tenants[-4], *tenants[-2:]])
        await asyncio.gather(*(asker.ask(tenant, SetBudget(7, "day"), actor="test") for tenant in tenants))
        shown = [(await asker.ask(tenant, DescribeTenant(), actor="test")).result for tenant in tenants]
        assert [row["budget"]["limit_nano_usd"] for row in shown] == [7] * 12


async def test_passivated_under_load_nothing_is_lost_doubled_or_asked_in_vain(
    valkey_store: ValkeyEventStore, bus: Bus, new_tenant: NewTenant
) -> None:
    tenants = [new_tenant() for _ in range(3)]
    async with hosting(valkey_store, bus, Limits()) as (shard, asker):
        for tenant in tenants:
            await create(asker, tenant)
        load = Load(asker, tenants, 24)

        async def passivate() -> None:
            for round_number in range(45):
                await shard.release(tenants[round_number % 3])
                await asker.ask(tenants[round_number % 3], DescribeTenant(), actor="test")

        await load.during(passivate())
        await load.check(valkey_store, 2)
    assert load.slowest_s < ATTEMPT_S


async def test_moved_between_pool_and_silo_under_load_nothing_is_lost_doubled_or_asked_in_vain(
    asker: Asker, shard: Shard, silo: Shard, valkey_store: ValkeyEventStore, new_tenant: NewTenant
) -> None:
    tenant = new_tenant()
    await create(asker, tenant)
    load = Load(asker, [tenant], 32)

    async def move() -> None:
        for _ in range(6):
            await asker.ask(tenant, ChangePlan("pro"), actor="test")
            await until(lambda: silo.tenants == [tenant] and not shard.tenants)
            await asker.ask(tenant, ChangePlan("free"), actor="test")
            await until(lambda: shard.tenants == [tenant] and not silo.tenants)

    await load.during(move())
    await load.check(valkey_store, 2)
    assert load.slowest_s < ATTEMPT_S


async def test_an_owner_overtaken_under_load_lets_go_and_keeps_nobody_waiting(
    asker: Asker, shard: Shard, valkey_store: ValkeyEventStore, bus: Bus, keys: Keys, new_tenant: NewTenant
) -> None:
    """As when Ray runs a second copy of an actor: both listen for a moment, one writes."""
    tenant = new_tenant()
    await create(asker, tenant)
    load = Load(asker, [tenant], 32)
    newer = Shard("newer", "pool", valkey_store, bus, SystemClock(), keys)

    async def overtake() -> None:
        for older, next_owner in ((shard, newer), (newer, shard)) * 5:
            await next_owner.host(tenant)
            await until(lambda older=older: older.tenants == [])  # type: ignore[misc]

    await load.during(overtake())
    await load.check(valkey_store, 2)
    await newer.close()
    assert load.slowest_s < ATTEMPT_S


async def test_a_closed_shard_has_finished_what_it_accepted_and_hosts_nobody_more(
    valkey_store: ValkeyEventStore, bus: Bus, new_tenant: NewTenant
) -> None:
    tenant = new_tenant()
    async with hosting(valkey_store, bus, Limits()) as (shard, asker):
        await create(asker, tenant)
        asks = [
            asyncio.create_task(asker.ask(tenant, SetBudget(number, "day"), actor="test", timeout_s=3.0))
            for number in range(200)
        ]
        await until(lambda: any(ask.done() for ask in asks))
        await shard.close()
        assert shard.is_vacant
        head = await valkey_store.head(tenant)
        assert head is not None
        assert (await valkey_store.load_snapshots(tenant))[0].position == head.position
        done = 0
        for ask in asks:
            with suppress(Exception):
                done += (await ask).position > 2
        assert head.position == done + 2


@pytest.mark.timeout(900)
async def test_many_tenants_are_served_by_one_shard_and_cost_little(
    valkey_store: ValkeyEventStore, bus: Bus, new_tenant: NewTenant, capsys: pytest.CaptureFixture[str]
) -> None:
    """Created, asked, and asked again; the memory of this process, which hosts and asks. `tenantry bench` weighs all."""
    tenants = [new_tenant() for _ in range(TENANTS)]
    process = psutil.Process()
    async with hosting(valkey_store, bus, Limits()) as (shard, asker):
        await create(asker, new_tenant())
        before, began = process.memory_info().rss, time.monotonic()
        gate = asyncio.Semaphore(128)

        async def ask(tenant: str, command: CreateTenant | DescribeTenant) -> None:
            async with gate:
                await asker.ask(tenant, command, actor="test", timeout_s=60)

        await asyncio.gather(*(ask(tenant, CreateTenant("Test")) for tenant in tenants))
        created = time.monotonic()
        await asyncio.gather(*(ask(tenant, DescribeTenant()) for tenant in tenants))
        asked = time.monotonic()
        grown = (process.memory_info().rss - before) / TENANTS / 1024
        assert len(shard.tenants) == TENANTS + 1
    with capsys.disabled():
        print(
            f"\n{TENANTS} tenants: created and activated in {created - began:.1f} s, asked in {asked - created:.1f} s, "
            f"{grown:.1f} KiB each"
        )
    assert TENANTS < 5_000 or grown < 50
