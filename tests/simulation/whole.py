"""One schedule: what its seed makes of some tenants, their runs, their callers, and all that goes wrong meanwhile."""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from unittest.mock import patch

import msgspec

from actors.activation import Activation
from actors.aggregate import State, fold
from actors.commit import Committer
from actors.fairness import Share
from actors.run.dispatcher import Dispatcher
from actors.run.runner import Runner
from actors.supervision.timers import TimerScan
from events.ask import Asker
from events.codec import decode_event, decode_record
from events.errors import CommandFailedError, CommandRefusedError, NotServedError, PlatformError
from events.keys import Keys, parse_master_keys
from events.memory_vault import MemoryVault
from events.messages import Command
from events.objects import Objects
from events.run import CancelRun, RetryRun, RunEnded, RunEvent, SignalRun, StartRun, pack
from events.tenant import CreateTenant
from tests.kit.checker import Violation
from tests.kit.factories import Ids
from tests.kit.run_checker import Placed, check_runs, ordered
from tests.kit.servers import MASTER_KEY
from tests.simulation import planted
from tests.simulation.sagas import NAMES, WAITS_FOR
from tests.simulation.virtual import Clock, Process, run_virtually
from tests.simulation.world import Bus, Dependency, Faults, Odds, Outcome, Queue, Store

_TROUBLE_S = 20.0  # for how long things go wrong
_PATIENCE_S = 3_600.0  # then everything has to end within that
_RUNNERS = 2
_VIRTUAL = ("actors.activation", "actors.run.runner", "events.ask")


class Errors(logging.Handler):
    """What the platform's own code calls an error is a defect here, but for the alarm of what could not be undone: no fault of
    the simulation is one.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []
        self.alarms = 0

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if text.startswith("run.compensation_stuck"):
            self.alarms += 1
        else:
            self.texts.append(text)


class Owner(msgspec.Struct):
    process: Process
    activation: Activation


class Cluster:
    """What Ray does: has tenants and runners started, and again where they died."""

    def __init__(self, seed: int, odds: Odds) -> None:
        self.clock, self.faults = Clock(), Faults(seed, odds)
        self.store, self.queue = Store(self.clock, self.faults), Queue(self.faults)
        self.keys = Keys(MemoryVault(), parse_master_keys(MASTER_KEY), self.clock, self.clock.monotonic)
        self.bus = Bus(self.faults, self._handler, self.host)
        self.asker = Asker(cast("Any", self.bus), self.clock, Ids())
        self.dependency = Dependency(self.faults, self.store)
        self.owners: dict[str, Owner] = {}
        self.crashes: list[str] = []
        self._starting: dict[str, asyncio.Task[None]] = {}
        self.runners = [self.start_runner() for _ in range(_RUNNERS)]
        self.supervisor = Process("supervisor")
        self.supervisor.start(self._wake())

    # tenants

    def _handler(self, tenant: str) -> Callable[[bytes, str], None] | None:
        owner = self.owners.get(tenant)
        if owner is None or not owner.process.is_alive:
            return None
        return lambda data, reply_to: owner.process.call(owner.activation.deliver, data, reply_to)

    async def host(self, tenant: str) -> None:
        if self._handler(tenant) is not None:
            return
        if tenant not in self._starting:
            process = Process(f"tenant-{tenant}")
            task = self._starting[tenant] = process.start(self._begin(process, tenant))
            task.add_done_callback(lambda _: self._starting.pop(tenant, None))
        task = self._starting[tenant]
        await asyncio.wait([task])
        if task.cancelled():
            raise NotServedError(tenant, "its process was killed")
        if error := task.exception():
            raise error

    async def _begin(self, process: Process, tenant: str) -> None:
        def respond(reply_to: str, data: bytes) -> None:
            if process.is_alive:
                self.bus.respond(reply_to, data)

        activation = Activation(
            tenant, self.store, Committer(self.store), Share(), self.clock, respond, self._ended, "pool",
            lambda _: None, self.keys, Dispatcher(cast("Any", self.queue)),
        )  # fmt: skip
        await activation.start()
        self.owners[tenant] = Owner(process, activation)

    def _ended(self, activation: Activation) -> None:
        owner = self.owners.get(activation.tenant)
        if owner is not None and owner.activation is activation:
            del self.owners[activation.tenant]
        if activation.crash:
            self.crashes.append(activation.crash)

    def kill_tenant(self, tenant: str) -> None:
        owner = self.owners.pop(tenant, None)
        if owner is not None:
            owner.process.kill()

    async def overtake(self, tenant: str) -> None:
        """A second activation beside the first one, which does not know and is asked once more."""
        owner = self.owners.pop(tenant, None)
        if owner is None:
            return
        await _while_it_can(self.host(tenant))
        zombie = Cluster._zombie_asker(self, owner)
        await _while_it_can(zombie.ask(tenant, CreateTenant("Zombie"), actor="test", timeout_s=0.5))
        owner.process.call(owner.activation.end)

    def _zombie_asker(self, owner: Owner) -> Asker:
        bus = Bus(self.faults, lambda _: owner.activation.deliver, self.host)
        return Asker(cast("Any", bus), self.clock, Ids())

    async def passivate(self, tenant: str) -> None:
        owner = self.owners.pop(tenant, None)
        if owner is not None:
            task = owner.process.start(_leave(owner.activation))
            await asyncio.wait([task])

    # runners

    def start_runner(self) -> Process:
        process = Process("runner")
        runner = Runner(
            cast("Any", self.queue), self.asker, self.keys, Objects("", self.keys),
            {"function": self.dependency.carry_out},
        )  # fmt: skip
        process.start(runner.run())
        return process

    def kill_runner(self, number: int) -> None:
        self.runners[number].kill()
        self.runners[number] = self.start_runner()

    # timers

    async def _wake(self) -> None:
        """The root supervisor's scan, at the times at which it would find something, and often late."""
        scan = TimerScan(self.store, self.asker, self.clock)
        while True:
            due_s = (self.store.next_timer_us() - self.clock.now_us()) / 1e6
            await asyncio.sleep(min(5.0, max(0.5, due_s)) + self.faults.dice.random())
            if not self.faults.store_is_away:
                await scan.tick()

    def kill(self) -> None:
        for process in (*self.runners, self.supervisor, *(owner.process for owner in self.owners.values())):
            process.kill()


