"""Any HTTP API as a tool: JSON or raw, to public hosts (or those the operator opens), within size and time."""

import base64
import logging
import os
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver
from pydantic import BaseModel, Field, model_validator
from yarl import URL

from actors.tools.adapter import ToolAdapter, ToolCall, ToolContext
from actors.tools.config import HttpConfig, Method
from actors.tools.egress import Egress
from actors.tools.errors import (
    ToolBrokenError,
    ToolError,
    ToolInputError,
    ToolOutcomeUnknownError,
    ToolRefusedError,
    ToolUnavailableError,
)
from actors.tools.transfer import read_capped, retry_after_s

log = logging.getLogger(__name__)

SAFE_METHODS = ("GET", "HEAD")
REDIRECTS = (301, 302, 303, 307, 308)
_CONNECT_TIMEOUT_S = 5.0
_SHOWN_HEADERS = ("content-type", "etag", "last-modified", "location", "retry-after", "x-request-id")


class HttpRequest(BaseModel, extra="forbid", frozen=True):
    """One of ``url`` and ``path`` (where there is a base_url); at most one of ``json``, ``text`` and ``base64``."""

    method: Method = "GET"
    url: Annotated[str, Field(max_length=8192)] | None = None
    path: Annotated[str, Field(max_length=8192, pattern=r"^/")] | None = None
    query: dict[str, str] = {}
    headers: dict[str, Annotated[str, Field(max_length=4096, pattern=r"^[\t\x20-\x7e\x80-\xff]*$")]] = {}
    json_body: Annotated[Any, Field(alias="json")] = None
    text: str | None = None
    base64: str | None = None
    response: Literal["auto", "json", "raw"] = "auto"

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if (self.url is None) == (self.path is None):
            raise ValueError("name either url or path")
        if sum(body is not None for body in (self.json_body, self.text, self.base64)) > 1:
            raise ValueError("a request has one body: json, text or base64")
        return self


