"""Budgets, limits, prices and spend, through the whole gateway."""

import asyncio
from collections import Counter
from decimal import Decimal
from typing import Any

import httpx
import openai
import pytest

from events.tenant import ReserveCall
from events.timers import FireTimers
from tests.kit.gateway import ASK, World


async def put(world: World, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await world.admin.put(f"/tenants/{world.tenant}{path}", json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


async def most_of(world: World, body: dict[str, Any]) -> int:
    """What such a call reserves, in nano-USD. Leaves the upstream to wait again."""
    world.upstream.go_on.set()
    headers = {"authorization": f"Bearer {world.key}"}
    async with httpx.AsyncClient(headers=headers, timeout=60) as http:
        assert (await http.post(f"{world.base_url}/v1/chat/completions", json=body)).status_code == 200
    world.upstream.go_on.clear()
    page = (await world.admin.get(f"/tenants/{world.tenant}/events")).json()["data"]
    return int(next(event["data"]["cost_max_nano_usd"] for event in page if event["type"] == "call.reserved.v1"))


async def test_five_hundred_calls_against_a_budget_for_ten(world: World) -> None:
    """None ends while they come: exactly ten fit, ten are admitted, and the upstream sees ten."""
    body = {"model": "m-slow", "messages": ASK, "max_tokens": 7, "stream": True}
    most = await most_of(world, body)
    seen = len(world.upstream.ledger.requests)
    limit = Decimal(most * 10 + most // 2).scaleb(-9)
    await put(world, f"/keys/{world.key_id}/budget", {"limit_usd": f"{limit:f}", "window": "total"})
    headers = {"authorization": f"Bearer {world.key}"}
    over = 0
    async with httpx.AsyncClient(headers=headers, timeout=240, limits=httpx.Limits(max_connections=500)) as http:
        only_admitted_left = asyncio.Event()

        async def call() -> int:
            nonlocal over
            async with http.stream("POST", f"{world.base_url}/v1/chat/completions", json=body) as answer:
                over += answer.status_code != 200
                if over == 490:
                    only_admitted_left.set()
                async for _ in answer.aiter_bytes():
                    pass
                return answer.status_code

        calls = [asyncio.create_task(call()) for _ in range(500)]
        async with asyncio.timeout(240):
            await only_admitted_left.wait()
            world.upstream.go_on.set()
            statuses = Counter(await asyncio.gather(*calls))
    # a slow machine may say so, or that it does not know; what it did not admit is not held against the budget
    busy = statuses[429] + statuses[503] + statuses[504]
    assert statuses[200] + statuses[402] + busy == 500, statuses
    assert 10 - busy <= statuses[200] <= 10
    assert len(world.upstream.ledger.requests) - seen == statuses[200]


async def test_a_soft_budget_warns_in_the_answers_and_refuses_nothing(world: World) -> None:
    await put(world, "/budget", {"soft_limit_usd": "0.000000001", "window": "month"})
    async with world.client() as ai:
        first = await ai.chat.completions.with_raw_response.create(model="m-ok", messages=ASK)
        second = await ai.chat.completions.with_raw_response.create(model="m-ok", messages=ASK)
    assert "x-tenantry-soft-budget" not in first.headers
    assert second.headers["x-tenantry-soft-budget"] == "tenant"
    assert (await world.event_types()).count("budget.soft_reached.v1") == 1
    (budget,) = (await world.admin.get(f"/tenants/{world.tenant}/budgets")).json()["data"]
    assert (budget["soft_reached"], budget["limit_usd"]) == (True, None)


@pytest.mark.parametrize("strategy", ["token_bucket", "sliding_window", "fixed_window"])
async def test_a_limit_answers_429_with_the_wait_and_says_what_is_left(world: World, strategy: str) -> None:
    await put(
        world, "/limits", {"limits": [{"resource": "requests", "limit": 2, "window_s": 86_400, "strategy": strategy}]}
    )
    async with world.client() as ai:
        raw = await ai.chat.completions.with_raw_response.create(model="m-ok", messages=ASK)
        assert (raw.headers["x-ratelimit-limit-requests"], raw.headers["x-ratelimit-remaining-requests"]) == ("2", "1")
        await ai.chat.completions.create(model="m-ok", messages=ASK)
        for _ in range(3):  # the first is the tenant's no, the others may be this replica's
            with pytest.raises(openai.RateLimitError) as refusal:
                await ai.chat.completions.create(model="m-ok", messages=ASK)
            assert refusal.value.code == "rate_limit_exceeded"
            assert 0 < int(refusal.value.response.headers["retry-after"]) <= 86_400 * 1.05 + 1
    assert len(world.upstream.ledger.requests) == 2
    await put(world, "/limits", {"limits": []})


async def test_concurrent_calls_over_the_limit_wait(world: World) -> None:
    await put(world, f"/keys/{world.key_id}/limits", {"limits": [{"resource": "concurrency", "limit": 1}]})
    async with world.client() as ai:
        stream = await ai.chat.completions.create(model="m-slow", messages=ASK, stream=True)
        await anext(stream)
        with pytest.raises(openai.RateLimitError) as refusal:
            await ai.chat.completions.create(model="m-ok", messages=ASK)
        assert refusal.value.code == "concurrency_limit_exceeded"
        world.upstream.go_on.set()
        async for _ in stream:
            pass
        await ai.chat.completions.create(model="m-ok", messages=ASK)


async def test_a_call_is_booked_at_the_price_of_its_day_and_old_events_keep_theirs(world: World) -> None:
    async with world.client() as ai:
        await ai.chat.completions.create(model="m-ok", messages=ASK)
        table = {"prices": [{"model": "m-ok", "input_usd_per_mtok": "1", "output_usd_per_mtok": "2"}]}
        assert (await put(world, "/prices", table))["version"] == 1
        position = (await world.admin.get(f"/tenants/{world.tenant}")).json()["position"]
        await ai.chat.completions.create(model="m-ok", messages=ASK)
        assert (await put(world, "/prices", {"prices": []}))["version"] == 2
        await ai.chat.completions.create(model="m-ok", messages=ASK)
    page = (await world.admin.get(f"/tenants/{world.tenant}/events")).json()["data"]
    costs = [event["data"]["cost_nano_usd"] for event in page if event["type"] == "call.settled.v1"]
    assert costs == [4 * 100 + 7 * 400, 4 * 1000 + 7 * 2000, 4 * 100 + 7 * 400]
    was = (await world.admin.get(f"/tenants/{world.tenant}/prices", params={"at": position})).json()
    assert (was["version"], len(was["prices"])) == (1, 1)


async def test_spend_is_reported_by_key_user_model_and_tag(world: World) -> None:
    await world.admin.post(f"/tenants/{world.tenant}/users", json={"user_id": "ada", "name": "Ada"})
    key = (await world.admin.post(f"/tenants/{world.tenant}/keys", json={"user_id": "ada"})).json()
    for secret, metadata in (
        (world.key, {"team": "search"}),
        (key["key"], {"team": "ads", "run": "7"}),
        (key["key"], {}),
    ):
        async with world.client(secret) as ai:
            await ai.chat.completions.create(model="m-ok", messages=ASK, metadata=metadata)
    one = Decimal(4 * 100 + 7 * 400).scaleb(-9)
    wanted = {
        "key": {world.key_id: 1, key["key_id"]: 2},
        "user": {"ada": 2},
        "model": {"m-ok": 3},
        "tag": {"team=search": 1, "team=ads": 1, "run=7": 1},
    }
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {world.key}"}, timeout=60) as http:
        for by, calls in wanted.items():
            rows = (await world.admin.get(f"/tenants/{world.tenant}/spend", params={"by": by})).json()["data"]
            assert {row["name"]: row["requests"] for row in rows} == calls
            assert {row["name"]: Decimal(row["cost_usd"]) for row in rows} == {n: c * one for n, c in calls.items()}
            own = (await http.get(f"{world.base_url}/v1/spend", params={"by": by})).json()["data"]
            assert own == rows
            past = await http.get(f"{world.base_url}/v1/spend", params={"by": by, "to": "2020-01-01"})
            assert past.json()["data"] == []
    listed = (await world.admin.get(f"/tenants/{world.tenant}/keys")).json()["data"]
    assert all(row["last_used_us"] >= row["created_us"] for row in listed)


async def test_a_call_nobody_knows_about_is_listed_and_credited_in_budget_usage_and_spend(world: World) -> None:
    await put(world, "/budget", {"limit_usd": "1", "window": "total"})
    await world.asker.ask(world.tenant, ReserveCall("lost", world.key_id, "m-ok", 700, 1), actor="test")
    await world.asker.ask(world.tenant, FireTimers(), actor="supervisor")
    url = f"/tenants/{world.tenant}/calls"
    (row,) = (await world.admin.get(f"{url}/unknown")).json()["data"]
    assert (row["call_id"], row["booked_usd"]) == ("lost", "0.0000007")
    body = {"cost_usd": "0.0000002", "reason": "provider's bill", "input_tokens": 1, "output_tokens": 2}
    once = {"idempotency-key": "credit-1"}
    answers = [(await world.admin.post(f"{url}/lost/credit", json=body, headers=once)).json() for _ in range(2)]
    assert answers[0] == answers[1]
    assert (await world.admin.post(f"{url}/lost/credit", json=body)).status_code == 404
    used = await world.usage()
    assert (used["requests"], used["unknown"], used["cost_usd"], used["output_tokens"]) == (1, 0, "0.0000002", 2)
    (spent,) = (await world.admin.get(f"/tenants/{world.tenant}/spend")).json()["data"]
    assert spent["cost_usd"] == "0.0000002"
    (budget,) = (await world.admin.get(f"/tenants/{world.tenant}/budgets")).json()["data"]
    assert budget["spent_usd"] == "0.0000002"
