"""SEC-1, the two-tenant matrix: for every route of the OpenAPI file and every id in its path, the other tenant's id is answered
as one that nobody has. It asks over HTTP only, so that any door of any platform can be held to it.
"""

import re
import secrets
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec

TIMEOUT_S = 60.0
EVERY_SCOPE = ["inference", "runs", "read", "admin"]
# What makes the body of a write valid, so that the answer is about the id.
BODIES: dict[str, Any] = {
    "NewKey": {"name": "x"},
    "Rotation": {"overlap_s": 0},
    "NewUser": {"user_id": "new-user", "name": "New"},
    "UserChange": {"role": "viewer"},
    "BudgetIn": {"limit_usd": "1", "window": "day"},
    "LimitsIn": {"limits": [{"resource": "requests", "limit": 5}]},
    "Credit": {"cost_usd": "0", "reason": "bill"},
    "ForkFrom": {"step": "reserve"},
}
# Names that are the platform's or the caller's own, no tenant's.
_NOBODYS = {"model", "name", "tool", "step", "saga", "agent", "node", "shard"}


class Tenant(msgspec.Struct, frozen=True):
    """``ids`` by the name of the path parameter that takes them."""

    name: str
    key: str
    ids: dict[str, str]


class Route(msgspec.Struct, frozen=True):
    method: str
    path: str
    body: str  # its schema's name

    @property
    def parameters(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.path)

    def at(self, values: dict[str, str]) -> str:
        return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], "x"), self.path)


class Matrix:
    """One door: ``url`` without a path. ``check`` raises AssertionError at the first difference."""

    def __init__(self, http: httpx.AsyncClient, admin_key: str, model: str) -> None:
        self._http, self._admin_key, self._model = http, admin_key, model

    async def check(self) -> int:
        """How many pairs of answers were the same."""
        routes = await self._routes()
        ours, theirs = await self._tenant(), await self._tenant()
        pairs = 0
        for route in routes:
            for name in self._ids_in(route, theirs):
                unknown = _unlike(theirs.ids[name])
                answers = [
                    await self._answer(route, ours, {**ours.ids, "tenant": ours.name, name: value})
                    for value in (theirs.ids[name], unknown)
                ]
                assert answers[0] == answers[1], (route, name)
                pairs += 1
        pairs += await self._no_key_opens(routes, ours, theirs)
        await self._unharmed(theirs)
        return pairs

    def _ids_in(self, route: Route, theirs: Tenant) -> Iterator[str]:
        for name in route.parameters:
            if name in _NOBODYS or name == "tenant":
                continue
            assert name in theirs.ids, f"{route.path}: tests/kit/two_tenants.py has to know whose {name} is"
            yield name

    async def _no_key_opens(self, routes: list[Route], ours: Tenant, theirs: Tenant) -> int:
        """An operator's route tells a tenant's strongest key nothing, not even whether there is such a tenant."""
        pairs = 0
        for route in routes:
            if not route.path.startswith("/admin/"):
                continue
            answers = []
            for tenant in (theirs.name, _unlike(theirs.name)):
                answer = await self._send(route, ours.key, {**theirs.ids, "tenant": tenant})
                assert answer.status_code == 401, (route, answer.text)
                answers.append(answer.text)
            assert answers[0] == answers[1], route
            pairs += 1
        return pairs

    async def _unharmed(self, theirs: Tenant) -> None:
        async def read(path: str) -> int:
            answer = await self._http.get(path, headers={"authorization": f"Bearer {theirs.key}"})
            return answer.status_code

        for path in ("/v1/keys", "/v1/users", f"/v1/runs/{theirs.ids['run_id']}"):
            assert await read(path) == 200, path

    async def _routes(self) -> list[Route]:
        paths = (await self._http.get("/openapi.json")).json()["paths"]
        found = []
        for path, operations in paths.items():
            for method, operation in operations.items():
                content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
                found.append(Route(method, path, content.get("schema", {}).get("$ref", "").rpartition("/")[2]))
        return found

    async def _answer(self, route: Route, ours: Tenant, values: dict[str, str]) -> str:
        """Status and body, with the id that was asked for taken out."""
        key = self._admin_key if route.path.startswith("/admin/") else ours.key
        answer = await self._send(route, key, values)
        assert answer.status_code == 404, (route, values, answer.status_code, answer.text)
        text = answer.text
        for name in route.parameters:
            if name in values:
                text = text.replace(values[name], name)
        return text

    async def _send(self, route: Route, key: str, values: dict[str, str]) -> httpx.Response:
        query = {"confirm": values.get("letter_id", "")} if "letter_id" in route.parameters else None
        return await self._http.request(
            route.method,
            route.at(values),
            json=BODIES.get(route.body),
            params=query,
            headers={"authorization": f"Bearer {key}"},
        )

    async def _tenant(self) -> Tenant:
        name = f"t{secrets.token_hex(6)}"
        user = f"user-of-{name}"
        await self._write("/admin/v1/tenants", {"id": name, "name": name})
        await self._write(f"/admin/v1/tenants/{name}/users", {"user_id": user, "name": name, "role": "admin"})
        asked = {"name": name, "user_id": user, "scopes": EVERY_SCOPE}
        issued = await self._write(f"/admin/v1/tenants/{name}/keys", asked)
        key = issued.json()["key"]
        run = await self._write("/v1/runs", {"saga": "order", "input": {"sku": "robe", "quantity": 1}}, key)
        told = {"type": "budget.set", "limit_nano_usd": 25_000_000_000, "window": "month"}
        queued = await self._write(f"/admin/v1/tenants/{name}/commands", told)
        asks = {"model": self._model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        called = await self._write("/v1/chat/completions", asks, key)
        ids = {
            "key_id": issued.json()["key_id"],
            "user_id": user,
            "run_id": run.json()["id"],
            "command_id": queued.json()["command_id"],
            "letter_id": queued.json()["command_id"],
            "call_id": called.headers["x-tenantry-call"],
        }
        return Tenant(name, key, ids)

    async def _write(self, path: str, body: Any, key: str = "") -> httpx.Response:
        headers = {"authorization": f"Bearer {key or self._admin_key}"}
        answer = await self._http.post(path, json=body, headers=headers)
        assert answer.is_success, (path, answer.text)
        return answer


async def check_tenants_apart(url: str, admin_key: str, model: str) -> int:
    """The matrix at one door; how many pairs of answers were the same."""
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as http:
        return await Matrix(http, admin_key, model).check()


def _unlike(identity: str) -> str:
    """An id of the same shape that nobody has."""
    return identity[:-6] + "".join("0" if char != "0" else "1" for char in identity[-6:])
