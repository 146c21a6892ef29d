"""Fallbacks and balancing with the official client, and what the log says of them."""

import asyncio
from decimal import Decimal
from typing import Any

import openai
import pytest

from tests.kit.gateway import ASK, TEXT, World


async def booked(world: World, count: int = 1) -> list[dict[str, Any]]:
    """The data of so many settled calls, as soon as they are in the log."""
    async with asyncio.timeout(60):
        while True:
            page = (await world.admin.get(f"/tenants/{world.tenant}/events", params={"limit": 1000})).json()["data"]
            settled = [event["data"] for event in page if event["type"] == "call.settled.v1"]
            if len(settled) >= count:
                return settled
            await asyncio.sleep(0.05)  # the log is looked at again; nothing tells of the settling of a cancelled call


async def reserved(world: World) -> list[dict[str, Any]]:
    page = (await world.admin.get(f"/tenants/{world.tenant}/events", params={"limit": 1000})).json()["data"]
    return [event["data"] for event in page if event["type"] == "call.reserved.v1"]


async def ask(world: World, model: str, *, stream: bool = False, **fields: Any) -> tuple[str, str, Any]:
    """The text, the model that says it wrote it, and the headers."""
    async with world.client() as client:
        if not stream:
            raw = await client.chat.completions.with_raw_response.create(model=model, messages=ASK, **fields)
            answer = raw.parse()
            return answer.choices[0].message.content or "", answer.model, raw.headers
        async with client.chat.completions.with_streaming_response.create(
            model=model, messages=ASK, stream=True, **fields
        ) as response:
            chunks = [chunk async for chunk in await response.parse()]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            return text, chunks[-1].model, response.headers


