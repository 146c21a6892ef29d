"""What HTTP asks of any server, over the whole surface."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.kit.gateway import ADMIN_KEY, ASK, World


@pytest.fixture
async def http(world: World) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {world.key}"}
    async with httpx.AsyncClient(base_url=world.base_url, headers=headers, timeout=60) as client:
        yield client


METHODS = [
    ("/v1/chat/completions", "POST, OPTIONS", "GET HEAD PUT DELETE TRACE"),
    ("/v1/embeddings", "POST, OPTIONS", "GET PATCH"),
    ("/v1/models/a/b", "GET, HEAD, OPTIONS", "POST DELETE"),
    ("/v1/keys", "GET, POST, HEAD, OPTIONS", "DELETE"),
    ("/admin/v1/tenants", "GET, POST, HEAD, OPTIONS", "PUT TRACE"),
    ("/admin/v1/tenants/x/limits", "GET, PUT, HEAD, OPTIONS", "POST"),
]


async def test_a_method_that_a_path_does_not_take_is_405_with_those_it_takes(
    world: World, http: httpx.AsyncClient
) -> None:
    for path, allow, others in METHODS:
        key = ADMIN_KEY if path.startswith("/admin/") else world.key
        http.headers["authorization"] = f"Bearer {key}"
        told = await http.options(path)
        assert (told.status_code, told.headers["allow"], told.content) == (204, allow, b"")
        assert not [name for name in told.headers if name.startswith("access-control")]
        for method in others.split():
            answer = await http.request(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allow), (method, path)
            if method != "HEAD":
                assert answer.json()["error"]["code"] == "method_not_allowed"


async def test_what_can_be_got_has_a_head(http: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/readyz", "/v1/models", "/openapi.json"):
        whole, head = await http.get(path), await http.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(whole.content))
    assert (await http.head("/v1/nothing")).status_code == 404
    assert (await http.options("/v1/nothing")).status_code == 404
    assert (await http.head("/v1/models", headers={"authorization": "Bearer no"})).status_code == 401


async def test_a_body_that_can_not_be_taken_is_refused_by_its_head(world: World) -> None:
    """The answer is there before a byte of the body is sent."""
    told = [
        ("Content-Length: 300001", b" 413 ", "too_large"),
        (f"Content-Length: {10**18}", b" 413 ", "too_large"),
        ("Content-Length: 9\r\nContent-Encoding: gzip", b" 415 ", "unsupported_encoding"),
    ]
    for path, key in (("/v1/chat/completions", world.key), ("/v1/runs", world.key), ("/admin/v1/tenants", ADMIN_KEY)):
        for header, status, code in told:
            reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(world.base_url).port)
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{header}\r\n\r\n"
            writer.write(head.encode())
            line, _, _ = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).partition(b"\r\n")
            body = await asyncio.wait_for(reader.readuntil(b"}}"), 60)
            writer.close()
            await asyncio.wait([asyncio.ensure_future(writer.wait_closed())])
            assert status in line
            assert json.loads(body)["error"]["code"] == code


async def test_an_encoding_that_changes_nothing_is_none(http: httpx.AsyncClient) -> None:
    body = {"model": "m-ok", "messages": ASK}
    answer = await http.post("/v1/chat/completions", json=body, headers={"content-encoding": "identity"})
    assert answer.status_code == 200
