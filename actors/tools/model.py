"""Calls to OpenAI-compatible model servers: one client, which the gateway and the model tool share."""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
from pydantic import BaseModel, field_validator

from actors.tools.errors import ToolError, ToolOutcomeUnknownError, ToolRefusedError, ToolUnavailableError

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
UNAVAILABLE, OVERLOADED, BAD_ANSWER = "upstream_unavailable", "upstream_overloaded", "upstream_error"
_RETRY_AFTER_S, _RETRY_AFTER_S_MAX = 2.0, 60.0
_ANSWER_BYTES_MAX = 32 * 1024 * 1024
_ERROR_BYTES_MAX = 64 * 1024
_SSE_EVENT_BYTES_MAX = 4 * 1024 * 1024


class Upstream(BaseModel, frozen=True, extra="forbid"):
    """An OpenAI-compatible server. ``api_key_env`` names the variable that holds its key."""

    base_url: str
    model: str
    api_key_env: str | None = None

    @field_validator("base_url")
    @classmethod
    def _http(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"expected http(s)://host[:port]/v1, got {value!r}")
        if "@" in parts.netloc:
            raise ValueError("name the variable that holds the upstream's key in api_key_env, not the key in the URL")
        return value.rstrip("/")


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
    reason = str(error) or type(error).__name__
    log.warning("upstream.failed base_url=%s model=%s: %s", upstream.base_url, upstream.model, reason)


def _refused(upstream: Upstream, status: int, body: bytes, retry_after: str | None) -> ToolError:
    """An error answer of the upstream: the caller's fault stays the caller's, the rest is a dependency's."""
    message = _message_of(body) or f"HTTP {status}"
    if status in (400, 404, 413, 422):
        return ToolRefusedError(upstream.model, message, "invalid_request")
    code = OVERLOADED if status in (429, 503) else BAD_ANSWER
    wait_s = float(retry_after) if retry_after and retry_after.isdigit() else _RETRY_AFTER_S
    log.warning("upstream.refused base_url=%s status=%s: %s", upstream.base_url, status, message)
    text = f"the server of model {upstream.model!r} answered HTTP {status}"
    return ToolUnavailableError(upstream.model, text, code, min(wait_s, _RETRY_AFTER_S_MAX))


def _message_of(body: bytes) -> str:
    try:
        error = msgspec.json.decode(body).get("error")
        return str(error.get("message") if isinstance(error, dict) else error or "")[:500]
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError):
        return body[:200].decode(errors="replace")


class ModelClient:
    """One HTTP session for all model servers. ``close`` when done. Leaving a call closes its connection.

    Both calls raise ToolRefusedError (the request), ToolUnavailableError (surely not billed) or ToolOutcomeUnknownError
    (may be billed).
    """

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
    async def _post(self, upstream: Upstream, body: dict[str, Any]) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"content-type": "application/json"}
        if upstream.api_key_env:
            headers["authorization"] = f"Bearer {os.environ.get(upstream.api_key_env, '')}"
        data = msgspec.json.encode({**body, "model": upstream.model})
        try:
            async with self._session.post(
                f"{upstream.base_url}/chat/completions", data=data, headers=headers, allow_redirects=False
            ) as response:
                if response.status != 200:
                    text = await response.content.read(_ERROR_BYTES_MAX)
                    raise _refused(upstream, response.status, text, response.headers.get("retry-after"))
                yield response
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _away(upstream, error) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _broke_off(upstream, error) from error

    async def complete(self, upstream: Upstream, body: dict[str, Any]) -> dict[str, Any]:
        """The whole completion."""
        async with self._post(upstream, body) as response:
            data = await response.content.read(_ANSWER_BYTES_MAX)
            while not response.content.at_eof() and len(data) < _ANSWER_BYTES_MAX:
                data += await response.content.read(_ANSWER_BYTES_MAX)
            return _json_object(upstream, data)

    async def stream(self, upstream: Upstream, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Chunks as they come. Ends where the upstream says [DONE]; raises where it ends without."""
        async with self._post(upstream, body) as response:
            buffer = b""
            async for data in response.content.iter_any():
                buffer = (buffer + data).replace(b"\r\n", b"\n")
                *events, buffer = buffer.split(b"\n\n")
                if len(buffer) > _SSE_EVENT_BYTES_MAX:
                    raise _broke_off(upstream, ValueError("an event larger than 4 MiB"))
                for event in events:
                    payload = _payload(event)
                    if payload == b"[DONE]":
                        return
                    if payload:
                        yield _chunk(upstream, payload)
            raise _broke_off(upstream, ConnectionError("the stream ended in the middle"))


def _payload(event: bytes) -> bytes:
    lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)


def _chunk(upstream: Upstream, payload: bytes) -> dict[str, Any]:
    chunk = _json_object(upstream, payload)
    if "error" in chunk:
        raise _broke_off(upstream, RuntimeError(_message_of(payload)))
    return chunk


def _json_object(upstream: Upstream, data: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _broke_off(upstream, error) from error
    if not isinstance(value, dict):
        raise _broke_off(upstream, TypeError("its answer is not a JSON object"))
    return value
