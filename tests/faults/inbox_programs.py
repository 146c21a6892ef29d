"""The processes around the queue that tests kill, or that kill themselves: a relay, and a shard with poisonous commands.

Budgets of certain amounts are poison to the shard; ``healthy-shard`` is its next release, in which that is mended.
"""

import asyncio
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Literal

from actors import turn
from actors.aggregate import State, act
from actors.relay import Relay
from actors.shard import Shard
from events import failpoints
from events.bus import Bus
from events.catalog import DomainCommand, DomainEvent
from events.clock import SystemClock
from events.courier import Courier
from events.dead_letters import DeadLetters
from events.inbox import Inbox
from events.outcomes import Outcomes
from events.process import end_process, end_when_stuck
from events.slices import SLICE_COUNT
from events.tenant import SetBudget
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from tests.kit.activator import activating
from tests.kit.servers import Servers, open_vault

RAISES, ENDS_PROCESS, HANGS = 666_001, 666_002, 666_003
STUCK_AFTER_S = 1.5

Kind = Literal["relay", "shard", "healthy-shard"]


def poisoned(state: State, tenant: str, command: DomainCommand, now_us: int) -> tuple[list[DomainEvent], State]:
    match command:
        case SetBudget(limit_nano_usd=amount) if amount == RAISES:
            raise ZeroDivisionError("a defect")
        case SetBudget(limit_nano_usd=amount) if amount == ENDS_PROCESS:
            os.kill(os.getpid(), signal.SIGSEGV)
        case SetBudget(limit_nano_usd=amount) if amount == HANGS:
            while True:
                pass
    return act(state, tenant, command, now_us)


async def run_shard(nats_url: str, valkey_url: str, vault_url: str) -> None:
    _, keys = await open_vault(vault_url)
    watching = asyncio.create_task(end_when_stuck(STUCK_AFTER_S))
    store = ValkeyEventStore(connect(valkey_url))
    await store.open()
    bus = await Bus.connect(nats_url, "shard", end_process)
    async with activating(bus, Shard("test", "pool", store, bus, SystemClock(), keys)):
        await watching


async def run_relay(nats_url: str, valkey_url: str) -> None:
    store, outcomes = ValkeyEventStore(connect(valkey_url)), Outcomes(connect(valkey_url))
    await store.open()
    bus = await Bus.connect(nats_url, "relay", end_process)
    inbox, clock = Inbox(bus), SystemClock()
    letters = DeadLetters(inbox, outcomes, clock)
    await Relay(range(SLICE_COUNT), inbox, store, outcomes, letters, Courier(bus), clock).run()


class Program:
    """One of them, from outside; started again when it ends, as Ray does, where ``restart`` is given."""

    def __init__(self, kind: Kind, servers: Servers, rules: str = "", *, restart: bool = False) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])  # a life costs milliseconds then
        self._args, self._restart = (kind, servers.nats_url, servers.valkey_url, servers.vault_url, rules), restart
        self.ends: list[int] = []
        self._start()
        self._task = asyncio.create_task(self._watch())

    def _start(self) -> None:
        self._process = self._context.Process(target=_run, args=self._args, daemon=True)
        self._process.start()

    async def _watch(self) -> None:
        while True:
            await asyncio.to_thread(self._process.join)
            self.ends.append(self._process.exitcode or 0)
            self._process.close()
            if not self._restart:
                return
            self._start()

    async def ended(self) -> int:
        await self._task
        return self.ends[-1]

    async def stop(self) -> None:
        """By force."""
        self._restart = False
        if not self._task.done():
            self._process.kill()
        await self._task


def _run(kind: Kind, nats_url: str, valkey_url: str, vault_url: str, rules: str) -> None:
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives
    failpoints.arm(rules)
    if kind == "shard":
        turn.act = poisoned  # type: ignore[attr-defined,assignment]
    asyncio.run(run_relay(nats_url, valkey_url) if kind == "relay" else run_shard(nats_url, valkey_url, vault_url))
