"""One fault, one seed, real processes, a history, a verdict.

    uv run python -m tests.faults.sweep append.before_fcall --action crash --seed 7

starts a NATS and a Valkey, a worker that is killed (or stopped) at that failpoint, clients that ask on regardless, and
the worker's successor; then it checks the history. ``--bug`` plants a known bug. What the dice decide comes from the
seed; how processes interleave does not, so a rare failure may need ``--runs``.
"""

import argparse
import asyncio
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Literal

import msgspec

from actors.aggregate import answer
from actors.history import state_at
from actors.ownership import OWNERSHIP_TRUSTED_S
from actors.supervision.timers import TimerScan
from events.ask import Asker
from events.bus import ACTIVATE, Bus
from events.clock import SystemClock
from events.failpoints import POINTS
from events.keys import Keys
from events.store import EventStore
from events.tasks import end_tasks
from events.tenant import DescribeTenant
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from projections.model import Add
from projections.runner import ReadModels, decoded
from projections.usage import UsageProjection
from tests.faults import planted
from tests.faults.clients import Client
from tests.faults.sweeping import sweep
from tests.faults.worker import HOST, READS_DB, Plan, Role, Worker
from tests.kit.checker import Violation, check
from tests.kit.history import (
    Answered,
    Ended,
    Fault,
    Final,
    Folded,
    Invoked,
    Line,
    Logged,
    Projected,
    Quiet,
    Recorder,
    Seen,
    read_history,
    write_history,
)
from tests.kit.servers import Servers, open_vault

Action = Literal["crash", "pause"]
TENANTS, CLIENTS_EACH = 3, 2
OPERATIONS_MIN, AFTER_FAULT_MIN = 60, 40  # below that a run proves nothing
_TIMEOUT_S = 60.0
_ATTEMPT_TIMEOUT_S = 0.3  # a killed worker takes its asks along; a short wait makes a run short

# Which process passes a point, by the first word of its name, and how often in a run: the fault comes at one of the
# first passes.
PASSES = {
    "gw": 20,
    "supervisor": 6,
    "claim": 6,
    "activation": 6,
    "actor": 60,
    "append": 60,
    "snap": 6,
    "drain": 3,
    "proj": 20,
}
RARE = {"actor.after_dedupe_read": 3}
ROLES: dict[str, Role] = {"gw": "gateway", "supervisor": "supervisor", "proj": "projections"}  # all others: the shard
# Swept by tests of their own, because what is promised there is nothing that this sweep's clients could see broken: the
# test, and why. ``test_crash_sweep`` holds both tables against the list of points.
ELSEWHERE = {
    "saga": (
        "tests/faults/test_saga_sweep.py",
        "it is the books of the dependencies that must add up, not clients' answers",
    ),
    "relay": ("tests/faults/test_inbox.py", "what is told has no client that waits: each command once, in order"),
}


def kind_of(point: str) -> str:
    return point.split(".", maxsplit=1)[0]


def role_of(point: str) -> Role:
    return ROLES.get(kind_of(point), "shard")


def swept() -> list[str]:
    return [point for point in POINTS if kind_of(point) in PASSES]


class Schedule(msgspec.Struct, frozen=True):
    point: str
    action: Action = "crash"
    seed: int = 0
    bug: str = ""

    @property
    def rule(self) -> str:
        passes = RARE.get(self.point, PASSES[kind_of(self.point)])
        return f"{self.point}={self.action}@{random.Random(f'{self.seed} {self.point}').randint(1, passes)}"

    @property
    def replay(self) -> str:
        bug = f" --bug {self.bug}" if self.bug else ""
        return f"uv run python -m tests.faults.sweep {self.point} --action {self.action} --seed {self.seed}{bug}"


class Verdict(msgspec.Struct, frozen=True):
    """``invalid`` says why the run proves nothing; ``seen`` counts what must happen now and then in a sweep."""

    schedule: Schedule
    violations: Sequence[Violation]
    invalid: str
    seen: Counter[str]
    history: Path

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.schedule.rule} seed={self.schedule.seed} bug={self.schedule.bug or 'none'} history={self.history}",
                *([f"proves nothing: {self.invalid}"] if self.invalid else []),
                *(str(violation) for violation in self.violations),
                f"again: {self.schedule.replay}",
            ]
        )


