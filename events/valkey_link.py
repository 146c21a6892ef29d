"""A bare connection to one Valkey server: commands out, replies in order, no more.

redis-py takes some 100 us of Python per call and hands a connection to one caller at a time. Here all callers of a
process share one connection: what they send while the server is at work lies in its socket buffer and is served, and
made durable, together. RESP2 has no replies that nobody asked for, so the n-th reply belongs to the n-th command, always.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import hiredis
import msgspec
from redis.exceptions import ResponseError

log = logging.getLogger(__name__)

Command = Sequence[Any]  # name and arguments: str, bytes, int


class Address(msgspec.Struct, frozen=True):
    """Where the server listens, and what it wants to hear first."""

    host: str
    port: int
    db: int = 0
    username: str | None = None
    password: str | None = None

    @property
    def greeting(self) -> list[Command]:
        commands: list[Command] = []
        if self.password:
            commands.append(("AUTH", self.username, self.password) if self.username else ("AUTH", self.password))
        if self.db:
            commands.append(("SELECT", self.db))
        return commands


class _Group:
    """Commands sent together, their replies so far, and who waits for them."""

    __slots__ = ("count", "deadline", "future", "replies")

    def __init__(self, count: int, future: asyncio.Future[list[Any]], deadline: float) -> None:
        self.count, self.future, self.deadline = count, future, deadline
        self.replies: list[Any] = []


class _Wire(asyncio.Protocol):
    """One connection's life. Once lost it is never used again."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=ResponseError)
        self._watch: asyncio.TimerHandle | None = None
        self._waiting: deque[_Group] = deque()
        self._transport: asyncio.WriteTransport | None = None
        self.is_lost = False
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's are not registered as such

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                self._take(reply)
        except (hiredis.ProtocolError, IndexError) as error:
            # a reply nobody waits for, or no reply at all: from here on nothing could be told apart
            log.error("valkey.desynchronised: %s", error or "a reply nobody asked for")
            self.abort(ConnectionError(f"the connection to Valkey is out of step: {error}"))

    def _take(self, reply: Any) -> None:
        group = self._waiting[0]
        group.replies.append(reply)
        if len(group.replies) == group.count:
            self._waiting.popleft()
            if not group.future.done():  # whoever was cancelled still has its replies taken off the wire
                group.future.set_result(group.replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self.abort(exc or ConnectionResetError("Valkey closed the connection"))
        self.closed.set()

    def abort(self, error: Exception) -> None:
        """Every call under way fails: nobody knows what became of it."""
        self.is_lost = True
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._transport is not None:
            self._transport.abort()
        waiting, self._waiting = self._waiting, deque()
        for group in waiting:
            if not group.future.done():
                group.future.set_exception(error)

    def send(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        assert self._transport is not None
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        packed = [hiredis.pack_command(cast("Any", tuple(command))) for command in commands]
        deadline = self._loop.time() + self._timeout_s
        self._waiting.append(_Group(len(packed), future, deadline))
        if self._watch is None:
            self._watch = self._loop.call_at(deadline, self._look)
        self._transport.write(packed[0] if len(packed) == 1 else b"".join(packed))
        return future

    def _look(self) -> None:
        """One timer for all calls: replies come in order, so the first that waits is the first to be late."""
        self._watch = None
        if not self._waiting:
            return
        if self._loop.time() < self._waiting[0].deadline:
            self._watch = self._loop.call_at(self._waiting[0].deadline, self._look)
        else:  # a server that is silent for so long would answer out of everybody's time
            self.abort(TimeoutError(f"Valkey did not answer within {self._timeout_s:g} s"))


def _accept(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, ResponseError):
            raise ConnectionRefusedError(f"Valkey refuses us: {reply}")


def _closed_by_us() -> ConnectionAbortedError:
    return ConnectionAbortedError("the connection to Valkey is closed by us")


class Link:
    """Calls over one connection that is opened when it is needed, and anew after it was lost. Nothing is ever sent twice."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address, self._timeout_s = address, timeout_s
        self._wire: _Wire | None = None
        self._connecting: asyncio.Task[_Wire] | None = None
        self._is_closed = False

    async def call(self, commands: Sequence[Command]) -> list[Any]:
        """The replies, in order; a ``ResponseError`` among them is the server's answer to that command alone.

        A caller may be cancelled at any time: its commands may then have been carried out, and nobody else notices.

        Raises:
            OSError: The connection could not be made or was lost, or no answer came in time. What was sent may or may
                not have been carried out. Also after ``close``.
        """
        if not commands:
            return []
        wire = self._wire
        if wire is None or wire.is_lost:
            wire = await self._connect()
        return await wire.send(commands)

    async def _connect(self) -> _Wire:
        """One attempt at a time, whoever of those that wait for it is cancelled."""
        if self._is_closed:
            raise _closed_by_us()
        connecting = self._connecting
        if connecting is None:
            connecting = self._connecting = asyncio.create_task(self._open(), name="valkey-connect")
            connecting.add_done_callback(self._connected)
        await asyncio.wait([connecting])
        if connecting.cancelled():  # by ``close``: whoever called was not
            raise _closed_by_us()
        return connecting.result()

    def _connected(self, task: asyncio.Task[_Wire]) -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._wire = task.result()

    async def _open(self) -> _Wire:
        address = self._address
        try:
            async with asyncio.timeout(self._timeout_s):
                _, wire = await asyncio.get_running_loop().create_connection(
                    lambda: _Wire(self._timeout_s), address.host, address.port
                )
                try:
                    if address.greeting:
                        _accept(await wire.send(address.greeting))
                except BaseException:  # cancelled or too late, too: nobody else knows of this connection
                    wire.abort(ConnectionAbortedError("not greeted"))
                    raise
                return wire
        except TimeoutError as error:
            where = f"{address.host}:{address.port}"
            raise TimeoutError(f"Valkey at {where} did not take the connection within {self._timeout_s:g} s") from error

    async def close(self) -> None:
        """For good: calls under way fail, and so do those that come later."""
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._wire is not None:
            wire, self._wire = self._wire, None
            wire.abort(_closed_by_us())
            await wire.closed.wait()
