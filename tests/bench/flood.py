"""One tenant's callers gone wild, in a process of its own: a few more asks outstanding than its mailbox holds, each
followed by the next as soon as it is answered, so that the mailbox is full at every moment and refuses what is too much.

``python -m tests.bench.flood URL TENANT``. Whoever asks the subject ``COUNTS`` is told the counts so far.
"""

import asyncio
import sys

import msgspec

from actors.mailbox import MAILBOX_MAX
from events.bus import Bus, ask_subject
from events.clock import SystemClock
from events.envelope import Envelope, Ok, Refused, decode_reply, encode
from events.errors import OverloadedError
from events.ids import system_ids
from events.tenant import SetBudget

COUNTS = "bench.flood.counts"
OUTSTANDING = MAILBOX_MAX + 64
_REFUSED_PAUSE_S = 0.02  # far less than it is told to wait, and enough to leave the machine to what is measured


class Counts(msgspec.Struct, array_like=True):
    """Asks sent, carried out, and refused because the mailbox was full (HTTP: 429)."""

    offered: int = 0
    served: int = 0
    refused: int = 0

    def since(self, before: "Counts") -> "Counts":
        return Counts(self.offered - before.offered, self.served - before.served, self.refused - before.refused)


async def counts(bus: Bus) -> Counts:
    """Of the flood that runs somewhere. Raises NoOneListensError where none does."""
    return msgspec.msgpack.decode(await bus.request(COUNTS, b"", 10.0), type=Counts)


class Flood:
    """No future, task or timer per ask: it must outrun the tenant's actor on a machine that both share."""

    def __init__(self, bus: Bus, tenant: str) -> None:
        self._bus, self._tenant, self._clock = bus, tenant, SystemClock()
        self._new_id, self._subject = system_ids(self._clock), ask_subject(tenant)
        self._inbox = f"bench.flood.{self._new_id()}"
        self._owed = 0
        self.counts = Counts()

    async def run(self) -> None:
        await self._bus.subscribe(self._inbox, self._on_reply)
        await self._bus.subscribe(COUNTS, lambda _data, reply_to: self._bus.publish(reply_to, encode(self.counts)))
        self._owed = OUTSTANDING
        while True:
            owed, self._owed = self._owed, 0
            for _ in range(owed):
                self._ask()
            await asyncio.sleep(_REFUSED_PAUSE_S)  # before what was refused is asked again

    def _ask(self) -> None:
        self.counts.offered += 1
        body = msgspec.Raw(encode(SetBudget(1_000_000_000_000 + self.counts.offered, "month")))
        deadline_us = self._clock.now_us() + 600_000_000
        envelope = Envelope(self._new_id(), self._tenant, "flood", deadline_us, "", "", body)
        self._bus.client.post(self._subject, encode(envelope), self._inbox)

    def _on_reply(self, data: bytes, _reply_to: str) -> None:
        reply = decode_reply(data)
        if isinstance(reply, Ok):
            self.counts.served += 1
            self._ask()
        else:
            assert isinstance(reply, Refused), reply
            assert reply.code == OverloadedError.code, reply
            self.counts.refused += 1
            self._owed += 1


async def flood(nats_url: str, tenant: str) -> None:
    await Flood(await Bus.connect(nats_url, "flood", lambda: None), tenant).run()


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(flood(sys.argv[1], sys.argv[2]))
