"""Processes that carry sagas are killed, and the dependencies' own books are compared with the log.

    uv run python -m tests.faults.saga_sweep saga.after_effect_before_record --seed 7

starts a NATS, a Valkey, a shard, a runner that calls the real tools, and a payment provider, a mail server and a web hook that keep
books of their own. Orders are started, good ones and ones that can't be shipped; the shard or the runner is killed at that failpoint and gets
a successor; when all orders have ended, I10, I11 and I17 are checked. Without a point: all of them, 20 seeds each.
"""

import argparse
import asyncio
import random
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
from aiohttp import web

from actors.run.machine import idempotency_key
from actors.run.state import fold_stream
from actors.supervision.timers import TimerScan
from events.ask import Asker
from events.bus import Bus
from events.clock import SystemClock
from events.codec import decode_event, decode_record
from events.errors import OutcomeUnknownError, TransientError
from events.ids import derived_id
from events.keys import Keys
from events.messages import Command
from events.run import ENDS, RunEnded, RunEvent, StartRun, StepScheduled, pack
from events.store import EventStore
from events.tasks import end_tasks
from events.tenant import CreateTenant
from events.tools import AllowTools
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from tests.faults.saga_programs import SENDER, Endpoints, Order
from tests.faults.sweeping import sweep
from tests.faults.worker import Plan, Worker
from tests.kit.checker import Violation
from tests.kit.mail import Mailbox, running_mail_server
from tests.kit.payments import FakeProvider, running_provider
from tests.kit.run_checker import Attempt, Effect, Placed, check_runs, ordered
from tests.kit.servers import Servers, open_vault

TENANTS, ORDERS_EACH = 2, 4
_TIMEOUT_S = 120.0
_ATTEMPT_TIMEOUT_S = 0.3

# Where a process is killed, which one, and how often it passes there in a run at least.
PASSES = {
    "saga.after_intent": ("shard", 12),
    "saga.after_dispatch": ("shard", 12),
    "saga.before_effect": ("runner", 12),
    "saga.after_effect_before_record": ("runner", 12),
    "saga.after_record_before_ack": ("runner", 12),
    "saga.mid_compensation": ("runner", 3),
    # and where the tenant's actor is torn, with runs in it
    "append.before_fcall": ("shard", 20),
    "append.after_fcall_before_reply": ("shard", 20),
    "actor.after_append_before_reply": ("shard", 20),
    "activation.after_load_before_subscribe": ("shard", 4),
    "snap.mid_write": ("shard", 4),
    "drain.mid": ("shard", 3),
}


class Schedule(msgspec.Struct, frozen=True):
    point: str
    seed: int = 0

    @property
    def victim(self) -> str:
        return PASSES[self.point][0]

    @property
    def rule(self) -> str:
        passes = random.Random(f"{self.seed} {self.point}").randint(1, PASSES[self.point][1])
        return f"{self.point}=crash@{passes}"

    def __str__(self) -> str:
        return f"uv run python -m tests.faults.saga_sweep {self.point} --seed {self.seed}"


class Verdict(msgspec.Struct, frozen=True):
    """``invalid`` says why the run proves nothing; ``seen`` counts ends of runs, effects, and repeats that had none."""

    schedule: Schedule
    violations: Sequence[Violation]
    invalid: str
    seen: Counter[str]

    def __str__(self) -> str:
        why = [f"proves nothing: {self.invalid}"] if self.invalid else []
        found = [*map(str, self.violations)]
        return "\n".join([f"{self.schedule.rule} seed={self.schedule.seed}", *why, *found, f"again: {self.schedule}"])


class Hook:
    """A web hook that does each idempotency key once. ``/refuse`` never does anything."""

    def __init__(self) -> None:
        self.done: dict[str, str] = {}
        self.asked: list[str] = []
        self.base_url = ""

    async def handle(self, request: web.Request) -> web.Response:
        key, what = request.headers["idempotency-key"], request.match_info["what"]
        self.asked.append(key)
        if what == "refuse":
            return web.json_response({"error": "no such street"}, status=422)
        self.done.setdefault(key, f"{what}-{len(self.done)}")
        return web.json_response({"id": self.done[key]})


