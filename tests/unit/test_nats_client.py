"""The short ways from the socket's bytes to a handler, and from what is published to the socket."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport
from nats.errors import BadSubjectError, MaxPayloadError, OutboundBufferLimitError

from events.nats_client import DirectClient, NoOneListensError

payloads = st.binary(max_size=40) | st.just(b"MSG a 1 3\r\nabc\r\n") | st.just(b"\r\n") | st.just(b"PING\r\n")


def frame(number: int, payload: bytes, reply: str) -> bytes:
    return f"MSG ask.t.acme {number} {reply} {len(payload)}\r\n".encode() + payload + b"\r\n"


@given(
    st.lists(st.tuples(payloads, st.sampled_from(["", "_INBOX.a.1"]), st.sampled_from(["", "+OK\r\n"])), max_size=12),
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
)
def test_messages_arrive_whole_and_in_order_however_the_input_is_cut(
    sent: list[tuple[bytes, str, str]], cuts: list[int]
) -> None:
    """Also where a payload looks like the protocol itself, and where other lines stand between messages."""
    client, received = DirectClient(), []
    subscription = client.listen("ask.t.acme", lambda data, reply: received.append((data, reply)))
    stream = b"".join(frame(subscription.number, data, reply) + line.encode() for data, reply, line in sent)

    async def feed() -> None:
        at, turn = 0, 0
        while at < len(stream):
            size = cuts[turn % len(cuts)]
            await client._ps.parse(stream[at : at + size])
            at, turn = at + size, turn + 1

    asyncio.run(feed())
    assert received == [(data, reply) for data, reply, _ in sent]


async def test_a_handler_that_raises_ends_nothing() -> None:
    """An exception in nats-py's read loop would leave a connection that looks alive and hears nothing."""
    client, received = DirectClient(), []

    def handler(data: bytes, _reply: str) -> None:
        received.append(data)
        raise RuntimeError(data)

    subscription = client.listen("x", handler)
    await client._ps.parse(frame(subscription.number, b"1", "") + frame(subscription.number, b"2", ""))
    assert received == [b"1", b"2"]


async def test_subscriptions_of_nats_py_itself_still_get_theirs() -> None:
    """JetStream's are of that kind."""
    client, received = DirectClient(), asyncio.Queue[bytes]()

    async def handler(message: Msg) -> None:
        await received.put(message.data)

    theirs = await _subscribe(client, handler)
    ours = client.listen("y", lambda data, _reply: received.put_nowait(b"ours " + data))
    await client._ps.parse(frame(theirs, b"1", "") + frame(ours.number, b"2", "") + frame(theirs, b"3", ""))
    async with asyncio.timeout(60):
        assert {await received.get() for _ in range(3)} == {b"1", b"ours 2", b"3"}
    nats_py_task: Any = client._subs[theirs]._wait_for_msgs_task
    nats_py_task.cancel()


async def _subscribe(client: DirectClient, handler: object) -> int:
    client._flush_queue = asyncio.Queue()
    subscription = await client.subscribe("x", cb=handler)  # type: ignore[arg-type]
    return subscription._id


async def test_nobody_listening_is_said_at_once_and_a_late_answer_harms_nobody() -> None:
    client = DirectClient()
    client._max_pending_size = 1_000_000
    asking = asyncio.create_task(client.ask("ask.t.nobody", b"?", 5.0))
    await asyncio.sleep(0)  # until it has been sent
    inbox = client._inbox
    assert inbox is not None
    status = b"NATS/1.0 503\r\n\r\n"
    answer = f"HMSG {inbox.prefix}1 {inbox.number} {len(status)} {len(status)}\r\n".encode() + status + b"\r\n"
    await client._ps.parse(answer)
    with pytest.raises(NoOneListensError):
        await asking
    await client._ps.parse(answer)
    assert inbox.asked == {}


async def test_an_ask_without_an_answer_ends_in_time_and_leaves_nothing_behind() -> None:
    client = DirectClient()
    client._max_pending_size = 1_000_000
    with pytest.raises(TimeoutError):
        await client.ask("ask.t.silent", b"?", 0.01)
    assert client._inbox is not None
    assert client._inbox.asked == {}


def test_what_would_break_the_protocol_or_the_memory_is_refused() -> None:
    client = DirectClient()
    for subject in ("", "a b", "a\r\nPUB b 0"):
        with pytest.raises(BadSubjectError):
            client.post(subject, b"")
        with pytest.raises(BadSubjectError):
            client.listen(subject, lambda _data, _reply: None)
    with pytest.raises(OutboundBufferLimitError):
        client.post("a", b"x" * 10)  # not connected, and nothing may be buffered
    client._max_payload = 5
    with pytest.raises(MaxPayloadError):
        client.post("a", b"x" * 10)


class Socket(TcpTransport):
    """Keeps what is written to it; ``unsent`` bytes of that the other side has not taken yet."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unsent, self.error = 0, ""
        self.written: list[bytes] = []
        self._io_writer = cast("Any", SimpleNamespace(transport=self))

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def writelines(self, payload: list[bytes]) -> None:
        if self.error:
            raise RuntimeError(self.error)
        self.written.append(b"".join(payload))


@pytest.fixture
async def connected() -> tuple[DirectClient, Socket]:
    client, socket = DirectClient(), Socket()
    client._status, client._transport, client._flush_queue = Client.CONNECTED, socket, asyncio.Queue()
    return client, socket


async def test_what_is_published_in_one_round_of_the_loop_goes_out_in_one_piece(
    connected: tuple[DirectClient, Socket],
) -> None:
    client, socket = connected
    for number in range(3):
        client.post("x", b"%d" % number)
    assert socket.written == []
    await asyncio.sleep(0)
    assert socket.written == [b"PUB x  1\r\n0\r\nPUB x  1\r\n1\r\nPUB x  1\r\n2\r\n"]
    client.post("x", b"3")
    await asyncio.sleep(0)
    assert len(socket.written) == 2
    assert client._flush_queue is not None
    assert client._flush_queue.empty()


@pytest.mark.parametrize(("unsent", "error"), [(1 << 20, ""), (0, "the handler is closed")])
async def test_what_the_socket_does_not_take_waits_for_nats_py(
    connected: tuple[DirectClient, Socket], unsent: int, error: str
) -> None:
    """A server that reads nothing must not have us hold what is published without end; nor is anything lost or said twice."""
    client, socket = connected
    socket.unsent, socket.error = unsent, error
    for number in range(3):
        client.post("x", b"%d" % number)
        await asyncio.sleep(0)
    assert socket.written == []
    assert client._flush_queue is not None
    assert client._flush_queue.qsize() == 1
    assert client.pending_data_size == 3 * len(b"PUB x  1\r\n0\r\n")