class Run:
    """The state of one run: its processes, its clients, what has happened so far."""

    def __init__(self, schedule: Schedule, servers: Servers, directory: Path) -> None:
        self.schedule, self.servers, self.directory = schedule, servers, directory
        self.recorder = Recorder()
        self.role = role_of(schedule.point)
        self.tenants = [f"f{uuid.uuid4().hex[:10]}" for _ in range(TENANTS)]
        self.gateway_tenant = f"g{uuid.uuid4().hex[:10]}" if self.role == "gateway" else ""
        self.has_fired = False
        self._done_at_fault = 0
        self._lives = 0

    @property
    def all_tenants(self) -> list[str]:
        return [*self.tenants, *filter(None, [self.gateway_tenant])]

    def start(self, role: Role, *, armed: bool = False) -> Worker:
        self._lives += 1
        return Worker(
            Plan(
                name=f"{role}-{self._lives}",
                role=role,
                nats_url=self.servers.nats_url,
                valkey_url=self.servers.valkey_url,
                vault_url=self.servers.vault_url,
                directory=str(self.directory),
                failpoints=self.schedule.rule if armed else "",
                seed=self.schedule.seed + self._lives * 1_000,
                bug=self.schedule.bug,
                hears=HOST if self.role == "supervisor" else ACTIVATE,
                tenant=self.gateway_tenant,
            )
        )

    @property
    def operations_done(self) -> int:
        return sum(isinstance(line, Ended) and line.kind == "ok" for line in self.recorder.lines)

    def fault(self, what: str) -> None:
        self.recorder.add(Fault(time.monotonic_ns(), what))
        self.has_fired = True
        self._done_at_fault = self.operations_done

    def goes_on(self) -> bool:
        """Clients stop when the fault has happened and enough was done after it."""
        done = self.operations_done
        return not (self.has_fired and done >= OPERATIONS_MIN and done >= self._done_at_fault + AFTER_FAULT_MIN)


async def run_one(schedule: Schedule, servers: Servers, directory: Path) -> Verdict:
    directory.mkdir(parents=True, exist_ok=True)
    run = Run(schedule, servers, directory)
    async with AsyncExitStack() as stack:
        bus = await Bus.connect(servers.nats_url, "clients", _deaf)
        stack.push_async_callback(bus.close)
        store = ValkeyEventStore(connect(servers.valkey_url))
        await store.open()
        stack.push_async_callback(store.close)
        watching = asyncio.create_task(_watch(run, store))
        stack.push_async_callback(end_tasks, watching)
        invalid = await _drive(run, bus, store)
        await _gather(run, store)
    path = directory / "history.jsonl"
    write_history(path, run.recorder.lines)
    return Verdict(schedule, check(run.recorder.lines), invalid or _too_little(run), _seen(run), path)


def _deaf() -> None:
    raise AssertionError("the clients' bus went deaf")


async def _drive(run: Run, bus: Bus, store: ValkeyEventStore) -> str:
    """Returns why the run proves nothing, or ""."""
    workers = [run.start(run.role, armed=True)]
    if run.role != "shard":
        workers.append(run.start("shard"))
    try:
        await asyncio.gather(*(worker.wait_ready() for worker in workers))
        asker = Asker(bus, attempt_timeout_s=_ATTEMPT_TIMEOUT_S)
        clients = [
            Client(number, run.tenants[number % TENANTS], asker, run.recorder, run.schedule.seed)
            for number in range(TENANTS * CLIENTS_EACH)
        ]
        nemesis = asyncio.create_task(_strike(run, workers, bus))
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await asyncio.gather(*(client.set_up() for client in clients[:TENANTS]))
                await asyncio.gather(*(client.run(run.goes_on) for client in clients))
                await nemesis
                if run.role == "gateway":
                    await _quiet(run, workers, store, asker)
        except TimeoutError:
            for worker in workers:
                worker.print_tasks()
            return f"not done within {_TIMEOUT_S:g} s; {run.operations_done} operations, fired: {run.has_fired}"
        finally:
            await end_tasks(nemesis)
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))
    return ""


