"""Model servers' ways of saying the same: what is a stream in good order, and what their refusals tell the client."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from actors.tools.errors import RequestRefusedError, ToolOutcomeUnknownError, ToolUnavailableError
from actors.tools.model import ModelClient
from actors.tools.upstream import Upstream

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
USAGE = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}


def part(text: str = "", finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    delta = {"content": text} if text else {}
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}], **more}


def events(*chunks: dict[str, Any], end: str = "data: [DONE]\n\n", **style: str) -> bytes:
    prefix, line_end = style.get("prefix", ""), style.get("line_end", "\n")
    text = "".join(f"{prefix}data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks) + end
    return text.replace("\n", line_end).encode()


@asynccontextmanager
async def answering(status: int, body: bytes, *, pieces_bytes: int = 1 << 20) -> AsyncIterator[Upstream]:
    """A server that says the same to everybody."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for start in range(0, len(body), pieces_bytes):
            await response.write(body[start : start + pieces_bytes])
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield Upstream(base_url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1", model="m")
    await runner.cleanup()


async def streamed(upstream: Upstream, **fields: Any) -> list[dict[str, Any]]:
    client = ModelClient(timeout_s=10)
    try:
        return [chunk async for chunk in client.stream(upstream, {**BODY, **fields})]
    finally:
        await client.close()


@pytest.mark.parametrize(
    ("count", "body"),
    [
        (1, events(part("ü "), part("東京", error=None), part("", "stop"), USAGE)),
        (1, events(part("ü "), part("東京"), part("", "stop"), USAGE, end="data: [DONE]")),
        (1, events(part("ü "), part("東京"), part("", "stop"), USAGE, end="")),
        (1, events(part("ü "), part("東京", "length"), end="")),
        (1, events(part("ü "), part("東京"), part("", "stop"), prefix=": keep-alive\n\nevent: message\nid: 7\n")),
        (1, events(part("ü "), part("東京"), part("", "stop"), line_end="\r\n")),
        (2, events(part("ü "), part("東京"), part("", "stop"), part("", "stop", 1), USAGE, end="")),
    ],
    ids=["error: null", "no last line end", "no [DONE]", "no end of its own", "comments", "CRLF", "two choices"],
)
@pytest.mark.parametrize("pieces_bytes", [3, 1 << 20])
async def test_a_stream_in_good_order_is_read_to_its_end(count: int, body: bytes, pieces_bytes: int) -> None:
    async with answering(200, body, pieces_bytes=pieces_bytes) as upstream:
        chunks = await streamed(upstream, n=count)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == "ü 東京"


@pytest.mark.parametrize(
    ("count", "body"),
    [
        (1, events(part("ü "), end="")),
        (2, events(part("ü "), part("", "stop"), end="")),
        (1, events(part("ü "), end='data: {"choices": [{"index": 0')),
        (1, events(part("ü "), {"error": {"message": "no"}}, part("", "stop"))),
    ],
    ids=["in the middle", "one of two choices", "half an event", "an error"],
)
async def test_a_stream_that_just_ends_is_broken(count: int, body: bytes) -> None:
    async with answering(200, body) as upstream:
        with pytest.raises(ToolOutcomeUnknownError):
            await streamed(upstream, n=count)


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_refusal_says_the_servers_own_status_code_and_field(status: int) -> None:
    """Clients react to ``context_length_exceeded``; a code that is no word is not told."""
    error = {"message": "too long", "type": "x", "code": "context_length_exceeded", "param": "messages[0].content"}
    for told, code, param in ((error, "context_length_exceeded", "messages[0].content"), ({"code": "a b"}, "", "")):
        async with answering(status, json.dumps({"error": told}).encode()) as upstream:
            with pytest.raises(RequestRefusedError) as refusal:
                await streamed(upstream)
        assert (refusal.value.status, refusal.value.said_code, refusal.value.param) == (status, code, param)


async def test_a_server_that_does_not_know_its_model_is_the_operators_to_mend() -> None:
    """What can't be found was named by the models file, so another upstream may do better."""
    async with answering(404, b'{"error": {"message": "no such model"}}') as upstream:
        with pytest.raises(ToolUnavailableError):
            await streamed(upstream)
