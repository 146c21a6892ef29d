"""One tenant's callers gone wild, in a process of its own: as many asks outstanding as its mailbox holds and half as
many again, each repeated as soon as it is answered, whatever the answer. ``python -m tests.bench.flood URL TENANT``.
"""

import asyncio
import os
import sys

import msgspec

from events.bus import Bus, ask_subject
from events.clock import SystemClock
from events.envelope import Envelope, encode
from events.ids import system_ids
from events.tenant import SetBudget

OUTSTANDING = 1_536


async def flood(nats_url: str, tenant: str) -> None:
    bus, clock = await Bus.connect(nats_url, "flood", lambda: None), SystemClock()
    new_id, subject, count = system_ids(clock), ask_subject(tenant), 0

    async def ask_for_ever() -> None:
        nonlocal count
        while True:
            count += 1
            body = msgspec.Raw(encode(SetBudget(1_000_000_000_000 + count, "month")))
            envelope = Envelope(new_id(), tenant, "flood", clock.now_us() + 10_000_000, "", "", body)
            try:
                await bus.request(subject, encode(envelope), 10.0)
            except TimeoutError:
                continue

    async with asyncio.TaskGroup() as group:
        for _ in range(OUTSTANDING):
            group.create_task(ask_for_ever())


if __name__ == "__main__":
    import uvloop

    os.nice(19)  # its own work is on other machines in truth: it must not take the processor from who is measured
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(flood(sys.argv[1], sys.argv[2]))
