"""How the supervisor asks tenant actors to host: here with stand-ins for Ray's handles."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actors import tenant_actor
from actors.shard import Limits, Shard
from actors.supervision import shards
from actors.supervision.homes import Homes
from actors.supervision.shards import ShardActors
from actors.tenant_actor import TenantActor
from events.bus import ACTIVATE, PREPARE
from events.clock import SystemClock
from events.errors import NotServedError
from events.memory_store import MemoryEventStore
from events.process import Connect
from events.tenant import ChangePlan, CreateTenant
from tests.kit.local_bus import LocalBus, envelope
from tests.kit.servers import keys_in_memory


class Actor:
    """What a handle offers. While ``is_stopped`` no call is answered, as by a process that got SIGSTOP."""

    def __init__(self) -> None:
        self.is_stopped, self.hosted = True, list[str]()
        self.host = self.ready = SimpleNamespace(remote=self._called)
        self.retire = SimpleNamespace()

    async def _called(self, tenants: Sequence[str] = ()) -> list[None]:
        while self.is_stopped:
            await asyncio.Event().wait()
        self.hosted += tenants
        return [None for _ in tenants]


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> Actor:
    actor = Actor()
    monkeypatch.setattr(shards, "detached_actor", lambda *_, **__: actor)
    monkeypatch.setattr(shards, "ANSWER_TIMEOUT_S", 0.05)
    monkeypatch.setattr(shards, "START_TIMEOUT_S", 0.05)
    return actor


async def _outcome(work: Any) -> str:
    try:
        await asyncio.wait_for(work, 60)
    except NotServedError as error:
        return error.reason
    return ""


async def test_an_actor_that_does_not_answer_holds_nobody_up(actor: Actor, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tenants wait than calls are let out at once: all of them are told, and once the process goes on, it is asked."""
    hosts, tenants = ShardActors(cast("Connect", None), Limits(), Homes(1)), [f"t{number}" for number in range(20)]
    outcomes = await asyncio.gather(*(_outcome(hosts.host(tenant, "pool")) for tenant in tenants))
    assert set(outcomes) == {"its actor pool-0 has not answered for 0.05 s"}
    assert await _outcome(hosts.host_alone("t1", "pool")) == outcomes[0]
    assert await _outcome(hosts.prepare("t1", "pool")) == outcomes[0]
    assert actor.hosted == []
    actor.is_stopped = False
    monkeypatch.setattr(shards, "ANSWER_TIMEOUT_S", 60.0)
    assert {await _outcome(hosts.host(tenant, "pool")) for tenant in tenants} == {""}
    assert await _outcome(hosts.host_alone("last", "pool")) == ""
    assert actor.hosted == [*tenants, "last"]


async def test_a_silo_that_has_retired_is_ended_whoever_is_on_the_way_to_it(
    actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hosts nobody any more, and is found under its name as long as it lives."""
    killed: list[Any] = []
    monkeypatch.setattr(shards, "ray", SimpleNamespace(get_actor=lambda *_, **__: actor, kill=killed.append))
    monkeypatch.setattr(shards, "ANSWER_TIMEOUT_S", 60.0)
    hosts = ShardActors(cast("Connect", None), Limits(), Homes(1))
    asked, retired = asyncio.Event(), asyncio.Event()

    async def retire() -> bool:
        asked.set()
        await retired.wait()
        return True

    actor.retire = SimpleNamespace(remote=retire)
    retiring = asyncio.create_task(hosts.retire("silo-acme"))
    await asked.wait()
    hosting = asyncio.create_task(_outcome(hosts.host("acme", "silo")))  # the actor is stopped, so this goes on
    await asyncio.sleep(0)
    retired.set()
    await retiring
    assert killed == [actor]
    assert "silo-acme" not in hosts._handles
    hosting.cancel()


async def test_a_retired_actor_that_nobody_has_ended_ends_itself_when_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever retired it died before it could end it, or did not wait for the answer; Ray starts another process."""

    class EndedError(Exception):
        pass

    def end() -> None:
        raise EndedError

    monkeypatch.setattr(tenant_actor, "end_process", end)
    silo = TenantActor("silo-acme", "silo", cast("Connect", None), Limits())
    shard = Shard("silo-acme", "silo", MemoryEventStore(), LocalBus().as_bus, SystemClock(), keys_in_memory())

    async def opened() -> Shard:
        return shard

    monkeypatch.setattr(silo, "_open", opened)
    assert await silo.host(["acme"]) == [None]
    assert await silo.retire() is False
    await shard.release("acme")
    assert await silo.retire() is True
    with pytest.raises(EndedError):
        await silo.host(["acme"])


async def test_a_tenant_whose_plan_changes_while_the_supervisor_is_away_stays_where_it_is() -> None:
    """Its move begins at a later turn, when somebody can start the actor that it belongs to."""
    bus = LocalBus()
    shard = Shard("pool-0", "pool", MemoryEventStore(), bus.as_bus, SystemClock(), keys_in_memory())
    await shard.host("acme")
    for number, command in enumerate((CreateTenant("Acme"), ChangePlan("pro"))):
        await bus.request("ask.t.acme", envelope(command, f"c{number}"), 10)
    async with asyncio.timeout(10):
        while PREPARE not in bus.asked:  # noqa: ASYNC110 - asked in a task of the shard's own
            await asyncio.sleep(0.005)
    await asyncio.gather(*shard._tasks)
    assert shard.tenants == ["acme"]
    assert ACTIVATE not in bus.asked
    await shard.close()
