"""Clients that mean harm, at a replica's own door: the whole gateway behind ``serve.listener``. SEC and DOS numbers are those
of tests/test_threats.py.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from itertools import product
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

import examples.order  # noqa: F401 - a saga that waits
from serve import listener
from serve.asgi import Receive, Scope, Send
from serve.gateway import Gateway
from serve.keys import make_key
from serve.listener import Listener
from tests.integration.test_listener import hello, listening, raw
from tests.kit.gateway import ADMIN_KEY, ASK, METRICS_KEY, World
from tests.kit.servers import Servers

WAIT_S = 60.0


@pytest.fixture
async def door(world: World) -> AsyncIterator[Listener]:
    """The world's settings, a second replica, and its own listener."""
    gateway = Gateway()
    own = Listener(gateway, host="127.0.0.1", ports=range(0), requests_max=100)
    await own.start()
    yield own
    await own.close()
    await gateway.close()


async def say(door: Listener, data: bytes) -> bytes:
    """Whatever comes back until the other side closes; the request asks it to."""
    async with raw(door) as (reader, writer):
        writer.write(data)
        return await asyncio.wait_for(reader.read(), WAIT_S)


def request(target: str, *headers: str, method: str = "GET", host: str = "x") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


TARGETS = [
    "/admin/v1/tenants",
    "//admin/v1/tenants",
    "/v1/../admin/v1/tenants",
    "/v1/%2e%2e/admin/v1/tenants",
    "/%61dmin/v1/tenants",
    "/ADMIN/v1/tenants",
    "/admin;x/v1/tenants",
    "/admin/v1/tenants/",
    "/admin%2fv1%2ftenants",
    "http://x/admin/v1/tenants",
    "http://x/v1/models/../../admin/v1/tenants",
    "/admin/v1/tenants?/v1/models",
    "/metrics",
]


async def test_no_way_of_writing_a_path_opens_an_operators_route(world: World, door: Listener) -> None:
    """SEC-5: a tenant's key, and none at all; the Host header says nothing about the path either."""
    for target, host in product(TARGETS, ("x", "x/v1/models?", "x/#", "127.0.0.1")):
        for key in (f"Authorization: Bearer {world.key}", "X-Nothing: x"):
            answer = await say(door, request(target, key, host=host))
            assert statuses(answer)[0] in (307, 400, 401, 404), (target, host, answer[:300])
            assert world.tenant.encode() not in answer


AUTHORIZATIONS = [
    b"",
    b"Bearer",
    b"Bearer \x00",
    b"Bearer a\x0bb",
    b"Bearer \xc0\xaf\xff",
    b"Bearer *",
    b"Bearer > foo.* $JS.API",
    b"Bearer ']]) redis.call('FLUSHALL')--",
    b"Bearer sk-*-aaaaaaaaaaaa-" + b"x" * 43 + b"-abcdef",
    b"Bearer " + b"k" * 60_000,
    b"Basic c2stOng=",
    b"bearer bearer bearer",
]


async def test_no_authorization_header_does_harm(world: World, door: Listener, servers: Servers) -> None:
    """SEC-6: an answer that says no, and nothing of it in any command that the store sees."""
    store = Redis.from_url(servers.valkey_url)
    seen: list[str] = []
    forged = make_key("another pepper", world.tenant, "c").text
    async with store.monitor() as monitor:

        async def watch() -> None:
            async for command in monitor.listen():
                seen.append(str(command))  # noqa: PERF401 - it is cancelled in the middle

        watching = asyncio.create_task(watch())
        for value in AUTHORIZATIONS:
            answer = await say(door, request("/v1/models")[:-2] + b"Authorization: " + value + b"\r\n\r\n")
            assert statuses(answer)[0] in (400, 401), answer[:300]
        assert statuses(await say(door, request("/v1/models", f"Authorization: Bearer {forged}"))) == [401]
        watching.cancel()
        await asyncio.wait([watching])
    await store.aclose()
    assert not [command for command in seen if forged.split("-")[3] in command or "FLUSHALL" in command]


async def test_a_storm_of_clients_that_leave_mixes_up_nobodys_answers(world: World, door: Listener) -> None:
    """SEC-7: half of them leave at some moment of their call; each of the others gets what it asked for, on kept connections."""
    limits = httpx.Limits(max_connections=8, max_keepalive_connections=8)
    headers = {"authorization": f"Bearer {world.key}"}
    async with httpx.AsyncClient(base_url=door.url, headers=headers, limits=limits, timeout=WAIT_S) as http:

        async def ask(number: int) -> None:
            body = {"model": "m-echo", "messages": [{"role": "user", "content": f"canary {number}"}], "max_tokens": 5}
            asking = asyncio.create_task(http.post("/v1/chat/completions", json=body))
            if number % 2:
                await asyncio.wait([asking], timeout=0.002 * (number % 20))
                asking.cancel()
                await asyncio.wait([asking])
                if asking.cancelled() or asking.exception():
                    return
            answer = await asking
            assert answer.json()["choices"][0]["message"]["content"] == f"canary {number}"

        await asyncio.gather(*(ask(number) for number in range(80)))