async def _leave(activation: Activation) -> None:
    await activation.drain()
    await activation.save_snapshot()
    activation.end()


async def _while_it_can(work: Awaitable[Any]) -> None:
    try:
        await work
    except PlatformError:
        return


class Simulation:
    def __init__(self, seed: int, odds: Odds) -> None:
        self.cluster = Cluster(seed, odds)
        self._dice, self._asker = self.cluster.faults.dice, self.cluster.asker
        self._runs: dict[str, dict[str, str]] = {}  # saga by run by tenant
        self._read: dict[str, list[tuple[int, int, Any]]] = defaultdict(list)
        self.seen: Counter[str] = Counter()

    async def run(self) -> list[Violation]:
        tenants = [f"t{number}" for number in range(1 + (self._dice.random() < 0.2))]
        calls = [asyncio.create_task(self._call(tenant)) for tenant in tenants]
        await self._harm(tenants)
        self.cluster.faults.calm()
        for call in calls:
            await call
        stuck = await self._settle()
        violations = [*stuck, *(Violation("defect", "", text, []) for text in self.cluster.crashes)]
        for tenant in tenants:
            violations += await self._check(tenant)
        self.cluster.kill()
        return violations

    # callers

    async def _call(self, tenant: str) -> None:
        await self._ask(tenant, CreateTenant("Sim"), "create")
        self._runs[tenant] = {}
        await asyncio.gather(*(self._call_run(tenant, f"{tenant}r{n}") for n in range(self._dice.choice((1, 1, 2)))))

    async def _call_run(self, tenant: str, run: str) -> None:
        dice = self._dice
        await asyncio.sleep(dice.random() * 3)
        saga = dice.choice(NAMES)
        self._runs[tenant][run] = saga
        lasts_us = dice.choice((0, 0, 0, 0, 8_000_000))
        await self._ask(tenant, StartRun(run, saga, pack(dice.randrange(10)), lasts_us=lasts_us), f"{run}-start")
        if saga in WAITS_FOR and dice.random() < 0.8:
            await asyncio.sleep(dice.random() * 15)
            await self._ask(tenant, SignalRun(run, WAITS_FOR[saga], pack("yes")), f"{run}-signal")
        if dice.random() < 0.12:
            await asyncio.sleep(dice.random() * 10)
            await self._ask(tenant, CancelRun(run, "no more"), f"{run}-cancel")

    async def _ask(self, tenant: str, command: Command, command_id: str) -> None:
        """Until it is settled, under the same id."""
        while True:
            try:
                await self._asker.ask(tenant, command, actor="test", command_id=command_id)
                return
            except CommandRefusedError as refusal:
                if refusal.retry_after_s is None:
                    self.seen[f"refused {refusal.code}"] += 1
                    return
            except CommandFailedError:
                raise
            except PlatformError:
                pass
            await asyncio.sleep(0.5)

    # faults

    async def _harm(self, tenants: Sequence[str]) -> None:
        dice, faults = self._dice, self.cluster.faults
        left_s = _TROUBLE_S
        while (pause_s := dice.expovariate(0.2)) < left_s:
            left_s -= pause_s
            await asyncio.sleep(pause_s)
            tenant, what = dice.choice(tenants), dice.randrange(7)
            if what <= 1:
                faults.note("runner killed")
                self.cluster.kill_runner(dice.randrange(_RUNNERS))
            elif what == 2:
                faults.note("tenant killed")
                self.cluster.kill_tenant(tenant)
            elif what == 3:
                faults.note("tenant overtaken")
                await self.cluster.overtake(tenant)
            elif what == 4:
                faults.note("tenant passivated")
                await self.cluster.passivate(tenant)
            elif what == 5:
                faults.note("store away")
                faults.store_is_away = True
                await asyncio.sleep(dice.random() * 2)
                faults.store_is_away = False
            else:
                faults.note("queue away")
                faults.queue_is_away = True
                await asyncio.sleep(dice.random() * 2)
                faults.queue_is_away = False

    # the end

    async def _settle(self) -> list[Violation]:
        """Until all runs have ended, also those that a person has had tried again."""
        ends_s = asyncio.get_running_loop().time() + _PATIENCE_S
        retried: set[str] = set()
        while asyncio.get_running_loop().time() < ends_s:
            failed = []
            is_open = bool(self.cluster.queue.entries)
            for tenant in self._runs:
                open_runs, ended = await self._ends(tenant)
                is_open = is_open or bool(open_runs)
                failed += [(tenant, run) for run, end in ended.items() if end == "failed" and run not in retried]
            for tenant, run in failed:
                retried.add(run)
                if self._dice.random() < 0.5:
                    self.cluster.dependency.repaired.add(run)
                await self._ask(tenant, RetryRun(run), f"{run}-retry")
                is_open = True
            if not is_open:
                return []
            await asyncio.sleep(2.0)
        return [Violation("I14", "", f"not all had ended {_PATIENCE_S:g} s after the last fault", [])]

    async def _ends(self, tenant: str) -> tuple[set[str], dict[str, str]]:
        """Open runs, and how the others ended."""
        open_runs, ended = set(self._runs[tenant]), dict[str, str]()
        for placed in await self._log(tenant):
            event = placed.event
            open_runs.add(event.run_id)
            if isinstance(event, RunEnded):
                open_runs.discard(event.run_id)
                ended[event.run_id] = event.status
        return open_runs, ended

    async def _events(self, tenant: str) -> list[tuple[int, int, Any]]:
        """Position, time and event, of all there are by now."""
        cipher, events = await self.cluster.keys.cipher(tenant), self._read[tenant]
        while page := await self.cluster.store.read(tenant, len(events)):
            for stored in page:
                record = decode_record(stored.record)
                events.append((stored.position, record.time_us, decode_event(record.data, cipher)))
        return events

    async def _log(self, tenant: str) -> list[Placed]:
        return [Placed(*one) for one in await self._events(tenant) if isinstance(one[2], RunEvent)]

    async def _check(self, tenant: str) -> list[Violation]:
        log, dependency = await self._log(tenant), self.cluster.dependency
        effects = dependency.effects.get(tenant, [])
        self.seen.update(placed.event.status for placed in log if isinstance(placed.event, RunEnded))
        self.seen["effects"] += len(effects)
        found = check_runs(tenant, log, effects, dependency.attempts.get(tenant, []), ordered)
        await self.cluster.host(tenant)
        state = self.cluster.owners[tenant].activation.state
        replayed = fold(State(), [event for _, _, event in await self._events(tenant)])
        if state != replayed:
            found.append(Violation("I8", tenant, "the state in memory is not what the log says", []))
        if not found and (state.runs.open or state.runs.due or state.runs.under_way or state.runs.queued):
            found.append(Violation("I13", tenant, f"runs have ended and left something behind: {state.runs}", []))
        return found


