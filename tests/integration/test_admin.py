"""What an operator does over HTTP."""

import asyncio
from typing import Any

import httpx
import pytest
from openai import APIStatusError

from actors.shard import Shard
from tests.kit.gateway import ASK, World


async def test_admin_needs_the_admin_key(world: World) -> None:
    paths = (await world.admin.get(f"{world.base_url}/openapi.json")).json()["paths"]
    admin_calls = [(path, method) for path, item in paths.items() if path.startswith("/admin/") for method in item]
    assert len(admin_calls) >= 11
    async with httpx.AsyncClient(base_url=world.base_url, timeout=60) as http:
        for path, method in admin_calls:
            url = path.replace("{tenant}", world.tenant).replace("{key_id}", world.key_id)
            for headers in ({}, {"authorization": f"Bearer {world.key}"}, {"authorization": "Basic x"}):
                response = await http.request(method, url, headers=headers, json={})
                assert response.status_code == 401, (method, path)
                assert response.json()["error"]["code"] == "invalid_api_key"


async def test_a_stranger_is_refused_before_the_body_is_read(world: World) -> None:
    async with httpx.AsyncClient(timeout=10) as http:
        response = await http.post(f"{world.base_url}/admin/v1/tenants", content=b"x" * 50_000_000)
        assert response.status_code == 401
    response = await world.admin.post("/tenants", content=b'{"id": "' + b"x" * 400_000)
    assert response.status_code == 413


async def test_a_repeated_admin_write_does_nothing_twice_and_shows_the_same_key(world: World) -> None:
    headers = {"idempotency-key": "issue-1"}
    path = f"/tenants/{world.tenant}/keys"
    first = await world.admin.post(path, json={"name": "x"}, headers=headers)
    again = await world.admin.post(path, json={"name": "x"}, headers=headers)
    assert first.json() == again.json()
    other = await world.admin.post(path, json={"name": "y"}, headers=headers)
    assert other.status_code == 422
    assert len((await world.admin.get(path)).json()["data"]) == 2


async def test_keys_are_listed_without_the_keys(world: World) -> None:
    listed = (await world.admin.get(f"/tenants/{world.tenant}/keys")).text
    assert world.key_id in listed
    assert world.key.split("-")[-2] not in listed


async def test_a_changed_plan_is_shown_and_listed(world: World) -> None:
    changed = await world.admin.put(f"/tenants/{world.tenant}/plan", json={"plan": "enterprise"})
    assert (changed.status_code, changed.json()["plan"], changed.json()["placement"]) == (200, "enterprise", "silo")
    listed = (await world.admin.get("/tenants", params={"limit": 1000})).json()["data"]
    assert [row["plan"] for row in listed if row["id"] == world.tenant] == ["enterprise"]
    assert (await world.admin.put(f"/tenants/{world.tenant}/plan", json={"plan": "gold"})).status_code == 400


async def test_tenants_are_listed_in_pages(world: World) -> None:
    found, after = [], ""
    while True:
        page = (await world.admin.get("/tenants", params={"limit": 3, "after": after})).json()
        found += [row["id"] for row in page["data"]]
        if not (after := page["next"]):
            break
    assert world.tenant in found
    assert found == sorted(set(found))


@pytest.mark.parametrize("tenant", ["nobody-here", "A", "*", "a.b", "x" * 100])
async def test_a_tenant_that_is_not_there_is_404_whatever_its_id(world: World, tenant: str) -> None:
    for path in ("", "/keys", "/events", "/usage", "/verify"):
        response = await world.admin.get(f"/tenants/{tenant}{path}")
        assert response.status_code == 404, (path, response.text)
        assert response.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("body", [{"id": "A"}, {"id": "ok-id", "plan": "gold"}, {"id": "ok-id", "epoch": 7}, {}])
