"""What Prometheus reads of a gateway, and who may read it."""

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from actors.shard import Shard
from events.tenant import ReserveCall
from serve.observe.metrics import Metrics
from serve.observe.tally import LABELS_MAX
from tests.kit.gateway import ADMIN_KEY, ASK, METRICS_KEY, World

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(world: World, key: str = ADMIN_KEY) -> Samples:
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"{world.base_url}/metrics", headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, /, **labels: str) -> float:
    return samples.get((f"tenantry_{name}", frozenset(labels.items())), 0.0)


async def test_requests_admissions_tokens_cost_and_upstreams_are_counted(world: World) -> None:
    async with world.client() as client:
        for _ in range(3):
            await client.chat.completions.create(model="m-ok", messages=ASK)
        stream = await client.chat.completions.create(model="m-ok", messages=ASK, stream=True)
        async for _ in stream:
            pass
        with pytest.raises(openai.APIStatusError):
            await client.chat.completions.create(model="m-error-500", messages=ASK)
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nobody", messages=ASK)
        await world.admin.put(f"/tenants/{world.tenant}/budget", json={"limit_usd": "0", "window": "day"})
        with pytest.raises(openai.APIStatusError):
            await client.chat.completions.create(model="m-ok", messages=ASK)
    seen = await scrape(world)
    chat = {"method": "POST", "route": "/v1/chat/completions"}
    assert value(seen, "http_requests_total", **chat, status="2xx") == 4
    assert value(seen, "http_requests_total", **chat, status="4xx") == 2
    assert value(seen, "http_requests_total", **chat, status="5xx") == 1
    assert value(seen, "http_request_duration_seconds_count", route=chat["route"]) == 7
    assert value(seen, "admissions_total", model="m-ok", result="admitted") == 4
    assert value(seen, "admissions_total", model="m-ok", result="budget_exceeded") == 1
    assert value(seen, "http_errors_total", route=chat["route"], code="budget_exceeded") == 1
    assert value(seen, "http_errors_total", route=chat["route"], code="model_not_found") == 1
    ledger = world.upstream.ledger
    assert value(seen, "tokens_total", model="m-ok", direction="input") == ledger.input_tokens
    assert value(seen, "tokens_total", model="m-ok", direction="output") == ledger.output_tokens
    assert value(seen, "cost_nano_usd_total", model="m-ok") == ledger.input_tokens * 100 + ledger.output_tokens * 400
    assert value(seen, "calls_total", model="m-ok", outcome="ok", usage_source="measured") == 4
    assert value(seen, "upstream_requests_total", upstream="ok", outcome="ok") == 4
    assert value(seen, "upstream_requests_total", upstream="error-500", outcome="upstream_error") == 1
    assert value(seen, "upstream_first_chunk_seconds_count", upstream="ok") == 1
    assert value(seen, "asks_total", command=ReserveCall.__name__, outcome="ok") == 5
    assert value(seen, "ask_duration_seconds_count", command=ReserveCall.__name__) == 6
    assert value(seen, "breakers", name="model/ok", state="closed") == 1
    put = {"method": "PUT", "route": "/admin/v1/tenants/{tenant}/budget"}
    assert value(seen, "http_requests_total", **put, status="2xx") == 1
    assert value(seen, "http_requests_in_progress") == 1  # the scrape


async def test_no_label_holds_an_id_or_anything_a_client_has_made_up(world: World) -> None:
    async with httpx.AsyncClient(base_url=world.base_url) as http:
        for path in ("/canary-path", "/v1/canary-path", f"/v1/models/canary?{world.key}"):
            await http.get(path, headers={"authorization": f"Bearer {world.key}"})
        await http.request("CANARY", "/v1/models")
    await world.admin.get("/tenants/canary-tenant")
    labels = {text for _, pairs in await scrape(world) for pair in pairs for text in pair}
    for secret in ("canary", "CANARY", world.tenant, world.key_id, world.key, ADMIN_KEY):
        assert not [label for label in labels if secret in label], secret


def test_however_many_labels_come_they_take_bounded_room() -> None:
    metrics = Metrics()
    for number in range(LABELS_MAX + 500):
        metrics.admission(f"model-{number}", "admitted")
    page, _ = metrics.page("", [])
    assert page.count(b"tenantry_admissions_total{") == LABELS_MAX + 1
    assert b'tenantry_admissions_total{model="(other)",result="(other)"} 500.0' in page
    for number in range(LABELS_MAX + 500):
        metrics.asked(f"Command{number}", "ok", 0.002)
    page, _ = metrics.page("", [])
    assert b'tenantry_ask_duration_seconds_count{command="(other)"} 500.0' in page
    assert b'tenantry_ask_duration_seconds_bucket{command="Command7",le="0.001"} 0.0' in page
    assert b'tenantry_ask_duration_seconds_bucket{command="Command7",le="0.0025"} 1.0' in page
    assert b'tenantry_ask_duration_seconds_bucket{command="Command7",le="+Inf"} 1.0' in page


async def test_only_the_admin_key_and_the_metrics_key_read_them(world: World) -> None:
    assert await scrape(world, METRICS_KEY)
    every_scope = {"scopes": ["inference", "runs", "read", "admin"]}
    strongest = (await world.admin.post(f"/tenants/{world.tenant}/keys", json=every_scope)).json()["key"]
    async with httpx.AsyncClient(base_url=world.base_url) as http:
        as_scraper = {"authorization": f"Bearer {METRICS_KEY}"}
        assert (await http.get("/admin/v1/tenants", headers=as_scraper)).status_code == 401
        for key in (world.key, strongest, "k" * 20):
            answer = await http.get("/metrics", headers={"authorization": f"Bearer {key}"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert world.tenant not in answer.text
        assert (await http.get("/metrics")).status_code == 401


async def test_mailboxes_are_shown_where_their_shards_answer(world: World, shard: Shard) -> None:
    assert value(await scrape(world), "shards", kind="pool") == 0
    await shard.tell_load()
    seen = await scrape(world)
    assert value(seen, "shards", kind="pool") == 1
    assert value(seen, "tenants_in_memory", kind="pool") == len(shard.tenants)
    assert value(seen, "mailbox_depth_max", kind="pool") == 0
