"""Who is woken when, with a store in memory and tenants that answer or don't."""

import asyncio
from collections.abc import Collection
from typing import Any, cast

import pytest

from actors.supervision import timers
from actors.supervision.timers import TimerScan
from events.ask import Asker
from events.errors import NotServedError
from events.memory_store import MemoryEventStore
from events.timers import FireTimers
from tests.kit.clock import ManualClock
from tests.kit.factories import NOW_US


class Tenants:
    """Stands in for the asker: some tenants answer at once, some can't be served, some hang."""

    def __init__(self, store: MemoryEventStore) -> None:
        self._store = store
        self.unservable: set[str] = set()
        self.hanging: set[str] = set()
        self.asked: list[str] = []

    async def ask(self, tenant: str, command: Any, *, actor: str) -> None:
        assert isinstance(command, FireTimers)
        self.asked.append(tenant)
        if tenant in self.hanging:
            await asyncio.Event().wait()
        if tenant in self.unservable:
            raise NotServedError(tenant, "told to fail")
        await self._store.set_timer(tenant, 0, 0)


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryEventStore(self.clock)
        self.tenants = Tenants(self.store)
        self.scan = TimerScan(self.store, cast("Asker", self.tenants), self.clock)

    async def tick(self) -> list[str]:
        chosen = await self.scan.tick()
        for _ in range(3):
            await asyncio.sleep(0)  # whoever answers at once has answered then
        return list(chosen)


@pytest.fixture
def world() -> World:
    return World()


async def test_who_is_due_is_woken_once(world: World) -> None:
    await world.store.set_timer("due", 0, NOW_US)
    await world.store.set_timer("later", 0, NOW_US + 1)
    assert await world.tick() == ["due"]
    assert await world.tick() == []
    world.clock.advance(1)
    assert await world.tick() == ["later"]


async def test_a_tenant_that_cannot_be_served_rests_longer_each_time(world: World) -> None:
    await world.store.set_timer("halted", 0, NOW_US)
    world.tenants.unservable.add("halted")
    woken_at = []
    for second in range(40):
        if await world.tick():
            woken_at.append(second)
        world.clock.advance(1)
    assert woken_at == [0, 1, 3, 7, 15, 31]
    world.tenants.unservable.clear()
    world.clock.advance(60)
    assert await world.tick() == ["halted"]
    assert await world.tick() == []


async def test_tenants_that_never_answer_hold_up_nobody_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """More are stuck than are woken at once; the one behind them waits for its turn, not for them."""
    monkeypatch.setattr(timers, "WAKING_MAX", 10)
    for number in range(30):
        await world.store.set_timer(f"stuck{number}", 0, NOW_US)
    world.tenants.unservable = {f"stuck{number}" for number in range(30)}
    await world.store.set_timer("well", 0, NOW_US)
    for _ in range(4):
        assert len(await world.tick()) <= 10
    assert "well" in world.tenants.asked


async def test_the_number_woken_at_once_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "WAKING_MAX", 10)
    for number in range(30):
        await world.store.set_timer(f"slow{number}", 0, NOW_US)
    world.tenants.hanging = {f"slow{number}" for number in range(30)}
    assert len(await world.tick()) == 10
    assert await world.tick() == []
    assert len(world.tenants.asked) == 10
    for task in world.scan._waking.values():
        task.cancel()


async def test_a_wake_that_ends_while_the_next_tick_looks_does_not_stop_the_scan(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tenant has rested, is being woken, and is not due any more when the store's answer arrives."""
    await world.store.set_timer("acme", 0, NOW_US)
    world.tenants.unservable.add("acme")
    await world.tick()
    world.tenants.unservable.clear()
    world.tenants.hanging.add("acme")
    world.clock.advance(5)
    assert await world.tick() == ["acme"]
    look = world.store.due

    async def due(now_us: int, passed_over: Collection[str] = ()) -> list[str]:
        found = await look(now_us, passed_over)
        world.scan._resting.pop("acme")  # as the wake does when it ends
        return found

    monkeypatch.setattr(world.store, "due", due)
    assert await world.tick() == []
    for task in world.scan._waking.values():
        task.cancel()
