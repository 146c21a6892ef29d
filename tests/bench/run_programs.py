"""What works on runs, without Ray around it: a shard that hands out steps, a runner. Each a process, for rows that kill both.

python -m tests.bench.run_programs shard|runner NATS_URL VALKEY_URL VAULT_URL READY_FILE
"""

import asyncio
import sys
from pathlib import Path

import uvloop

from actors.run.dispatcher import Dispatcher
from actors.run.runner import Runner, call_function
from actors.shard import Shard
from events.ask import Asker
from events.bus import Bus
from events.clock import SystemClock
from events.objects import Objects
from events.process import end_process
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from events.work import WorkQueue
from tests.bench import sagas
from tests.kit.activator import activating
from tests.kit.servers import open_vault

__all__ = ["sagas"]  # registered at import


async def host(nats_url: str, valkey_url: str, vault_url: str, ready: Path) -> None:
    store = ValkeyEventStore(connect(valkey_url))
    await store.open()
    _, keys = await open_vault(vault_url)
    bus = await Bus.connect(nats_url, "shard", end_process)
    queue = WorkQueue(bus)
    await queue.prepare()
    shard = Shard("bench", "pool", store, bus, SystemClock(), keys, effects=Dispatcher(queue))
    async with activating(bus, shard):
        ready.touch()
        await asyncio.Event().wait()


async def work(nats_url: str, _valkey_url: str, vault_url: str, ready: Path) -> None:
    _, keys = await open_vault(vault_url)
    bus = await Bus.connect(nats_url, "runner", end_process)
    queue = WorkQueue(bus)
    await queue.prepare()
    ready.touch()
    await Runner(queue, Asker(bus), keys, Objects("", keys), {"function": call_function}).run()


def main() -> None:
    kind, nats_url, valkey_url, vault_url, ready = sys.argv[1:]
    program = {"shard": host, "runner": work}[kind]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(program(nats_url, valkey_url, vault_url, Path(ready)))


if __name__ == "__main__":
    main()
