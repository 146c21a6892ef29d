"""Chat completions with the official client, through the whole gateway."""

import asyncio
import os
from decimal import Decimal

import httpx
import openai
import pytest

from events.tenant import ReserveCall
from tests.kit.gateway import ASK, TEXT, World
from tests.kit.upstream import WORDS


async def test_a_completion_has_text_and_usage_and_is_booked_to_the_token(world: World) -> None:
    async with world.client() as client:
        raw = await client.chat.completions.with_raw_response.create(model="m-ok", messages=ASK)
    answer = raw.parse()
    assert answer.choices[0].message.content == TEXT
    assert answer.model == "m-ok"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 7)
    used = await world.usage(min_position=raw.headers["x-tenantry-position"])
    assert (used["requests"], used["input_tokens"], used["output_tokens"]) == (1, 4, 7)
    assert Decimal(used["cost_usd"]) == (Decimal("0.10") * 4 + Decimal("0.40") * 7) / 1_000_000
    assert used["by_model"][0]["model"] == "m-ok"
    assert world.upstream.ledger.requests[0]["max_tokens"] == 1024


async def test_a_stream_comes_as_it_is_made_and_ends_with_usage_where_asked(world: World) -> None:
    async with world.client() as client:
        stream = await client.chat.completions.create(
            model="m-slow", messages=ASK, stream=True, stream_options={"include_usage": True}
        )
        seen: list[str] = []
        usage = None
        async for chunk in stream:
            assert chunk.model == "m-slow"
            usage = chunk.usage or usage
            seen += [choice.delta.content or "" for choice in chunk.choices]
            if len(seen) == 2:
                assert "".join(seen) == "The answer"  # here, while the upstream still waits
                world.upstream.go_on.set()
    assert "".join(seen) == TEXT
    assert usage is not None
    assert usage.completion_tokens == 7
    used = await world.usage()
    assert (used["requests"], used["output_tokens"]) == (1, 7)


async def test_a_stream_without_include_usage_shows_none_and_is_booked_all_the_same(world: World) -> None:
    async with world.client() as client:
        stream = await client.chat.completions.create(model="m-ok", messages=ASK, stream=True)
        chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert (await world.usage())["output_tokens"] == 7


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_upstream_that_reports_no_usage_is_booked_by_estimate_and_marked_so(
    world: World, is_stream: bool
) -> None:
    async with world.client() as client:
        if is_stream:
            stream = await client.chat.completions.create(
                model="m-no-usage", messages=ASK, stream=True, stream_options={"include_usage": True}
            )
            usage = [chunk.usage async for chunk in stream][-1]
        else:
            usage = (await client.chat.completions.create(model="m-no-usage", messages=ASK)).usage
    assert usage is not None
    booked = await world.settled()
    assert booked["usage_source"] == "estimated"
    assert booked["output_tokens"] == usage.completion_tokens > 0


async def test_models_are_listed_and_shown(world: World) -> None:
    async with world.client() as client:
        assert {model.id async for model in client.models.list()} >= {"m-ok", "m-away"}
        assert (await client.models.retrieve("m-ok")).id == "m-ok"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("nobody")


@pytest.mark.parametrize("key", ["nonsense", "sk-demo-aaaa-bbbb-cccccc", "sk-" + "x" * 500, "Ünïcode".encode().hex()])
async def test_a_wrong_key_is_refused_in_the_openai_shape(world: World, key: str) -> None:
    async with world.client(key) as client:
        with pytest.raises(openai.AuthenticationError) as refusal:
            await client.chat.completions.create(model="m-ok", messages=ASK)
    assert refusal.value.code == "invalid_api_key"
    assert "tenantry key issue" in str(refusal.value)
    assert world.upstream.ledger.requests == []


async def test_a_forged_key_with_a_right_checksum_activates_no_tenant(world: World) -> None:
    from serve.keys import make_key

    forged = make_key("another pepper", "no-such-tenant", "c").text
    async with world.client(forged) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model="m-ok", messages=ASK)
    assert await world.store.head("no-such-tenant") is None


