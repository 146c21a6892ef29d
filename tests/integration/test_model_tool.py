"""The model adapter against a model server that keeps a ledger."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from actors.tools.adapter import ToolCall, ToolContext, ToolResult
from actors.tools.config import ModelConfig, ToolConfigBuilder
from actors.tools.errors import ToolInputError, ToolOutcomeUnknownError, ToolRefusedError, ToolUnavailableError
from actors.tools.model import Assembled, ModelTool
from tests.kit.upstream import WORDS, FakeUpstream, running_upstream

TEXT = "".join(WORDS)
PRICE = {"input_usd_per_mtok": "1", "output_usd_per_mtok": "2"}  # 1,000 and 2,000 nano-USD per token


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with running_upstream() as running:
        yield running


async def ask(base_url: str, model: str, context: ToolContext | None = None, **given: Any) -> ToolResult:
    tool = ModelTool(ToolConfigBuilder(ModelConfig, "ask").set(base_url=base_url, model=model, price=PRICE).build())
    prompt = {"messages": [{"role": "user", "content": "What is the answer?"}], **given}
    try:
        return await tool.execute(ToolCall("ask", prompt, "k"), context or ToolContext("acme", "call-1"))
    finally:
        await tool.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_whole_and_costs_what_the_servers_ledger_says(upstream: FakeUpstream, stream: bool) -> None:
    deltas: list[dict[str, Any]] = []
    result = await ask(upstream.base_url, "ok", ToolContext("acme", "c", on_delta=deltas.append), stream=stream)
    (choice,) = result.output["choices"]
    assert choice["message"]["content"] == TEXT
    assert choice["finish_reason"] == "stop"
    assert result.output["usage"] == {"prompt_tokens": 4, "completion_tokens": 7, "source": "measured"}
    assert result.cost_nano_usd == upstream.ledger.input_tokens * 1_000 + upstream.ledger.output_tokens * 2_000
    assert bool(deltas) == stream


async def test_a_stream_that_breaks_costs_what_had_come(upstream: FakeUpstream) -> None:
    with pytest.raises(ToolOutcomeUnknownError) as failure:
        await ask(upstream.base_url, "broken", stream=True)
    assert failure.value.cost_nano_usd >= 2 * 2_000
    assert not failure.value.retryable  # a repeat would be paid again


@pytest.mark.parametrize(
    ("model", "kind", "code"),
    [
        ("error-400", ToolRefusedError, "invalid_request"),
        ("error-429", ToolUnavailableError, "upstream_overloaded"),
        ("error-500", ToolUnavailableError, "upstream_error"),
        ("error-401", ToolUnavailableError, "upstream_error"),
    ],
)
async def test_errors_say_who_can_do_something(
    upstream: FakeUpstream, model: str, kind: type[Exception], code: str
) -> None:
    with pytest.raises(kind) as failure:
        await ask(upstream.base_url, model)
    assert failure.value.code == code  # type: ignore[attr-defined]


async def test_a_server_that_is_not_there_was_not_paid() -> None:
    with pytest.raises(ToolUnavailableError) as failure:
        await ask("http://127.0.0.1:1/v1", "ok")
    assert failure.value.cost_nano_usd == 0


@pytest.mark.parametrize("body", ["{nonsense", "[1]", "data: {broken\n\n", "\x00"])
@pytest.mark.parametrize("stream", [False, True])
async def test_garbage_is_an_error_and_no_answer(body: str, stream: bool) -> None:
    async def handle(_request: web.Request) -> web.Response:
        return web.Response(text=body)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with pytest.raises(ToolOutcomeUnknownError):
        await ask(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "ok", stream=stream)
    await runner.cleanup()


async def test_a_stream_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.tools.model._ANSWER_BYTES_MAX", 100_000)

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b'data: {"choices": []}\n\n' * 100)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with pytest.raises(ToolOutcomeUnknownError):
        await ask(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "ok", stream=True)
    await runner.cleanup()


async def test_a_cancelled_call_ends_the_servers_work(upstream: FakeUpstream) -> None:
    seen = asyncio.Event()
    context = ToolContext("acme", "c", on_delta=lambda _: seen.set())
    call = asyncio.create_task(ask(upstream.base_url, "slow", context, stream=True))
    await asyncio.wait_for(seen.wait(), 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(upstream.ledger.cancelled.wait(), 10)


async def test_an_answer_is_no_longer_than_the_operator_allows(upstream: FakeUpstream) -> None:
    with pytest.raises(ToolInputError, match="max_tokens"):
        await ask(upstream.base_url, "ok", max_tokens=2_000)
    await ask(upstream.base_url, "ok")
    assert upstream.ledger.requests[0]["max_tokens"] == 1_024


def test_tool_calls_are_put_together_from_their_parts() -> None:
    assembled = Assembled()
    for call in (
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"a"'}},
        {"index": 0, "function": {"arguments": ":1}"}},
        {"index": 1, "id": "c2", "function": {"name": "put", "arguments": "{}"}},
    ):
        assembled.add({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})
    assembled.add({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    assembled.add({"choices": None})
    (choice,) = assembled.choices()
    first, second = choice["message"]["tool_calls"]
    assert first["function"] == {"name": "get", "arguments": '{"a":1}'}
    assert (second["id"], second["function"]["arguments"], choice["finish_reason"]) == ("c2", "{}", "tool_calls")
