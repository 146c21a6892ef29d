"""The HTTP adapter against a real server that keeps what it was asked. Where a URL may lead: tests/unit/test_egress.py."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from actors.tools.adapter import ToolCall, ToolContext
from actors.tools.config import HttpConfig, ToolConfigBuilder, ToolConfigError
from actors.tools.errors import (
    ToolBrokenError,
    ToolError,
    ToolInputError,
    ToolOutcomeUnknownError,
    ToolRefusedError,
    ToolUnavailableError,
)
from actors.tools.http import HttpTool

CONTEXT = ToolContext("acme", "call-1")


@dataclass
class Server:
    base_url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    was_left: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.text()
        seen = {"method": request.method, "path": request.path_qs, "headers": dict(request.headers), "body": body}
        self.requests.append(seen)
        match request.path.removeprefix("/api"):
            case "/json":
                return web.json_response({"you": body}, headers={"etag": "1", "set-cookie": "a=b", "x-internal": "9"})
            case "/garbage":
                return web.Response(text="{nonsense", content_type="application/json")
            case "/deep":
                return web.Response(text="[" * 100_000, content_type="application/json")
            case "/binary":
                return web.Response(body=b"\xff\xfe\x00", content_type="application/octet-stream")
            case "/bomb":
                response = web.Response(body=b"0" * 50_000_000)
                response.enable_compression()
                return response
            case "/endless":
                endless = web.StreamResponse()
                await endless.prepare(request)
                try:
                    while True:
                        await endless.write(b"x" * 65_536)
                except (ConnectionError, asyncio.CancelledError):
                    self.was_left.set()
                    raise
            case "/cut":
                cut = web.StreamResponse(headers={"content-length": "1000"})
                await cut.prepare(request)
                await cut.write(b"half")
                assert request.transport is not None
                request.transport.abort()
                return cut
            case "/hang":
                self.hanging.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.was_left.set()
                    raise
            case "/moved":
                return web.Response(status=307, headers={"location": "/api/json"})
        status = int(request.path.rpartition("/")[2])
        return web.Response(status=status, headers={"retry-after": "7"} if status in (429, 503) else {})


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    serving = Server()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", serving.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    serving.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/api"
    yield serving
    await runner.cleanup()


@pytest.fixture
async def api(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HttpTool]:
    monkeypatch.setenv("API_TOKEN", "Bearer kept-secret")
    settings = {
        "base_url": server.base_url,
        "headers": {"x-app": "tenantry"},
        "headers_env": {"Authorization": "API_TOKEN"},
    }
    tool = HttpTool(ToolConfigBuilder(HttpConfig, "api").set(**settings, response_bytes_max=100_000).build())
    yield tool
    await tool.close()


async def ask(tool: HttpTool, path: str, **more: Any) -> Any:
    return (await tool.execute(ToolCall("api", {"path": path, **more}, "key-1"), CONTEXT)).output


async def test_json_goes_out_and_comes_back(api: HttpTool, server: Server) -> None:
    output = await ask(api, "/json", method="POST", json={"a": [1]}, query={"q": "x y"}, headers={"Accept": "*/*"})
    assert output == {
        "status": 200,
        "headers": {"content-type": "application/json; charset=utf-8", "etag": "1"},
        "json": {"you": '{"a":[1]}'},
    }
    (seen,) = server.requests
    assert (seen["method"], seen["path"]) == ("POST", "/api/json?q=x+y")
    sent = {name.lower(): value for name, value in seen["headers"].items()}
    assert (sent["authorization"], sent["x-app"], sent["content-type"]) == (
        "Bearer kept-secret",
        "tenantry",
        "application/json",
    )
    assert sent["idempotency-key"] == "key-1"


async def test_raw_bytes_both_ways(api: HttpTool, server: Server) -> None:
    assert (await ask(api, "/binary", method="POST", base64="aGk="))["base64"] == "//4A"
    assert server.requests[0]["body"] == "hi"
    assert (await ask(api, "/json", response="raw"))["text"] == '{"you": ""}'
    with pytest.raises(ToolInputError, match="base64"):
        await ask(api, "/json", method="POST", base64="no!")


@pytest.mark.parametrize(
    ("path", "method", "kind", "code"),
    [
        ("/404", "GET", ToolRefusedError, "http_404"),
        ("/400", "POST", ToolRefusedError, "http_400"),
        ("/429", "POST", ToolUnavailableError, "http_429"),
        ("/503", "GET", ToolUnavailableError, "http_503"),
        ("/500", "GET", ToolUnavailableError, "http_500"),
        ("/500", "POST", ToolOutcomeUnknownError, "http_500"),
        ("/garbage", "GET", ToolBrokenError, "tool_bad_answer"),
        ("/deep", "GET", ToolBrokenError, "tool_bad_answer"),
        ("/bomb", "GET", ToolBrokenError, "answer_too_large"),
        ("/endless", "GET", ToolBrokenError, "answer_too_large"),
        ("/cut", "GET", ToolUnavailableError, "tool_unavailable"),
        ("/cut", "POST", ToolOutcomeUnknownError, "tool_outcome_unknown"),
        ("/moved", "POST", ToolRefusedError, "redirected"),
    ],
)
async def test_a_failure_says_what_can_be_done_about_it(
    api: HttpTool, path: str, method: str, kind: type[Exception], code: str
) -> None:
    with pytest.raises(kind) as failure:
        await ask(api, path, method=method)
    assert failure.value.code == code  # type: ignore[attr-defined]
    if code in ("http_429", "http_503"):
        assert failure.value.retry_after_s == 7  # type: ignore[attr-defined]


async def test_a_write_that_may_have_happened_is_not_to_be_repeated(api: HttpTool) -> None:
    """Whether the other side honours an Idempotency-Key, we can't know."""
    with pytest.raises(ToolOutcomeUnknownError) as failure:
        await ask(api, "/500", method="POST")
    assert not failure.value.retryable


