"""OpenAI-compatible model servers: one client, which the gateway and the model tool share, and the tool itself."""

import logging
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any, ClassVar

import aiohttp
import msgspec
from pydantic import BaseModel, Field, PositiveInt

from actors.tools.adapter import ToolAdapter, ToolCall, ToolContext, ToolResult
from actors.tools.config import ModelConfig
from actors.tools.errors import (
    RequestRefusedError,
    ToolError,
    ToolInputError,
    ToolOutcomeUnknownError,
    ToolUnavailableError,
)
from actors.tools.observer import UNOBSERVED, ObservedRequest, RequestObserver
from actors.tools.transfer import read_capped, retry_after_s
from actors.tools.upstream import CHAT, EMBEDDINGS, Upstream
from actors.tools.usage_meter import UsageMeter

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
UNAVAILABLE, OVERLOADED, BAD_ANSWER = "upstream_unavailable", "upstream_overloaded", "upstream_error"
_CONTENT_OF = {CHAT: "choices", EMBEDDINGS: "data"}  # what a whole answer has at least
_NO_STREAM = ("text/html", "application/json")
_RETRY_AFTER_S = 2.0
_ANSWER_BYTES_MAX = 32 * 1024 * 1024
_ERROR_BYTES_MAX = 64 * 1024
_SSE_EVENT_BYTES_MAX = 4 * 1024 * 1024
_CALLERS_FAULT = (400, 413, 422)
_WORD = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")


class _Reason(Exception):
    """Why an answer is none, in our words."""


def _away(upstream: Upstream, error: Exception) -> ToolError:
    """It was never reached. Tenants are told which model is concerned; where its server is, is for the operator's log."""
    _log_failure(upstream, error)
    message = (
        f"the server of model {upstream.model!r} can't be reached. Nothing was charged; "
        "try again, or tell your operator to check `upstreams` in the models file"
    )
    return ToolUnavailableError(upstream.model, message, UNAVAILABLE, _RETRY_AFTER_S)


def _broke_off(upstream: Upstream, error: Exception) -> ToolError:
    """It had the request, so it may bill for it."""
    _log_failure(upstream, error)
    message = f"the server of model {upstream.model!r} broke off"
    return ToolOutcomeUnknownError(upstream.model, message, UNAVAILABLE, _RETRY_AFTER_S)


def _log_failure(upstream: Upstream, error: Exception) -> None:
    # what another's error says may quote what was sent
    reason = str(error) if isinstance(error, OSError | _Reason) and str(error) else type(error).__name__
    log.warning("upstream.failed base_url=%s model=%s: %s", upstream.base_url, upstream.model, reason)


def _refused(upstream: Upstream, status: int, body: bytes, wait_s: float | None) -> ToolError:
    """An error answer of the upstream: the caller's fault stays the caller's, the rest is a dependency's. So is a 404: what
    can't be found there, the path or the model, was named by the models file.
    """
    if status in _CALLERS_FAULT:
        message = _message_of(body) or f"HTTP {status}"
        return RequestRefusedError(upstream.model, message, status, _word_of(body, "code"), _word_of(body, "param"))
    code = OVERLOADED if status in (429, 503) else BAD_ANSWER
    log.warning("upstream.refused base_url=%s status=%s code=%s", upstream.base_url, status, _code_of(body))
    text = f"the server of model {upstream.model!r} answered HTTP {status}"
    return ToolUnavailableError(upstream.model, text, code, wait_s or _RETRY_AFTER_S)


def _code_of(body: bytes) -> str:
    """The error's code or type, as far as it is a word: for the log, where a message that quotes the prompt must not be."""
    return _word_of(body, "code") or _word_of(body, "type")


def _word_of(body: bytes, field: str) -> str:
    """A field of the error, where it is a word."""
    try:
        word = msgspec.json.decode(body)["error"].get(field)
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
        return ""
    return str(word) if word is not None and _WORD.fullmatch(str(word)) else ""


def _message_of(body: bytes) -> str:
    try:
        error = msgspec.json.decode(body).get("error")
        return str(error.get("message") if isinstance(error, dict) else error or "")[:500]
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError):
        return body[:200].decode(errors="replace")