async def test_no_tenant_is_named_like_a_wildcard(world: World) -> None:
    """SEC-8: refused at creation, so no subject is ever built from it."""
    for tenant in ("*", ">", "a.b", "", "x" * 300, "tenänt", "a b", "a\r\nb", "-a", "A"):
        answer = await world.admin.post("/tenants", json={"id": tenant, "name": "x"})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == "id"


async def test_who_has_no_password_hears_nothing_of_broker_or_store(servers: Servers) -> None:
    """SEC-9: there is one account, the platform's; no tenant and no tool is ever given it."""
    for login in (b"{}", b'{"user":"tenantry","pass":"guess"}', b'{"auth_token":"guess"}'):
        reader, writer = await asyncio.open_connection("127.0.0.1", servers.nats.spec.port)
        writer.write(b"CONNECT " + login + b"\r\nSUB _INBOX.> 1\r\nSUB ask.> 2\r\nPING\r\n")
        heard = await asyncio.wait_for(reader.read(), WAIT_S)
        writer.close()
        await writer.wait_closed()
        assert b"Authorization Violation" in heard
        assert b"PONG" not in heard
    for url in (servers.valkey_url, servers.vault_url):
        store = Redis.from_url(url.replace("test-password", "guess"))
        with pytest.raises(AuthenticationError):
            await store.ping()
        await store.aclose()


async def test_a_stream_ends_with_the_key_that_opened_it(world: World, door: Listener) -> None:
    """SEC-11: a run's events, followed with a key that is then revoked."""
    scopes = {"scopes": ["runs", "read"]}
    issued = (await world.admin.post(f"/tenants/{world.tenant}/keys", json=scopes)).json()
    headers = {"authorization": f"Bearer {issued['key']}"}
    async with httpx.AsyncClient(base_url=door.url, headers=headers, timeout=WAIT_S) as http:
        order = {"saga": "order", "input": {"sku": "robe", "quantity": 1}}
        run = (await http.post("/v1/runs", json=order)).json()["id"]
        async with asyncio.timeout(WAIT_S), http.stream("GET", f"/v1/runs/{run}/events") as stream:
            lines = stream.aiter_lines()
            assert await anext(lines)
            await world.admin.delete(f"/tenants/{world.tenant}/keys/{issued['key_id']}")
            rest = [line async for line in lines]
    assert "event: error" in rest
    assert json.loads(rest[rest.index("event: error") + 1][6:])["error"]["code"] == "invalid_api_key"


