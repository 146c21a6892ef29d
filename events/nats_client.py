"""nats-py's client with a short way in and out.

nats-py gives every subscription a queue and a task, takes each message off its buffer by moving all that is behind it,
and awaits five functions to publish one. Here a message goes from the socket's bytes straight to its handler, and a
publication straight to the buffer of what is to be sent: half the processor time of an ask, a tenth of the memory of an
idle subscription, and no queue between socket and handler that could grow. What is rare (connecting, reconnecting,
JetStream) stays nats-py's. It replaces private methods of nats-py 2.16, which the pinned version holds still.
"""

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any

from nats.aio.client import Client
from nats.aio.transport import TcpTransport
from nats.errors import BadSubjectError, ConnectionClosedError, MaxPayloadError, OutboundBufferLimitError
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

log = logging.getLogger(__name__)

Handler = Callable[[bytes, str], None]  # data, subject to reply to ("" where no reply is wanted)
RawHandler = Callable[[bytes, bytes, str, bytes | None], None]  # subject, data, subject to reply to, headers

_UNSENT_BYTES_MAX = 16 * 1024 * 1024  # a server that reads nothing for so long is as good as away
_SOCKET_BYTES_MAX = 64 * 1024  # in the transport's own buffer: asyncio's high-water mark
_INVALID_SUBJECT = re.compile(r"[\s\x00]")
_NO_ONE_LISTENS = b"NATS/1.0 503"


class NoOneListensError(Exception):
    """The server says that nobody is subscribed to the subject."""


class Subscription:
    """Interest in a subject. No queue and no task: ``handler`` is called as the message is parsed, and must not block."""

    __slots__ = ("_client", "_subject", "handler", "number")
    # what nats-py looks at when it reconnects or closes
    _queue, _max_msgs, _received = "", 0, 0
    _wait_for_msgs_task = _message_iterator = _pending_next_msgs_calls = None

    def __init__(self, client: "DirectClient", number: int, subject: str, handler: Handler) -> None:
        self._client, self.number, self._subject, self.handler = client, number, subject, handler

    def receive(self, _subject: bytes, data: bytes, reply: str, _headers: bytes | None) -> None:
        self.handler(data, reply)

    async def unsubscribe(self) -> None:
        """Nothing is delivered after this returns; what was delivered while it ran was handled."""
        try:
            await self._client.leave(self.number)
        finally:
            self._client.forget(self.number)


class RawSubscription(Subscription):
    """One whose handler also sees subject and headers: statuses of JetStream are nothing else."""

    __slots__ = ("_raw_handler",)

    def __init__(self, client: "DirectClient", number: int, subject: str, handler: RawHandler) -> None:
        super().__init__(client, number, subject, lambda _data, _reply: None)
        self._raw_handler = handler

    def receive(self, subject: bytes, data: bytes, reply: str, headers: bytes | None) -> None:
        self._raw_handler(subject, data, reply, headers)


class _Inbox(Subscription):
    """Where all answers to this client's requests come: the subject's last token says to which."""

    __slots__ = ("asked", "prefix", "prefix_bytes")

    def __init__(self, client: "DirectClient", number: int, prefix: str) -> None:
        super().__init__(client, number, f"{prefix}*", lambda _data, _reply: None)
        self.prefix, self.prefix_bytes = prefix, len(prefix)
        self.asked: dict[bytes, asyncio.Future[bytes]] = {}

    def receive(self, subject: bytes, data: bytes, _reply: str, headers: bytes | None) -> None:
        future = self.asked.get(subject[self.prefix_bytes :])
        if future is None or future.done():
            return  # answered before, or given up
        if headers is not None and headers.startswith(_NO_ONE_LISTENS):
            future.set_exception(NoOneListensError())
        else:
            future.set_result(data)


class _Parser(Parser):
    """Takes whole messages out of each piece of input in one pass; nats-py's own handles everything else."""

    nc: "DirectClient"

    async def parse(self, data: bytes = b"") -> None:
        if self.state != AWAITING_CONTROL_LINE:
            await super().parse(data)
            return
        if self.buf:
            data = bytes(self.buf) + data
            self.buf.clear()
        begin, size = 0, len(data)
        while begin < size:
            line_end = data.find(b"\r\n", begin)
            if line_end < 0:
                break
            if data.startswith(b"MSG ", begin):
                words = data[begin + 4 : line_end].split()
                body = line_end + 2
                end = body + int(words[-1]) + 2
                if end > size:
                    break
                reply = words[2] if len(words) == 4 else b""
                begin = end
                message = data[body : end - 2]
                if not self.nc.dispatch(int(words[1]), words[0], reply, message, None):
                    await self.nc.leave_to_nats_py(int(words[1]), words[0], reply, message)
                continue
            end = line_end + 2
            if data.startswith(b"HMSG ", begin):
                end += int(data[begin:line_end].split()[-1]) + 2
                if end > size:
                    break
            line, begin = data[begin:end], end
            await super().parse(line)
        if begin < size:
            self.buf += data[begin:]