@contextmanager
def virtual_time() -> Iterator[None]:
    """The platform's modules look at the loop's clock."""
    with ExitStack() as stack:
        for module in _VIRTUAL:
            stack.enter_context(patch(f"{module}.time", Clock()))
        yield


@contextmanager
def _quiet(errors: Errors) -> Iterator[None]:
    """Warnings of faults are not printed; errors are kept."""
    root, before = logging.getLogger(), logging.root.manager.disable
    handlers, root.handlers = root.handlers, [errors]
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        root.handlers = handlers


def simulate(seeds: Sequence[int], odds: Odds | None = None, bug: str = "") -> Iterator[Outcome]:
    """What came of each schedule. The same seed gives the same, every time."""
    errors = Errors()
    with _quiet(errors), virtual_time(), planted.planted(bug):
        for seed in seeds:
            errors.texts, errors.alarms = [], 0
            yield _simulate_one(seed, odds or Odds(), errors)


def _simulate_one(seed: int, odds: Odds, errors: Errors) -> Outcome:
    return run_virtually(_outcome(seed, odds, errors))


async def _outcome(seed: int, odds: Odds, errors: Errors) -> Outcome:
    simulation = Simulation(seed, odds)
    violations = await simulation.run()
    violations += [Violation("defect", "", text, []) for text in errors.texts]
    seen = simulation.seen + Counter(simulation.cluster.faults.happened) + Counter(alarms=errors.alarms)
    return Outcome(seed, violations, seen, "--whole ")
