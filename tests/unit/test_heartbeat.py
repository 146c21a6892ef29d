"""An owner that nobody asks learns from the shard's heartbeat that it was overtaken."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from actors import heartbeat
from actors.heartbeat import Heartbeat
from events.errors import StoreUnavailableError
from events.memory_store import MemoryEventStore


class Owner:
    def __init__(self, tenant: str, epoch: int) -> None:
        self.tenant, self.epoch = tenant, epoch
        self.proven, self.has_ended = 0, False

    def owned(self, epoch: int | None, asked_at: float) -> None:
        if epoch == self.epoch:
            self.proven += 1
        else:
            self.end()

    def end(self) -> None:
        self.has_ended = True


class Away(MemoryEventStore):
    is_away = True

    async def epochs(self, tenants: Sequence[str]) -> list[int | None]:
        if self.is_away:
            raise StoreUnavailableError("away")
        return await super().epochs(tenants)


class Time:
    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(heartbeat, "time", clock)
    return clock


async def claimed(store: Any, count: int) -> list[Owner]:
    return [Owner(f"t{number}", (await store.claim(f"t{number}")).epoch) for number in range(count)]


async def test_who_was_overtaken_ends_and_the_others_are_proven_owners(clock: Time) -> None:
    store = MemoryEventStore()
    owners = await claimed(store, 3)
    await store.claim("t1")
    await Heartbeat(store, lambda: owners).beat()
    assert [owner.has_ended for owner in owners] == [False, True, False]
    assert [owner.proven for owner in owners] == [1, 0, 1]


async def test_a_beat_costs_no_more_for_many_tenants_and_gets_round_to_all(
    clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "CHECKED_AT_ONCE_MAX", 4)
    store = MemoryEventStore()
    owners = await claimed(store, 10)
    beats = Heartbeat(store, lambda: owners)
    for proven in (4, 8, 10):
        await beats.beat()
        assert sum(owner.proven for owner in owners) == proven
    assert {owner.proven for owner in owners} == {1}


async def test_a_process_that_was_stopped_asks_about_all_at_its_first_beat(
    clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "CHECKED_AT_ONCE_MAX", 4)
    store = MemoryEventStore()
    owners = await claimed(store, 10)
    beats = Heartbeat(store, lambda: owners)
    await store.claim("t9")
    clock.now += 60
    await beats.beat()
    assert [owner.tenant for owner in owners if owner.has_ended] == ["t9"]


async def test_a_store_that_is_away_for_a_moment_costs_nobody_and_for_long_everybody(
    clock: Time, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    store = Away()
    owners = await claimed(store, 2)
    beats = Heartbeat(store, lambda: owners)
    for _ in range(7):
        clock.now += heartbeat.PERIOD_S
        await beats.beat()
    assert not any(owner.has_ended for owner in owners)
    store.is_away = False
    await beats.beat()
    store.is_away = True
    for _ in range(8):
        clock.now += heartbeat.PERIOD_S
        await beats.beat()
    assert all(owner.has_ended for owner in owners)
