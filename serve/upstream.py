"""Calls to OpenAI-compatible model servers."""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from serve.http_errors import HttpError
from serve.settings import Model, Upstream

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
_ANSWER_BYTES_MAX = 32 * 1024 * 1024
_SSE_EVENT_BYTES_MAX = 4 * 1024 * 1024


class UpstreamError(HttpError):
    """``may_have_cost``: the upstream had the request when it failed, so it may bill for it."""

    def __init__(self, status: int, code: str, message: str, *, may_have_cost: bool, **options: Any) -> None:
        super().__init__(status, code, message, should_retry=options.pop("should_retry", not may_have_cost), **options)
        self.may_have_cost = may_have_cost


def _away(upstream: Upstream, error: Exception, *, may_have_cost: bool) -> UpstreamError:
    """Tenants are told which model is concerned; where its server is, is for the operator's log."""
    reason = str(error) or type(error).__name__
    log.warning("upstream.failed base_url=%s model=%s: %s", upstream.base_url, upstream.model, reason)
    return UpstreamError(
        503,
        "upstream_unavailable",
        f"the server of model {upstream.model!r} can't be reached. Nothing was charged; "
        "try again, or tell your operator to check `upstreams` in the models file"
        if not may_have_cost
        else f"the server of model {upstream.model!r} broke off",
        may_have_cost=may_have_cost,
        retry_after_s=2.0,
    )


def _refused(upstream: Upstream, status: int, body: bytes, retry_after: str | None) -> UpstreamError:
    """An error answer of the upstream: the caller's fault stays the caller's, the rest is a dependency's."""
    message = _message_of(body) or f"HTTP {status}"
    if status in (400, 404, 413, 422):
        return UpstreamError(400, "invalid_request", message, may_have_cost=False, should_retry=False)
    code = "upstream_overloaded" if status in (429, 503) else "upstream_error"
    wait_s = float(retry_after) if retry_after and retry_after.isdigit() else 2.0
    log.warning("upstream.refused base_url=%s status=%s: %s", upstream.base_url, status, message)
    text = f"the server of model {upstream.model!r} answered HTTP {status}"
    return UpstreamError(503, code, text, may_have_cost=False, retry_after_s=min(wait_s, 60.0))


def _message_of(body: bytes) -> str:
    try:
        error = msgspec.json.decode(body).get("error")
        return str(error.get("message") if isinstance(error, dict) else error or "")[:500]
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError):
        return body[:200].decode(errors="replace")


class Upstreams:
    """One HTTP session for all model servers. ``close`` when done."""

    def __init__(self, timeout_s: float) -> None:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S),
            connector=aiohttp.TCPConnector(limit=0),
            json_serialize=lambda value: msgspec.json.encode(value).decode(),
            auto_decompress=True,
        )

    async def close(self) -> None:
        await self._session.close()

    @asynccontextmanager
    async def _post(self, model: Model, body: dict[str, Any]) -> AsyncIterator[tuple[Upstream, aiohttp.ClientResponse]]:
        upstream = model.upstreams[0]
        headers = {"content-type": "application/json"}
        if upstream.api_key_env:
            headers["authorization"] = f"Bearer {os.environ.get(upstream.api_key_env, '')}"
        data = msgspec.json.encode({**body, "model": upstream.model})
        try:
            async with self._session.post(
                f"{upstream.base_url}/chat/completions", data=data, headers=headers, allow_redirects=False
            ) as response:
                if response.status != 200:
                    text = await response.content.read(64 * 1024)
                    raise _refused(upstream, response.status, text, response.headers.get("retry-after"))
                yield upstream, response
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _away(upstream, error, may_have_cost=False) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _away(upstream, error, may_have_cost=True) from error

    async def complete(self, model: Model, body: dict[str, Any]) -> dict[str, Any]:
        """The whole completion. Raises UpstreamError."""
        async with self._post(model, body) as (upstream, response):
            data = await response.content.read(_ANSWER_BYTES_MAX)
            while not response.content.at_eof() and len(data) < _ANSWER_BYTES_MAX:
                data += await response.content.read(_ANSWER_BYTES_MAX)
            return _json_object(upstream, data)

    async def stream(self, model: Model, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Chunks as they come. Ends where the upstream says [DONE]; raises UpstreamError where it ends without."""
        async with self._post(model, body) as (upstream, response):
            buffer = b""
            async for data in response.content.iter_any():
                buffer = (buffer + data).replace(b"\r\n", b"\n")
                *events, buffer = buffer.split(b"\n\n")
                if len(buffer) > _SSE_EVENT_BYTES_MAX:
                    raise _away(upstream, ValueError("an event larger than 4 MiB"), may_have_cost=True)
                for event in events:
                    payload = _payload(event)
                    if payload == b"[DONE]":
                        return
                    if payload:
                        yield _chunk(upstream, payload)
            raise _away(upstream, ConnectionError("the stream ended in the middle"), may_have_cost=True)


def _payload(event: bytes) -> bytes:
    lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)


def _chunk(upstream: Upstream, payload: bytes) -> dict[str, Any]:
    chunk = _json_object(upstream, payload)
    if "error" in chunk:
        raise _away(upstream, RuntimeError(_message_of(payload)), may_have_cost=True)
    return chunk


def _json_object(upstream: Upstream, data: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _away(upstream, error, may_have_cost=True) from error
    if not isinstance(value, dict):
        raise _away(upstream, TypeError("its answer is not a JSON object"), may_have_cost=True)
    return value