class ModelClient:
    """One HTTP session for all model servers. ``close`` when done. Leaving a call closes its connection.

    Both calls raise RequestRefusedError (the request), ToolUnavailableError (surely not billed) or ToolOutcomeUnknownError
    (may be billed).
    """

    def __init__(self, timeout_s: float | None, observer: RequestObserver = UNOBSERVED) -> None:
        self._observer = observer
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S),
            connector=aiohttp.TCPConnector(limit=0),
            json_serialize=lambda value: msgspec.json.encode(value).decode(),
            auto_decompress=True,
        )

    async def close(self) -> None:
        await self._session.close()

    @asynccontextmanager
    async def _observed(
        self, upstream: Upstream, body: dict[str, Any], path: str = CHAT, idempotency_key: str = ""
    ) -> AsyncIterator[tuple[ObservedRequest, aiohttp.ClientResponse]]:
        request, problem = self._observer.begin(upstream, body), None
        try:
            async with self._post(upstream, body, path, request.traceparent, idempotency_key) as response:
                yield request, response
        except BaseException as error:
            problem = error
            raise
        finally:
            request.ended(problem)

    @asynccontextmanager
    async def _post(
        self, upstream: Upstream, body: dict[str, Any], path: str, traceparent: str, idempotency_key: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"content-type": "application/json"}
        if traceparent:
            headers["traceparent"] = traceparent
        if idempotency_key:
            headers["idempotency-key"] = idempotency_key
        if upstream.api_key_env:
            headers["authorization"] = f"Bearer {os.environ.get(upstream.api_key_env, '')}"
        data = msgspec.json.encode({**body, "model": upstream.model})
        try:
            async with self._session.post(
                f"{upstream.base_url}/{path}", data=data, headers=headers, allow_redirects=False
            ) as response:
                if response.status != 200:
                    text = await read_capped(response, _ERROR_BYTES_MAX) or b""
                    raise _refused(upstream, response.status, text, retry_after_s(response))
                yield response
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _away(upstream, error) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _broke_off(upstream, error) from error

    async def complete(
        self, upstream: Upstream, body: dict[str, Any], path: str = CHAT, *, idempotency_key: str = ""
    ) -> dict[str, Any]:
        """The whole answer: a completion, or whatever the ``path`` gives."""
        async with self._observed(upstream, body, path, idempotency_key) as (request, response):
            data = await read_capped(response, _ANSWER_BYTES_MAX)
            if data is None:
                raise _broke_off(upstream, _Reason("an answer larger than 32 MiB"))
            answer = _json_object(upstream, data)
            if not isinstance(answer.get(_CONTENT_OF[path]), list):
                raise _broke_off(upstream, _Reason(f"an answer without {_CONTENT_OF[path]}"))
            request.answered(answer)
            return answer

    async def stream(
        self, upstream: Upstream, body: dict[str, Any], *, idempotency_key: str = ""
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Chunks as they come. Ends where the upstream says [DONE], or closes in good order after the last finish_reason;
        raises where it ends otherwise.
        """
        async with aclosing(self.batches(upstream, body, idempotency_key=idempotency_key)) as batches:
            async for batch in batches:
                for chunk in batch:
                    yield chunk

    async def batches(
        self, upstream: Upstream, body: dict[str, Any], *, idempotency_key: str = ""
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """As ``stream``: all chunks that have come together, at once, so that who passes them on can do so, too."""
        async with self._observed(upstream, body, idempotency_key=idempotency_key) as (request, response):
            if response.content_type in _NO_STREAM:
                raise _broke_off(upstream, _Reason(f"{response.content_type} in place of a stream"))
            buffer, size, lately = b"", 0, list[dict[str, Any]]()
            count = body.get("n") or 1
            async for data in response.content.iter_any():
                size += len(data)
                if size > _ANSWER_BYTES_MAX:
                    raise _broke_off(upstream, _Reason("a stream larger than 32 MiB"))
                buffer = (buffer + data).replace(b"\r\n", b"\n")
                *events, buffer = buffer.split(b"\n\n")
                if len(buffer) > _SSE_EVENT_BYTES_MAX:
                    raise _broke_off(upstream, _Reason("an event larger than 4 MiB"))
                batch, problem, is_over = _chunks(upstream, events)
                for chunk in batch:
                    request.answered(chunk)
                if batch:
                    yield batch
                    lately = [*lately, *batch][-count - 1 :]  # an end per choice, then perhaps the usage
                if problem is not None:
                    raise problem
                if is_over:
                    return
            if _payload(buffer) != b"[DONE]" and _finished(lately) < count:
                raise _broke_off(upstream, _Reason("the stream ended in the middle"))


def _finished(chunks: Iterable[dict[str, Any]]) -> int:
    """How many choices end in these chunks."""
    parts = [part for chunk in chunks if isinstance(parts := chunk.get("choices"), list) for part in parts]
    return len({part.get("index", 0) for part in parts if isinstance(part, dict) and part.get("finish_reason")})


def _chunks(upstream: Upstream, events: Iterable[bytes]) -> tuple[list[dict[str, Any]], ToolError | None, bool]:
    """The chunks of these events; the error that came instead of one, after them; whether the stream says it is over."""
    found: list[dict[str, Any]] = []
    for event in events:
        payload = _payload(event)
        if payload == b"[DONE]":
            return found, None, True
        if payload:
            try:
                found.append(_chunk(upstream, payload))
            except ToolError as error:
                return found, error, False
    return found, None, False


def _payload(event: bytes) -> bytes:
    if event.startswith(b"data:") and b"\n" not in event:
        return event[5:].strip()
    lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)


def _chunk(upstream: Upstream, payload: bytes) -> dict[str, Any]:
    chunk = _json_object(upstream, payload)
    if chunk.get("error") is not None:  # some have the field in every chunk
        raise _broke_off(upstream, _Reason(f"an error in its stream, code {_code_of(payload)!r}"))
    return chunk


def _json_object(upstream: Upstream, data: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _broke_off(upstream, error) from error
    if not isinstance(value, dict):
        raise _broke_off(upstream, _Reason("its answer is not a JSON object"))
    return value


class Prompt(BaseModel, extra="forbid", frozen=True):
    """``stream``: the caller gets deltas; the result is the whole completion in any case."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_tokens: PositiveInt | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    stream: bool = False


class ModelTool(ToolAdapter[ModelConfig]):
    """Its cost is that of the tokens: as reported, or, where a stream broke before it said so, of what had come."""

    config_type: ClassVar[Any] = ModelConfig
    input_type: ClassVar[Any] = Prompt

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self._client: ModelClient | None = None

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    def check(self, call: ToolCall) -> None:
        wanted = self.parse(Prompt, call).max_tokens or 0
        if wanted > self.config.max_output_tokens:
            message = f"max_tokens {wanted} is more than {call.tool!r} writes ({self.config.max_output_tokens})"
            raise ToolInputError(call.tool, message)

    async def _execute_tool(self, call: ToolCall, context: ToolContext) -> ToolResult:
        prompt = self.parse(Prompt, call)
        body = prompt.model_dump(exclude_none=True)
        body["max_tokens"] = prompt.max_tokens or self.config.max_output_tokens
        meter = UsageMeter(len(msgspec.json.encode(prompt.messages)))
        try:
            answer = await (self._stream(body, context, meter) if prompt.stream else self._complete(body, meter))
        except ToolError as error:
            if meter.has_begun:
                error.cost_nano_usd = self._cost(meter)
            raise
        used = meter.tokens()
        usage = {"prompt_tokens": used.input_tokens, "completion_tokens": used.output_tokens, "source": used.source}
        return ToolResult({**answer, "model": self.config.model, "usage": usage}, self._cost(meter))

    async def _complete(self, body: dict[str, Any], meter: UsageMeter) -> dict[str, Any]:
        answer = await self._open_client().complete(self.config.upstream, body)
        meter.see(answer)
        return {"choices": answer.get("choices", [])}

    async def _stream(self, body: dict[str, Any], context: ToolContext, meter: UsageMeter) -> dict[str, Any]:
        assembled = Assembled()
        streamed = {**body, "stream_options": {"include_usage": True}}
        async with aclosing(self._open_client().stream(self.config.upstream, streamed)) as chunks:
            async for chunk in chunks:
                meter.see(chunk)
                assembled.add(chunk)
                if context.on_delta is not None:
                    context.on_delta(chunk)
        return {"choices": assembled.choices()}

    def _cost(self, meter: UsageMeter) -> int:
        used = meter.tokens()
        return self.config.price.cost_nano_usd(used.input_tokens, used.output_tokens)

    def _open_client(self) -> ModelClient:
        if self._client is None:
            self._client = ModelClient(timeout_s=None)
        return self._client


class Assembled:
    """A completion out of the chunks of its stream: texts are joined, tool calls filled in by their index."""

    def __init__(self) -> None:
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: dict[str, Any]) -> None:
        choices = chunk.get("choices")
        for part in choices if isinstance(choices, list) else ():
            if not isinstance(part, dict):
                continue
            index = part.get("index", 0)
            choice = self._choices.setdefault(index, {"index": index, "message": {"role": "assistant"}})
            if isinstance(delta := part.get("delta"), dict):
                _merge(choice["message"], delta)
            if isinstance(logprobs := part.get("logprobs"), dict):
                _join(choice.setdefault("logprobs", {}), logprobs)
            if part.get("finish_reason"):
                choice["finish_reason"] = part["finish_reason"]

    def choices(self) -> list[dict[str, Any]]:
        return [self._choices[index] for index in sorted(self._choices)]


def _join(lists: dict[str, Any], more: dict[str, Any]) -> None:
    for name, values in more.items():
        known = lists.get(name)
        lists[name] = [*known, *values] if isinstance(known, list) and isinstance(values, list) else values or known


def _merge(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        known = message.get(name)
        if isinstance(value, str) and isinstance(known, str) and name not in ("role", "id", "type"):
            message[name] = known + value
        elif isinstance(value, dict) and isinstance(known, dict):
            _merge(known, value)
        elif isinstance(value, list):
            _merge_items(message.setdefault(name, []), value)
        elif value is not None:
            message[name] = value


def _merge_items(items: list[dict[str, Any]], deltas: list[Any]) -> None:
    for delta in deltas:
        if not isinstance(delta, dict):
            continue
        known = next((item for item in items if item.get("index") == delta.get("index")), None)
        if known is None:
            items.append(dict(delta))
        else:
            _merge(known, delta)
