"""The processes that fault tests kill: what a Ray actor hosts, without Ray, so that a life costs milliseconds.

They are forked from a server that has everything imported (``multiprocessing``'s forkserver).
"""

import asyncio
import faulthandler
import logging
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from actors import snapshots
from actors.run.dispatcher import Dispatcher
from actors.shard import Limits, Shard
from actors.supervision import root
from actors.supervision.homes import Homes
from actors.supervision.root import RootSupervisor
from events import failpoints
from events.bus import ACTIVATE, Bus, NoOneListensError
from events.clock import SystemClock
from events.errors import NotServedError, PlatformError
from events.process import Connections, end_process
from events.slices import SLICE_COUNT
from events.store import EventStore, Head, Placement
from events.tasks import end_tasks
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from events.work import WorkQueue
from projections.runner import Runner
from projections.usage import UsageProjection
from tests.faults import planted, saga_programs
from tests.faults.gateway_program import call_for_ever
from tests.kit.history import Claimed
from tests.kit.servers import open_vault

READS_DB = 3
_SNAPSHOT_EVERY_EVENTS = 6
_PASSIVATE_EVERY_S = 0.08

HOST = "test.host"  # where a shard that has a supervisor hears from it
Role = Literal["shard", "projections", "gateway", "supervisor", "sagas", "runner"]


class Plan(msgspec.Struct, frozen=True):
    """What a process is to be. ``directory`` gets its output and the epochs it claims. ``hears``: the subject on which a
    shard is told whom to host; ``tenant``: the gateway's only one; ``endpoints``: a runner's dependencies, as JSON.
    """

    name: str
    role: Role
    nats_url: str
    valkey_url: str
    vault_url: str
    directory: str
    failpoints: str = ""
    seed: int = 0
    bug: str = ""
    passivates: bool = True  # lets go of tenants now and then
    hears: str = ACTIVATE
    tenant: str = ""
    endpoints: str = ""

    @property
    def output_path(self) -> Path:
        return Path(self.directory) / f"{self.name}.log"

    @property
    def claims_path(self) -> Path:
        return Path(self.directory) / "claims.jsonl"

    @property
    def answers_path(self) -> Path:
        return Path(self.directory) / "answers.jsonl"


class Worker:
    """A process of ours, from outside."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._ready, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_run, args=(plan, theirs), daemon=True)
        self._process.start()
        theirs.close()

    async def wait_ready(self) -> None:
        """Returns when it serves, or has died on the way there."""
        if await asyncio.to_thread(self._ready.poll, 60):
            return
        raise AssertionError(f"{self.plan.name} is not ready after a minute:\n{self.output}")

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def output(self) -> str:
        return self.plan.output_path.read_text() if self.plan.output_path.exists() else ""

    @property
    def was_killed(self) -> bool:
        return self._process.exitcode == -signal.SIGKILL

    @property
    def is_stopped(self) -> bool:
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return False
        return status.rsplit(")", 1)[1].split()[0] == "T"

    @property
    def has_fired(self) -> bool:
        return "failpoint.fired" in self.output

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def print_tasks(self) -> None:
        """What it is waiting for goes into its output."""
        if self._process.is_alive():
            os.kill(self.pid, signal.SIGUSR2)
            os.kill(self.pid, signal.SIGUSR1)

    async def wait_end(self) -> None:
        await asyncio.to_thread(self._process.join, 60)

    async def stop(self) -> None:
        """In order where it can be, by force where it can't."""
        if self._process.is_alive():
            self.resume()
            self._process.terminate()
            await asyncio.to_thread(self._process.join, 20)
        if self._process.is_alive():
            self._process.kill()
            await self.wait_end()
        self._ready.close()
        self._process.close()


class Ledger:
    """An event store that writes down who claimed what: the log's own epochs are then checked against it."""

    def __init__(self, store: EventStore, path: Path) -> None:
        self._store, self._path = store, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def claim(self, tenant: str) -> Head:
        head = await self._store.claim(tenant)
        line = Claimed(time.monotonic_ns(), os.getpid(), tenant, head.epoch)
        with self._path.open("ab") as ledger:
            ledger.write(msgspec.json.encode(line) + b"\n")
        return head


