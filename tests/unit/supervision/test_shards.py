"""How the supervisor asks tenant actors to host: here with stand-ins for Ray's handles."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actors.shard import Limits
from actors.supervision import shards
from actors.supervision.homes import Homes
from actors.supervision.shards import ShardActors
from events.errors import NotServedError
from events.process import Connect


class Actor:
    """What a handle offers. While ``is_stopped`` no call is answered, as by a process that got SIGSTOP."""

    def __init__(self) -> None:
        self.is_stopped, self.hosted = True, list[str]()
        self.host = self.ready = SimpleNamespace(remote=self._called)

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
