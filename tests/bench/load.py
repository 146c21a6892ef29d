"""An HTTP load generator in a process of its own: keep-alive connections, each sends as soon as it is answered.

Bare sockets, because an HTTP client library costs more per request than what is measured. It knows just enough HTTP for
answers with a content-length, and says so where it meets another.

Run as a program: a ``Plan`` as JSON on standard input, an ``Outcome`` as JSON on standard output.
"""

import asyncio
import re
import sys
import time
from collections.abc import Mapping
from typing import cast

import msgspec

from tests.bench.results import BenchError

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Plan(msgspec.Struct, frozen=True):
    """``body`` holds one ``%d``, which becomes another number in each request. Nothing counts before the warm-up ends."""

    host: str
    port: int
    method: str
    path: str
    headers: Mapping[str, str]
    body: str
    first_number: int
    connections: int
    warmup_s: float
    seconds: float
    streams: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """``events``: server-sent ones, where answers are streams. Latencies are from sending to the whole answer."""

    requests: int
    seconds: float
    events: int = 0
    p50_us: float = 0.0
    p99_us: float = 0.0

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def events_per_second(self) -> float:
        return self.events / self.seconds


class Generator:
    """What the connections share: the next request, the count, the clock."""

    def __init__(self, plan: Plan) -> None:
        lines = [f"{plan.method} {plan.path} HTTP/1.1", f"host: {plan.host}:{plan.port}"]
        lines += [f"{name}: {value}" for name, value in plan.headers.items()]
        self._head = "\r\n".join([*lines, "content-length: "]).encode()
        self._body = plan.body.encode()
        self._number = plan.first_number
        self.answered = self.events = 0
        self.latencies_s: list[float] = []
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.running = True

    def answer_came(self, sent_s: float) -> None:
        self.answered += 1
        self.latencies_s.append(time.perf_counter() - sent_s)

    def next_request(self) -> bytes:
        self._number += 1
        body = self._body % self._number
        return b"%b%d\r\n\r\n%b" % (self._head, len(body), body)

    def fail(self, reason: str) -> None:
        if self.running and not self.failed.done():
            self.failed.set_exception(BenchError(reason))


class Connection(asyncio.Protocol):
    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._received = b""
        self._sent_s = 0.0
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's are not registered as such
        self._send_next()

    def _send_next(self) -> None:
        assert self._transport is not None
        self._sent_s = time.perf_counter()
        self._transport.write(self._generator.next_request())

    def _answered(self) -> None:
        self._received = b""
        self._generator.answer_came(self._sent_s)
        if self._generator.running:
            self._send_next()

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        head_end = received.find(b"\r\n\r\n")
        if head_end < 0:
            self._received = received
            return
        length = _LENGTH.search(received, 0, head_end + 2)
        if length is None or received[8:11] != b" 20":
            self._generator.fail(f"unexpected answer: {received[:500]!r}")
        elif len(received) < head_end + 4 + int(length[1]):
            self._received = received
        else:
            self._answered()

    def connection_lost(self, exc: Exception | None) -> None:
        self._generator.fail(f"a connection was lost: {exc!r}")


_TAIL = 8  # bytes kept of what came before: a mark may come in two pieces


class StreamConnection(Connection):
    """Counts events until the last chunk of a chunked answer."""

    def data_received(self, data: bytes) -> None:
        tail, self._received = self._received, (self._received + data)[-_TAIL:]
        if not tail and data[8:12] != b" 200":
            self._generator.fail(f"unexpected answer: {data[:500]!r}")
            return
        whole = tail + data
        self._generator.events += whole.count(b"data: ") - tail.count(b"data: ")
        if whole.endswith(b"\r\n0\r\n\r\n"):
            self._answered()


async def run(plan: Plan) -> Outcome:
    """Raises BenchError at the first answer that is not a 2xx, or a lost connection."""
    generator, loop = Generator(plan), asyncio.get_running_loop()
    connections: list[asyncio.BaseTransport] = []
    kind = StreamConnection if plan.streams else Connection
    try:
        for _ in range(plan.connections):
            opened, _ = await loop.create_connection(lambda: kind(generator), plan.host, plan.port)
            connections.append(opened)
        await asyncio.wait((generator.failed,), timeout=plan.warmup_s)
        began, before, events = time.perf_counter(), generator.answered, generator.events
        await asyncio.wait((generator.failed,), timeout=plan.seconds)
        took_s, latencies_us = time.perf_counter() - began, [each * 1e6 for each in generator.latencies_s[before:]]
        p50_us, p99_us = _percentiles(latencies_us)
        outcome = Outcome(generator.answered - before, took_s, generator.events - events, p50_us, p99_us)
        if generator.failed.done():
            generator.failed.result()
        return outcome
    finally:
        generator.running = False
        for transport in connections:
            transport.close()
        await asyncio.sleep(0)  # they close in the loop's next round


def _percentiles(values: list[float]) -> tuple[float, float]:
    """The median, and what 99 in 100 are not above."""
    ordered = sorted(values)
    return (ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]) if ordered else (0.0, 0.0)


def main() -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcome = runner.run(run(msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)))
    sys.stdout.buffer.write(msgspec.json.encode(outcome))


if __name__ == "__main__":
    main()
