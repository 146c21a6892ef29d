"""The ceiling of asks: a bare NATS responder in a Ray actor, with one function call in Valkey per batch of whatever waits.

No decoding, no decisions, no hash chain, no idempotency, no fencing: bytes in, the same number of bytes made durable as
by one of our events, a position out.
"""

import asyncio
import time
from collections import deque
from typing import Any, cast
from urllib.parse import urlsplit

import hiredis
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

SUBJECT = "bench.ask"
_BATCH_MAX = 256  # as many as one of our turns takes
_LOG, _META = "{bench}:log", "{bench}:meta"
_LIBRARY = """#!lua name=bench_v1
redis.register_function('bench_v1_append', function(keys, args)
  local position = tonumber(args[1])
  for i = 2, #args do redis.call('XADD', keys[1], (position + i - 1) .. '-0', 'e', args[i]) end
  redis.call('HSET', keys[2], 'position', position + #args - 1)
  return position + #args - 1
end)
"""


class Store(asyncio.Protocol):
    """The least there is between a coroutine and Valkey: commands out, replies in order."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's are not registered as such

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            self._waiting.popleft().set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        for future in self._waiting:
            future.set_exception(exc or ConnectionResetError())

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    async def call(self, *command: str | int | bytes) -> Any:
        """Raises hiredis.ReplyError where the server says no."""
        assert self._transport is not None
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._transport.write(hiredis.pack_command(cast("Any", command)))  # its stub knows one argument only
        reply = await future
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply


async def open_store(url: str) -> Store:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    _, store = await asyncio.get_running_loop().create_connection(Store, parts.hostname, parts.port)
    if parts.password:
        await store.call("AUTH", parts.password)
    await store.call("FUNCTION", "LOAD", "REPLACE", _LIBRARY)
    await store.call("DEL", _LOG, _META)
    return store


class Responder:
    """An async Ray actor, as ours."""

    def __init__(self, nats_url: str, valkey_url: str) -> None:
        self._nats_url, self._valkey_url = nats_url, valkey_url
        self._queue: asyncio.Queue[tuple[bytes, str]] = asyncio.Queue()
        self._event_bytes = 0
        self._position = 0
        self._writing: asyncio.Task[None] | None = None

    async def listen(self, event_bytes: int) -> None:
        """Returns when it answers, each command with an event of that size. Again: from now on of another size."""
        self._event_bytes = event_bytes
        if self._writing is None:
            store, client = await open_store(self._valkey_url), await nats.connect(self._nats_url)
            self._writing = asyncio.create_task(self._write(store, client))

            async def on_message(message: Msg) -> None:
                self._queue.put_nowait((message.data, message.reply))

            await client.subscribe(SUBJECT, cb=on_message)
            await client.flush()

    async def _write(self, store: Store, client: Client) -> None:
        """Whatever waits when the previous append returns goes into the next one."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < _BATCH_MAX and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            events = [self._event(data) for data, _ in batch]
            self._position = await store.call("FCALL", "bench_v1_append", 2, _LOG, _META, self._position, *events)
            for number, (_, reply_to) in enumerate(batch, self._position - len(batch) + 1):
                await client.publish(reply_to, b'{"ok":true,"position":%d}' % number)

    def _event(self, data: bytes) -> bytes:
        event = time.time_ns().to_bytes(8, "big") + data
        return event[: self._event_bytes].ljust(self._event_bytes, b".")