class HttpTool(ToolAdapter[HttpConfig]):
    """Unsafe requests carry the call's ``Idempotency-Key``; whether the other side honours it, only the operator knows,
    so a call whose outcome is unknown is repeated for GET and HEAD alone.
    """

    config_type: ClassVar[Any] = HttpConfig
    input_type: ClassVar[Any] = HttpRequest

    def __init__(self, config: HttpConfig, resolver: AbstractResolver | None = None) -> None:
        super().__init__(config)
        base = URL(config.base_url) if config.base_url else None
        own = [f"{base.raw_host}:{base.port}"] if base else []  # an operator who names a base URL has opened it
        self._egress = Egress(
            config.name,
            allow_hosts=[base.raw_host or ""] if base else config.allow_hosts,
            allow_private=[*config.allow_private, *own],
            allow_ports=config.allow_ports,
            resolver=resolver,
        )
        self._session: aiohttp.ClientSession | None = None

    def check(self, call: ToolCall) -> None:
        request = self.parse(HttpRequest, call)
        self._url(request)
        self._headers(request, call)
        self._body(request)
        if request.method not in self.config.allow_methods:
            allowed = ", ".join(self.config.allow_methods)
            raise ToolInputError(call.tool, f"{call.tool!r} makes no {request.method} requests; possible: {allowed}")

    def repeats_safely(self, call: ToolCall) -> bool:
        return self.parse(HttpRequest, call).method in SAFE_METHODS

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _execute_tool(self, call: ToolCall, context: ToolContext) -> dict[str, Any]:
        request = self.parse(HttpRequest, call)
        url, headers, body = self._url(request), self._headers(request, call), self._body(request)
        for _ in range(self.config.redirects_max + 1):
            outcome = await self._send(request, url, headers, body)
            if isinstance(outcome, dict):
                return outcome
            if outcome.origin() != url.origin():
                headers = {name: headers[name] for name in ("accept",) if name in headers}
            url = outcome
        raise ToolRefusedError(call.tool, f"more than {self.config.redirects_max} redirects")

    async def _send(
        self, request: HttpRequest, url: URL, headers: Mapping[str, str], body: bytes | None
    ) -> dict[str, Any] | URL:
        """The result, or where it was redirected to."""
        session = self._open_session()
        target = self._egress.guard(url)
        is_safe = request.method in SAFE_METHODS
        try:
            async with session.request(
                request.method, url, data=body, headers=headers, allow_redirects=False
            ) as response:
                if response.status in REDIRECTS and "location" in response.headers:
                    return self._redirected(request, url, response.headers["location"])
                if error := self._error_of(response, is_safe=is_safe):
                    raise error
                return self._output(request, response, await self._read(response))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            if target.was_refused:
                raise self._egress.private(url.raw_host or "") from None
            log.warning("http_tool.unreachable tool=%s host=%s: %s", self.config.name, url.raw_host, error)
            message = f"{url.raw_host} can't be reached"
            raise ToolUnavailableError(self.config.name, message) from error
        except (aiohttp.ClientError, TimeoutError, OSError, UnicodeError) as error:
            log.warning("http_tool.broke_off tool=%s host=%s: %s", self.config.name, url.raw_host, error)
            kind = ToolUnavailableError if is_safe else ToolOutcomeUnknownError
            raise kind(self.config.name, f"{url.raw_host} broke off: {type(error).__name__}") from error

    def _redirected(self, request: HttpRequest, url: URL, location: str) -> URL:
        """The next hop, checked like the first. Only reads follow: a write that was moved is for its caller to decide."""
        if request.method not in SAFE_METHODS:
            raise ToolRefusedError(self.config.name, f"a redirect of {request.method} is not followed", "redirected")
        try:
            target = url.join(URL(location))
        except ValueError as error:
            raise ToolRefusedError(self.config.name, "redirected to what is no URL", "redirected") from error
        return self._egress.url(str(target))

    def _error_of(self, response: aiohttp.ClientResponse, *, is_safe: bool) -> ToolError | None:
        status, message = response.status, f"HTTP {response.status}"
        if status < 400:
            return None
        wait_s = retry_after_s(response)
        if status in (429, 503):
            return ToolUnavailableError(self.config.name, message, f"http_{status}", wait_s)
        if status >= 500:
            kind = ToolUnavailableError if is_safe else ToolOutcomeUnknownError
            return kind(self.config.name, message, f"http_{status}", wait_s)
        return ToolRefusedError(self.config.name, message, f"http_{status}")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        body = await read_capped(response, self.config.response_bytes_max)
        if body is None:
            message = f"an answer of more than {self.config.response_bytes_max} bytes"
            raise ToolBrokenError(self.config.name, message, "answer_too_large")
        return body

    def _output(self, request: HttpRequest, response: aiohttp.ClientResponse, body: bytes) -> dict[str, Any]:
        shown = {name: response.headers[name] for name in _SHOWN_HEADERS if name in response.headers}
        output = {"status": response.status, "headers": shown}
        is_json = response.content_type == "application/json" or response.content_type.endswith("+json")
        if request.response == "json" or (request.response == "auto" and is_json and body):
            try:
                return {**output, "json": msgspec.json.decode(body)}
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ToolBrokenError(self.config.name, "the answer is not JSON") from error
        try:
            return {**output, "text": body.decode()}
        except UnicodeDecodeError:
            return {**output, "base64": base64.b64encode(body).decode()}

    def _url(self, request: HttpRequest) -> URL:
        if request.url is not None:
            if self.config.base_url is not None:
                raise ToolInputError(self.config.name, f"{self.config.name!r} takes a path, not a URL")
            url = self._egress.url(request.url)
        else:
            url = self._below_base(request.path or "")
        return url.update_query(request.query) if request.query else url

    def _below_base(self, path: str) -> URL:
        if self.config.base_url is None:
            raise ToolInputError(self.config.name, f"{self.config.name!r} has no base_url: name a url")
        base, url = URL(self.config.base_url), self._egress.url(self.config.base_url + path)
        if url.origin() != base.origin() or not url.raw_path.startswith(base.raw_path.rstrip("/") + "/"):
            raise ToolInputError(self.config.name, f"path {path[:80]!r} leads out of the base_url")
        return url

    def _headers(self, request: HttpRequest, call: ToolCall) -> dict[str, str]:
        given = {name.lower(): value for name, value in request.headers.items()}
        for name in given:
            if name not in self.config.allow_headers:
                allowed = ", ".join(self.config.allow_headers)
                raise ToolInputError(call.tool, f"header {name[:40]!r} can't be set; possible: {allowed}")
        if request.json_body is not None:
            given.setdefault("content-type", "application/json")
        if request.method not in SAFE_METHODS:
            given["idempotency-key"] = call.idempotency_key
        secret = {name.lower(): os.environ.get(variable, "") for name, variable in self.config.headers_env.items()}
        return {**given, **{name.lower(): value for name, value in self.config.headers.items()}, **secret}

    def _body(self, request: HttpRequest) -> bytes | None:
        body: bytes | None = None
        if request.json_body is not None:
            body = msgspec.json.encode(request.json_body)
        elif request.text is not None:
            body = request.text.encode()
        elif request.base64 is not None:
            try:
                body = base64.b64decode(request.base64, validate=True)
            except ValueError as error:
                raise ToolInputError(self.config.name, "base64: not base64") from error
        if body is not None and len(body) > self.config.request_bytes_max:
            message = f"a body of {len(body)} bytes, at most {self.config.request_bytes_max} are sent"
            raise ToolInputError(self.config.name, message)
        return body

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=self._egress.connector(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"user-agent": "tenantry"},
            )
        return self._session
