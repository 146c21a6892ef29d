"""Pull messages from a JetStream consumer, one loop per consumer.

nats-py's own ``fetch`` waits for a whole batch where a part of it came after the first look, leaves orphaned requests
behind, and hides why it ended. Here one request is renewed as its messages come in, each message is handed on when it
arrives, and whatever could have lost one is found: deliveries are numbered by the consumer, so a gap shows.
"""

import asyncio
import json
import time
from collections.abc import Callable
from datetime import timedelta
from email.parser import BytesParser

import msgspec

from events.bus import Bus, unsubscribe

_BATCH = 512
_EXPIRES_S = 30.0
_HEARTBEAT_S = 1.0
_SILENCE_S = 3.5  # more than three heartbeats: the request is lost, with the connection that carried it
_STATUS = b"NATS/1.0 "
_CONSUMER_GONE = "Consumer Deleted"


class Delivery(msgspec.Struct):
    """A message as the consumer delivered it. ``sequence`` is its number in the stream, ``told_us`` when it was stored,
    ``delivered`` how often it came.
    """

    bus: Bus
    subject: str
    data: bytes
    raw_headers: bytes
    acknowledge_to: str
    sequence: int
    delivered: int
    number: int
    told_us: int

    @property
    def headers(self) -> dict[str, str]:
        _, _, lines = self.raw_headers.partition(b"\r\n")
        return dict(BytesParser().parsebytes(lines, headersonly=True).items())

    def acknowledge(self) -> None:
        """Done. Like the two below: best effort; where it gets lost, the message comes again."""
        self.bus.publish(self.acknowledge_to, b"")

    def give_back(self, delay_s: float) -> None:
        """Not now: it is to come again after that time."""
        nanoseconds = timedelta(seconds=delay_s) // timedelta(microseconds=1) * 1_000
        self.bus.publish(self.acknowledge_to, b'-NAK {"delay": %d}' % nanoseconds)

    def keep(self) -> None:
        """Still at it."""
        self.bus.publish(self.acknowledge_to, b"+WPI")


class BrokenPullError(Exception):
    """The consumer is gone, or deliveries got lost on the way: start anew with another consumer."""


class Puller:
    def __init__(
        self,
        bus: Bus,
        stream: str,
        consumer: str,
        on_delivery: Callable[[Delivery], None],
        room: Callable[[], int],
        *,
        is_shared: bool = False,
    ) -> None:
        """``room`` says how many more messages may come; call ``look`` when there is more of it again. ``is_shared``: others pull
        from the consumer, too, so its numbers are no sign of what got lost: that comes again when the consumer's patience is over.
        """
        self._bus, self._on_delivery, self._room, self._is_shared = bus, on_delivery, room, is_shared
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._wanted = 0  # of the requests under way
        self._number = 0
        self._heard_at = self.delivered_at = time.monotonic()
        self._broken = ""
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Until something is broken.

        Raises:
            BrokenPullError: What, its message says.
            nats.errors.Error: The connection can't be used.
        """
        inbox = self._bus.client.new_inbox()
        subscription = self._bus.client.listen_raw(inbox, self._receive)
        try:
            while not self._broken:
                self._news.clear()
                self._ask(inbox)
                try:
                    await asyncio.wait_for(self._news.wait(), _HEARTBEAT_S)
                except TimeoutError:
                    self._give_up_lost_requests()
        finally:
            await unsubscribe(subscription)
        raise BrokenPullError(self._broken)

    def look(self) -> None:
        if self._wanted < _BATCH // 2:
            self._news.set()

    def _ask(self, inbox: str) -> None:
        more = min(_BATCH, self._room()) - self._wanted
        if more <= 0 or (self._wanted > 0 and more < _BATCH // 2) or not self._bus.is_connected:
            return
        if self._wanted <= 0:
            self._wanted, self._heard_at = 0, time.monotonic()
        self._wanted += more
        request = {"batch": more, "expires": int(_EXPIRES_S * 1e9), "idle_heartbeat": int(_HEARTBEAT_S * 1e9)}
        self._bus.client.post(self._subject, json.dumps(request).encode(), inbox)

    def _give_up_lost_requests(self) -> None:
        if self._wanted > 0 and time.monotonic() - self._heard_at > _SILENCE_S:
            self._wanted = 0

    def _receive(self, subject: bytes, data: bytes, reply: str, headers: bytes | None) -> None:
        self._heard_at = time.monotonic()
        if reply.startswith("$JS.ACK."):
            if not self._broken:
                self._deliver(subject, data, reply, headers or b"")
        elif headers is not None:
            self._on_status(headers)

    def _on_status(self, headers: bytes) -> None:
        line, _, rest = headers.partition(b"\r\n")
        status, _, description = line.removeprefix(_STATUS).decode().partition(" ")
        if status == "503":  # nobody listens to requests for this consumer
            self._break("there is no such consumer")
        elif status == "409" and description == _CONSUMER_GONE:
            self._break("the consumer was deleted")
        elif status != "100":  # not a heartbeat: the request is over
            left = BytesParser().parsebytes(rest, headersonly=True).get("Nats-Pending-Messages")
            self._wanted -= self._wanted if left is None else int(left)
            self._news.set()

    def _deliver(self, subject: bytes, data: bytes, reply: str, headers: bytes) -> None:
        delivered, sequence, number, stored_ns = _numbers(reply)
        if number != self._number + 1 and not self._is_shared:
            self._break(f"delivery {number} came after {self._number}: those between got lost")
            return
        self._number, self._wanted = number, self._wanted - 1
        self.delivered_at = time.monotonic()
        self._on_delivery(
            Delivery(self._bus, subject.decode(), data, headers, reply, sequence, delivered, number, stored_ns // 1_000)
        )
        self.look()

    def _break(self, why: str) -> None:
        self._broken = self._broken or why
        self._news.set()


def _numbers(reply: str) -> list[int]:
    """How often delivered, number in the stream, number of the delivery, time in ns: ``$JS.ACK.[<domain>.<account>.]
    <stream>.<consumer>.<delivered>.<stream sequence>.<consumer sequence>.<time>.<pending>[.<token>]``.
    """
    tokens = reply.split(".")
    start = 4 if len(tokens) == 9 else 6
    return [int(token) for token in tokens[start : start + 4]]
