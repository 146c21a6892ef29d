"""The bare connection under everything that can happen to it: callers that give up, servers that lie, hang or go."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import msgspec
import pytest
from redis.exceptions import ResponseError

from events.valkey_link import Address, Link
from tests.kit.servers import PASSWORD, Servers

Answer = Callable[[bytes], bytes]


def address_of(servers: Servers, **changes: object) -> Address:
    port = urlsplit(servers.valkey_url).port
    assert port is not None
    options: dict[str, object] = {"password": PASSWORD, **changes}
    return Address("127.0.0.1", port, **options)  # type: ignore[arg-type]


@pytest.fixture
async def link(servers: Servers) -> AsyncIterator[Link]:
    opened = Link(address_of(servers), 5.0)
    yield opened
    await opened.close()


@asynccontextmanager
async def impostor(answer: Answer) -> AsyncIterator[tuple[Address, list[int]]]:
    """A server that answers whatever arrives with ``answer``; how many connections it has seen."""
    connections = [0]
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        connections[0] += 1
        while data := await reader.read(65_536):
            writer.write(answer(data))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1]), connections
        if serving:
            await asyncio.wait(serving)


async def test_replies_belong_to_their_commands_however_many_callers_share_it(link: Link) -> None:
    async def caller(number: int) -> None:
        for turn in range(50):
            sent = [b"%d-%d-%d" % (number, turn, part) for part in range(1 + number % 3)]
            assert await link.call([("ECHO", text) for text in sent]) == sent

    await asyncio.gather(*(caller(number) for number in range(20)))


async def test_an_error_is_the_answer_to_one_command_alone(link: Link) -> None:
    before, refused, after = await link.call([("ECHO", "a"), ("NONSENSE",), ("ECHO", "b")])
    assert (before, after) == (b"a", b"b")
    assert isinstance(refused, ResponseError)


async def test_a_cancelled_caller_disturbs_nobody(link: Link) -> None:
    """Its replies are taken off the wire; the connection stays in step."""
    await link.call([("PING",)])
    for number in range(200):
        doomed = asyncio.create_task(link.call([("ECHO", "nobody's"), ("ECHO", "nobody's, too")]))
        staying = asyncio.create_task(link.call([("ECHO", str(number))]))
        await asyncio.sleep(0)  # both have sent
        doomed.cancel()
        assert await staying == [b"%d" % number]
        assert doomed.cancelled()


async def test_a_caller_cancelled_while_it_connects_leaves_the_others_a_connection(servers: Servers) -> None:
    link = Link(address_of(servers), 5.0)
    first, second = (asyncio.create_task(link.call([("ECHO", name)])) for name in "ab")
    await asyncio.sleep(0)
    first.cancel()
    assert await second == [b"b"]
    await link.close()


async def test_a_reply_nobody_asked_for_ends_the_connection() -> None:
    """Whoever got it would take it for an answer, and all answers behind it would be the neighbour's."""
    async with impostor(lambda _data: b"+OK\r\n+stray\r\n") as (address, connections):
        link = Link(address, 5.0)
        for number in (1, 2, 3):
            assert await link.call([("PING",)]) == [b"OK"]
            assert connections[0] == number
        await link.close()


async def test_what_is_no_reply_at_all_is_a_lost_connection() -> None:
    async with impostor(lambda _data: b"HTTP/1.1 400 Bad Request\r\n\r\n") as (address, connections):
        link = Link(address, 5.0)
        for _ in range(2):
            with pytest.raises(OSError, match="out of step"):
                await link.call([("PING",)])
        assert connections[0] == 2
        await link.close()


async def test_a_silent_server_fails_all_that_wait_and_nothing_is_sent_again() -> None:
    seen: list[bytes] = []

    def swallow(data: bytes) -> bytes:
        seen.append(data)
        return b""

    async with impostor(swallow) as (address, _):
        link = Link(address, 0.2)
        outcomes = await asyncio.gather(*(link.call([("INCR", "x")]) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(outcome, OSError) for outcome in outcomes)
        assert b"".join(seen).count(b"INCR") == 3
        await link.close()


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "timed-out"])
async def test_a_connection_that_ends_before_its_greeting_is_answered_is_not_left_open(is_closed: bool) -> None:
    """The server sees the end of it; a leak would hold a place there until the collector comes by."""
    greeted = asyncio.Event()

    def swallow(_data: bytes) -> bytes:
        greeted.set()
        return b""

    async with asyncio.timeout(20), impostor(swallow) as (address, _):
        link = Link(msgspec.structs.replace(address, db=2), 60 if is_closed else 0.2)
        calling = asyncio.create_task(link.call([("PING",)]))
        await greeted.wait()
        if is_closed:
            await link.close()
        with pytest.raises(OSError, match="closed by us" if is_closed else "did not take the connection"):
            await calling


async def test_a_closed_link_stays_closed(servers: Servers, link: Link) -> None:
    """One opened by a straggler would be nobody's to close."""
    await link.call([("PING",)])
    await link.close()
    with pytest.raises(OSError, match="closed by us"):
        await link.call([("PING",)])


async def test_a_lost_connection_is_opened_anew(servers: Servers, link: Link) -> None:
    (number,) = await link.call([("CLIENT", "ID")])
    killer = Link(address_of(servers), 5.0)
    await killer.call([("CLIENT", "KILL", "ID", number)])
    with contextlib.suppress(OSError):  # it may have seen the end before it sent, or not
        await link.call([("PING",)])
    (again,) = await link.call([("CLIENT", "ID")])
    assert again != number
    await killer.close()


async def test_the_database_and_the_user_are_those_of_the_address(servers: Servers) -> None:
    with pytest.raises(ConnectionRefusedError, match="WRONGPASS"):
        await Link(address_of(servers, password="wrong"), 5.0).call([("PING",)])
    link = Link(address_of(servers, username="default", db=5), 5.0)
    (info,) = await link.call([("CLIENT", "INFO")])
    assert b" db=5 " in info
    await link.close()


async def test_nobody_listening_is_an_error(servers: Servers) -> None:
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        await Link(Address("127.0.0.1", 1), 5.0).call([("PING",)])
