"""The whole HTTP surface in this process: a real gateway on real NATS and Valkey; only Ray and the model are not there."""

import asyncio
import json
from typing import Any

import httpx
from openai import AsyncOpenAI

from events.ask import Asker
from events.money import Price
from events.valkey_store import ValkeyEventStore
from serve.settings import Model, ModelsFile, ModelUpstream
from tests.kit.upstream import WORDS, FakeUpstream

ADMIN_KEY = "sk-admin-0123456789abcdef"
UPSTREAM_KEY_ENV, UPSTREAM_KEY = "TEST_UPSTREAM_API_KEY", "upstream-0123456789abcdef"
METRICS_KEY = "metrics-0123456789abcdef"
TEXT = "".join(WORDS)
ASK: Any = [{"role": "user", "content": "What is the answer?"}]
BEHAVIOURS = (
    "ok", "slow", "broken", "error-500", "error-400", "error-429", "no-usage", "hang", "echo", "flood", "busy", "cut", "html", "json-error",
    "error-event", "late-error", "scripted",
)  # fmt: skip
AWAY = "http://127.0.0.1:1/v1"


def models_of(upstream: FakeUpstream) -> ModelsFile:
    price = Price.model_validate({"input_usd_per_mtok": "0.10", "output_usd_per_mtok": "0.40"})
    models = [
        Model(
            name=f"m-{name}",
            upstreams=(ModelUpstream(base_url=upstream.base_url, model=name, api_key_env=UPSTREAM_KEY_ENV),),
            price=price,
        )
        for name in BEHAVIOURS
    ]
    away = Model(name="m-away", upstreams=(ModelUpstream(base_url=AWAY, model="ok"),), price=price)
    models += routed_models(upstream.base_url)
    tool = {"name": "mock", "adapter": "tests.kit.fakes:MockTool", "bulkhead": 5}
    # without a share of the cluster's permits, so that a machine that stalls for a second does not make a run wait for them
    free = {"adapter": "tests.kit.fakes:MockTool", "bulkhead": None}
    look = {**free, "name": "look", "description": "Looks things up."}
    wipe = {**free, "name": "wipe", "destructive": True}
    return ModelsFile(models=(*models, away), tools=(tool, look, wipe))


def routed_models(url: str) -> list[Model]:
    """Aliases with more than one place to go. ``r-dear`` costs ten times what the others do."""

    def model(name: str, *upstreams: dict[str, Any], mtok: str = "0.10", **settings: Any) -> Model:
        price = {"input_usd_per_mtok": mtok, "output_usd_per_mtok": mtok}
        places = [{"base_url": url, **upstream} for upstream in upstreams]
        return Model.model_validate({"name": name, "upstreams": places, "price": price, **settings})

    last = {"weight": 0}
    return [
        model("r-dear", {"model": "dear"}, mtok="1.00", max_output_tokens=2048),
        model("r-second", {"model": "first"}, {"model": "second", **last}),
        model("r-away", {"model": "gone", "base_url": AWAY}, {"model": "second", **last}),
        model("r-model", {"model": "error-500", "name": "always-500"}, fallbacks=["r-dear"]),
        model("r-cut", {"model": "cut"}, fallbacks=["r-dear"]),
        model("r-hang", {"model": "hang"}, fallbacks=["r-dear"], attempt_timeout_s=0.3),
        model("r-event", {"model": "error-event"}, fallbacks=["r-dear"]),
        model("r-broken", {"model": "broken"}, fallbacks=["r-dear"]),
        model("r-400", {"model": "error-400"}, fallbacks=["r-dear"]),
        model("r-busy", {"model": "busy"}, {"model": "html", **last}),
        model("r-narrow", {"model": "slow", "name": "narrow", "bulkhead": 1}, {"model": "second", **last}),
        model("r-full", {"model": "slow", "name": "full", "bulkhead": 1}),
    ]


class World:
    """A running gateway, and what a test needs to talk to it."""

    def __init__(self, base_url: str, upstream: FakeUpstream, asker: Asker, store: ValkeyEventStore) -> None:
        self.base_url, self.upstream, self.asker, self.store = base_url, upstream, asker, store
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        self.admin = httpx.AsyncClient(base_url=f"{base_url}/admin/v1", headers=headers, timeout=30)
        self.tenant = ""
        self.key = ""
        self.key_id = ""

    async def new_tenant(self, tenant: str) -> None:
        created = await self.admin.post("/tenants", json={"id": tenant, "name": tenant})
        assert created.status_code == 201, created.text
        issued = await self.admin.post(f"/tenants/{tenant}/keys", json={"name": "test"})
        assert issued.status_code == 201, issued.text
        self.tenant, self.key, self.key_id = tenant, issued.json()["key"], issued.json()["key_id"]

    def client(self, key: str | None = None, **options: Any) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.base_url}/v1", api_key=key or self.key, max_retries=0, **options)

    async def usage(self, **query: Any) -> dict[str, Any]:
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {self.key}"}, timeout=60) as http:
            response = await http.get(f"{self.base_url}/v1/usage", params=query)
        assert response.status_code == 200, response.text
        used: dict[str, Any] = response.json()
        return used

    async def event_types(self) -> list[str]:
        page = (await self.admin.get(f"/tenants/{self.tenant}/events", params={"limit": 1000})).json()
        return [event["type"] for event in page["data"]]

    async def settled(self) -> dict[str, Any]:
        """The data of the first settled call, as soon as it is in the log."""
        url, query = f"/tenants/{self.tenant}/events", {"follow": True}
        async with asyncio.timeout(60), self.admin.stream("GET", url, params=query) as stream:
            async for line in stream.aiter_lines():
                event = json.loads(line[6:]) if line.startswith("data: ") else {}
                if event.get("type") == "call.settled.v1":
                    data: dict[str, Any] = event["data"]
                    return data
        raise AssertionError("the stream of events ended")
