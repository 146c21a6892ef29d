"""The few pieces of ASGI that the hot path needs without a framework around it."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import msgspec

from serve.http_errors import HttpError, error_body, error_headers
from serve.observe.request import note_error

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


_LENGTH_DIGITS_MAX = 15  # of a Content-Length; the servers in front let digits through only


class ClientLeftError(Exception):
    """The client closed its connection before it had the answer."""


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that (lower-case) name, as text."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


def check_head(scope: Scope, body_bytes_max: int) -> None:
    """Whether a body as announced could be taken. Raises HttpError (413, 415), before a byte of it is read."""
    for name, value in scope["headers"]:
        if name == b"content-length" and (len(value) > _LENGTH_DIGITS_MAX or int(value) > body_bytes_max):
            raise _too_large(body_bytes_max)
        if name == b"content-encoding" and value.lower() not in (b"identity", b""):
            told = value[:40].decode("latin-1")
            message = f"a body with content-encoding {told!r} can't be read: send it as it is"
            raise HttpError(415, "unsupported_encoding", message, param="content-encoding")


def _too_large(bytes_max: int) -> HttpError:
    return HttpError(413, "too_large", f"the body is larger than {bytes_max} bytes")


async def read_body(scope: Scope, receive: Receive, bytes_max: int) -> bytes:
    """Raises HttpError (413, 415) before more than ``bytes_max`` are held, ClientLeftError where the body never ends."""
    check_head(scope, bytes_max)
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        part = message.get("body", b"")
        size += len(part)
        if size > bytes_max:
            raise _too_large(bytes_max)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def run_unless_client_leaves(work: Awaitable[None], receive: Receive) -> None:
    """Run ``work`` to its end; cancel it, and wait for that, as soon as the client is gone: then ClientLeftError.

    In the caller's own task, as ``asyncio.timeout`` does it: another one for each request would cost more than most of it.
    """
    task, has_left = asyncio.current_task(), False
    assert task is not None

    def on_left(watching: asyncio.Task[None]) -> None:
        nonlocal has_left
        if not watching.cancelled():
            watching.exception()  # a connection that fails is one that is gone
            has_left = True
            task.cancel()

    watching = asyncio.create_task(_until_disconnect(receive))
    watching.add_done_callback(on_left)
    try:
        await work
    except asyncio.CancelledError:
        if has_left and task.uncancel() == 0:  # else somebody else wants us to end, too
            raise ClientLeftError from None
        raise
    finally:
        watching.remove_done_callback(on_left)
        watching.cancel()


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Taken(msgspec.Struct, frozen=True, array_like=True):
    """A response as it was sent."""

    status: int
    headers: dict[str, str]
    body: bytes


_TAKEN_BYTES_MAX = 16 * 1024 * 1024


class Responder:
    """Sends one response, whole or streamed, and knows how far it has got.

    ``before_end``, where it is set before the start, gets the response just before its last piece is sent; None: it was too
    large to hold on to. It is not called for errors.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_started = False
        self.has_ended = False  # well, or so that ``before_end`` has it
        self.headers: dict[str, str] = {}  # of whatever is answered
        self.before_end: Callable[[Taken | None], Awaitable[None]] | None = None
        self._status, self._sent_headers = 0, dict[str, str]()
        self._taken, self._taken_bytes = list[bytes](), 0

    async def start(self, status: int, headers: dict[str, str]) -> None:
        self._status, self._sent_headers = status, {**self.headers, **headers}
        raw = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in self._sent_headers.items()]
        self.has_started = True
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def body(self, data: bytes, *, more: bool) -> None:
        if self.before_end is not None:
            self._take(data)
            if not more:
                await self.before_end(self._whole())
        self.has_ended = not more
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    def _take(self, data: bytes) -> None:
        self._taken_bytes += len(data)
        if self._taken_bytes <= _TAKEN_BYTES_MAX:
            self._taken.append(data)
        else:
            self._taken.clear()

    def _whole(self) -> Taken | None:
        if self._taken_bytes > _TAKEN_BYTES_MAX:
            return None
        return Taken(self._status, self._sent_headers, b"".join(self._taken))

    async def json(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        await self.start(
            status, {"content-type": "application/json", "content-length": str(len(data)), **(headers or {})}
        )
        await self.body(data, more=False)

    async def event(self, data: bytes) -> None:
        """One server-sent event; opens the stream if need be."""
        await self.body(b"data: " + data + b"\n\n", more=True)

    async def events(self, data: Sequence[bytes]) -> None:
        """Several at once: a send costs more than an event."""
        if data:
            await self.body(b"".join([b"data: %b\n\n" % each for each in data]), more=True)

    async def comment(self, text: str) -> None:
        """A line that clients of server-sent events skip."""
        await self.body(b": " + text.encode() + b"\n\n", more=True)

    async def error(self, error: HttpError) -> None:
        """The error as a response, or as the last event of a stream that has begun."""
        note_error(error.code)
        self.before_end = None
        if self.has_started:
            await self.event(error_body(error))
            await self.body(b"", more=False)
        else:
            await self.json(error.status, error_body(error), error_headers(error))
