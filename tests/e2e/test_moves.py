"""Tenants that move between real actors and nodes while they are asked."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from events.ask import Asker
from events.bus import Bus
from events.codec import StoredEvent
from events.tenant import DescribeTenant, SetBudget
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from events.verify import verify
from tests.kit.platform import UpProcess, running_platform
from tests.kit.second_node import SecondNode, second_node
from tests.kit.threads import repeating
from tests.kit.waiting import until

CALLERS = 8


async def load(asker: Asker, tenant: str, caller: int, stop: asyncio.Event) -> list[int]:
    """Positions of what was answered."""
    positions = []
    number = caller * 1_000_000
    while not stop.is_set():
        number += 1
        ok = await asker.ask(tenant, SetBudget(number, "day"), actor="test", timeout_s=60)
        positions.append(ok.position)
    return positions


async def under_load(platform: UpProcess, tenant: str, act: Callable[[httpx.Client], None]) -> None:
    """Does it while the tenant is asked: each answer is one event, and there are no others."""
    bus = await Bus.connect(platform.running.nats_url, "test", lambda: None)
    store = ValkeyEventStore(connect(platform.running.valkey_url))
    await store.open()
    before = len(await budgets_set(store, tenant))
    asker, stop = Asker(bus), asyncio.Event()
    callers = [asyncio.create_task(load(asker, tenant, number, stop)) for number in range(CALLERS)]
    try:
        with platform.admin() as admin:
            await asyncio.to_thread(act, admin)
    finally:
        stop.set()
        answers = await asyncio.gather(*callers)
    answered = [position for positions in answers for position in positions]
    assert len(answered) == len(set(answered))
    assert all(answers), "every caller was answered"
    assert len(await budgets_set(store, tenant)) - before == len(answered)
    end = (await verify(store, tenant)).events
    assert (await asker.ask(tenant, DescribeTenant(), actor="test")).position == end
    await bus.close()
    await store.close()


async def budgets_set(store: ValkeyEventStore, tenant: str) -> list[StoredEvent]:
    return [event for event in await store.read(tenant, 0, 1_000_000) if b"budget.set" in event.record]


def to_a_silo_and_back(platform: UpProcess) -> Callable[[httpx.Client], None]:
    def act(admin: httpx.Client) -> None:
        pooled = len(platform.pids_of("ray::TenantActor"))
        for plan, actors in (("pro", pooled + 1), ("free", pooled)):
            ordered(admin.put("/tenants/mover/plan", json={"plan": plan}))
            until(lambda actors=actors: len(platform.pids_of("ray::TenantActor")) == actors, f"{actors} actors run")  # type: ignore[misc]

    return act


def ordered(answer: httpx.Response) -> dict[str, Any]:
    assert answer.is_success, answer.text
    body: dict[str, Any] = answer.json()
    return body


def actors_on(admin: httpx.Client, node: str) -> list[str]:
    """Once nothing is on its way any more. A node that was drained and has nothing left to run ends."""
    placement: dict[str, Any] = {}

    def at_rest() -> bool:
        placement.update(ordered(admin.get("/nodes")))
        return not placement["moving"]

    until(at_rest, "nothing is on its way")
    return sorted(name for row in placement["data"] if row["id"] == node for name in row["actors"])


def refused(answer: httpx.Response) -> str:
    assert answer.is_client_error, answer.text
    message: str = answer.json()["error"]["message"]
    return message


def between_nodes(platform: UpProcess, node: str) -> Callable[[httpx.Client], None]:
    """There and back; the second time the supervisor dies as soon as it was told."""

    def act(admin: httpx.Client) -> None:
        head = next(row["id"] for row in ordered(admin.get("/nodes"))["data"] if row["head"])
        ordered(admin.post("/tenants/alone/move", json={"node": node[:10]}))
        assert actors_on(admin, node) == ["silo-alone.1"]
        ordered(admin.post("/pool/0/move", json={"node": node}))
        assert actors_on(admin, node) == ["pool-0.1", "silo-alone.1"]
        assert actors_on(admin, head) == []
        assert "pool move pool-0" in refused(admin.post("/tenants/mover/move", json={"node": node}))
        assert "node 'nowhere'" in refused(admin.post("/tenants/alone/move", json={"node": "nowhere"}))
        with repeating(lambda: admin.post("/tenants/alone/move", json={"node": head})):
            (root,) = platform.pids_of("ray::RootSupervisor")
            # those of the other node are not the platform's children
            until(lambda: platform.pids_of("ray::TenantActor"), "the successor's process has begun")
            os.kill(root, signal.SIGKILL)
            until(lambda: actors_on(admin, head) == ["silo-alone.2"], "the tenant is back on the head")
        # by the janitor, where the supervisor died before it did
        until(lambda: actors_on(admin, node) == ["pool-0.1"], "the actor it left has ended")

    return act


def scale_and_drain(node: str) -> Callable[[httpx.Client], None]:
    def act(admin: httpx.Client) -> None:
        head = next(row["id"] for row in ordered(admin.get("/nodes"))["data"] if row["head"])
        assert ordered(admin.put("/pool", json={"shards": 3}))["pool_shards"] == 3
        everywhere = sorted(actors_on(admin, node) + actors_on(admin, head))
        assert everywhere == ["pool-0.1", "pool-1", "pool-2", "silo-alone.2"]
        assert "head" in refused(admin.post(f"/nodes/{head}/drain"))
        assert ordered(admin.post(f"/nodes/{node}/drain"))
        until(lambda: actors_on(admin, node) == [], "nobody is left on the node that drains")
        assert node[:12] in refused(admin.post("/tenants/alone/move", json={"node": node}))
        ordered(admin.put("/pool", json={"shards": 1}))
        until(lambda: actors_on(admin, head) == ["pool-0.2", "silo-alone.2"], "one actor of the pool is left")

    return act


def lose(node: SecondNode) -> Callable[[httpx.Client], None]:
    """The tenant is moved to the node, which is then gone without a word: it is served from what is left."""

    def act(admin: httpx.Client) -> None:
        head = next(row["id"] for row in ordered(admin.get("/nodes"))["data"] if row["head"])
        ordered(admin.post("/tenants/alone/move", json={"node": node.id}))
        assert actors_on(admin, node.id) == ["silo-alone.3"]
        node.kill()
        until(lambda: actors_on(admin, head) == ["pool-0.2", "silo-alone.3"], "it is served from the other node")
        ordered(admin.get("/tenants/alone"))

    return act


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_tenants_move_between_actors_and_nodes_under_load(tmp_path: Path) -> None:
    """Nothing is lost or doubled, the actors they left have ended, and the platform stops in good order."""
    with running_platform(tmp_path / "data") as platform:
        with platform.admin() as admin:
            for tenant, plan in (("mover", "free"), ("alone", "pro")):
                ordered(admin.post("/tenants", json={"id": tenant, "plan": plan}))
            # a new tenant moves to its own from the pool
            until(lambda: len(platform.pids_of("ray::TenantActor")) == 2, "two actors run")
        asyncio.run(under_load(platform, "mover", to_a_silo_and_back(platform)))
        with second_node(platform.instance, platform.running.ray_address) as node:
            asyncio.run(under_load(platform, "alone", between_nodes(platform, node.id)))
            asyncio.run(under_load(platform, "mover", scale_and_drain(node.id)))
        with second_node(platform.instance, platform.running.ray_address) as node:
            asyncio.run(under_load(platform, "alone", lose(node)))
        assert platform.stop() == 0
