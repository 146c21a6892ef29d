"""Rows about runs, beside DBOS: workflows of two steps that do nothing, one of many such steps, and a thousand that are in the middle
when everything that works on them is killed. Ours are a NATS, a Valkey, a vault, a shard and a runner, each a process, as Ray starts
them; DBOS is on SQLite, installed by uv into a directory that is gone afterwards.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import quantiles
from typing import Any

import msgspec

from events.ask import Asker
from events.bus import Bus
from events.codec import decode_record
from events.run import StartRun, pack
from events.slices import slice_of
from events.tenant import CreateTenant, DescribeTenant
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from serve.guard import die_with_parent
from tests.bench.programs import ROOT, environment_kept, scratch, wait_for
from tests.bench.results import BenchError, Pairs, Say
from tests.bench.sagas import HOLD_VARIABLE
from tests.kit.servers import Servers, running_servers

DBOS_VERSION = "3.4.0"
TENANT = "bench"
ROWS = ("run_throughput", "run_steps", "run_step_p50", "run_step_p99", "run_resume")
IN_FLIGHT, OPEN_RUNS, STEPS, MEASURE_S = 64, 1_000, 40, 4.0
_CHAINS = 5  # runs of so many steps, one after the other
_NUMBERS = {"in_flight": IN_FLIGHT, "open_runs": OPEN_RUNS, "steps": STEPS, "chains": _CHAINS, "measure_s": MEASURE_S}
_REPEATS = 3
_TIMEOUT_S = 300.0
_BLOCK_MS = 1_000
_ALL_ARE_OPEN = b"all are open"  # in the words of dbos_program.py, which needs DBOS to be imported
_ENDED = b"run.ended.v1"


class Latency(msgspec.Struct, frozen=True):
    """Of a step, in microseconds."""

    p50_us: float
    p99_us: float


class Ours:
    """Runs of one tenant on a running platform. A run has ended when the tenant's log says so."""

    def __init__(self, bus: Bus, store: ValkeyEventStore) -> None:
        self.bus, self._asker, self._store = bus, Asker(bus), store
        self._ended: dict[str, asyncio.Event] = {}
        self._position = 0
        self._wanted = asyncio.Event()

    async def follow(self) -> None:
        number = slice_of(TENANT)
        cursors = await self._store.newest_cursors([number])  # before the first look: nothing falls between the two
        while True:
            await self._wanted.wait()  # while DBOS has its turn, nothing of ours is in its way
            page = await self._store.read(TENANT, self._position)
            for stored in page:
                self._position = stored.position
                if _ENDED in stored.record:
                    run_id = decode_record(stored.record).stream.removeprefix("run/")
                    if run_id in self._ended:
                        self._ended[run_id].set()
            if not page:
                for pointers in (await self._store.tail(cursors, _BLOCK_MS)).values():
                    cursors[number] = pointers[-1].cursor

    async def start(self, saga: str, given: int) -> str:
        run_id = uuid.uuid4().hex
        self._ended[run_id] = asyncio.Event()
        self._wanted.set()
        await self._asker.ask(TENANT, StartRun(run_id, saga, pack(given)), actor="bench", timeout_s=_TIMEOUT_S)
        return run_id

    async def end(self, run_id: str) -> None:
        async with asyncio.timeout(_TIMEOUT_S):
            await self._ended[run_id].wait()
        del self._ended[run_id]
        if not self._ended:
            self._wanted.clear()

    async def _one(self, number: int) -> None:
        await self.end(await self.start("bench-two", number))

    async def throughput(self) -> float:
        await asyncio.gather(*(self._one(number) for number in range(IN_FLIGHT)))
        done, began = 0, time.perf_counter()
        ends = began + MEASURE_S

        async def caller() -> None:
            nonlocal done
            while time.perf_counter() < ends:
                await self._one(done)
                done += 1

        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
        return done / (time.perf_counter() - began)

    async def latency(self) -> Latency:
        """From the decision to do a step, in the log, to the one to do the next."""
        await self.end(await self.start("bench-many", 20))
        took = [delay for _ in range(_CHAINS) for delay in await self._delays()]
        cuts = quantiles(took, n=100)
        return Latency(cuts[49], cuts[98])

    async def _delays(self) -> list[int]:
        """Of one run, in microseconds."""
        run_id = await self.start("bench-many", STEPS)
        await self.end(run_id)
        times: list[int] = []
        version = 0
        while page := await self._store.read_stream(TENANT, f"run/{run_id}", version):
            version += len(page)
            times += [decode_record(stored.record).time_us for stored in page if b"run.step_scheduled" in stored.record]
        return [after - before for before, after in pairwise(times)]


def measure(rows: Sequence[str], instance: str, say: Say) -> list[dict[str, Any]]:
    import uvloop

    with environment_kept(), scratch() as directory:
        os.environ[HOLD_VARIABLE] = str(directory / "hold")
        say(f"installing dbos {DBOS_VERSION} …")
        with dbos_python() as python, running_servers(directory / "servers") as servers:
            stage = Stage(servers, directory, instance, Dbos(python), say)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_measure(rows, stage))


