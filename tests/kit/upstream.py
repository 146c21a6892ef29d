"""A model server that does as it is told and keeps a ledger of its own."""

import asyncio
import base64
import json
import re
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

FLOOD_BYTES = 64 * 1024 * 1024
WORDS = ["The", " answer", " is", " forty", "-", "two", "."]


@dataclass
class Ledger:
    """What the upstream saw and billed, to compare with what the platform booked."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    input_tokens: int = 0
    output_tokens: int = 0
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    flooded_bytes: int = 0
    flood_held: asyncio.Event = field(default_factory=asyncio.Event)
    flood_taken: asyncio.Event = field(default_factory=asyncio.Event)
    by_key: dict[str, dict[str, Any]] = field(default_factory=dict)  # Idempotency-Key -> the message answered to it


class FakeUpstream:
    """Behaviour is chosen by the name of the model asked for: ok, slow, broken, error-500, error-400, no-usage, hang, echo, flood;
    busy (429 with Retry-After), cut (nothing comes back), html and json-error (200 and nonsense), error-event (an error as
    the stream's first event), late-error (one after two words). What is ``down`` answers 500, whatever it is called.
    ``scripted`` says what ``script`` has next, and the same again, unbilled, to a repeated Idempotency-Key.
    """

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.go_on = asyncio.Event()  # "slow" sends two words, then waits for this
        self.script: deque[dict[str, Any]] = deque()  # messages of an assistant
        self.base_url = ""
        self.down: set[str] = set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.ledger.requests.append(body)
        self.ledger.headers.append({name.lower(): value for name, value in request.headers.items()})
        model = body["model"]
        if model in self.down:
            return web.json_response({"error": "down"}, status=500)
        if (nonsense := self._nonsense(request, model)) is not None:
            return nonsense
        if model.startswith("error-") and model != "error-event":
            status = int(model.removeprefix("error-"))
            # as some do, it quotes what it was asked, and its key
            quoted = f"{(body.get('messages') or [{}])[-1].get('content')} {request.headers.get('authorization')}"
            error = {"message": f"told to answer {status} to {quoted}", "code": "told"}
            return web.json_response({"error": error}, status=status)
        if "input" in body:
            return web.json_response(self._vectors(body))
        if model == "hang":
            await self._until_cancelled(asyncio.Event().wait())
        if model == "flood":
            return await self._flood(request)
        if model == "scripted":
            return await self._scripted(request, body)
        if body.get("stream"):
            return await self._stream(request, body)
        return web.json_response(self._whole(body))

    @staticmethod
    def _nonsense(request: web.Request, model: str) -> web.StreamResponse | None:
        match model:
            case "busy":
                return web.json_response({"error": "busy"}, status=429, headers={"retry-after": "17"})
            case "cut":
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            case "html":
                return web.Response(text="<html>502 Bad Gateway</html>", content_type="text/html")
            case "json-error":
                return web.json_response({"error": {"message": "told to say so"}})
            case _:
                return None

    def _vectors(self, body: dict[str, Any]) -> dict[str, Any]:
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        tokens = sum(len(str(text).split()) for text in texts)
        self.ledger.input_tokens += tokens
        vector: Any = [0.25, 0.5]
        if body.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack("<2f", *vector)).decode()
        data = [{"object": "embedding", "index": n, "embedding": vector} for n in range(len(texts))]
        whole = {"object": "list", "data": data, "model": body["model"]}
        return (
            whole
            if body["model"] == "no-usage"
            else {**whole, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
        )

    async def _flood(self, request: web.Request) -> web.StreamResponse:
        """A stream that is sent as fast as it is taken, until it is cut or ``FLOOD_BYTES`` have been taken."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        choice = {"index": 0, "delta": {"content": "x" * 65_000}, "finish_reason": None}
        chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "flood"}
        event = f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n".encode()
        while self.ledger.flooded_bytes < FLOOD_BYTES:
            try:
                await asyncio.wait_for(response.write(event), 1.0)
            except TimeoutError:  # nobody takes any more: what is between us and the reader is full
                self.ledger.flood_held.set()
                await asyncio.Event().wait()
            self.ledger.flooded_bytes += len(event)
        self.ledger.flood_taken.set()
        return response

    async def _until_cancelled(self, waiting: Any) -> None:
        try:
            await waiting
        except asyncio.CancelledError:
            self.ledger.cancelled.set()
            raise

    async def _scripted(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        """As a stream: text by words, arguments of tools in two pieces."""
        key = request.headers.get("idempotency-key", "")
        message = self.ledger.by_key.get(key)
        if message is None:
            message = self.ledger.by_key[key] = self.script.popleft()
            self._bill(body)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for delta in _deltas_of(message):
            chunk: dict[str, Any] = {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        usage = self._usage(body)
        closing: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        ending: list[dict[str, Any]] = [closing, {"choices": [], "usage": usage}]
        for chunk in ending:
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    def _bill(self, body: dict[str, Any]) -> dict[str, int]:
        usage = self._usage(body)
        self.ledger.input_tokens += usage["prompt_tokens"]
        self.ledger.output_tokens += usage["completion_tokens"]
        return usage

    @staticmethod
    def _usage(body: dict[str, Any]) -> dict[str, int]:
        prompt = sum(len(str(message.get("content", "")).split()) for message in body["messages"])
        answer = min(len(WORDS), body["max_tokens"])
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    def _whole(self, body: dict[str, Any]) -> dict[str, Any]:
        usage = self._bill(body)
        text = "".join(WORDS[: usage["completion_tokens"]])
        if body["model"] == "echo":
            text = body["messages"][-1]["content"]
        message = {"role": "assistant", "content": text}
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

        if body["model"] == "error-event":
            await response.write(b'data: {"error": {"message": "told to say so"}}\n\n')
            return response
        for number, word in enumerate(WORDS[: usage["completion_tokens"]]):
            await send([{"index": 0, "delta": {"content": word}, "finish_reason": None}])
            if number == 1 and body["model"] == "broken":
                assert request.transport is not None
                request.transport.abort()
                return response
            if number == 1 and body["model"] == "late-error":
                await response.write(b'data: {"error": {"message": "told to say so"}}\n\n')
                return response
            if number == 1 and body["model"] == "slow":
                await self._until_cancelled(self.go_on.wait())
        await send([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        if body["model"] != "no-usage" and body.get("stream_options", {}).get("include_usage"):
            await send([], usage=usage)
        await response.write(b"data: [DONE]\n\n")
        return response


def asks(name: str, **arguments: Any) -> dict[str, Any]:
    """A message that calls a tool."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"tool_calls": [{"index": 0, "id": f"call-{name}", "type": "function", "function": function}]}


def _deltas_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = [{"role": "assistant"}]
    deltas += [{"content": piece} for piece in re.findall(r"\s*\S+", str(message.get("content") or ""))]
    for call in message.get("tool_calls", ()):
        function, half = call["function"], len(call["function"]["arguments"]) // 2
        first, second = function["arguments"][:half], function["arguments"][half:]
        deltas.append({"tool_calls": [{**call, "function": {**function, "arguments": first}}]})
        deltas.append({"tool_calls": [{"index": call["index"], "function": {"arguments": second}}]})
    return deltas


@asynccontextmanager
async def running_upstream() -> AsyncIterator[FakeUpstream]:
    upstream = FakeUpstream()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", upstream.handle)
    app.router.add_post("/v1/embeddings", upstream.handle)
    # cancel the handler when the client leaves, as model servers do
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    upstream.base_url = f"http://{host}:{port}/v1"
    yield upstream
    await runner.cleanup()