async def test_a_tenant_that_makes_no_sense_is_refused(world: World, body: dict[str, Any]) -> None:
    response = await world.admin.post("/tenants", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"]


async def test_the_log_can_be_followed_as_it_grows(world: World) -> None:
    url = f"/tenants/{world.tenant}/events"
    async with world.admin.stream("GET", url, params={"follow": True, "after": 2}, timeout=10) as stream:
        lines = stream.aiter_lines()
        assert (await anext(lines)).startswith(":")
        async with world.client() as client:
            await client.chat.completions.create(model="m-ok", messages=ASK)
        ids = []
        async for line in lines:
            ids += [line] if line.startswith("id:") else []
            if len(ids) == 2:
                break
    assert ids == ["id: 3", "id: 4"]


async def test_the_doctor_finds_everything_in_order_but_ray(world: World) -> None:
    """Ray is not there in this test, and says so; the other findings are of real servers."""
    found = {finding["name"]: finding for finding in (await world.admin.get("/doctor")).json()["findings"]}
    assert found["event store"]["ok"] is True
    assert found["read models"]["ok"] is True
    assert found["models"]["ok"] is True
    assert found["ray"]["ok"] is False


async def test_a_halted_tenant_is_refused_at_once_and_the_doctor_says_why(world: World, shard: Shard) -> None:
    """Its clients are not invited to repeat what only an operator can mend."""
    head = await world.store.head(world.tenant)
    assert head is not None
    await shard.release(world.tenant)
    await world.store.halt(world.tenant, head.epoch, "looked odd")
    with pytest.raises(APIStatusError) as refused:
        async with asyncio.timeout(5), world.client() as client:  # half of what an ask may take
            await client.chat.completions.create(model="small", messages=[{"role": "user", "content": "Hi"}])
    assert (refused.value.status_code, refused.value.code) == (503, "tenant_unservable")
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.value.response.headers
    found = {finding["name"]: finding for finding in (await world.admin.get("/doctor")).json()["findings"]}
    assert found["logs"]["ok"] is False
    assert f"{world.tenant} (looked odd)" in found["logs"]["detail"]
    resumed = await world.admin.post(f"/tenants/{world.tenant}/resume")
    assert resumed.status_code == 200, resumed.text
    found = {finding["name"]: finding for finding in (await world.admin.get("/doctor")).json()["findings"]}
    assert found["logs"]["ok"] is True, found["logs"]


async def test_a_tenant_is_shown_as_it_was_at_any_past_position(world: World) -> None:
    url = f"/tenants/{world.tenant}"
    await world.admin.put(f"{url}/budget", json={"limit_usd": "5", "window": "day"})
    await world.admin.delete(f"{url}/keys/{world.key_id}")
    shown = [(await world.admin.get(url, params={"at": position})).json() for position in (1, 2, 3, 4)]
    assert [state["keys_active"] for state in shown] == [0, 1, 1, 0]
    assert [state["budget"] and state["budget"]["limit_usd"] for state in shown] == [None, None, "5", "5"]
    assert shown[-1] == (await world.admin.get(url)).json()
    assert (await world.admin.get(url, params={"at": 5})).status_code == 404
    assert (await world.admin.get(url, params={"at": 0})).status_code == 400


async def test_what_does_not_exist_is_said_in_the_same_shape(world: World) -> None:
    response = await world.admin.get(f"{world.base_url}/v2/nothing")
    assert response.status_code == 404
    assert "/openapi.json" in response.json()["error"]["message"]


async def test_an_operator_sees_tools_allows_them_and_calls_one_as_runs_do(world: World) -> None:
    rows = {row["name"]: row for row in (await world.admin.get("/tools")).json()["data"]}
    row = rows["mock"]
    assert (row["destructive"], rows["wipe"]["destructive"]) == (False, True)
    assert (row["name"], row["adapter"], row["bulkhead"]) == ("mock", "tests.kit.fakes:MockTool", 5)
    url, once = f"/tenants/{world.tenant}/tools", {"idempotency-key": "order-7"}
    refused = await world.admin.post(f"{url}/mock", json={"input": {"n": 1}})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "tool_not_allowed")
    typo = await world.admin.put(url, json={"allowed": ["mokc"]})
    assert typo.status_code == 404
    allowed = await world.admin.put(url, json={"allowed": ["mock"]})
    assert allowed.json()["allowed"] == ["mock"]
    called = await world.admin.post(f"{url}/mock", json={"input": {"n": 1}}, headers=once)
    again = await world.admin.post(f"{url}/mock", json={"input": {"n": 1}}, headers=once)
    assert called.json()["output"] == {"ok": True}
    assert called.headers["x-tenantry-position"] == str(called.json()["position"])
    assert (called.json()["call_id"], again.json()["repeated"]) == (again.json()["call_id"], True)
    assert (await world.event_types())[-5:] == [
        "tools.allowed.v1",
        *("tool.called.v1", "tool.succeeded.v1") * 2,
    ]
    assert (await world.admin.get(url)).json()["calls_open"] == []


async def test_calls_of_tools_that_can_not_be_are_explained(world: World) -> None:
    await world.admin.put(f"/tenants/{world.tenant}/tools", json={"allowed": ["mock"]})
    for url, body, status in (
        (f"/tenants/{world.tenant}/tools/nothing", {}, 404),
        ("/tenants/nobody-here/tools/mock", {}, 404),
        ("/tenants/NOT AN ID/tools/mock", {}, 404),
        (f"/tenants/{world.tenant}/tools/mock", {"input": []}, 400),
        (f"/tenants/{world.tenant}/tools/mock", {"inptu": {}}, 400),
        (f"/tenants/{world.tenant}/tools/mock", {"timeout_s": 0}, 400),
    ):
        answer = await world.admin.post(url, json=body)
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["message"]


async def test_a_suspended_tenant_calls_no_tool(world: World) -> None:
    url = f"/tenants/{world.tenant}"
    await world.admin.put(f"{url}/tools", json={"allowed": ["mock"]})
    assert (await world.admin.post(f"{url}/suspend", json={"reason": "unpaid"})).is_success
    refused = await world.admin.post(f"{url}/tools/mock", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "tenant_suspended")