class Stage(msgspec.Struct, frozen=True):
    servers: Servers
    directory: Path
    instance: str
    dbos: "Dbos"
    say: Say

    @property
    def hold(self) -> Path:
        return self.directory / "hold"

    @contextmanager
    def working(self) -> Iterator[None]:
        """A shard and a runner; dead by SIGKILL on leaving."""
        number = uuid.uuid4().hex[:6]
        programs = []
        try:
            for kind in ("shard", "runner"):
                ready = self.directory / f"{kind}-{number}"
                urls = (self.servers.nats_url, self.servers.valkey_url, self.servers.vault_url)
                command = [sys.executable, "-m", "tests.bench.run_programs", kind, *urls, str(ready)]
                with ready.with_suffix(".log").open("wb") as output:
                    process = subprocess.Popen(die_with_parent(command), cwd=ROOT, stdout=output, stderr=output)
                programs.append(process)
                wait_for(ready, process, ready.with_suffix(".log"))
            yield
        finally:
            for process in programs:
                process.kill()
            for process in programs:
                process.wait()


async def _measure(rows: Sequence[str], stage: Stage) -> list[dict[str, Any]]:
    dbos, say = stage.dbos, stage.say
    bus = await Bus.connect(stage.servers.nats_url, "bench", lambda: say("NATS answers no more"))
    store = ValkeyEventStore(connect(stage.servers.valkey_url))
    ours = Ours(bus, store)
    following = asyncio.create_task(ours.follow())
    pairs = {row: Pairs(row, say) for row in rows}
    try:
        with stage.working():
            await Asker(bus).ask(TENANT, CreateTenant("Bench", "free"), actor="bench")
            for _ in range(_REPEATS):
                if pairs.keys() & {"run_throughput", "run_steps"}:
                    mine, theirs = await ours.throughput(), (await dbos.run("throughput"))["per_second"]
                    _add(pairs, {"run_throughput": (mine, theirs), "run_steps": (2 * mine, 2 * theirs)})
                if pairs.keys() & {"run_step_p50", "run_step_p99"}:
                    step, their = await ours.latency(), await dbos.run("latency")
                    p50, p99 = (step.p50_us, their["p50_us"]), (step.p99_us, their["p99_us"])
                    _add(pairs, {"run_step_p50": p50, "run_step_p99": p99})
        if "run_resume" in rows:
            _add(pairs, {"run_resume": (await _resume(ours, stage), await dbos.resume())})
    finally:
        following.cancel()
        await asyncio.wait([following])
        await store.close()
        await bus.close()
    return [pairs[row].verdict() for row in rows]


def _add(pairs: dict[str, Pairs], found: dict[str, tuple[float, float]]) -> None:
    for row, (mine, theirs) in found.items():
        if row in pairs:
            pairs[row].add(mine, theirs)


async def _resume(ours: Ours, stage: Stage) -> float:
    """Seconds from the death of shard and runner until a thousand runs have ended that were under way."""
    stage.hold.touch()
    with stage.working():
        run_ids = []
        for number in range(0, OPEN_RUNS, IN_FLIGHT):
            numbers = range(number, min(number + IN_FLIGHT, OPEN_RUNS))
            run_ids += await asyncio.gather(*(ours.start("bench-two", given) for given in numbers))
    stage.hold.unlink()
    began = time.perf_counter()
    with stage.working():
        await Asker(ours.bus).ask(
            TENANT, DescribeTenant(), actor="bench"
        )  # as the supervisor does for one that is asked for
        await asyncio.gather(*map(ours.end, run_ids))
        return time.perf_counter() - began


@contextmanager
def dbos_python() -> Iterator[Path]:
    """An interpreter that has DBOS, and nothing of ours."""
    with tempfile.TemporaryDirectory(prefix="tb-dbos-") as directory:
        python = Path(directory) / "bin" / "python"
        for command in (
            ["uv", "venv", "-q", "--python", sys.executable, directory],
            ["uv", "pip", "install", "-q", "--python", str(python), f"dbos=={DBOS_VERSION}"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BenchError(
                    f"{' '.join(command[:3])} failed; the rows about runs need uv and a package index: {done.stderr[-500:]}"
                )
        yield python


class Dbos:
    def __init__(self, python: Path) -> None:
        self._python, self._program = python, ROOT / "tests" / "bench" / "dbos_program.py"

    async def run(self, mode: str) -> dict[str, float]:
        with scratch() as directory:
            return await self._run(mode, directory)

    async def _run(self, mode: str, directory: Path, *more: str) -> dict[str, float]:
        process = await self._start(mode, directory, *more)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise BenchError(f"dbos {mode}: {errors.decode()[-800:]}")
        figures: dict[str, float] = msgspec.json.decode(output.splitlines()[-1])
        return figures

    async def _start(self, mode: str, directory: Path, *more: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            str(self._python), str(self._program), mode, str(directory), json.dumps(_NUMBERS), *more,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def resume(self) -> float:
        """Seconds from the death of its process until its successor has ended the thousand workflows."""
        with scratch() as directory:
            process = await self._start("open", directory)
            await self._opened(process)
            process.kill()
            began = time.time()
            await process.communicate()
            return (await self._run("resume", directory, str(began)))["s"]

    @staticmethod
    async def _opened(process: asyncio.subprocess.Process) -> None:
        """Returns when the program says that all its workflows are open."""
        assert process.stdout is not None
        async with asyncio.timeout(_TIMEOUT_S):
            async for line in process.stdout:
                if line.strip() == _ALL_ARE_OPEN:
                    return
        raise BenchError(f"dbos ended early: {(await process.communicate())[1].decode()[-800:]}")