async def test_keys_come_in_the_authorization_header_only_and_there_are_no_websockets(
    world: World, door: Listener
) -> None:
    """SEC-12: nothing that a browser sends along by itself, and nothing that stands in an address, lets anybody in."""
    upgrade = ("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
    for extra in (
        (f"Cookie: authorization=Bearer {world.key}; key={world.key}", "Origin: https://evil.example"),
        upgrade,
    ):
        for query in ("", f"?api_key={world.key}&authorization=Bearer%20{world.key}"):
            assert statuses(await say(door, request(f"/v1/models{query}", *extra))) == [401]
    allowed = await say(
        door, request("/v1/models", f"Authorization: Bearer {world.key}", "Origin: https://evil.example")
    )
    assert statuses(allowed) == [200]
    assert b"access-control-allow-origin" not in allowed.lower()


async def test_a_key_of_one_kind_opens_nothing_of_another(world: World, door: Listener) -> None:
    """SEC-14: operator's, scraper's, tenant's."""
    opened = {}
    async with httpx.AsyncClient(base_url=door.url, timeout=WAIT_S) as http:
        for kind, key in (("admin", ADMIN_KEY), ("metrics", METRICS_KEY), ("tenant", world.key)):
            for path in ("/admin/v1/tenants", "/metrics", "/v1/models"):
                answer = await http.get(path, headers={"authorization": f"Bearer {key}"})
                opened[kind, path] = answer.status_code
    assert {pair for pair, status in opened.items() if status == 200} == {
        ("admin", "/admin/v1/tenants"),
        ("admin", "/metrics"),
        ("metrics", "/metrics"),
        ("tenant", "/v1/models"),
    }
    assert set(opened.values()) == {200, 401}


async def test_a_body_without_end_is_cut_at_the_limit(world: World, door: Listener) -> None:
    """DOS-1: announced, or in chunks that announce nothing."""
    key = f"Authorization: Bearer {(await _strong_key(world))}"
    chunk = b"%x\r\n%b\r\n" % (65_536, b"[" * 65_536)
    announcements = (("Content-Length: 10737418240", b"[" * 65_536), ("Transfer-Encoding: chunked", chunk))
    for path, (announcement, part) in product(("/v1/chat/completions", "/v1/runs"), announcements):
        head = request(path, key, "Content-Type: application/json", announcement, method="POST")
        async with raw(door) as (reader, writer):
            answering = asyncio.ensure_future(reader.read(400))
            writer.write(head)
            for _ in range(1_000):  # 64 MiB if nobody stopped us
                if answering.done():
                    break
                writer.write(part)
                try:
                    await writer.drain()
                except ConnectionError:
                    break
                await asyncio.sleep(0)
            assert statuses(await asyncio.wait_for(answering, WAIT_S)) == [413]


async def _strong_key(world: World) -> str:
    scopes = {"scopes": ["inference", "runs", "read"]}
    key: str = (await world.admin.post(f"/tenants/{world.tenant}/keys", json=scopes)).json()["key"]
    return key


@pytest.mark.parametrize("head", [b"X-A: " + b"b" * 1_048_576, b"".join(b"X-%d: y\r\n" % n for n in range(100_000))])
async def test_a_head_that_is_too_large_is_not_even_held(head: bytes) -> None:
    """DOS-2: a header of 1 MiB, 100,000 headers."""
    asked = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal asked
        asked = True
        await hello(scope, receive, send)

    async with listening(app) as door:
        try:
            answer = await say(door, b"GET / HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")
        except ConnectionError:  # closed before all of it was sent
            answer = b"HTTP/1.1 400 "
    assert statuses(answer)[0] in (400, 431)
    assert not asked


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """DOS-3: whoever holds thousands of slow ones open takes no more than the listener has."""
    monkeypatch.setattr(listener, "CONNECTIONS_MAX", 5)
    async with listening(hello) as door:
        port = int(door.url.rpartition(":")[2])
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        for _, writer in held:
            writer.write(b"GET / HT")
        reader, late = await asyncio.open_connection("127.0.0.1", port)
        late.write(request("/"))
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), WAIT_S)
        for _, writer in held:
            writer.close()
        async with httpx.AsyncClient() as http:
            for _ in range(200):  # as soon as the listener has seen the others go
                try:
                    assert (await http.get(door.url)).status_code == 200
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.02)
            else:
                pytest.fail("nobody was let in again")
        late.close()


async def test_who_does_not_read_its_stream_holds_up_the_model_not_our_memory(world: World, door: Listener) -> None:
    """DOS-4: the upstream is no longer read once a few buffers are full, however much it would send."""
    body = json.dumps({"model": "m-flood", "messages": ASK, "stream": True}).encode()
    headers = (f"Authorization: Bearer {world.key}", f"Content-Length: {len(body)}", "Content-Type: application/json")
    async with raw(door) as (reader, writer):
        writer.write(request("/v1/chat/completions", *headers, method="POST") + body)
        await asyncio.wait_for(reader.readuntil(b"data: "), WAIT_S)
        ledger = world.upstream.ledger
        held, taken = asyncio.create_task(ledger.flood_held.wait()), asyncio.create_task(ledger.flood_taken.wait())
        await asyncio.wait((held, taken), timeout=WAIT_S, return_when=asyncio.FIRST_COMPLETED)
        assert held.done()
        assert not taken.done()
        taken.cancel()
        writer.transport.abort()
    assert ledger.flooded_bytes < 32 * 1024 * 1024


