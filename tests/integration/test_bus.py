"""The bus on a real NATS."""

import asyncio
import os
import signal

from events.bus import Bus, NoOneListensError, unsubscribe
from events.errors import BusUnavailableError
from tests.kit.servers import Servers


async def test_a_subscription_that_was_left_gets_nothing_after_and_everything_before(
    bus: Bus, servers: Servers
) -> None:
    """What the server had sent by then is handled, so that a tenant that moves drops nothing it was handed."""
    other = await Bus.connect(servers.nats_url, "sender", lambda: None)
    received: list[int] = []
    left = asyncio.Event()

    async def send() -> int:
        count = 0
        while not left.is_set():
            other.publish("counted", str(count).encode())
            count += 1
            await asyncio.sleep(0)
        return count

    for _ in range(20):
        received.clear()
        left.clear()
        subscription = await bus.subscribe("counted", lambda data, _reply: received.append(int(data)))
        sending = asyncio.create_task(send())
        async with asyncio.timeout(60):
            while not received:  # noqa: ASYNC110 - until it flows
                await asyncio.sleep(0)
        await unsubscribe(subscription)
        count = len(received)
        left.set()
        await sending
        await other._client.flush()
        await bus._client.flush()
        assert len(received) == count
        assert received == list(range(received[0], received[0] + count))
    await other.close()


async def test_a_subscription_is_known_to_the_server_when_subscribe_returns(bus: Bus, servers: Servers) -> None:
    """nats-py's flush overtakes what is still buffered; then the first request would find nobody."""
    other = await Bus.connect(servers.nats_url, "asker", lambda: None)
    for number in range(50):
        subscription = await bus.subscribe(f"here.{number}", lambda data, reply: bus.publish(reply, data))
        assert await other.request(f"here.{number}", b"hello", 2.0) == b"hello"
        await unsubscribe(subscription)
    await other.close()


async def test_subscriptions_and_requests_survive_a_restart_of_the_server(bus: Bus, servers: Servers) -> None:
    await bus.subscribe("echo", lambda data, reply: bus.publish(reply, data))
    other = await Bus.connect(servers.nats_url, "asker", lambda: None)
    assert await other.request("echo", b"1", 2.0) == b"1"
    os.kill(servers.nats.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while True:
            try:
                assert await other.request("echo", b"2", 1.0) == b"2"
                break
            except (NoOneListensError, TimeoutError, BusUnavailableError):  # away, or back without its subscribers
                await asyncio.sleep(0.1)
    await other.close()


async def test_whoever_stops_waiting_for_the_server_leaves_the_bus_working(bus: Bus) -> None:
    """A client that leaves an event stream cancels an unsubscribe: the answer to it must not end the reading."""
    leaving = asyncio.create_task(bus._client.flush())
    async with asyncio.timeout(60):
        while not bus._client._pongs:  # noqa: ASYNC110 - until it is asked
            await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    await bus._client.flush(timeout=5)
    assert bus.is_connected
