"""redis-py's traps, each shown without its guard and then with it, and a Valkey that is killed, paused, cut off."""

import asyncio
import contextlib
import os
import random
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import ResponseError

from events.errors import ChainBrokenError, PlatformError, StoreUnavailableError, WrongExpectedPositionError
from events.store import Appended, Known
from events.tasks import end_tasks
from events.valkey_client import connect, execute
from events.valkey_store import ValkeyEventStore
from events.verify import verify
from tests.kit.factories import append_request
from tests.kit.fault_proxy import FaultProxy
from tests.kit.servers import PASSWORD, Servers

CANCELS = int(os.environ.get("TENANTRY_CANCELS", "250"))  # 100000 takes most of an hour


@pytest.fixture
async def proxy(servers: Servers) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(servers.valkey.spec.port) as running:
        yield running


def url_of(proxy: FaultProxy) -> str:
    return f"redis://:{PASSWORD}@127.0.0.1:{proxy.port}"


def tenant_id() -> str:
    return f"g{uuid.uuid4().hex[:10]}"


def unguarded(proxy: FaultProxy, **options: Any) -> Redis:
    """As redis-py makes one by itself."""
    return Redis(host="127.0.0.1", port=proxy.port, password=PASSWORD, **options)


async def test_trap_redis_py_sends_a_command_again_whose_answer_got_lost(proxy: FaultProxy) -> None:
    client = unguarded(proxy)
    key = tenant_id()
    await execute(client, "PING")
    proxy.to_client.cuts = 1
    assert await execute(client, "INCR", key) == 2  # it was 1, and nobody was told
    await client.aclose()


async def test_trap_sending_again_turns_an_append_that_happened_into_a_false_conflict(proxy: FaultProxy) -> None:
    """S8: and the caller would take it for somebody else's event."""
    store, tenant = ValkeyEventStore(unguarded(proxy)), tenant_id()
    store._calls = store._pages = None  # through redis-py, not over the store's own connection
    await store.open()
    epoch = (await store.claim(tenant)).epoch
    proxy.to_client.cuts = 1
    with pytest.raises(WrongExpectedPositionError):
        await store.append(append_request(tenant, epoch=epoch))
    head = await store.head(tenant)
    assert head is not None
    assert head.position == 1
    await store.close()


async def test_an_append_whose_answer_got_lost_is_sent_once_and_its_outcome_called_unknown(proxy: FaultProxy) -> None:
    store, tenant = ValkeyEventStore(connect(url_of(proxy))), tenant_id()
    await store.open()
    epoch = (await store.claim(tenant)).epoch
    request = append_request(tenant, epoch=epoch, commands=("c1",))
    proxy.to_client.cuts = 1
    with pytest.raises(StoreUnavailableError):
        await store.append(request)
    assert len(await store.read(tenant, 0)) == 1
    assert isinstance(await store.append(request), Known)  # the writer's own repeat, under the command's id
    await store.close()


async def test_trap_redis_py_takes_stray_bytes_for_the_answer(proxy: FaultProxy) -> None:
    """With its defaults, that is with maintenance notifications, it skips its own check of the connection."""
    client = unguarded(proxy, max_connections=1)
    await execute(client, "SET", "ours", "1")
    proxy.inject(b"+foreign\r\n")
    await arrived(client)
    assert await execute(client, "ECHO", "mine") == b"foreign"
    await client.aclose()


async def test_stray_bytes_are_never_taken_for_an_answer(proxy: FaultProxy) -> None:
    client = connect(url_of(proxy), connections_max=1)
    assert isinstance(client, Redis)
    await execute(client, "SET", "ours", "1")
    before = proxy.accepted
    proxy.inject(b"+foreign\r\n")
    await arrived(client)
    assert await execute(client, "ECHO", "mine") == b"mine"
    assert proxy.accepted == before + 1  # by leaving the connection
    await client.aclose()


async def arrived(client: Redis) -> None:
    """Returns when the client's idle connection has something to read."""
    (connection,) = cast("Any", client.connection_pool)._available_connections
    async with asyncio.timeout(60):
        while not await connection.can_read():  # noqa: ASYNC110 - nothing tells of bytes that nobody waits for
            await asyncio.sleep(0.01)


async def canaries(client: Any, cancels: int) -> tuple[int, int]:
    """Echoes that are cancelled at random moments, beside echoes that are not. Returns how many of the latter got
    another one's answer, and how many of the former were cancelled.
    """
    dice, wrong, cancelled, count = random.Random(1), 0, 0, 0

    async def echo() -> None:
        nonlocal count, wrong
        count += 1
        mine = f"canary-{count}".encode()
        wrong += await execute(client, "ECHO", mine) != mine

    while cancelled < cancels and not wrong:
        tasks = [asyncio.create_task(echo()) for _ in range(16)]
        await asyncio.sleep(dice.random() * 0.002)  # somewhere into their round trips
        victims = [task for task in tasks if not task.done() and dice.random() < 0.7]
        for task in victims:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        cancelled += sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        if failures := [one for one in outcomes if isinstance(one, Exception)]:
            raise failures[0]
    return wrong, cancelled


