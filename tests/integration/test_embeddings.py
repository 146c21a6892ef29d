"""Embeddings with the official client, sync and async: booked like any paid call."""

import asyncio
from decimal import Decimal

import openai
import pytest

from tests.kit.gateway import World


async def test_vectors_come_as_the_client_wants_them_and_their_tokens_are_booked(world: World) -> None:
    async with world.client() as client:
        raw = await client.embeddings.with_raw_response.create(model="m-ok", input=["two words", "three more words"])
        answer = raw.parse()
        assert [row.embedding for row in answer.data] == [[0.25, 0.5], [0.25, 0.5]]  # base64 on the wire
        assert (answer.model, answer.usage.prompt_tokens) == ("m-ok", 5)
        assert Decimal(raw.headers["x-tenantry-cost-usd"]) == Decimal("0.10") * 5 / 1_000_000
        plain = await client.embeddings.create(model="m-ok", input=[1, 2, 3], encoding_format="float", dimensions=2)
        assert plain.data[0].embedding == [0.25, 0.5]
        assert world.upstream.ledger.requests[-1]["dimensions"] == 2
    used = await world.usage(min_position=raw.headers["x-tenantry-position"])
    assert used["input_tokens"] == world.upstream.ledger.input_tokens
    assert used["output_tokens"] == 0


async def test_the_sync_client_works_as_well(world: World) -> None:
    def ask() -> tuple[list[float], str | None, list[str]]:
        with openai.OpenAI(base_url=f"{world.base_url}/v1", api_key=world.key, max_retries=0) as client:
            vector = client.embeddings.create(model="m-ok", input="hi").data[0].embedding
            text = client.chat.completions.create(model="m-ok", messages=[{"role": "user", "content": "hi"}])
            stream = client.chat.completions.create(
                model="m-ok", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            words = [chunk.choices[0].delta.content or "" for chunk in stream]
            return vector, text.choices[0].message.content, words

    vector, text, words = await asyncio.to_thread(ask)
    assert vector == [0.25, 0.5]
    assert text == "".join(words) == "The answer is forty-two."


async def test_without_usage_they_are_estimated_and_without_budget_refused(world: World) -> None:
    async with world.client() as client:
        answer = await client.embeddings.create(model="m-no-usage", input="some words")
        assert answer.usage.prompt_tokens > 0
        booked = await world.settled()
        assert (booked["usage_source"], booked["input_tokens"]) == ("estimated", answer.usage.prompt_tokens)
        for model, status in (("m-error-500", 503), ("m-html", 503), ("nobody", 404)):
            with pytest.raises(openai.APIStatusError) as failure:
                await client.embeddings.create(model=model, input="x")
            assert failure.value.status_code == status
        await world.admin.put(f"/tenants/{world.tenant}/budget", json={"limit_usd": "0", "window": "day"})
        with pytest.raises(openai.APIStatusError) as refusal:
            await client.embeddings.create(model="m-ok", input="x")
        assert refusal.value.status_code == 402
