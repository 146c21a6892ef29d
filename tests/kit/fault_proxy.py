"""A TCP proxy on loopback that does to a connection what networks do: hold it, delay it, reset it, cut it off at the
worst moment, put foreign or wrong bytes into it.
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable
from typing import Self

from events.tasks import end_tasks
from serve.local_servers import LOOPBACK

_CHUNK_BYTES = 64 * 1024


class Direction:
    """One way through the proxy. What is held comes through when the hold ends, as TCP would send it again."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.delay_s = 0.0
        self.replacement: tuple[bytes, bytes] | None = None  # arrives wrong, once
        self.cuts = 0  # so many next pieces don't arrive, and reset their connection instead
        self.held_pieces = self.replaced = 0

    def hold(self) -> None:
        """Half-open from now on: connections stay, nothing comes through."""
        self._open.clear()

    def heal(self) -> None:
        self._open.set()

    async def pass_on(self, piece: bytes) -> bytes | None:
        """What arrives; None where the connection is to be reset."""
        if not self._open.is_set():
            self.held_pieces += 1
            await self._open.wait()
        if self.delay_s:
            await asyncio.sleep(self.delay_s)  # the network's
        if self.cuts > 0:
            self.cuts -= 1
            return None
        if self.replacement is not None and self.replacement[0] in piece:
            piece = piece.replace(*self.replacement)
            self.replacement = None
            self.replaced += 1
        return piece


class _Link:
    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client, self.server = client, server

    def reset(self) -> None:
        """RST, not FIN, to both sides."""
        for writer in (self.client, self.server):
            peer: socket.socket | None = writer.get_extra_info("socket")
            if peer is not None and not writer.is_closing():
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class FaultProxy:
    """``to_server`` and ``to_client`` say what happens to bytes; without orders they just pass."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self.to_server, self.to_client = Direction(), Direction()
        self.accepted = self.resets = 0
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop_listening()
        self.reset_all()
        for task in list(self._tasks):
            await end_tasks(task)

    async def listen(self) -> None:
        """On the same port as before, where it has listened before."""
        self._listener = await asyncio.start_server(self._accept, LOOPBACK, self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop_listening(self) -> None:
        """New connections are refused; those that are there stay."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def reset_all(self) -> None:
        for link in list(self._links):
            self.resets += 1
            link.reset()

    async def close_all(self) -> None:
        """FIN to every client, as a server that ends; returns when it has been sent."""
        links, self._links = self._links, set()
        for link in links:
            link.client.close()
        await asyncio.gather(*(link.client.wait_closed() for link in links), return_exceptions=True)

    def inject(self, foreign: bytes) -> None:
        """Bytes that no server sent arrive at every client."""
        for link in self._links:
            link.client.write(foreign)

    async def _accept(self, from_client: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            from_server, server = await asyncio.open_connection(LOOPBACK, self._server_port)
        except OSError:
            client.transport.abort()
            return
        link = _Link(client, server)
        self._links.add(link)
        self._spawn(self._pump(from_client, server, self.to_server, link))
        self._spawn(self._pump(from_server, client, self.to_client, link))

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction, link: _Link
    ) -> None:
        try:
            while piece := await reader.read(_CHUNK_BYTES):
                passed = await direction.pass_on(piece)
                if passed is None:
                    self.resets += 1
                    link.reset()
                    break
                writer.write(passed)
                await writer.drain()
        except OSError:
            link.reset()
        finally:
            self._links.discard(link)
            writer.close()
