"""A client that leaves ends its upstream call, at a replica's own door as at any other: by the upstream's own record. The
seconds are reported, and bounded generously: a loaded machine is no defect.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from serve.gateway import Gateway
from serve.listener import Listener
from tests.integration.test_routing import booked
from tests.kit.gateway import ASK, World


@pytest.fixture
async def own_door(world: World) -> AsyncIterator[str]:
    """The URL of the port of a replica's own."""
    gateway = Gateway()
    door = Listener(gateway, host="127.0.0.1", ports=range(0), requests_max=100)
    await door.start()
    yield door.url
    await door.close()
    await gateway.close()


@asynccontextmanager
async def calling(url: str, key: str, model: str, *, stream: bool) -> AsyncIterator[asyncio.StreamReader]:
    """A request on a connection of its own, which is hung up at the end."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    body = json.dumps({"model": model, "messages": ASK, "stream": stream}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    yield reader
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@pytest.mark.parametrize("door", ["the gateway", "its own listener"])
async def test_who_hangs_up_ends_the_upstream_call_and_pays_for_what_came(
    world: World, own_door: str, door: str
) -> None:
    url, ledger = world.base_url if door == "the gateway" else own_door, world.upstream.ledger
    for number, (model, stream) in enumerate((("m-slow", True), ("m-hang", False), ("m-hang", True)), 1):
        ledger.cancelled.clear()
        async with asyncio.timeout(60):
            async with calling(url, world.key, model, stream=stream) as reader:
                if model == "m-slow":
                    await reader.readuntil(b" answer")
                while len(ledger.requests) < number:  # noqa: ASYNC110 - the upstream's list: nothing tells of it
                    await asyncio.sleep(0.01)
            left_s = time.monotonic()
            await ledger.cancelled.wait()
        print(f"{door}, {model}, stream {stream}: {(time.monotonic() - left_s) * 1e3:.0f} ms")
        call = (await booked(world, number))[-1]
        assert call["outcome"] == "cancelled"
        assert call["usage_source"] == ("estimated" if model == "m-slow" else "unknown")
