"""A gateway replica's own door, beside Serve's: the same application on a port of its own, without HAProxy and Serve's
replica wrapper between, which cost more than everything behind them.

Serve still decides how many replicas there are, whether they are healthy and when they end. A load balancer in front
learns the addresses from the platform (``tenantry gateways``), which knows who listens because each says so every few
seconds. What HAProxy does for the other door is done here: a time limit for request heads, a bounded number of requests at
once, and nothing that a client's headers could switch off.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import socket
import sys
import termios
from collections.abc import Callable, Iterator
from enum import Enum

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.asgi import App, Receive, Scope, Send
from serve.http10 import WholeAnswer
from serve.http_errors import HttpError, error_body, error_headers

log = logging.getLogger(__name__)

HEAD_TIMEOUT_S = 10.0
HEAD_BYTES_MAX = 64 * 1024
BODY_SILENCE_S = 30.0
READER_SILENCE_S = 30.0
CONNECTIONS_MAX = 4_096
_KEEP_ALIVE_S = 75  # longer than the 60 s of most load balancers, so that it is they who close
_DRAIN_TIMEOUT_S = 15
_BACKLOG = 2_048
_OVERLOADED = "overloaded"
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")


class Stage(Enum):
    """What a connection waits for."""

    NOTHING = 0
    HEAD = 1
    BODY = 2


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's, with an end to requests that come too slowly or whose head never ends, errors in JSON, and an
    ``x-request-id`` on every answer. A request that comes in one piece costs no timer.
    """

    _stage = Stage.NOTHING
    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS_MAX:
            transport.abort()
        else:
            self._expect_head()
            self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_reader_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._stage is Stage.NOTHING and (self.cycle is None or self.cycle.response_complete):
            self._expect_head()  # the first bytes of a kept connection's next request
        if self._stage is Stage.HEAD:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._stage is Stage.HEAD and self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self._give_up("the request's head is too large")
        else:
            self._set_timer()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._stage = Stage.BODY
        hosts, request_id = 0, b""
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
                request_id = value
        if hosts != 1 and self.parser.get_http_version() == "1.1":
            raise ValueError("RFC 9112, 3.2")  # the parser makes an invalid request of it
        super().on_headers_complete()
        answer = self.cycle
        answer.default_headers = [
            *answer.default_headers,
            (b"x-request-id", request_id or os.urandom(16).hex().encode()),
        ]

    def send_400_response(self, msg: str) -> None:
        """What the client reads before its connection is closed."""
        error = HttpError(400, "invalid_request", msg)
        body = error_body(error)
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        lines = [f"{name}: {value}" for name, value in {**headers, **error_headers(error)}.items()]
        self.transport.write("\r\n".join(["HTTP/1.1 400 Bad Request", *lines, "", ""]).encode() + body)
        self.transport.close()

    def on_message_complete(self) -> None:
        self._stop_timer()
        self._stage = Stage.NOTHING
        super().on_message_complete()

    def _expect_head(self) -> None:
        self._stop_timer()
        self._stage, self._head_bytes = Stage.HEAD, 0

    def _set_timer(self) -> None:
        """A head has its time as a whole; a body has it anew with each piece."""
        if self._stage is Stage.BODY:
            self._stop_timer()
            self._timer = self.loop.call_later(BODY_SILENCE_S, self._cut)
        elif self._stage is Stage.HEAD and self._timer is None:
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up, "the request's head came too slowly")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause_writing(self) -> None:
        """The client takes nothing for now: until it does the application waits, and holds its place among the requests."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._stop_reader_timer()
        super().resume_writing()

    def _watch_reader(self) -> None:
        self._stop_reader_timer()
        self._reader_timer = self.loop.call_later(READER_SILENCE_S, self._look_at_reader, self._unread_bytes())

    def _look_at_reader(self, before: int) -> None:
        """Who reads slowly is waited for; who reads nothing is taken for gone."""
        if self._unread_bytes() < before:
            self._watch_reader()
        else:
            self._cut()

    def _unread_bytes(self) -> int:
        """Ours, and the system's: it holds megabytes, and asks for more only when a good part of them is gone."""
        sent = self.transport.get_extra_info("socket")
        queued = fcntl.ioctl(sent.fileno(), termios.TIOCOUTQ, bytes(4)) if sent is not None else bytes(4)
        return self.transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)

    def _stop_reader_timer(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def timeout_keep_alive_handler(self) -> None:
        """Closing waits for the client to read what is left, for ever."""
        if self.transport.get_write_buffer_size():
            self._cut()
        else:
            super().timeout_keep_alive_handler()

    def _cut(self) -> None:
        """The application learns of it as of any client that leaves."""
        self.transport.abort()

    def _give_up(self, why: str) -> None:
        self._stop_timer()
        if not self.transport.is_closing():
            self.send_400_response(why)


class BoundedApp:
    """So many requests at once, and an answer at once for those beyond: a queue here would only hide the overload."""

    def __init__(self, app: App, requests_max: int, on_refused: Callable[[str], None]) -> None:
        self._app, self._requests_max, self._under_way = app, requests_max, 0
        self._on_refused = on_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._under_way >= self._requests_max:
            self._on_refused(_OVERLOADED)
            await _refuse(send)
            return
        self._under_way += 1
        if scope.get("http_version") == "1.0":
            send = WholeAnswer(send)
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way -= 1


async def _refuse(send: Send) -> None:
    error = HttpError(503, _OVERLOADED, "this gateway has as many requests as it can hold", retry_after_s=1.0)
    headers = {"content-type": "application/json", **error_headers(error)}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": error_body(error)})


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are Ray's to handle: this process is a replica."""
        yield


class Listener:
    """One per replica. ``start``, then ``url``; ``close`` stops taking connections and finishes what runs."""

    def __init__(
        self,
        app: App,
        *,
        host: str,
        ports: range,
        requests_max: int,
        on_refused: Callable[[str], None] = lambda _code: None,
    ) -> None:
        self._host, self._ports = host, ports
        config = uvicorn.Config(
            BoundedApp(app, requests_max, on_refused),
            http=GuardedProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_level="warning",
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_DRAIN_TIMEOUT_S,
            backlog=_BACKLOG,
        )
        self._server = _Server(config)
        self.url = ""  # known once it has been started
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises OSError where no port of the range is free."""
        sock = _bound(self._host, self._ports)
        host, port = sock.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._serving = asyncio.create_task(self._server.serve(sockets=[sock]), name="listener")

    async def close(self) -> None:
        if self._serving is None:
            return
        self._server.should_exit = True
        await self._serving


def _bound(host: str, ports: range) -> socket.socket:
    """A socket on the first free port of the range; of an empty range, on any."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    problem: OSError | None = None
    for port in ports or (0,):
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            sock.close()
            problem = error
        else:
            sock.listen(_BACKLOG)  # from here on, connections wait for the server to take them
            return sock
    raise OSError(f"no port of {ports.start}-{ports.stop - 1} is free on {host}: {problem}")