def _run(plan: Plan, ready: Connection) -> None:
    output = os.open(plan.output_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(message)s", force=True)
    faulthandler.register(signal.SIGUSR2, file=2)  # where the loop itself is stuck
    failpoints.arm(plan.failpoints, plan.seed)
    asyncio.run(_SERVE[plan.role](plan, ready))


async def _serve_shard(plan: Plan, ready: Connection) -> None:
    snapshots.SNAPSHOT_EVERY_EVENTS = _SNAPSHOT_EVERY_EVENTS
    store = ValkeyEventStore(connect(plan.valkey_url))
    vault, keys = await open_vault(plan.vault_url)
    await store.open()
    seen = cast("EventStore", Ledger(planted.store(plan.bug, store), plan.claims_path))
    bus = await Bus.connect(plan.nats_url, plan.name, end_process)
    dispatcher = await _dispatcher(bus) if plan.role == "sagas" else None
    shard = Shard(plan.name, "pool", seen, bus, SystemClock(), keys, effects=dispatcher)
    tasks: set[asyncio.Task[None]] = set()

    async def activate(tenant: str, reply_to: str) -> None:
        try:
            await shard.host(tenant)
        except PlatformError as error:
            bus.publish(reply_to, error.code.encode())
        else:
            bus.publish(reply_to, b"")

    def on_activate(data: bytes, reply_to: str) -> None:
        task = asyncio.create_task(activate(data.decode(), reply_to))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    await bus.subscribe(plan.hears, on_activate)
    ended = _end_on_sigterm()
    passivating = asyncio.create_task(_passivate(shard, random.Random(plan.seed), plan.passivates))
    ready.send(True)
    await ended.wait()
    await end_tasks(passivating)
    await shard.close()
    if dispatcher is not None:
        await dispatcher.close()
    await bus.close()
    await vault.close()
    await store.close()


async def _dispatcher(bus: Bus) -> Dispatcher:
    """Of a shard whose tenants have runs."""
    saga_programs.come_again_soon()
    queue = WorkQueue(bus)
    await queue.prepare()
    return Dispatcher(queue)


async def _serve_runner(plan: Plan, ready: Connection) -> None:
    vault, keys = await open_vault(plan.vault_url)
    bus = await Bus.connect(plan.nats_url, plan.name, end_process)
    ended, works = _end_on_sigterm(), asyncio.Event()
    endpoints = msgspec.json.decode(plan.endpoints, type=saga_programs.Endpoints)
    working = asyncio.create_task(saga_programs.work_for_ever(bus, keys, endpoints, works))
    await works.wait()
    ready.send(True)
    await ended.wait()
    await end_tasks(working)
    await bus.close()
    await vault.close()


async def _passivate(shard: Shard, dice: random.Random, passivates: bool) -> None:
    """Let go of a tenant now and then, so that tenants also leave and come back while they are asked."""
    while True:
        await asyncio.sleep(_PASSIVATE_EVERY_S * (0.5 + dice.random()))  # the test's own rhythm
        if passivates and shard.tenants:
            await shard.release(dice.choice(shard.tenants))


async def _serve_projections(plan: Plan, ready: Connection) -> None:
    store = ValkeyEventStore(connect(plan.valkey_url, timeout_s=8))
    vault, keys = await open_vault(plan.vault_url)
    models = planted.read_models(plan.bug, connect(plan.valkey_url, db=READS_DB, timeout_s=8), keys)
    await store.open()
    await models.open()
    bus = await Bus.connect(plan.nats_url, plan.name, end_process)
    ended = _end_on_sigterm()
    running = asyncio.create_task(Runner(store, models, bus, [UsageProjection()], range(SLICE_COUNT)).run())
    ready.send(True)
    await ended.wait()
    await end_tasks(running)
    await bus.close()
    await models.close()
    await vault.close()
    await store.close()


async def _serve_gateway(plan: Plan, ready: Connection) -> None:
    bus = await Bus.connect(plan.nats_url, plan.name, end_process)
    ended = _end_on_sigterm()
    calling = asyncio.create_task(call_for_ever(bus, plan.tenant, plan.answers_path, plan.seed))
    ready.send(True)
    await ended.wait()
    await end_tasks(calling)
    await bus.close()


async def _serve_supervisor(plan: Plan, ready: Connection) -> None:
    """The real one; only what it reaches through Ray is reached over the bus here."""
    store = ValkeyEventStore(connect(plan.valkey_url))
    vault, keys = await open_vault(plan.vault_url)
    await store.open()
    bus = await Bus.connect(plan.nats_url, plan.name, end_process)

    async def connected(_name: str) -> Connections:
        return Connections(store, bus, keys)

    setattr(root, "ShardActors", lambda *_: OneShard(bus))  # noqa: B010 - a stand-in of another type
    setattr(root, "Cluster", NoCluster)  # noqa: B010 - likewise
    supervisor = RootSupervisor.__new__(RootSupervisor)
    await supervisor.__init__(connected, 1, Limits())  # type: ignore[misc]  # as Ray constructs it
    await supervisor.ready(1)
    ended = _end_on_sigterm()
    ready.send(True)
    await ended.wait()
    await supervisor.close()
    await bus.close()
    await vault.close()
    await store.close()


class OneShard:
    """Stands for ``ShardActors``."""

    def __init__(self, bus: Bus) -> None:
        self._bus, self.homes = bus, Homes(1)

    async def host(self, tenant: str, _placement: Placement) -> None:
        try:
            problem = await self._bus.request(HOST, tenant.encode(), 10.0)
        except (NoOneListensError, TimeoutError) as error:
            raise NotServedError(tenant, "the shard does not answer") from error
        if problem:
            raise NotServedError(tenant, problem.decode())

    host_alone = host

    @staticmethod
    def names() -> list[str]:
        return []

    async def close(self) -> None:
        pass


class NoCluster:
    """Stands for ``Cluster``: nothing is ever drained or scaled."""

    @staticmethod
    def pool_shards() -> None:
        return None

    @staticmethod
    def draining() -> set[str]:
        return set()


_SERVE: dict[Role, Callable[[Plan, Connection], Coroutine[None, None, None]]] = {
    "shard": _serve_shard,
    "projections": _serve_projections,
    "gateway": _serve_gateway,
    "supervisor": _serve_supervisor,
    "sagas": _serve_shard,
    "runner": _serve_runner,
}


def _end_on_sigterm() -> asyncio.Event:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _print_tasks)
    return ended


def _print_tasks() -> None:
    for task in asyncio.all_tasks():
        task.print_stack(limit=4, file=sys.stderr)