@pytest.mark.parametrize("stream", [False, True])
async def test_another_upstream_answers_where_the_first_fails_and_headers_and_log_say_which(
    world: World, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.tools.model._RETRY_AFTER_S", 60.0)  # a machine that stalls must not let it pass
    _, _, headers = await ask(world, "r-second")
    assert (headers["x-tenantry-upstream"], headers["x-tenantry-attempts"]) == ("first", "1")
    assert headers["x-tenantry-cost-usd"] == "0.0000011"
    world.upstream.down.add("first")
    text, model, headers = await ask(world, "r-second", stream=stream)
    assert (text, model) == (TEXT, "r-second")
    assert (headers["x-tenantry-upstream"], headers["x-tenantry-attempts"]) == ("second", "2")
    call = (await booked(world, 2))[1]
    assert [(one["upstream"], one["result"]) for one in call["attempts"]] == [
        ("first", "upstream_error"),
        ("second", "ok"),
    ]
    held = (await reserved(world))[1]
    assert held["route"] == {"upstreams": ["first", "second"], "reason": "by weight, 1", "propensity": 1.0}
    world.upstream.down.clear()
    _, _, headers = await ask(world, "r-second")
    assert headers["x-tenantry-upstream"] == "second", "who has just failed is left alone for a moment"


@pytest.mark.parametrize("stream", [False, True])
async def test_another_model_answers_at_its_own_price_which_was_reserved(world: World, stream: bool) -> None:
    text, model, headers = await ask(world, "r-model", stream=stream)
    assert (text, model, headers["x-tenantry-model"]) == (TEXT, "r-dear", "r-dear")
    (held,), (call,) = await reserved(world), await booked(world)
    assert (call["model"], call["asked_model"]) == ("r-dear", "r-model")
    assert call["cost_nano_usd"] == 1_000 * (call["input_tokens"] + call["output_tokens"])
    dear = next(target for target in held["targets"] if target[0] == "r-dear")
    assert held["cost_max_nano_usd"] == 1_000 * (dear[1] + dear[2])
    assert dear[2] == 2048, "the client gave no bound, so each model has its own"
    assert world.upstream.ledger.requests[-1]["max_tokens"] == 2048
    used = await world.usage()
    assert used["by_model"][0]["model"] == "r-dear"
    assert Decimal(used["cost_usd"]) == Decimal(call["cost_nano_usd"]).scaleb(-9)


async def test_the_dearest_of_the_chain_must_be_covered(world: World) -> None:
    await world.admin.put(f"/tenants/{world.tenant}/budget", json={"limit_usd": "0.001", "window": "total"})
    with pytest.raises(openai.APIStatusError) as refusal:
        await ask(world, "r-model")
    assert refusal.value.status_code == 402
    assert (await ask(world, "r-model", max_tokens=7))[1] == "r-dear"


async def test_a_bound_of_the_clients_holds_for_every_model_and_rules_out_who_gives_less(world: World) -> None:
    await ask(world, "r-model", max_tokens=3)
    assert world.upstream.ledger.requests[-1]["max_tokens"] == 3


@pytest.mark.parametrize("model", ["r-cut", "r-hang"])
async def test_a_try_that_may_be_billed_is_booked_at_its_maximum_before_the_next(world: World, model: str) -> None:
    text, served_by, headers = await ask(world, model)
    assert (text, served_by, headers["x-tenantry-attempts"]) == (TEXT, "r-dear", "2")
    first, second = await booked(world, 2)
    assert (first["model"], first["outcome"], first["usage_source"]) == (model, "failed", "unknown")
    held, again = await reserved(world)
    own = next(target for target in held["targets"] if target[0] == model)
    assert first["cost_nano_usd"] == 100 * (own[1] + own[2])
    assert again["cost_max_nano_usd"] == held["cost_max_nano_usd"]
    assert (second["model"], second["outcome"], second["usage_source"]) == ("r-dear", "ok", "measured")
    assert len(second["attempts"]) == 2
    used = await world.usage()
    assert Decimal(used["cost_usd"]) == Decimal(first["cost_nano_usd"] + second["cost_nano_usd"]).scaleb(-9)


async def test_where_no_budget_is_left_for_another_try_the_first_failure_is_the_answer(world: World) -> None:
    await ask(world, "r-dear", max_tokens=1000)
    (held,) = await reserved(world)
    limit = Decimal(held["cost_max_nano_usd"]).scaleb(-9)  # for one such call, and not for the try before it
    await world.admin.put(f"/tenants/{world.tenant}/budget", json={"limit_usd": f"{limit:f}", "window": "day"})
    with pytest.raises(openai.APIStatusError) as failure:
        await ask(world, "r-cut", max_tokens=1000)
    assert failure.value.code == "upstream_unavailable"
    assert failure.value.response.headers["x-should-retry"] == "false"


async def test_an_error_as_the_first_event_of_a_stream_is_before_the_first_byte(world: World) -> None:
    text, model, _ = await ask(world, "r-event", stream=True)
    assert (text, model) == (TEXT, "r-dear")


async def test_nothing_is_tried_again_once_the_client_has_a_byte(world: World) -> None:
    with pytest.raises(openai.APIError, match="broke off"):
        await ask(world, "r-broken", stream=True)
    assert [request["model"] for request in world.upstream.ledger.requests] == ["broken"]
    (call,) = await booked(world)
    assert (call["outcome"], call["model"]) == ("failed", "r-broken")


async def test_what_is_the_requests_own_fault_is_not_tried_elsewhere(world: World) -> None:
    with pytest.raises(openai.BadRequestError):
        await ask(world, "r-400")
    assert len(world.upstream.ledger.requests) == 1


async def test_a_key_never_gets_an_answer_of_a_model_it_may_not_call(world: World) -> None:
    url = f"/tenants/{world.tenant}/keys"
    world.key = (await world.admin.post(url, json={"name": "narrow", "models": ["r-model"]})).json()["key"]
    with pytest.raises(openai.APIStatusError) as failure:
        await ask(world, "r-model")
    assert failure.value.code == "upstream_error"
    assert failure.value.response.headers["x-tenantry-attempts"] == "1"
    (held,) = await reserved(world)
    assert "targets" not in held or held["targets"] == []


async def test_where_all_fail_the_last_error_is_told_and_who_is_back_first_is_asked_first(world: World) -> None:
    """A server that asks for patience is not asked first for a while; HTML in place of an answer may have cost."""
    with pytest.raises(openai.APIStatusError) as failure:
        await ask(world, "r-busy")
    assert failure.value.response.headers["x-tenantry-attempts"] == "2"
    with pytest.raises(openai.APIStatusError):
        await ask(world, "r-busy")
    first, second = (await reserved(world))[:2]
    assert first["route"]["upstreams"] == ["busy", "html"]
    assert second["route"]["upstreams"] == ["html", "busy"]
    assert "2 away" in second["route"]["reason"]


async def test_a_full_bulkhead_sends_the_next_call_elsewhere_and_one_alone_says_503(world: World) -> None:
    async with world.client() as client:
        slow = await client.chat.completions.create(model="r-narrow", messages=ASK, stream=True)
        await anext(slow)
        _, _, headers = await ask(world, "r-narrow")
        assert (headers["x-tenantry-upstream"], headers["x-tenantry-attempts"]) == ("second", "2")
        full = await client.chat.completions.create(model="r-full", messages=ASK, stream=True)
        await anext(full)
        with pytest.raises(openai.InternalServerError) as refusal:
            await client.chat.completions.create(model="r-full", messages=ASK)
        assert (refusal.value.status_code, refusal.value.code) == (503, "bulkhead_full")
        assert refusal.value.response.headers["retry-after"]
        world.upstream.go_on.set()
        assert [chunk async for chunk in slow]
        assert [chunk async for chunk in full]


async def test_an_open_breaker_sends_calls_elsewhere_without_asking(world: World) -> None:
    await ask(world, "r-second")  # until then nobody has needed the breaker
    forced = await world.admin.post("/breakers/model/first", json={"action": "open", "reason": "test"})
    assert forced.status_code == 200, forced.text
    try:
        async with asyncio.timeout(60):
            while True:  # until the word of the supervisor is here
                _, _, headers = await ask(world, "r-second")
                if (headers["x-tenantry-upstream"], headers["x-tenantry-attempts"]) == ("second", "1"):
                    break
    finally:
        await world.admin.post("/breakers/model/first", json={"action": "reset", "reason": "the test is over"})


async def test_an_upstream_that_talks_nonsense_is_a_503_that_may_have_cost(world: World) -> None:
    nonsense = [(f"m-{model}", stream) for model in ("html", "json-error", "cut") for stream in (False, True)]
    nonsense.append(("m-error-event", True))
    for model, stream in nonsense:
        with pytest.raises(openai.InternalServerError) as failure:
            await ask(world, model, stream=stream)
        assert failure.value.status_code == 503
        assert failure.value.response.headers["x-should-retry"] == "false"
        assert "told to say so" not in str(failure.value), "what servers say is for the operator's log"
    calls = await booked(world, len(nonsense))
    assert {(call["outcome"], call["usage_source"]) for call in calls} == {("failed", "unknown")}


async def test_an_error_in_the_middle_of_a_stream_ends_it_and_books_what_came(world: World) -> None:
    with pytest.raises(openai.APIError, match="broke off"):
        await ask(world, "m-late-error", stream=True)
    (call,) = await booked(world)
    assert (call["outcome"], call["usage_source"], call["output_tokens"]) == ("failed", "estimated", 3)
