"""nats-py's traps, each shown without its guard and then with it."""

import ast
import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import TooManyStalledMsgsError

from events.bus import Bus
from events.errors import BusUnavailableError
from events.tasks import end_tasks
from tests.kit.fault_proxy import FaultProxy
from tests.kit.servers import PASSWORD, USER, Servers

ROOT = Path(__file__).parents[2]
NOTICED_WITHIN_S = 15.0
_MARGIN_S = 5.0  # for a machine that does ten other things


@pytest.fixture
async def proxy(servers: Servers) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(servers.nats.spec.port) as running:
        yield running


def url_of(proxy: FaultProxy) -> str:
    return f"nats://{USER}:{PASSWORD}@127.0.0.1:{proxy.port}"


async def quiet(_error: Exception) -> None:
    """An error callback that neither raises nor blocks."""


async def is_deaf(client: Client) -> bool:
    """Connected by its own account, and without an answer from the server."""
    try:
        await client.rtt(timeout=1)
    except (NatsError, TimeoutError):
        return client.is_connected
    return False


def poison(client: Client) -> asyncio.Event:
    """The next bytes meet an exception that nats-py does not expect, and its read loop ends. Returns when they have."""
    poisoned, parser = asyncio.Event(), client._ps
    parse = parser.parse

    async def fail(data: bytes = b"") -> None:
        parser.parse = parse  # type: ignore[method-assign]
        poisoned.set()
        raise ValueError("int() of a token that is not there")

    parser.parse = fail  # type: ignore[method-assign]
    return poisoned


async def test_trap_an_error_callback_that_raises_leaves_the_client_connected_and_deaf(servers: Servers) -> None:
    """nats-py awaits it in its read loop, for instance when a subscription is slow."""

    async def report(error: Exception) -> None:
        raise RuntimeError("a bug in a callback") from error

    async def slowly(_message: Any) -> None:
        await asyncio.sleep(0.2)  # a slow handler

    client = await nats.connect(servers.nats_url, error_cb=report)
    await client.subscribe("guards.slow", cb=slowly, pending_msgs_limit=1)
    for _ in range(10):
        await client.publish("guards.slow", b"")
    async with asyncio.timeout(60):
        while not await is_deaf(client):
            pass
    assert client.is_connected
    await client.close()


async def test_a_connection_that_is_deaf_or_half_open_is_noticed_within_15_s(
    servers: Servers, proxy: FaultProxy
) -> None:
    """At the periods that production uses: a process that can't hear is ended, and started anew. nats-py as it
    comes still believes in both connections by then: it would take six minutes.
    """
    lost = [asyncio.Event(), asyncio.Event()]
    deaf = await Bus.connect(servers.nats_url, "deaf", lost[0].set)
    half_open = await Bus.connect(url_of(proxy), "half-open", lost[1].set)
    plain_deaf = await nats.connect(servers.nats_url, error_cb=quiet)
    plain_half_open = await nats.connect(url_of(proxy), error_cb=quiet)
    poisons = [poison(deaf._client), poison(plain_deaf)]
    began = time.monotonic()
    await asyncio.gather(deaf._client._send_ping(), plain_deaf._send_ping())  # something to read
    await asyncio.gather(*(poisoned.wait() for poisoned in poisons))
    proxy.to_client.hold()
    assert await is_deaf(plain_deaf)

    async def noticed(bus: Bus, event: asyncio.Event) -> None:
        while not event.is_set() and bus.is_connected:  # noqa: ASYNC110 - one of the two, and one can only be looked at
            await asyncio.sleep(0.05)

    async with asyncio.timeout(NOTICED_WITHIN_S + _MARGIN_S):
        await asyncio.gather(noticed(deaf, lost[0]), noticed(half_open, lost[1]))
    assert time.monotonic() - began < NOTICED_WITHIN_S + _MARGIN_S
    assert proxy.to_client.held_pieces > 0, "the fault did not happen"
    assert await is_deaf(plain_deaf)
    assert plain_half_open.is_connected
    proxy.to_client.heal()
    await asyncio.gather(deaf.close(), half_open.close(), plain_deaf.close(), plain_half_open.close())