async def test_reads_follow_a_redirect(api: HttpTool, server: Server) -> None:
    assert (await ask(api, "/moved"))["status"] == 200
    assert [seen["path"] for seen in server.requests] == ["/api/moved", "/api/json"]


async def test_secrets_don_t_follow_a_redirect_elsewhere(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "Bearer kept-secret")

    async def away(_request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"location": f"{server.base_url}/json"})

    app = web.Application()
    app.router.add_get("/away", away)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    near, far = f"127.0.0.1:{runner.addresses[0][1]}", server.base_url.removeprefix("http://").removesuffix("/api")
    settings = {
        "allow_hosts": ["127.0.0.1"],
        "allow_private": [near, far],
        "headers_env": {"authorization": "API_TOKEN"},
    }
    tool = HttpTool(ToolConfigBuilder(HttpConfig, "api").set(**settings).build())
    await tool.execute(ToolCall("api", {"url": f"http://{near}/away"}, "k"), CONTEXT)
    assert "authorization" not in {name.lower() for name in server.requests[0]["headers"]}
    await tool.close()
    await runner.cleanup()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"path": "/../secret"}, "out of the base_url"),
        ({"path": "/%2e%2e/secret"}, "out of the base_url"),
        ({"path": "@evil.example/"}, "path"),
        ({"url": "http://example.com/"}, "takes a path"),
        ({"path": "/json", "url": "http://example.com/"}, "either url or path"),
        ({"path": "/json", "headers": {"Host": "evil.example"}}, "can't be set"),
        ({"path": "/json", "headers": {"Authorization": "mine"}}, "can't be set"),
        ({"path": "/json", "headers": {"X-Forwarded-For": "127.0.0.1"}}, "can't be set"),
        ({"path": "/json", "headers": {"accept": "a\r\nX-Evil: 1"}}, "headers"),
        ({"path": "/json", "method": "CONNECT"}, "method"),
        ({"path": "/json", "method": "POST", "text": "x", "json": {}}, "one body"),
        ({"path": "/json", "method": "POST", "text": "x" * 300_000}, "at most"),
        ({"path": "/json", "proxy": "http://evil.example"}, "proxy"),
    ],
)
async def test_what_is_not_the_callers_to_choose_is_refused(
    api: HttpTool, server: Server, given: dict[str, Any], says: str
) -> None:
    with pytest.raises(ToolInputError, match=says):
        await api.execute(ToolCall("api", given, "k"), CONTEXT)
    assert server.requests == []


async def test_two_slashes_begin_a_path_below_the_base_url_and_no_other_host(api: HttpTool, server: Server) -> None:
    with pytest.raises(ToolError):
        await ask(api, "//evil.example/404")
    assert server.requests[0]["path"] == "/api//evil.example/404"


async def test_a_cancelled_call_lets_go_of_its_connection(api: HttpTool, server: Server) -> None:
    call = asyncio.create_task(ask(api, "/hang"))
    await asyncio.wait_for(server.hanging.wait(), 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(server.was_left.wait(), 10)


async def test_methods_are_the_operators_to_allow(server: Server) -> None:
    tool = HttpTool(ToolConfigBuilder(HttpConfig, "api").set(base_url=server.base_url, allow_methods=["GET"]).build())
    with pytest.raises(ToolInputError, match="makes no DELETE requests; possible: GET"):
        await ask(tool, "/json", method="DELETE")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"headers_env": {"authorization": "X"}}, "set base_url or allow_hosts"),
        ({"base_url": "ftp://x"}, "expected http"),
        ({"base_url": "http://u:p@x"}, "not the key in the URL"),
        ({"allow_headers": ["Host"]}, "can't be left to callers"),
        ({"allow_host": ["x"]}, "did you mean 'allow_hosts'"),
    ],
)
def test_a_configuration_that_can_not_work_says_why(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ToolConfigError, match=says):
        ToolConfigBuilder(HttpConfig, "api").set(**settings).build()
