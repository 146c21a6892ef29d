"""One tenant's callers gone wild, in a process of its own: a few more asks outstanding than its mailbox holds, each
followed by the next as soon as it is answered, so that the mailbox is full at every moment and refuses what is too much.

``python -m tests.bench.flood URL TENANT``. Whoever asks the subject ``COUNTS`` is told the counts so far.
"""

import asyncio
import os
import sys

import msgspec

from actors.activation import MAILBOX_MAX
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


async def flood(nats_url: str, tenant: str) -> None:
    bus, clock, total = await Bus.connect(nats_url, "flood", lambda: None), SystemClock(), Counts()
    new_id, subject = system_ids(clock), ask_subject(tenant)
    await bus.subscribe(COUNTS, lambda _data, reply_to: bus.publish(reply_to, encode(total)))

    async def ask_for_ever() -> None:
        while True:
            total.offered += 1
            body = msgspec.Raw(encode(SetBudget(1_000_000_000_000 + total.offered, "month")))
            envelope = Envelope(new_id(), tenant, "flood", clock.now_us() + 10_000_000, "", "", body)
            try:
                reply = decode_reply(await bus.request(subject, encode(envelope), 10.0))
            except TimeoutError:
                continue
            if isinstance(reply, Ok):
                total.served += 1
            elif isinstance(reply, Refused) and reply.code == OverloadedError.code:
                total.refused += 1
                await asyncio.sleep(_REFUSED_PAUSE_S)

    async with asyncio.TaskGroup() as group:
        for _ in range(OUTSTANDING):
            group.create_task(ask_for_ever())


if __name__ == "__main__":
    import uvloop

    os.nice(5)  # its own work is on other machines in truth: it must not take the processor from who is measured
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(flood(sys.argv[1], sys.argv[2]))