async def test_trap_nats_py_gives_up_for_good_after_some_attempts(proxy: FaultProxy) -> None:
    """By itself after 60 attempts, two minutes; here after 3, to see it sooner."""
    closed = asyncio.Event()

    async def on_closed() -> None:
        closed.set()

    client = await nats.connect(
        url_of(proxy), error_cb=quiet, closed_cb=on_closed, max_reconnect_attempts=3, reconnect_time_wait=0
    )
    assert Client().options.get("max_reconnect_attempts", 60) == 60
    await proxy.stop_listening()
    proxy.reset_all()
    async with asyncio.timeout(20):
        await closed.wait()
    await proxy.listen()
    assert client.is_closed


async def test_the_bus_reconnects_for_ever_and_subscriptions_come_back(proxy: FaultProxy) -> None:
    bus = await Bus.connect(url_of(proxy), "patient", lambda: None)
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    await bus.subscribe("guards.patient", lambda data, _reply_to: heard.put_nowait(data))
    assert bus._client.options["max_reconnect_attempts"] == -1
    await proxy.stop_listening()
    proxy.reset_all()
    with pytest.raises((BusUnavailableError, TimeoutError)):
        await bus.request("guards.patient", b"", 1.0)
    await proxy.listen()
    async with asyncio.timeout(20):
        while heard.empty():
            try:
                await bus.request("guards.patient", b"again", 0.2)
            except (BusUnavailableError, TimeoutError):
                continue  # heard it perhaps, and nobody answers there
    assert await heard.get() in (b"", b"again")
    await bus.close()


async def test_a_storm_of_resets_costs_neither_subscription_nor_process(proxy: FaultProxy) -> None:
    """Reconnects are spaced, so that a broker in trouble is not stormed."""
    lost = asyncio.Event()
    bus = await Bus.connect(url_of(proxy), "storm", lost.set)
    count = 0

    def on_message(_data: bytes, _reply_to: str) -> None:
        nonlocal count
        count += 1

    await bus.subscribe("guards.storm", on_message)
    began, before = time.monotonic(), proxy.accepted
    for _ in range(10):
        proxy.reset_all()
        async with asyncio.timeout(20):
            while not bus.is_connected:  # noqa: ASYNC110 - it does not tell
                await asyncio.sleep(0.01)
    took_s = time.monotonic() - began
    assert proxy.accepted - before <= 10 + 10 * took_s  # at most five attempts a second and one per reset
    async with asyncio.timeout(20):
        while not count:
            try:
                await bus.request("guards.storm", b"", 0.2)
            except (BusUnavailableError, TimeoutError):
                continue
    assert not lost.is_set()
    await bus.close()


async def test_trap_publish_async_swallows_a_cancellation(servers: Servers) -> None:
    """Whoever is cancelled in it goes on as if it had merely been told to wait."""
    client = await nats.connect(servers.nats_url, error_cb=quiet)
    stream = client.jetstream(publish_async_max_pending=1)
    await stream._publish_async_pending_semaphore.acquire()  # one is on its way
    task = asyncio.create_task(stream.publish_async("guards.nowhere", b""))
    await asyncio.sleep(0.1)  # it waits for the semaphore
    task.cancel()
    with pytest.raises(TooManyStalledMsgsError):
        await task
    assert not task.cancelled()
    await client.close()


async def test_trap_cancelling_once_may_cancel_nothing(servers: Servers) -> None:
    """Before Python 3.12 ``asyncio.wait_for``, which nats-py's requests and redis-py's sends end in, swallows it."""

    async def wait(answer: asyncio.Future[None]) -> str:
        await asyncio.wait_for(answer, 10)
        await asyncio.sleep(0)
        return "went on"

    answer = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(wait(answer))
    await asyncio.sleep(0)
    answer.set_result(None)
    task.cancel()
    assert await task == "went on"
    task = asyncio.create_task(wait(asyncio.get_running_loop().create_future()))
    await end_tasks(task)
    assert task.cancelled()


def test_what_can_not_be_guarded_is_not_used() -> None:
    """``publish_async`` swallows cancellation, ordered and push consumers read acknowledgement subjects of old servers in
    the read loop: none of them in this code base.
    """
    forbidden = {"publish_async", "ordered_consumer", "subscribe_bind", "OrderedConsumer"}
    for package in ("events", "actors", "projections", "serve"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = {getattr(node, field, None) for field in ("attr", "id", "arg")}
                assert not names & forbidden, f"{path}:{node.lineno}"  # type: ignore[attr-defined]