async def test_a_revoked_key_stops_working_at_once(world: World) -> None:
    async with world.client() as client:
        await client.chat.completions.create(model="m-ok", messages=ASK)
        revoked = await world.admin.delete(f"/tenants/{world.tenant}/keys/{world.key_id}")
        assert revoked.json()["revoked"] is True
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model="m-ok", messages=ASK)
        async with asyncio.timeout(2):  # the push, for what is only read
            while True:
                try:
                    await client.models.list()
                except openai.AuthenticationError:
                    break


async def test_an_unknown_model_is_named_with_those_there_are(world: World) -> None:
    async with world.client() as client:
        with pytest.raises(openai.NotFoundError, match="m-ok") as refusal:
            await client.chat.completions.create(model="gpt-9", messages=ASK)
    assert refusal.value.code == "model_not_found"
    assert refusal.value.param == "model"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not JSON"),
        (b"[]", "malformed"),
        (b'{"model": "m-ok"}', "messages"),
        (b'{"model": "m-ok", "messages": []}', "messages"),
        (b'{"model": "m-ok", "messages": [{"role": "user", "content": "x"}], "max_tokens": 0}', "max_tokens"),
        (b'{"model": "m-ok", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5000}', "at most 1024"),
        (b'{"model": "m-ok", "messages": [{"role": "user", "content": "x"}], "n": 1000}', "n"),
        (b'{"model": "m-ok", "messages": ' + b"[" * 500 + b"]" * 500 + b"}", "nests deeper"),
        (b'{"model": "m-ok", "messages": [{"role": "user", "content": "\xff"}]}', "not JSON"),
    ],
)
async def test_a_malformed_body_is_refused_with_what_is_wrong(world: World, body: bytes, says: str) -> None:
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {world.key}"}, timeout=60) as http:
        response = await http.post(f"{world.base_url}/v1/chat/completions", content=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert await world.event_types() == ["tenant.created.v1", "key.issued.v1"]


async def test_a_body_over_the_limit_is_refused(world: World) -> None:
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {world.key}"}, timeout=60) as http:
        response = await http.post(f"{world.base_url}/v1/chat/completions", content=b"x" * 300_001)
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("m-away", 503, "upstream_unavailable"),
        ("m-error-500", 503, "upstream_error"),
        ("m-error-429", 503, "upstream_overloaded"),
        ("m-error-400", 400, "told"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_failing_upstream_is_explained_and_costs_nothing(
    world: World, model: str, status: int, code: str, is_stream: bool
) -> None:
    async with world.client() as client:
        with pytest.raises(openai.APIStatusError) as failure:
            await client.chat.completions.create(model=model, messages=ASK, stream=is_stream)
    assert failure.value.status_code == status
    assert failure.value.code == code
    assert ("retry-after" in failure.value.response.headers) is (status == 503)
    booked = await world.settled()
    assert (booked["outcome"], booked["cost_nano_usd"]) == ("failed", 0)
    used = await world.usage()
    assert (used["requests"], used["failed"], used["cost_usd"]) == (0, 1, "0")


async def test_a_stream_that_breaks_ends_with_an_error_and_books_what_came(world: World) -> None:
    async with world.client() as client:
        stream = await client.chat.completions.create(model="m-broken", messages=ASK, stream=True)
        assert [(await anext(stream)).choices[0].delta.content for _ in range(2)] == WORDS[:2]
        with pytest.raises(openai.APIError, match="broke off"):
            await anext(stream)
    booked = await world.settled()
    assert (booked["outcome"], booked["usage_source"], booked["output_tokens"]) == ("failed", "estimated", 3)


async def test_a_client_that_leaves_a_stream_ends_the_upstream_call_and_pays_for_what_came(world: World) -> None:
    async with world.client() as client:
        stream = await client.chat.completions.create(model="m-slow", messages=ASK, stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content == WORDS[1]:
                break
        await stream.close()
    async with asyncio.timeout(20):
        await world.upstream.ledger.cancelled.wait()
    booked = await world.settled()
    assert (booked["outcome"], booked["usage_source"]) == ("cancelled", "estimated")
    assert 0 < booked["output_tokens"] < 7


async def test_a_client_that_leaves_before_the_answer_ends_the_upstream_call(world: World) -> None:
    async with world.client(timeout=0.3) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(model="m-hang", messages=ASK)
    async with asyncio.timeout(20):
        await world.upstream.ledger.cancelled.wait()
    booked = await world.settled()
    assert (booked["outcome"], booked["usage_source"]) == ("cancelled", "unknown")


async def test_a_budget_refuses_with_402_and_is_not_retried(world: World) -> None:
    await world.admin.put(f"/tenants/{world.tenant}/budget", json={"limit_usd": "0.000001", "window": "total"})
    async with world.client() as client:
        with pytest.raises(openai.APIStatusError) as refusal:
            await client.chat.completions.create(model="m-ok", messages=ASK)
    assert refusal.value.status_code == 402
    assert refusal.value.code == "budget_exceeded"
    assert refusal.value.response.headers["x-should-retry"] == "false"
    assert world.upstream.ledger.requests == []


async def test_parallel_calls_never_spend_more_than_the_budget(world: World) -> None:
    """The maximum of a call with max_tokens=7 is known; the budget is for ten such calls."""
    async with world.client() as client:
        await client.chat.completions.create(model="m-ok", messages=ASK, max_tokens=7)
        page = (await world.admin.get(f"/tenants/{world.tenant}/events")).json()["data"]
        most = next(event["data"]["cost_max_nano_usd"] for event in page if event["type"] == "call.reserved.v1")
        limit = Decimal(most * 10).scaleb(-9)
        put = await world.admin.put(
            f"/tenants/{world.tenant}/budget", json={"limit_usd": f"{limit:f}", "window": "day"}
        )
        assert put.status_code == 200, put.text
        results = await asyncio.gather(
            *(client.chat.completions.create(model="m-hang", messages=ASK, max_tokens=7, timeout=1) for _ in range(60)),
            return_exceptions=True,
        )
    refused = [result for result in results if isinstance(result, openai.APIStatusError)]
    assert {refusal.status_code for refusal in refused} == {402}
    # "m-hang" has two characters more than "m-ok", so its body allows two tokens more
    assert len(world.upstream.ledger.requests) - 1 == 60 - len(refused) in (9, 10)


async def test_usage_is_that_of_the_upstreams_own_ledger(world: World) -> None:
    async with world.client() as client:
        await asyncio.gather(
            *(
                client.chat.completions.create(model="m-ok", messages=[{"role": "user", "content": "w " * (n + 1)}])
                for n in range(30)
            )
        )
    used, ledger = await world.usage(), world.upstream.ledger
    assert (used["requests"], used["input_tokens"], used["output_tokens"]) == (
        30,
        ledger.input_tokens,
        ledger.output_tokens,
    )


async def test_a_min_position_out_of_reach_is_an_error_never_old_data(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.usage.PROJECTION_WAIT_S", 0.2)
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {world.key}"}, timeout=60) as http:
        response = await http.get(f"{world.base_url}/v1/usage", params={"min_position": 10**9})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "not_projected"
    assert response.headers["retry-after"]


async def test_one_tenant_never_sees_another(world: World) -> None:
    async with world.client() as client:
        await client.chat.completions.create(model="m-ok", messages=ASK)
    await world.new_tenant(world.tenant + "b")
    assert (await world.usage())["requests"] == 0


async def test_secrets_stand_in_no_answer_and_no_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    secret = world.key.split("-")[-2]
    async with world.client() as client:
        await client.chat.completions.create(model="m-ok", messages=ASK)
        for model in ("m-away", "m-error-400"):
            with pytest.raises(openai.APIError) as failure:
                await client.chat.completions.create(model=model, messages=ASK)
            assert secret not in str(failure.value)
    events = (await world.admin.get(f"/tenants/{world.tenant}/events")).text
    assert secret not in events
    assert secret not in caplog.text
    assert os.environ["TENANTRY_PEPPER"] not in events


async def test_a_reservation_whose_gateway_died_is_booked_when_it_expires(world: World) -> None:
    """Nobody settles it: the timer's command does, at the maximum, marked unknown."""
    from events.timers import FireTimers

    await world.asker.ask(world.tenant, ReserveCall("lost", world.key_id, "m-ok", 700, 1), actor="test")
    await world.asker.ask(world.tenant, FireTimers(), actor="supervisor")
    used = await world.usage()
    assert (used["requests"], used["unknown"], used["cost_usd"]) == (1, 1, "0.0000007")
