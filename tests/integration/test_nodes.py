"""What an operator asks about nodes and the pool, over HTTP and from the command line, of a cluster without Ray."""

import httpx
import pytest

from tests.kit.cli import Cli
from tests.kit.cluster import A, B, C, FakeCluster
from tests.kit.gateway import World


def error(answer: httpx.Response) -> tuple[int, str, str]:
    told = answer.json()["error"]
    return answer.status_code, told["code"], told["message"]


async def test_a_pool_is_scaled_and_its_actors_are_moved(world: World, cluster: FakeCluster) -> None:
    placed = (await world.admin.put("/pool", json={"shards": 2})).json()
    assert placed["pool_shards"] == 2
    assert [row["actors"] for row in placed["data"]] == [["pool-0", "pool-1"], [], []]
    moved = (await world.admin.post("/pool/1/move", json={"node": B})).json()
    assert [row["actors"] for row in moved["data"]] == [["pool-0"], ["pool-1.1"], []]
    assert (await world.admin.get("/nodes")).json() == moved
    await world.admin.post(f"/nodes/{C}/drain")
    assert [row["draining"] for row in (await world.admin.get("/nodes")).json()["data"]] == [False, False, True]
    assert cluster.draining() == {C}


async def test_a_tenant_with_an_actor_of_its_own_is_moved_and_no_other(world: World, cluster: FakeCluster) -> None:
    url = f"/tenants/{world.tenant}"
    status, code, message = error(await world.admin.post(f"{url}/move", json={"node": B}))
    assert (status, code) == (409, "not_placed")
    assert f"tenantry tenant plan {world.tenant} pro" in message
    await world.admin.put(f"{url}/plan", json={"plan": "pro"})
    cluster.places[f"silo-{world.tenant}"], cluster.tenants[f"silo-{world.tenant}"] = A, {world.tenant}
    moved = (await world.admin.post(f"{url}/move", json={"node": B})).json()
    assert moved["data"][1]["actors"] == [f"silo-{world.tenant}.1"]
    assert error(await world.admin.post(f"{url}/move", json={"node": "d"}))[:2] == (404, "not_found")
    assert error(await world.admin.post("/tenants/nobody/move", json={"node": B}))[:2] == (404, "not_found")


@pytest.mark.parametrize("body", [{"shards": 0}, {"shards": 1_001}, {"shards": "many"}, {}])
async def test_a_pool_has_one_to_a_thousand_actors(world: World, cluster: FakeCluster, body: dict[str, object]) -> None:
    assert error(await world.admin.put("/pool", json=body))[:2] == (400, "invalid_request")
    assert cluster.kept == []


async def test_a_repeat_under_its_key_moves_nothing_again(world: World, cluster: FakeCluster) -> None:
    key = {"idempotency-key": "scale"}
    first = await world.admin.put("/pool", json={"shards": 2}, headers=key)
    await world.admin.put("/pool", json={"shards": 3})
    again = await world.admin.put("/pool", json={"shards": 2}, headers=key)
    assert again.json() == first.json()
    assert cluster.kept == [2, 3]


async def test_the_command_line_shows_moves_and_drains(cli: Cli, cluster: FakeCluster) -> None:
    listed = await cli.text("node", "list")
    assert [line.split()[:3] for line in listed.splitlines()[1:4]] == [
        [A, "127.0.0.1", "head"],
        [B, "127.0.0.1", "0"],
        [C, "127.0.0.1", "0"],
    ]
    assert "pool: 1 actor\n" in listed
    assert "pool: 2 actors" in await cli.text("pool", "scale", "2")
    assert "pool-0.1" in await cli.text("pool", "move", "pool-0", B)
    assert "draining" in await cli.text("node", "drain", C)
    assert cluster.draining() == {C}