BOMBS: dict[str, bytes] = {
    "depth": b'{"model":"m-ok","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "keys": b'{"model":"m-ok","messages":[],' + b",".join(b'"k%d":1' % n for n in range(20_000)) + b"}",
    "integer": b'{"model":"m-ok","messages":[],"max_tokens":' + b"9" * 100_000 + b"}",
    "exponent": b'{"model":"m-ok","messages":[],"max_tokens":1e999999}',
    "strings": json.dumps({"model": "m-ok", "messages": [], "stop": ["\x00"] * 40_000}).encode()[:290_000],
}


async def test_json_made_to_hurt_is_a_bad_request(world: World, door: Listener) -> None:
    """DOS-6: on plain ASGI, with msgspec; on FastAPI, with its own parser; as a command, with pydantic."""
    key, typed = await _strong_key(world), {"content-type": "application/json"}
    routes = (
        ("POST", "/v1/chat/completions", key),
        ("POST", "/v1/runs", key),
        ("PUT", f"/admin/v1/tenants/{world.tenant}/budget", ADMIN_KEY),
    )
    async with httpx.AsyncClient(base_url=door.url, timeout=WAIT_S, headers=typed) as http:
        for bomb, (method, path, bearer) in product(BOMBS, routes):
            headers = {"authorization": f"Bearer {bearer}"}
            answer = await http.request(method, path, content=BOMBS[bomb], headers=headers)
            assert answer.status_code in (400, 413, 422), (bomb, path, answer.status_code, answer.text[:200])
        assert (await http.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code == 200


_INNER = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
SMUGGLED = {
    "CL.TE": b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _INNER,
    "TE.CL": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(_INNER), _INNER),
    "TE.TE": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + _INNER,
    "TE of another case": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + _INNER,
    "two lengths": b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n%b" % (len(_INNER), _INNER),
    "a length that is none": b"Content-Length: +%d\r\n\r\n%b" % (len(_INNER), _INNER),
    "a folded header": b"X-A: a\r\n Content-Length: 0\r\nContent-Length: %d\r\n\r\n%b" % (len(_INNER), _INNER),
    "a space before the colon": b"Content-Length : 0\r\n\r\n" + _INNER,
    "bare line feeds": b"Content-Length: 0\nX-A: b\n\n" + _INNER.replace(b"\r", b""),
    "a chunk size that overflows": b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n" + _INNER,
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_one_request_that_could_be_two_is_refused_or_closes_the_connection(name: str) -> None:
    """DOS-7: what follows an ambiguous head is never served as a request of its own on a connection that a proxy shares."""
    served: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        served.append(scope["path"])
        await hello(scope, receive, send)

    async with listening(app) as door, raw(door) as (reader, writer):
        writer.write(b"POST /outer HTTP/1.1\r\nHost: x\r\n" + SMUGGLED[name])
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), WAIT_S)
    assert "/smuggled" not in served, answer
    assert len(served) <= 1


async def test_hop_by_hop_names_and_forwarded_addresses_change_nothing(world: World, door: Listener) -> None:
    """DOS-8, DOS-9: a client can't have its own credentials dropped on the way to nobody's, nor pass for another address."""
    for extra in (
        ("Connection: authorization, x-tenant", "X-Tenant: other"),
        ("X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "Forwarded: for=127.0.0.1;host=admin"),
        ("X-Forwarded-Prefix: /admin", "X-Original-URL: /admin/v1/tenants", "X-Rewrite-URL: /admin/v1/tenants"),
    ):
        answer = await say(door, request("/v1/models", f"Authorization: Bearer {world.key}", *extra))
        assert statuses(answer) == [200]
        assert b'"m-ok"' in answer
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["client"][0], scope["scheme"]))
        await hello(scope, receive, send)

    async with listening(app) as own:
        await say(own, request("/", "X-Forwarded-For: 10.0.0.9", "X-Forwarded-Proto: https"))
    assert seen == [("127.0.0.1", "http")]


async def test_an_idempotency_key_is_kept_for_two_days_and_no_longer(world: World, servers: Servers) -> None:
    """DOS-11: what a flood of them leaves behind ends by itself; each is at most 255 characters."""
    path, body = f"/tenants/{world.tenant}/budget", {"limit_usd": "5", "window": "day"}
    for number in range(20):
        answer = await world.admin.put(path, json=body, headers={"idempotency-key": f"flood-{number}"})
        assert answer.status_code == 200
    refused = await world.admin.put(path, json=body, headers={"idempotency-key": "x" * 256})
    assert refused.status_code == 400
    store = Redis.from_url(servers.valkey_url)
    (replies,) = [key async for key in store.scan_iter(match=f"*replies:{world.tenant}")]
    fields = await store.hkeys(replies)
    remaining: Any = await store.httl(replies, *fields)
    await store.aclose()
    assert len(fields) >= 20
    assert all(0 < seconds <= 48 * 3600 for seconds in remaining)


async def test_a_log_is_read_a_bounded_page_at_a_time_and_by_operators_only(world: World, door: Listener) -> None:
    """DOS-13: nobody has it replayed from the beginning in one request, and reading it asks nothing of its tenant."""
    path = f"/admin/v1/tenants/{world.tenant}/events"
    async with httpx.AsyncClient(base_url=door.url, timeout=WAIT_S) as http:
        mine = await http.get(path, headers={"authorization": f"Bearer {world.key}"})
        assert mine.status_code == 401
        operators = {"authorization": f"Bearer {ADMIN_KEY}"}
        assert (await http.get(path, params={"limit": 1_000_000}, headers=operators)).status_code == 400
        pages = await asyncio.gather(*(http.get(path, params={"after": 0}, headers=operators) for _ in range(30)))
    assert {page.status_code for page in pages} == {200}