async def _strike(run: Run, workers: list[Worker], bus: Bus) -> None:
    """Wait for the fault, then give its victim a successor, as Ray does; a stopped one wakes up beside it."""
    victim = workers[0]
    if run.schedule.action == "crash":
        await victim.wait_end()
        assert victim.was_killed, victim.output
        assert victim.has_fired, victim.output
        run.fault(f"{victim.plan.name} was killed at {run.schedule.rule}")
        workers.append(run.start(run.role))
        return
    await _until(lambda: victim.is_stopped)
    run.fault(f"{victim.plan.name} was stopped at {run.schedule.rule}")
    workers.append(run.start(run.role))
    await workers[-1].wait_ready()
    for tenant in run.tenants:
        await bus.request(ACTIVATE, tenant.encode(), 10.0)
    before = run.operations_done
    # for a second after its last proof an owner is trusted to be the owner (README, Decisions): sleep longer than that
    trusted_until = time.monotonic() + OWNERSHIP_TRUSTED_S
    await _until(lambda: run.operations_done >= before + AFTER_FAULT_MIN // 2 and time.monotonic() > trusted_until)
    run.recorder.add(Fault(time.monotonic_ns(), f"{victim.plan.name} goes on"))
    victim.resume()
    run._done_at_fault = run.operations_done


async def _quiet(run: Run, workers: list[Worker], store: ValkeyEventStore, asker: Asker) -> None:
    """After the last gateway has left in order: timers fire, and book what the killed one held."""
    await workers.pop().stop()
    scanning = asyncio.create_task(TimerScan(store, asker, SystemClock()).run())
    try:
        while (await store.leftovers(run.gateway_tenant))["timers"]:  # noqa: ASYNC110 - the store's to know
            await asyncio.sleep(0.1)
    finally:
        await end_tasks(scanning)
    run.recorder.add(Quiet(run.gateway_tenant))


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - another process's state can only be looked at
        await asyncio.sleep(0.01)


async def _watch(run: Run, store: EventStore) -> None:
    """What an observer sees of the logs while all this goes on."""
    while True:
        for tenant in run.all_tenants:
            if head := await store.head(tenant):
                run.recorder.add(Seen(time.monotonic_ns(), tenant, head.position, head.hash))
        await asyncio.sleep(0.03)  # how closely it looks


async def _gather(run: Run, store: ValkeyEventStore) -> None:
    """Everything that the history is checked against."""
    for name in ("claims", "answers"):
        if (path := run.directory / f"{name}.jsonl").exists():
            run.recorder.add(*read_history(path))
    vault, keys = await open_vault(run.servers.vault_url)
    for tenant in run.all_tenants:
        run.recorder.add(*await log_of(store, tenant), *await _folds(run, store, keys, tenant))
    if run.role == "projections":
        await _gather_projected(run, store, keys)
    await vault.close()


async def log_of(store: EventStore, tenant: str) -> list[Line]:
    lines: list[Line] = []
    while page := await store.read(tenant, len(lines)):
        lines += [Logged(tenant, stored.position, stored.record, stored.hash) for stored in page]
    if head := await store.head(tenant):
        lines.append(Final(tenant, head.position, head.hash, head.status))
    return lines


async def _folds(run: Run, store: EventStore, keys: Keys, tenant: str) -> list[Line]:
    queries = {line.operation for line in run.recorder.lines if isinstance(line, Invoked) and not line.writes
               and line.tenant == tenant}  # fmt: skip
    positions = {
        line.position
        for line in run.recorder.lines
        if isinstance(line, Ended) and line.operation in queries and line.kind == "ok"
    }
    folds: list[Line] = []
    head = await store.head(tenant)
    for position in sorted(positions):
        if head is None or position > head.position:
            continue  # for the checker to find
        state, time_us = await state_at(store, await keys.cipher(tenant), tenant, position)
        folds.append(Folded(tenant, position, _plain(answer(state, tenant, DescribeTenant(), time_us))))
    return folds


def _plain(result: object) -> object:
    """As it arrives at a client."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(result))


async def _gather_projected(run: Run, store: ValkeyEventStore, keys: Keys) -> None:
    """After a healthy runner has caught up: the read model, and the same events folded here."""
    worker = run.start("projections")
    models = ReadModels(connect(run.servers.valkey_url, db=READS_DB), keys)
    usage = UsageProjection()
    try:
        for tenant in run.tenants:
            head = await store.head(tenant)
            assert head is not None
            async with asyncio.timeout(_TIMEOUT_S):
                while await models.checkpoint(usage, tenant) < head.position:  # noqa: ASYNC110 - another process's
                    await asyncio.sleep(0.02)
            expected: Counter[str] = Counter()
            for _, record, event in decoded(await store.read(tenant, 0, head.position), await keys.cipher(tenant)):
                for write in usage.apply(tenant, record, event):
                    assert isinstance(write, Add), write
                    expected[write.field] += write.amount
            found = {field.decode(): int(value) for field, value in (await models.fields(usage, tenant)).items()}
            run.recorder.add(Projected(tenant, await models.checkpoint(usage, tenant), found, dict(expected)))
    finally:
        await worker.stop()
        await models.close()


def _too_little(run: Run) -> str:
    if not run.has_fired:
        return "the fault did not happen"
    if run.operations_done < OPERATIONS_MIN:
        return f"only {run.operations_done} operations were done, {OPERATIONS_MIN} are the least"
    return ""


def _seen(run: Run) -> Counter[str]:
    ends = {line.operation: line for line in run.recorder.lines if isinstance(line, Ended)}
    faults = [line.at_ns for line in run.recorder.lines if isinstance(line, Fault)]
    sent: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for line in run.recorder.lines:
        if isinstance(line, Invoked):
            ended = ends.get(line.operation)
            seen["answered"] += ended is not None and ended.kind == "ok"
            seen["unknown"] += ended is None or ended.kind == "info"
            seen["budget refused"] += ended is not None and ended.code == "budget_exceeded"
            seen["other body refused"] += ended is not None and ended.code == "idempotency_mismatch"
            seen["repeated"] += line.writes and sent[line.command_id] > 0 and ended is not None and ended.kind == "ok"
            seen["in flight at the fault"] += ended is not None and any(line.at_ns < at < ended.at_ns for at in faults)
            sent[line.command_id] += 1
        elif isinstance(line, Projected):
            seen["projected"] += bool(line.found)
        elif isinstance(line, Answered):
            seen["paid"] += 1
        elif isinstance(line, Logged):
            seen["expired"] += b"call.reservation_expired" in line.record
    logs = [path.read_text() for path in run.directory.glob("*.log")]
    seen["fenced"] += sum(log.count("tenant.fenced") for log in logs)
    return seen


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", nargs="*", help="failpoints; all of them where none is named", metavar="POINT")
    parser.add_argument("--action", choices=["crash", "pause"], default="crash")
    parser.add_argument("--seed", type=int, help="this one seed only")
    parser.add_argument("--seeds", type=int, default=20, help="how many seeds of each point (default 20)")
    parser.add_argument("--runs", type=int, default=1, help="how often to repeat each")
    parser.add_argument("--bug", choices=planted.BUGS, default="")
    arguments = parser.parse_args()
    seeds = [arguments.seed] if arguments.seed is not None else range(arguments.seeds)
    schedules = [
        Schedule(point, arguments.action, seed, arguments.bug)
        for point in arguments.points or swept()
        for seed in seeds
        for _ in range(arguments.runs)
    ]
    return sweep(run_one, schedules, "sweep")


if __name__ == "__main__":
    sys.exit(_main())
