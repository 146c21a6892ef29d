"""Idempotency-Keys on calls of models, and the response cache, through the whole gateway."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from serve.gateway import Gateway
from tests.kit.gateway import ASK, TEXT, World

URL = "/v1/chat/completions"


def body(model: str = "m-ok", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": ASK, **fields}


def http_of(world: World, **options: Any) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {world.key}"}
    return httpx.AsyncClient(base_url=world.base_url, headers=headers, timeout=60, **options)


@asynccontextmanager
async def another_replica(world: World) -> AsyncIterator[httpx.AsyncClient]:
    gateway = Gateway()
    async with http_of(world, transport=httpx.ASGITransport(app=gateway)) as http:
        yield http
    await gateway.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_repeat_gets_the_same_bytes_from_any_replica_and_nothing_is_paid(world: World, stream: bool) -> None:
    key = {"idempotency-key": "order 66"}
    async with http_of(world) as http, another_replica(world) as other:
        first = await http.post(URL, json=body(stream=stream), headers=key)
        assert first.status_code == 200
        assert "x-tenantry-replayed" not in first.headers
        for client in (http, other):
            again = await client.post(URL, json=body(stream=stream), headers=key)
            assert again.status_code == 200
            assert again.content == first.content
            assert again.headers["x-tenantry-replayed"] == "true"
            assert again.headers["content-type"] == first.headers["content-type"]
            assert again.headers["x-tenantry-call"] == first.headers["x-tenantry-call"]
        mismatch = await http.post(URL, json=body(stream=stream, seed=1), headers=key)
        assert (mismatch.status_code, mismatch.json()["error"]["code"]) == (422, "idempotency_mismatch")
        otherwise = json.dumps(dict(reversed(body(stream=stream).items())), indent=1).replace("What", "\\u0057hat")
        same = await http.post(URL, content=otherwise, headers=key)
        assert (same.headers["x-tenantry-replayed"], same.content) == ("true", first.content)
        elsewhere = await http.post("/v1/embeddings", json={"model": "m-ok", "input": "x"}, headers=key)
        assert elsewhere.status_code == 422
        other_key = await http.post(URL, json=body(stream=stream), headers={"idempotency-key": "order 67"})
        assert "x-tenantry-replayed" not in other_key.headers
        for bad in ("", "k" * 256):
            refused = await http.post(URL, json=body(), headers={"idempotency-key": bad})
            assert refused.status_code == 400
    assert len(world.upstream.ledger.requests) == 2
    assert (await world.usage())["requests"] == 2


async def test_the_official_client_gets_one_answer_for_one_key(world: World) -> None:
    async with world.client(default_headers={"idempotency-key": "official"}) as client:
        answers = [await client.chat.completions.create(model="m-ok", messages=ASK) for _ in range(2)]
        assert answers[0] == answers[1]
        with pytest.raises(openai.UnprocessableEntityError) as mismatch:
            await client.chat.completions.create(model="m-ok", messages=ASK, seed=1)
    assert mismatch.value.code == "idempotency_mismatch"
    assert len(world.upstream.ledger.requests) == 1


async def test_each_key_of_a_tenant_has_idempotency_keys_of_its_own(world: World) -> None:
    key = {"idempotency-key": "same"}
    async with http_of(world) as http:
        await http.post(URL, json=body(), headers=key)
    issued = await world.admin.post(f"/tenants/{world.tenant}/keys", json={"name": "second"})
    world.key = issued.json()["key"]
    async with http_of(world) as http:
        answer = await http.post(URL, json=body(seed=2), headers=key)
        assert (answer.status_code, answer.headers.get("x-tenantry-replayed")) == (200, None)


async def test_of_requests_at_the_same_time_one_runs_and_the_others_are_told_to_come_back(world: World) -> None:
    key = {"idempotency-key": "twice"}
    async with (
        http_of(world) as http,
        http.stream("POST", URL, json=body("m-slow", stream=True), headers=key) as first,
    ):
        lines = first.aiter_lines()
        assert (await anext(lines)).startswith("data: ")
        others = await asyncio.gather(
            *(http.post(URL, json=body("m-slow", stream=True), headers=key) for _ in range(5))
        )
        for other in others:
            assert (other.status_code, other.json()["error"]["code"]) == (409, "in_progress")
            assert (other.headers["x-should-retry"], other.headers["retry-after"]) == ("true", "1")
        world.upstream.go_on.set()
        assert [line async for line in lines][-2:] == ["data: [DONE]", ""]
    assert len(world.upstream.ledger.requests) == 1


async def test_what_failed_or_was_left_can_be_tried_again_under_its_key(world: World) -> None:
    key = {"idempotency-key": "insists"}
    async with http_of(world) as http:
        for _ in range(2):
            failed = await http.post(URL, json=body("m-error-500"), headers=key)
            assert failed.status_code == 503
        broken = {"idempotency-key": "breaks"}
        for _ in range(2):
            answer = await http.post(URL, json=body("m-broken", stream=True), headers=broken)
            assert b"broke off" in answer.content
            assert "x-tenantry-replayed" not in answer.headers
        left = {"idempotency-key": "left"}
        with pytest.raises(httpx.ReadTimeout):
            await http.post(URL, json=body("m-hang"), headers=left, timeout=0.3)
        async with asyncio.timeout(60):
            while True:  # until the gateway knows that the client has left
                other = await http.post(URL, json=body("m-ok"), headers=left)
                if other.status_code == 200:
                    break
                assert other.status_code == 422


async def test_the_cache_is_opt_in_and_serves_whole_and_streamed_for_nothing(world: World) -> None:
    on = {"x-tenantry-cache": "on"}
    async with world.client() as client, http_of(world) as http:
        for _ in range(2):  # who does not ask for it neither fills nor reads it
            plain = await http.post(URL, json=body())
            assert "x-tenantry-cache" not in plain.headers
        miss = await http.post(URL, json=body(), headers=on)
        assert miss.headers["x-tenantry-cache"] == "miss"
        hit = await http.post(URL, json=body(metadata={"team": "a"}), headers=on)
        assert hit.headers["x-tenantry-cache"] == "hit"
        assert (hit.headers["x-tenantry-cost-usd"], hit.headers["x-tenantry-attempts"]) == ("0", "0")
        assert hit.headers["age"].isdigit()
        assert hit.json() == miss.json()
        stream = await client.chat.completions.create(
            model="m-ok", messages=ASK, stream=True, stream_options={"include_usage": True}, extra_headers=on
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 7
        for other in (body(seed=1), body(max_tokens=5), body("m-slow")):
            world.upstream.go_on.set()
            assert (await http.post(URL, json=other, headers=on)).headers["x-tenantry-cache"] == "miss"
        for header, expected in (("refresh", "miss"), ("60", "hit")):
            again = await http.post(URL, json=body(), headers={"x-tenantry-cache": header})
            assert again.headers["x-tenantry-cache"] == expected
        refused = await http.post(URL, json=body(), headers={"x-tenantry-cache": "please"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-tenantry-cache")
        vectors = [await http.post("/v1/embeddings", json={"model": "m-ok", "input": "x"}, headers=on) for _ in "12"]
        assert [answer.headers["x-tenantry-cache"] for answer in vectors] == ["miss", "hit"]
        assert vectors[0].json() == vectors[1].json()
    used = await world.usage()
    page = (await world.admin.get(f"/tenants/{world.tenant}/events", params={"limit": 1000})).json()["data"]
    settled = [event["data"] for event in page if event["type"] == "call.settled.v1"]
    hits = [call for call in settled if call.get("from_cache")]
    assert len(hits) == 4
    assert {(call["cost_nano_usd"], call["output_tokens"]) for call in hits} == {(0, 0)}
    assert hits[0]["tags"] == {"team": "a"}
    assert used["requests"] == len(settled)
    assert used["output_tokens"] == world.upstream.ledger.output_tokens, (
        "tokens that a model has written, and no others"
    )


async def test_a_stream_fills_the_cache_and_what_failed_or_broke_does_not(world: World) -> None:
    on = {"x-tenantry-cache": "on"}
    async with http_of(world) as http:
        await http.post(URL, json=body(stream=True), headers=on)
        hit = await http.post(URL, json=body(), headers=on)
        assert hit.headers["x-tenantry-cache"] == "hit"
        assert hit.json()["choices"][0]["message"]["content"] == TEXT
        assert hit.json()["usage"]["completion_tokens"] == 7
        for model in ("m-broken", "m-error-500", "m-html", "r-model"):
            for _ in range(2):
                answer = await http.post(URL, json=body(model, stream=True), headers=on)
                assert answer.headers.get("x-tenantry-cache") != "hit", model


async def test_the_cache_is_nobody_elses_and_no_way_round_a_keys_models_or_limits(world: World) -> None:
    on = {"x-tenantry-cache": "on"}
    async with http_of(world) as http:
        await http.post(URL, json=body(), headers=on)
    url = f"/tenants/{world.tenant}"
    world.key = (await world.admin.post(f"{url}/keys", json={"name": "narrow", "models": ["m-slow"]})).json()["key"]
    async with http_of(world) as http:
        forbidden = await http.post(URL, json=body(), headers=on)
        assert (forbidden.status_code, forbidden.json()["error"]["code"]) == (403, "model_not_allowed")
    world.key = (await world.admin.post(f"{url}/keys", json={"name": "wide"})).json()["key"]
    async with http_of(world) as http:
        assert (await http.post(URL, json=body(), headers=on)).headers["x-tenantry-cache"] == "hit"
        limits = {"limits": [{"resource": "requests", "limit": 1, "window_s": 3600}]}
        assert (await world.admin.put(f"{url}/limits", json=limits)).status_code == 200
        assert (await http.post(URL, json=body(), headers=on)).status_code == 200
        assert (await http.post(URL, json=body(), headers=on)).status_code == 429
    await world.new_tenant(world.tenant + "b")
    async with http_of(world) as http:
        assert (await http.post(URL, json=body(), headers=on)).headers["x-tenantry-cache"] == "miss"


async def test_an_erased_tenant_leaves_no_kept_answer(world: World) -> None:
    async with http_of(world) as http:
        await http.post(URL, json=body(), headers={"x-tenantry-cache": "on", "idempotency-key": "k"})
    erased = await world.admin.post(f"/tenants/{world.tenant}/erase", json={"confirm": world.tenant}, timeout=60)
    assert "no answer under an Idempotency-Key or in the response cache" in erased.text, erased.text


async def test_a_no_op_with_an_idempotency_key_is_remembered_like_any_other_write(world: World) -> None:
    url, key = f"/tenants/{world.tenant}", {"idempotency-key": "to free"}
    first = await world.admin.put(f"{url}/plan", json={"plan": "free"}, headers=key)  # it is so already
    await world.admin.put(f"{url}/plan", json={"plan": "pro"})
    again = await world.admin.put(f"{url}/plan", json={"plan": "free"}, headers=key)
    assert again.json() == first.json(), "the answer it got then, and nothing done now"
    assert (await world.admin.get(url)).json()["plan"] == "pro"
    other = await world.admin.put(f"{url}/plan", json={"plan": "enterprise"}, headers=key)
    assert other.status_code == 422
    assert "tenant.command_noted.v1" in await world.event_types()


async def test_a_write_that_is_no_command_is_answered_once_as_well(world: World) -> None:
    key = {"idempotency-key": "move"}
    url = f"/tenants/{world.tenant}/archive"
    first = await world.admin.post(url, params={"keep": 0, "least": 1}, headers=key)
    assert (first.status_code, first.json()["moved"]) == (200, 2)
    again = await world.admin.post(url, params={"keep": 0, "least": 1}, headers=key)
    assert again.json() == first.json(), "although there is nothing left to move"
    assert again.headers["x-tenantry-replayed"] == "true"
    other = await world.admin.post(url, params={"keep": 1, "least": 1}, headers=key)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_mismatch")
    refused = await world.admin.post(f"/tenants/{world.tenant}/dead-letters/1/replay", headers=key)
    assert refused.status_code == 422
    for _ in range(2):
        missing = await world.admin.post(
            f"/tenants/{world.tenant}/dead-letters/1/replay", headers={"idempotency-key": "r"}
        )
        assert missing.status_code == 404
    stranger = await world.admin.post(url, headers={**key, "authorization": f"Bearer {world.key}"})
    assert stranger.status_code == 401


@pytest.mark.parametrize("stream", [False, True])
async def test_a_repeat_of_what_was_not_kept_is_the_same_to_its_upstream_and_to_no_other(
    world: World, stream: bool
) -> None:
    """Where a gateway dies between a model's answer and keeping it: the upstream may know that it has answered before."""
    key = {"idempotency-key": "order 68"}
    async with http_of(world) as http:
        for model, headers, seed in (
            ("m-error-500", key, 1),
            ("m-error-500", key, 1),
            ("m-error-500", key, 2),
            ("m-ok", {}, 1),
        ):
            await http.post(URL, json=body(model, stream=stream, seed=seed), headers=headers)
        await http.post(URL, json=body("r-model", stream=stream), headers={"idempotency-key": "order 69"})
    first, again, other_body, keyless, hop, next_hop = (
        headers.get("idempotency-key") for headers in world.upstream.ledger.headers
    )
    assert first == again
    assert len({first, other_body, hop, next_hop}) == 4
    assert keyless is None
    assert "order" not in f"{first}{hop}"