@asynccontextmanager
async def running_hook() -> AsyncIterator[Hook]:
    hook = Hook()
    app = web.Application()
    app.router.add_post("/{what}", hook.handle)
    # a caller that dies doesn't make its call undone: the handler goes on
    runner = web.AppRunner(app, handler_cancellation=False, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    hook.base_url = f"http://{host}:{port}"
    yield hook
    await runner.cleanup()


class Books(msgspec.Struct):
    """The three dependencies. What they know are idempotency keys: ``owners`` says whose a key is, from the log."""

    provider: FakeProvider
    mailbox: Mailbox
    hook: Hook

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints(self.provider.base_url, self.mailbox.port, self.hook.base_url)

    def effects(self, tenant: str, owners: dict[str, tuple[str, str]]) -> list[Effect]:
        """Of the tenant's runs; a mailbox shows mails of one Message-ID once."""
        ids = {f"<{derived_id(tenant, 'mail', key)}@{SENDER.rpartition('@')[2]}>": key for key in owners}
        keys = [key for key, (_, status, _) in self.provider._known.items() if status == 200]
        keys += [*self.hook.done, *(ids[sent] for sent in self.mailbox.delivered if sent in ids)]
        return [Effect(key, *owners[key], self._amount(key)) for key in keys if key in owners]

    def strangers(self, owners: dict[str, tuple[str, str]]) -> list[str]:
        return [key for key in (*self.provider._known, *self.hook.done) if key not in owners]

    def _amount(self, key: str) -> int:
        _, _, answer = self.provider._known.get(key, ("", 0, {}))
        return {"payment_intent": 1, "refund": -1}.get(answer.get("object", ""), 0) * int(answer.get("amount", 0))

    @property
    def requests(self) -> int:
        return len(self.provider.books.requests) + len(self.hook.asked) + len(self.mailbox.mails)


class Run:
    def __init__(self, schedule: Schedule, servers: Servers, directory: Path, books: Books) -> None:
        self.schedule, self.servers, self.directory, self.books = schedule, servers, directory, books
        self.tenants = [f"s{uuid.uuid4().hex[:10]}" for _ in range(TENANTS)]
        self.workers: list[Worker] = []

    def start(self, role: str, *, armed: bool = False) -> Worker:
        worker = Worker(
            Plan(
                name=f"{role}-{len(self.workers)}",
                role="sagas" if role == "shard" else "runner",
                nats_url=self.servers.nats_url,
                valkey_url=self.servers.valkey_url,
                vault_url=self.servers.vault_url,
                directory=str(self.directory),
                failpoints=self.schedule.rule if armed else "",
                seed=self.schedule.seed,
                endpoints=msgspec.json.encode(self.books.endpoints).decode(),
            )
        )
        self.workers.append(worker)
        return worker

    async def go(self, store: EventStore, keys: Keys, bus: Bus) -> str:
        """Returns why the run proves nothing, or ""."""
        victim = self.start(self.schedule.victim, armed=True)
        other = self.start("runner" if self.schedule.victim == "shard" else "shard")
        await asyncio.gather(victim.wait_ready(), other.wait_ready())
        asker = Asker(bus, attempt_timeout_s=_ATTEMPT_TIMEOUT_S)
        timers = asyncio.create_task(_wake(TimerScan(store, asker, SystemClock())))
        striking = asyncio.create_task(self._strike(victim))
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await asyncio.gather(*(self._order(asker, tenant) for tenant in self.tenants))
                while not all([await self._all_ended(store, keys, tenant) for tenant in self.tenants]):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)  # a log tells nobody when it grows
                await striking
        except TimeoutError:
            for worker in self.workers:
                worker.print_tasks()
            return f"not done within {_TIMEOUT_S:g} s; the fault has happened: {striking.done()}; see {self.directory}"
        finally:
            await end_tasks(timers, striking)
        return ""

    async def _strike(self, victim: Worker) -> None:
        await victim.wait_end()
        assert victim.was_killed, victim.output
        assert victim.has_fired, victim.output
        await self.start(self.schedule.victim).wait_ready()

    async def _order(self, asker: Asker, tenant: str) -> None:
        await _settled(asker, tenant, CreateTenant("Sweep"), "create")
        await _settled(asker, tenant, AllowTools(("payments", "mail", "hook")), "allow")
        for number in range(ORDERS_EACH):
            order = Order(can_ship=number % 2 == 0)
            await _settled(asker, tenant, StartRun(f"r{number}", "sweep-order", pack(order)), f"start-{number}")

    async def _all_ended(self, store: EventStore, keys: Keys, tenant: str) -> bool:
        ended = {
            placed.event.run_id for placed in await _log(store, keys, tenant) if isinstance(placed.event, RunEnded)
        }
        return len(ended) == ORDERS_EACH


