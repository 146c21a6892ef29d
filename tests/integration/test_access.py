"""Who may do what: tenants apart from each other, roles and scopes, keys from issue to revocation, over HTTP."""

import asyncio
import json
import re
import time
from typing import Any

import httpx
import openai
import pytest

from serve.keys import parse_key
from tests.kit.gateway import ASK, World

# What makes each write's body valid, so that the answer is about who asks and for whom.
BODIES: dict[str, dict[str, Any]] = {
    "NewKey": {"name": "x"},
    "Rotation": {"overlap_s": 0},
    "NewUser": {"user_id": "new-user", "name": "New"},
    "UserChange": {"role": "viewer"},
    "BudgetIn": {"limit_usd": "1", "window": "day"},
    "LimitsIn": {"limits": [{"resource": "requests", "limit": 5}]},
    "PricesIn": {"prices": []},
    "Credit": {"cost_usd": "0", "reason": "bill"},
    "Suspension": {"reason": "x"},
    "PlanIn": {"plan": "free"},
}


class Tenant:
    """One of two tenants: a key of each role, and the ids that the other must not reach."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.keys: dict[str, str] = {}

    def key_id(self, role: str) -> str:
        return parse_key(self.keys[role]).key_id


async def tenant_with_roles(world: World, name: str) -> Tenant:
    await world.new_tenant(name)
    tenant = Tenant(name)
    for role, scopes in (("admin", ["inference", "runs", "read", "admin"]), ("user", None), ("viewer", ["read"])):
        user = {"user_id": f"{role}-of-{name}", "name": role, "role": role}
        assert (await world.admin.post(f"/tenants/{name}/users", json=user)).status_code == 201
        body = {"name": role, "user_id": user["user_id"], **({"scopes": scopes} if scopes else {})}
        issued = await world.admin.post(f"/tenants/{name}/keys", json=body)
        assert issued.status_code == 201, issued.text
        tenant.keys[role] = issued.json()["key"]
    return tenant


def client(world: World, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=world.base_url, headers={"authorization": f"Bearer {key}"}, timeout=30)


async def operations(world: World, prefix: str) -> list[tuple[str, str, str]]:
    """(method, path, name of the body's schema) of all operations below a prefix, from the OpenAPI file itself."""
    paths = (await world.admin.get(f"{world.base_url}/openapi.json")).json()["paths"]
    found = []
    for path, item in paths.items():
        for method, operation in item.items() if path.startswith(prefix) else ():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            found.append((method, path, content.get("schema", {}).get("$ref", "").rpartition("/")[2]))
    return found


def same_but_for(ids: tuple[str, ...], response: httpx.Response) -> str:
    text = response.text
    for name in ids:
        text = text.replace(name, "ID")
    return f"{response.status_code} {text}"


async def test_the_other_tenants_ids_are_answered_as_unknown_ones(world: World, new_tenant: Any) -> None:
    """SEC-1, for each route of a tenant that takes an id: the same status and body as for an id that nobody has."""
    ours, theirs = (await tenant_with_roles(world, new_tenant()), await tenant_with_roles(world, new_tenant()))
    their_ids = {"key_id": theirs.key_id("user"), "user_id": f"user-of-{theirs.name}", "call_id": "c" * 36}
    checked = []
    async with client(world, ours.keys["admin"]) as http:
        for method, path, schema in await operations(world, "/v1/"):
            names = re.findall(r"\{(key_id|user_id)\}", path)
            if not names:
                continue
            answers = []
            for value in (their_ids[names[0]], "Z" * 12 if names[0] == "key_id" else "nobody"):
                url = path.replace("{" + names[0] + "}", value)
                answer = await http.request(method, url, json=BODIES.get(schema))
                assert answer.status_code == 404, (method, path, answer.text)
                answers.append(same_but_for((value,), answer))
            assert answers[0] == answers[1], (method, path)
            checked.append((method, path))
    assert len(checked) >= 4
    async with client(world, theirs.keys["user"]) as http:
        assert (await http.get("/v1/models")).status_code == 200  # nothing of it reached them


async def test_an_operators_write_for_one_tenant_reaches_no_id_of_another(world: World, new_tenant: Any) -> None:
    """The same for admin routes with two ids: the right tenant with the other's key or user."""
    ours, theirs = (await tenant_with_roles(world, new_tenant()), await tenant_with_roles(world, new_tenant()))
    their_ids = {"key_id": theirs.key_id("user"), "user_id": f"user-of-{theirs.name}"}
    checked = 0
    for method, path, schema in await operations(world, "/admin/v1/tenants/{tenant}/"):
        names = re.findall(r"\{(key_id|user_id)\}", path)
        for name in names:
            answers = []
            for value in (their_ids[name], "Z" * 12 if name == "key_id" else "nobody"):
                url = world.base_url + path.replace("{tenant}", ours.name).replace("{" + name + "}", value)
                answer = await world.admin.request(method, url, json=BODIES.get(schema))
                assert answer.status_code == 404, (method, path, answer.text)
                answers.append(same_but_for((value,), answer))
            assert answers[0] == answers[1], (method, path)
            checked += 1
    assert checked >= 9


# What each role's key gets from the routes of a tenant: 2xx or 4xx for what is asked, but 403 where it may not ask.
READS = {"/v1/models", "/v1/usage", "/v1/spend"}
ADMINS = {"/v1/keys", "/v1/users", "/v1/budgets", "/v1/limits"}


async def test_each_role_reaches_its_own_routes_and_no_others(world: World, new_tenant: Any) -> None:
    """SEC-2: every role on every route of keys, users and reports, as the OpenAPI file lists them."""
    tenant = await tenant_with_roles(world, new_tenant())
    for method, path, schema in await operations(world, "/v1/"):
        root = "/" + "/".join(path.split("/")[1:3])
        if root not in READS | ADMINS:
            continue
        url = path.replace("{key_id}", "Z" * 12).replace("{user_id}", "nobody").replace("{model}", "m-ok")
        for role in ("admin", "user", "viewer"):
            async with client(world, tenant.keys[role]) as http:
                body = (
                    {**BODIES["NewKey"], "user_id": f"user-of-{tenant.name}"}
                    if schema == "NewKey"
                    else BODIES.get(schema)
                )
                answer = await http.request(method, url, json=body)
            if root in ADMINS and role != "admin":
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden"), (role, method, path)
            else:
                assert answer.status_code not in (401, 403), (role, method, path, answer.text)
            assert answer.status_code < 500
    for role, status in (("user", 200), ("viewer", 403)):
        async with client(world, tenant.keys[role]) as http:
            answer = await http.post("/v1/chat/completions", json={"model": "m-ok", "messages": ASK})
        assert answer.status_code == status, (role, answer.text)


async def test_no_tenants_key_opens_an_admin_route(world: World, new_tenant: Any) -> None:
    tenant = await tenant_with_roles(world, new_tenant())
    async with client(world, tenant.keys["admin"]) as http:
        for method, path, schema in await operations(world, "/admin/"):
            answer = await http.request(method, re.sub(r"\{.*?\}", tenant.name, path), json=BODIES.get(schema))
            assert answer.status_code == 401, (method, path)


async def test_a_tenants_admin_issues_no_key_stronger_than_its_own(world: World, new_tenant: Any) -> None:
    name = new_tenant()
    tenant = await tenant_with_roles(world, name)
    weak = {"name": "weak", "scopes": ["admin", "read"], "user_id": f"admin-of-{name}"}
    key = (await world.admin.post(f"/tenants/{name}/keys", json=weak)).json()["key"]
    async with client(world, key) as http:
        for body in (
            {"scopes": ["inference"], "user_id": weak["user_id"]},
            {"scopes": ["read"]},
            {"scopes": ["admin"], "user_id": f"viewer-of-{name}"},
        ):
            assert (await http.post("/v1/keys", json=body)).status_code == 403, body
        issued = await http.post("/v1/keys", json={"scopes": ["read"], "user_id": weak["user_id"]})
        assert issued.status_code == 201, issued.text
        taken = await http.post(f"/v1/keys/{tenant.key_id('admin')}/rotate", json={"overlap_s": 0})
        assert taken.status_code == 403


SERVER_OWNED = ("tenant", "tenant_id", "role", "budget", "epoch", "version", "by_key", "digest", "revoked")


async def test_fields_that_are_not_the_clients_are_refused_and_have_no_effect(world: World) -> None:
    """SEC-3, for every write that takes a body."""
    before, checked = (await world.admin.get(f"/tenants/{world.tenant}")).json(), 0
    for method, path, schema in await operations(world, "/admin/v1/tenants"):
        url = path.replace("{tenant}", world.tenant).replace("{key_id}", world.key_id)
        url = world.base_url + re.sub(r"\{.*?\}", "nobody", url)
        for field in SERVER_OWNED if schema in BODIES else ():
            if field in BODIES[schema] or (schema, field) == ("NewUser", "role"):
                continue  # these are the operator's to give
            answer = await world.admin.request(method, url, json={**BODIES[schema], field: "x"})
            assert answer.status_code == 400, (method, path, field, answer.text)
            checked += 1
    assert checked >= 100
    assert (await world.admin.get(f"/tenants/{world.tenant}")).json() == before


async def test_keys_that_share_a_prefix_are_never_taken_for_each_other(world: World) -> None:
    """SEC-4: keys of one tenant begin alike; asked in turns, each answers with its own scopes and models."""
    bodies: list[dict[str, Any]] = [{"models": ["m-ok"]}, {"models": ["m-slow"]}, {"scopes": ["admin"]}]
    keys = [(await world.admin.post(f"/tenants/{world.tenant}/keys", json=body)).json()["key"] for body in bodies]
    assert len({key[: len(world.tenant) + 4] for key in keys}) == 1
    wanted = [(200, ["m-ok"]), (200, ["m-slow"]), (403, [])]

    async def ask(http: httpx.AsyncClient, number: int) -> None:
        answer = await http.get("/v1/models", headers={"authorization": f"Bearer {keys[number % 3]}"})
        models = [model["id"] for model in answer.json().get("data", [])]
        assert (answer.status_code, models) == wanted[number % 3]

    async with client(world, keys[0]) as http:
        for start in range(0, 300, 30):
            await asyncio.gather(*(ask(http, number) for number in range(start, start + 30)))


async def test_a_key_for_some_models_sees_and_calls_only_those(world: World) -> None:
    key = (await world.admin.post(f"/tenants/{world.tenant}/keys", json={"models": ["m-ok"]})).json()["key"]
    async with world.client(key) as ai:
        assert [model.id async for model in ai.models.list()] == ["m-ok"]
        await ai.chat.completions.create(model="m-ok", messages=ASK)
        with pytest.raises(openai.PermissionDeniedError) as refusal:
            await ai.chat.completions.create(model="m-slow", messages=ASK)
    assert refusal.value.code == "model_not_allowed"


async def test_a_rotated_key_works_with_both_secrets_and_without_overlap_with_the_new_one_only(world: World) -> None:
    path = f"/tenants/{world.tenant}/keys/{world.key_id}/rotate"
    first = (await world.admin.post(path, json={"overlap_s": 3600})).json()
    assert first["key_id"] == world.key_id
    for key in (world.key, first["key"]):
        async with world.client(key) as ai:
            await ai.models.list()
    again = {"idempotency-key": "rotate-1"}
    second, repeated = [(await world.admin.post(path, json={"overlap_s": 0}, headers=again)).json() for _ in range(2)]
    assert second == repeated
    async with world.client(second["key"]) as ai:
        await ai.models.list()
    assert await until_refused(world, first["key"]) < 5
    assert await until_refused(world, world.key) < 5


async def until_refused(world: World, key: str, status: int = 401) -> float:
    """Seconds until a read with the key is refused. Reads may be remembered for a moment; the push ends that."""
    began = time.monotonic()
    async with asyncio.timeout(20), client(world, key) as http:
        while (await http.get("/v1/models")).status_code != status:
            pass
    return time.monotonic() - began


async def test_a_smaller_role_and_a_removed_user_act_at_once(world: World, new_tenant: Any) -> None:
    name = new_tenant()
    tenant = await tenant_with_roles(world, name)
    body = {"model": "m-ok", "messages": ASK}
    async with client(world, tenant.keys["user"]) as http:
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
        await world.admin.put(f"/tenants/{name}/users/user-of-{name}", json={"role": "viewer"})
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 403
        await world.admin.delete(f"/tenants/{name}/users/user-of-{name}")
    assert await until_refused(world, tenant.keys["user"]) < 5


async def test_a_suspended_tenant_is_refused_with_403_while_calls_under_way_are_finished(world: World) -> None:
    async with world.client() as ai:
        stream = await ai.chat.completions.create(model="m-slow", messages=ASK, stream=True)
        assert (await anext(stream)).choices[0].delta.content
        suspended = await world.admin.post(f"/tenants/{world.tenant}/suspend", json={"reason": "unpaid"})
        assert (suspended.json()["status"], suspended.json()["suspended_reason"]) == ("suspended", "unpaid")
        with pytest.raises(openai.PermissionDeniedError) as refusal:
            await ai.chat.completions.create(model="m-ok", messages=ASK)
        assert refusal.value.code == "tenant_suspended"
        assert await until_refused(world, world.key, 403) < 5
        world.upstream.go_on.set()
        async for _ in stream:
            pass
        assert (await world.settled())["outcome"] == "ok"
        resumed = await world.admin.post(f"/tenants/{world.tenant}/resume")
        assert (resumed.status_code, resumed.json().get("status")) == (200, "active"), resumed.text
        await ai.chat.completions.create(model="m-ok", messages=ASK)


async def test_every_write_runs_once_per_idempotency_key(world: World, new_tenant: Any) -> None:
    """The same request gets the same answer, five at once run once, another body is refused; for all writes of a tenant
    that take a body.
    """
    name = new_tenant()
    tenant = await tenant_with_roles(world, name)
    checked = 0
    for number, (method, path, schema) in enumerate(await operations(world, "/admin/v1/tenants/{tenant}/")):
        if schema not in BODIES or schema in ("Credit", "PricesIn", "PlanIn", "Suspension"):
            continue
        url = path.replace("{tenant}", name).replace("{key_id}", tenant.key_id("user"))
        url = world.base_url + url.replace("{user_id}", f"viewer-of-{name}")
        headers, body = {"idempotency-key": f"once-{number}"}, BODIES[schema]
        before = len(await events_of(world, name))
        answers = await asyncio.gather(
            *(world.admin.request(method, url, json=body, headers=headers) for _ in range(5))
        )
        assert len({(answer.status_code, answer.text) for answer in answers}) == 1, (method, path)
        assert answers[0].is_success, answers[0].text
        assert len(await events_of(world, name)) == before + 1, (method, path)
        other = json.loads(json.dumps(body).replace('"x"', '"y"').replace("viewer", "user").replace("5", "6"))
        other = (
            {"overlap_s": 9} if schema == "Rotation" else {**other, "limit_usd": "2"} if schema == "BudgetIn" else other
        )
        other = {**other, "name": "Other"} if schema == "NewUser" else other
        refused = await world.admin.request(method, url, json=other, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_mismatch"), (method, path)
        checked += 1
    assert checked >= 9


async def events_of(world: World, tenant: str) -> list[dict[str, Any]]:
    page = (await world.admin.get(f"/tenants/{tenant}/events", params={"limit": 1000})).json()
    events: list[dict[str, Any]] = page["data"]
    return events