class DirectClient(Client):
    """Adds ``post``, ``ask`` and ``listen`` to nats-py's client."""

    def __init__(self) -> None:
        super().__init__()
        self._ps = _Parser(self)
        self._inbox: _Inbox | None = None
        self._asks = 0
        self._is_writing = False

    def post(self, subject: str, data: bytes, reply: str = "") -> None:
        """Publish. It is sent as soon as the loop gets there, in order.

        Raises:
            nats.errors.Error: It could not even be buffered.
        """
        if not subject or _INVALID_SUBJECT.search(subject):
            raise BadSubjectError
        if self.is_closed:
            raise ConnectionClosedError
        size = len(data)
        if size > self._max_payload:
            raise MaxPayloadError
        limit = _UNSENT_BYTES_MAX if self.is_connected else self._max_pending_size
        if self._pending_data_size + size > limit:
            raise OutboundBufferLimitError
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += size
        self._put(f"PUB {subject} {reply} {size}\r\n".encode() + data + b"\r\n")

    def _put(self, command: bytes) -> None:
        self._pending.append(command)
        self._pending_data_size += len(command)
        if not self._is_writing and self.is_connected:
            self._is_writing = True
            asyncio.get_running_loop().call_soon(self._write_pending)

    def _write_pending(self) -> None:
        """All that was put in this round of the loop goes out in one piece, without the task that nats-py would wake for it.
        That task gets what the socket does not take for now: it waits, and says what is wrong.
        """
        self._is_writing = False
        if not (self._pending and self.is_connected):
            return  # out already, or to be sent by whoever connects again
        try:
            if self._has_room():
                assert self._transport is not None
                self._transport.writelines(self._pending)
                self._pending, self._pending_data_size = [], 0
                return
        except (OSError, RuntimeError) as error:  # uvloop's, of a transport that has closed
            log.debug("bus.write_failed: %r", error)
        if self._flush_queue is not None and self._flush_queue.empty():
            self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())

    def _has_room(self) -> bool:
        """Whether the socket takes more; unknown, and so left to nats-py, of what is no plain TCP or TLS connection."""
        if not isinstance(self._transport, TcpTransport):
            return False
        writer = self._transport._io_writer  # noqa: SLF001 - no public way leads to it
        return writer is not None and writer.transport.get_write_buffer_size() < _SOCKET_BYTES_MAX

    async def ask(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """Publish and wait for one answer.

        Raises:
            NoOneListensError: At once, where nobody is subscribed.
            TimeoutError: Nobody answered in time.
            nats.errors.Error: It could not be sent.
        """
        inbox = self._inbox or self._open_inbox()
        self._asks += 1
        token = str(self._asks)
        key = token.encode()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes] = loop.create_future()
        inbox.asked[key] = future
        timer = loop.call_later(timeout_s, _give_up, future, subject)
        try:
            self.post(subject, data, inbox.prefix + token)
            return await future
        finally:
            timer.cancel()
            del inbox.asked[key]

    def _open_inbox(self) -> _Inbox:
        self._sid += 1
        prefix = f"{self._inbox_prefix.decode()}.{self._nuid.next().decode()}."
        inbox = self._inbox = _Inbox(self, self._sid, prefix)
        self._register(inbox, f"{prefix}*")
        return inbox

    def listen(self, subject: str, handler: Handler) -> Subscription:
        """Subscribe; ``flush`` afterwards says that the server knows. ``handler`` gets every message, in order."""
        if not subject or _INVALID_SUBJECT.search(subject):
            raise BadSubjectError
        if self.is_closed:
            raise ConnectionClosedError
        self._sid += 1
        subscription = Subscription(self, self._sid, subject, handler)
        self._register(subscription, subject)
        return subscription

    def listen_raw(self, subject: str, handler: RawHandler) -> Subscription:
        """As ``listen``; the handler gets subject, data, subject to reply to, and headers as they came."""
        self._sid += 1
        subscription = RawSubscription(self, self._sid, subject, handler)
        self._register(subscription, subject)
        return subscription

    def _register(self, subscription: Subscription, subject: str) -> None:
        subs: dict[int, Any] = self._subs
        subs[subscription.number] = subscription
        self._put(f"SUB {subject}  {subscription.number}\r\n".encode())

    async def leave(self, number: int) -> None:
        """Returns when the server delivers no more to the subscription."""
        if number in self._subs and self.is_connected:
            self._put(f"UNSUB {number}\r\n".encode())
            await self.flush()

    def forget(self, number: int) -> None:
        self._subs.pop(number, None)

    def dispatch(self, number: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> bool:
        """Hand a message to whom it is for; False where that is a subscription of nats-py's own kind."""
        subscription: Any = self._subs.get(number)
        if not isinstance(subscription, Subscription):
            return False
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        try:
            subscription.receive(subject, data, reply.decode(), headers)
        except Exception:  # one that rose would end nats-py's read loop for good
            log.exception("bus.handler_failed subject=%s", subject.decode(errors="replace"))
        return True

    async def _process_pong(self) -> None:
        """A flush that was cancelled leaves its future in the queue; nats-py sets that too, fails, and reads no more."""
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
            self._pongs_received += 1
            self._pings_outstanding = 0
            return
        await super()._process_pong()

    async def leave_to_nats_py(self, number: int, subject: bytes, reply: bytes, data: bytes) -> None:
        await super()._process_msg(number, subject, reply, data, b"")

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        """Where nats-py's parser brings messages, those with headers."""
        if not self.dispatch(sid, subject, reply, data, headers):
            await super()._process_msg(sid, subject, reply, data, headers)

    async def _send_ping(self, future: "asyncio.Future[Any] | None" = None) -> None:
        """nats-py writes a PING past what is still buffered, so its PONG would say nothing about a SUB or UNSUB there."""
        if self._pending and self.is_connected:
            assert self._transport is not None
            self._transport.writelines(self._pending)
            self._pending, self._pending_data_size = [], 0
        await super()._send_ping(future)


def _give_up(future: "asyncio.Future[bytes]", subject: str) -> None:
    if not future.done():
        future.set_exception(TimeoutError(subject))