async def _wake(scan: TimerScan) -> None:
    """As the root supervisor does, and ten times as often."""
    while True:
        await scan.tick()
        await asyncio.sleep(0.1)  # the scan's beat


async def _settled(asker: Asker, tenant: str, command: Command, command_id: str) -> None:
    while True:
        try:
            await asker.ask(tenant, command, actor="test", command_id=command_id, timeout_s=20.0)
            return
        except (OutcomeUnknownError, TransientError):
            continue


async def _log(store: EventStore, keys: Keys, tenant: str) -> list[Placed]:
    cipher, found, position = await keys.cipher(tenant), list[Placed](), 0
    while page := await store.read(tenant, position):
        position = page[-1].position
        for stored in page:
            record = decode_record(stored.record)
            event = decode_event(record.data, cipher)
            if isinstance(event, RunEvent):
                found.append(Placed(stored.position, record.time_us, event))
    return found


async def run_one(schedule: Schedule, servers: Servers, directory: Path) -> Verdict:
    directory.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        books = Books(
            await stack.enter_async_context(running_provider()),
            await stack.enter_async_context(running_mail_server()),
            await stack.enter_async_context(running_hook()),
        )
        bus = await Bus.connect(servers.nats_url, "orders", _deaf)
        stack.push_async_callback(bus.close)
        store = ValkeyEventStore(connect(servers.valkey_url))
        await store.open()
        stack.push_async_callback(store.close)
        vault, keys = await open_vault(servers.vault_url)
        stack.push_async_callback(vault.close)
        run = Run(schedule, servers, directory, books)
        try:
            invalid = await run.go(store, keys, bus)
        finally:
            await asyncio.gather(*(worker.stop() for worker in run.workers))
        return await _judge(run, store, keys, invalid)


def _deaf() -> None:
    raise AssertionError("the orders' bus went deaf")


async def _judge(run: Run, store: EventStore, keys: Keys, invalid: str) -> Verdict:
    violations: list[Violation] = []
    seen: Counter[str] = Counter()
    everybody: dict[str, tuple[str, str]] = {}
    for tenant in run.tenants:
        log = await _log(store, keys, tenant)
        owners = _owners(tenant, log)
        everybody |= owners
        effects = run.books.effects(tenant, owners)
        attempts = [Attempt(effect.key, effect.run, effect.step, 0) for effect in effects]
        violations += check_runs(tenant, log, effects, attempts, ordered)
        seen["effects"] += len(effects)
        seen.update(placed.event.status for placed in log if isinstance(placed.event, RunEnded))
        for run_id in {placed.event.run_id for placed in log}:
            folded = fold_stream([placed.event for placed in log if placed.event.run_id == run_id])
            seen["attempts"] += sum(step.attempt for step in folded.steps.values())
            assert folded.status in ENDS or invalid or violations
    for key in run.books.strangers(everybody):
        violations.append(Violation("I17", "", f"a dependency did something under {key!r}, which no log intends", []))
    seen["repeats without effect"] = run.books.requests - seen["effects"]
    return Verdict(run.schedule, violations, invalid, seen)


def _owners(tenant: str, log: Sequence[Placed]) -> dict[str, tuple[str, str]]:
    """Run and step of each idempotency key that the log intends."""
    steps = {
        (placed.event.run_id, placed.event.order.step) for placed in log if isinstance(placed.event, StepScheduled)
    }
    return {idempotency_key(tenant, run, step, 0): (run, step) for run, step in steps}


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", nargs="*", help="failpoints; all of them where none is named", metavar="POINT")
    parser.add_argument("--seed", type=int, help="this one seed only")
    parser.add_argument("--seeds", type=int, default=20, help="how many seeds of each point (default 20)")
    asked = parser.parse_args()
    if unknown := set(asked.points) - PASSES.keys():
        parser.error(f"no such point: {', '.join(sorted(unknown))}; there are: {', '.join(PASSES)}")
    seeds = [asked.seed] if asked.seed is not None else range(asked.seeds)
    schedules = [Schedule(point, seed) for point in asked.points or PASSES for seed in seeds]
    return sweep(run_one, schedules, "sagas")


if __name__ == "__main__":
    sys.exit(_main())
