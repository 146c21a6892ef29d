"""A replica's own door: what HAProxy would do at the other one is done here."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from events.valkey_client import connect
from serve import listener
from serve.asgi import App, Receive, Scope, Send
from serve.doors import Door, Doors
from serve.listener import Listener
from tests.kit.servers import Servers


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


LARGE_BYTES = 16 * 1024 * 1024  # more than the system's own buffers hold


async def large(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % LARGE_BYTES)]})
    await send({"type": "http.response.body", "body": bytes(LARGE_BYTES)})


@asynccontextmanager
async def listening(app: App, requests_max: int = 100) -> AsyncIterator[Listener]:
    door = Listener(app, host="127.0.0.1", ports=range(0), requests_max=requests_max)
    await door.start()
    try:
        yield door
    finally:
        await door.close()


@asynccontextmanager
async def raw(door: Listener) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(door.url.rpartition(":")[2]))
    yield reader, writer
    writer.close()
    await asyncio.wait([asyncio.ensure_future(writer.wait_closed())])


async def test_it_serves_the_application() -> None:
    async with listening(hello) as door, httpx.AsyncClient(timeout=60) as client:
        for body in (b"one", b"two"):
            assert (await client.post(door.url, content=body)).content == body


async def test_a_head_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEAD_TIMEOUT_S", 0.2)
    async with listening(hello) as door, raw(door) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
        assert b"400" in await asyncio.wait_for(reader.read(), 10)


async def test_so_is_one_on_a_kept_connection_and_one_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEAD_TIMEOUT_S", 0.2)
    async with listening(hello) as door:
        async with raw(door) as (reader, writer):
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na")
            assert b"200" in await asyncio.wait_for(reader.readuntil(b"a"), 10)
            writer.write(b"GET / HTT")
            assert b"too slowly" in await asyncio.wait_for(reader.read(), 10)
        monkeypatch.setattr(listener, "HEAD_TIMEOUT_S", 60.0)
        async with raw(door) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\n" + b"X-A: " + b"b" * (listener.HEAD_BYTES_MAX + 1))
            assert b"too large" in await asyncio.wait_for(reader.read(), 10)


async def test_a_body_that_stops_coming_is_a_client_that_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "BODY_SILENCE_S", 0.2)
    seen: list[str] = []
    left = asyncio.Event()

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        while (kind := (await receive())["type"]) != "http.disconnect":
            seen.append(kind)
        left.set()

    async with listening(app) as door, raw(door) as (_, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\npart")
        await asyncio.wait_for(left.wait(), 10)
    assert seen == ["http.request"]  # the part that came


async def test_more_requests_than_it_holds_are_told_so_at_once() -> None:
    go_on, both_arrived, arrived = asyncio.Event(), asyncio.Event(), 0

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == 2:
            both_arrived.set()
        await go_on.wait()
        await hello(scope, receive, send)

    async with listening(slow, requests_max=2) as door, httpx.AsyncClient(timeout=60) as client:
        waiting = [asyncio.create_task(client.post(door.url, content=b"x")) for _ in range(2)]
        await both_arrived.wait()
        refused = await client.post(door.url, content=b"y")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "overloaded"
        assert refused.headers["retry-after"] == "1"
        go_on.set()
        assert [(await answer).status_code for answer in waiting] == [200, 200]


async def test_closing_finishes_what_runs() -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        arrived.set()
        await go_on.wait()
        await hello(scope, receive, send)

    door = Listener(slow, host="127.0.0.1", ports=range(0), requests_max=10)
    await door.start()
    async with httpx.AsyncClient(timeout=60) as client:
        answer = asyncio.create_task(client.post(door.url, content=b"last"))
        await arrived.wait()
        closing = asyncio.create_task(door.close())
        go_on.set()
        assert (await answer).content == b"last"
        await asyncio.wait_for(closing, 10)
        with pytest.raises(httpx.ConnectError):
            await client.post(door.url, content=b"late")


async def test_a_port_that_is_taken_is_passed_over_and_none_left_is_said() -> None:
    async with listening(hello) as first:
        port = int(first.url.rpartition(":")[2])
        with pytest.raises(OSError, match=f"no port of {port}-{port} is free"):
            await Listener(hello, host="127.0.0.1", ports=range(port, port + 1), requests_max=1).start()


async def test_the_list_forgets_who_left(servers: Servers) -> None:
    doors = Doors(connect(servers.valkey_url, db=1))
    try:
        await doors.announce(Door("a", "http://127.0.0.1:1"))
        await doors.announce(Door("b", "http://127.0.0.1:2"))
        assert [door.replica for door in await doors.all()] == ["a", "b"]
        await doors.withdraw("a")
        assert [door.replica for door in await doors.all()] == ["b"]
    finally:
        await doors.withdraw("b")
        await doors.close()


HEALTH = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"


async def said(app: App, data: bytes) -> tuple[bytes, bytes]:
    """Head and body of what comes back until the other side closes."""
    async with listening(app) as door, raw(door) as (reader, writer):
        writer.write(data)
        head, _, body = (await asyncio.wait_for(reader.read(), 60)).partition(b"\r\n\r\n")
        return head, body


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"FOO / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00\r\n\r\n",
    ],
    ids=["no host", "two hosts", "no method", "no chunk", "two lengths", "TLS"],
)
async def test_what_is_no_request_is_told_so_in_json(data: bytes) -> None:
    head, body = await said(hello, data)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "invalid_request"


async def test_a_client_of_http_1_0_gets_a_stream_in_one_piece() -> None:
    """It can't read chunks (RFC 9112, 7.1): nginx and ab speak it unless they are told otherwise."""

    async def streaming(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for data, more in ((b"data: 1\n\n", True), (b"data: 2\n\n", True), (b"", False)):
            await send({"type": "http.response.body", "body": data, "more_body": more})

    head, body = await said(streaming, b"GET / HTTP/1.0\r\n\r\n")
    assert body == b"data: 1\n\ndata: 2\n\n"
    assert b"content-length: 18" in head
    assert b"transfer-encoding" not in head
    head, body = await said(streaming, HEALTH + b"\r\n")
    assert body.startswith(b"9\r\ndata: 1\n\n\r\n")
    assert b"transfer-encoding: chunked" in head


async def test_every_answer_has_a_date_and_the_requests_id_or_one_of_ours() -> None:
    """Through Serve it has one, too; the official client shows it as ``_request_id``."""
    ids = []
    for extra in (b"", b"", b"X-Request-Id: mine-1\r\n", b"X-Request-Id: not mine\r\n"):
        head, _ = await said(hello, HEALTH + extra + b"\r\n")
        assert b"\r\ndate: " in head
        (request_id,) = re.findall(rb"\r\nx-request-id: ([^\r]+)", head)
        ids.append(request_id)
    assert ids[2] == b"mine-1"
    assert len(set(ids)) == 4


async def test_who_reads_nothing_is_taken_for_gone_and_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a few sockets that only ask would keep everybody out, for as long as they like."""
    monkeypatch.setattr(listener, "READER_SILENCE_S", 0.3)
    async with listening(large, requests_max=1) as door:
        port = int(door.url.rpartition(":")[2])
        with socket.socket() as idle:
            idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            idle.connect(("127.0.0.1", port))
            idle.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 8)
            async with asyncio.timeout(20), httpx.AsyncClient() as client:
                while (await client.get(door.url)).status_code == 503:  # noqa: ASYNC110 - nothing else tells of free places
                    await asyncio.sleep(0.05)


async def test_who_reads_slowly_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "READER_SILENCE_S", 0.3)
    async with listening(large) as door, raw(door) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = 0
        for _ in range(16):
            received += len(await reader.readexactly(LARGE_BYTES // 16))
            await asyncio.sleep(0.1)  # it takes its time: the slowness is what is tested
        received += len(await reader.read())
    assert received > LARGE_BYTES
