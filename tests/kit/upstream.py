"""A model server that does as it is told and keeps a ledger of its own."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

WORDS = ["The", " answer", " is", " forty", "-", "two", "."]


@dataclass
class Ledger:
    """What the upstream saw and billed, to compare with what the platform booked."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    input_tokens: int = 0
    output_tokens: int = 0
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)


class FakeUpstream:
    """Behaviour is chosen by the name of the model asked for: ok, slow, broken, error-500, error-400, no-usage, hang."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.go_on = asyncio.Event()  # "slow" sends two words, then waits for this
        self.base_url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.ledger.requests.append(body)
        self.ledger.headers.append({name.lower(): value for name, value in request.headers.items()})
        model = body["model"]
        if model.startswith("error-"):
            status = int(model.removeprefix("error-"))
            # as some do, it quotes what it was asked, and its key
            quoted = f"{body['messages'][-1]['content']} {request.headers.get('authorization')}"
            error = {"message": f"told to answer {status} to {quoted}", "code": "told"}
            return web.json_response({"error": error}, status=status)
        if model == "hang":
            await self._until_cancelled(asyncio.Event().wait())
        if body.get("stream"):
            return await self._stream(request, body)
        return web.json_response(self._whole(body))

    async def _until_cancelled(self, waiting: Any) -> None:
        try:
            await waiting
        except asyncio.CancelledError:
            self.ledger.cancelled.set()
            raise

    def _bill(self, body: dict[str, Any]) -> dict[str, int]:
        prompt = sum(len(str(message.get("content", "")).split()) for message in body["messages"])
        answer = min(len(WORDS), body["max_tokens"])
        self.ledger.input_tokens += prompt
        self.ledger.output_tokens += answer
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    def _whole(self, body: dict[str, Any]) -> dict[str, Any]:
        usage = self._bill(body)
        message = {"role": "assistant", "content": "".join(WORDS[: usage["completion_tokens"]])}
        whole = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }
        return whole if body["model"] == "no-usage" else {**whole, "usage": usage}

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        usage = self._bill(body)

        async def send(choices: list[dict[str, Any]], **more: Any) -> None:
            chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
            await response.write(f"data: {json.dumps({**chunk, 'choices': choices, **more})}\n\n".encode())

        for number, word in enumerate(WORDS[: usage["completion_tokens"]]):
            await send([{"index": 0, "delta": {"content": word}, "finish_reason": None}])
            if number == 1 and body["model"] == "broken":
                assert request.transport is not None
                request.transport.abort()
                return response
            if number == 1 and body["model"] == "slow":
                await self._until_cancelled(self.go_on.wait())
        await send([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        if body["model"] != "no-usage" and body.get("stream_options", {}).get("include_usage"):
            await send([], usage=usage)
        await response.write(b"data: [DONE]\n\n")
        return response


@asynccontextmanager
async def running_upstream() -> AsyncIterator[FakeUpstream]:
    upstream = FakeUpstream()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", upstream.handle)
    # cancel the handler when the client leaves, as model servers do
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    upstream.base_url = f"http://{host}:{port}/v1"
    yield upstream
    await runner.cleanup()