async def test_trap_a_cancelled_call_that_gives_its_connection_back_answers_the_next_caller(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How other tenants' data was once shown to strangers: the answer still on its way is read by whoever comes next.
    redis-py 8 leaves such a connection; here it does not.
    """

    made: list[AbstractConnection] = []
    make: Any = ConnectionPool.make_connection  # untyped

    def remember(self: ConnectionPool) -> AbstractConnection:
        made.append(make(self))
        return made[-1]

    async def stay(self: AbstractConnection, *_args: Any, **_options: Any) -> None:
        return

    client = unguarded(proxy)
    with monkeypatch.context() as patch:
        patch.setattr(ConnectionPool, "make_connection", remember)
        patch.setattr(AbstractConnection, "disconnect", stay)
        wrong, _ = await canaries(client, CANCELS)
    assert wrong > 0
    await asyncio.gather(*(connection.disconnect() for connection in made))
    await client.aclose()


async def test_a_cancelled_call_never_leaves_its_answer_to_another(servers: Servers) -> None:
    """Q9: a storm of cancellations, and every answer is its own question's."""
    client = connect(servers.valkey_url)
    wrong, cancelled = await canaries(client, CANCELS)
    assert (wrong, cancelled >= CANCELS) == (0, True)
    await client.aclose()


async def test_cancelled_appends_leave_neither_a_gap_nor_a_foreign_outcome(servers: Servers) -> None:
    """Each tenant appends one by one while others' appends are cancelled: what each is told fits its own log."""
    store = ValkeyEventStore(connect(servers.valkey_url))
    await store.open()
    dice = random.Random(2)
    steady, shaky = [tenant_id() for _ in range(4)], [tenant_id() for _ in range(8)]
    epochs = {tenant: (await store.claim(tenant)).epoch for tenant in [*steady, *shaky]}
    cancelled, running = 0, True

    async def shake(tenant: str) -> None:
        nonlocal cancelled
        while running:
            head = await store.head(tenant)
            position, previous = (head.position, head.hash) if head else (0, bytes(32))
            request = append_request(tenant, epoch=epochs[tenant], position=position, previous=previous)
            task = asyncio.create_task(store.append(request))
            await asyncio.sleep(dice.random() * 0.003)  # somewhere into the round trip
            await end_tasks(task)
            cancelled += task.cancelled()

    shaking = [asyncio.create_task(shake(tenant)) for tenant in shaky]
    for count in range(40):
        requests = []
        for tenant in steady:
            head = await store.head(tenant)
            position, previous = (head.position, head.hash) if head else (0, bytes(32))
            assert position == count
            requests.append(append_request(tenant, epoch=epochs[tenant], position=position, previous=previous))
        assert await asyncio.gather(*map(store.append, requests)) == [Appended(count + 1, count + 1)] * len(steady)
    running = False
    await asyncio.gather(*shaking)
    assert cancelled > 10
    await store.close()


async def test_a_byte_that_arrives_wrong_is_found(proxy: FaultProxy) -> None:
    """N4, C1: the append fails, or whoever reads the log next sees that the event is not what was written."""
    store, tenant = ValkeyEventStore(connect(url_of(proxy), timeout_s=2)), tenant_id()
    await store.open()
    epoch = (await store.claim(tenant)).epoch
    request = append_request(tenant, epoch=epoch, commands=("c1",))
    proxy.to_server.replacement = (b"small", b"smell")
    with contextlib.suppress(PlatformError, ResponseError):
        await store.append(request)
    assert proxy.to_server.replaced == 1, "the fault did not happen"
    if await store.read(tenant, 0):
        with pytest.raises(ChainBrokenError):
            await verify(store, tenant)
    await store.close()


async def test_a_store_that_holds_its_answers_is_given_up_within_the_time_out(proxy: FaultProxy) -> None:
    """N1: half-open towards Valkey, and whole again after it heals."""
    store, tenant = ValkeyEventStore(connect(url_of(proxy), timeout_s=1)), tenant_id()
    await store.open()
    epoch = (await store.claim(tenant)).epoch
    request = append_request(tenant, epoch=epoch, commands=("c1",))
    proxy.to_client.hold()
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError):
        await store.append(request)
    assert time.monotonic() - began < 10
    proxy.to_client.heal()
    assert isinstance(await store.append(request), Known)
    await store.close()


async def test_a_pool_whose_connections_all_died_serves_the_next_call(proxy: FaultProxy) -> None:
    """With no retries and no check of the connection, every one of them would fail a call first."""
    client = connect(url_of(proxy))
    await asyncio.gather(*(execute(client, "PING") for _ in range(8)))
    await proxy.close_all()
    assert await asyncio.gather(*(execute(client, "PING") for _ in range(8))) == [True] * 8
    await client.aclose()
