"""DBOS doing what the rows about runs do: workflows of two steps that do nothing, on SQLite, as its documentation sets it up.

    python dbos_program.py throughput|latency|open|resume DIRECTORY NUMBERS [KILLED_AT]

Runs in an environment of its own (``tests.bench.runs`` makes it); prints one line of JSON. ``open`` leaves workflows in the middle
of their second step and waits to be killed.
"""

import asyncio
import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import quantiles
from typing import Any

from dbos import DBOS, SetWorkflowID

NUMBERS = json.loads(sys.argv[3])
IN_FLIGHT, OPEN_RUNS, STEPS = NUMBERS["in_flight"], NUMBERS["open_runs"], NUMBERS["steps"]
_BEGUN: list[float] = []
HOLDS = sys.argv[1] == "open"
IS_OPEN = "all are open"  # for whoever kills this process then


@DBOS.step()
async def first(given: int) -> int:
    return given + 1


@DBOS.step()
async def second(given: int) -> int:
    if HOLDS:
        await asyncio.Event().wait()
    return given + 1


@DBOS.workflow()
async def two_steps(given: int) -> int:
    return await second(await first(given))


@DBOS.step()
async def timed(number: int) -> int:
    _BEGUN.append(time.perf_counter())
    return number


@DBOS.workflow()
async def many_steps(count: int) -> int:
    for number in range(count):
        await timed(number)
    return count


async def _one(number: int) -> None:
    handle = await DBOS.start_workflow_async(two_steps, number)
    await handle.get_result()


async def throughput() -> dict[str, float]:
    await asyncio.gather(*(_one(number) for number in range(IN_FLIGHT)))
    done, ends = 0, time.perf_counter() + NUMBERS["measure_s"]
    began = time.perf_counter()

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < ends:
            await _one(done)
            done += 1

    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return {"per_second": done / (time.perf_counter() - began)}


async def latency() -> dict[str, float]:
    await (await DBOS.start_workflow_async(many_steps, 20)).get_result()
    took: list[float] = []
    for _ in range(NUMBERS["chains"]):
        _BEGUN.clear()
        await (await DBOS.start_workflow_async(many_steps, STEPS)).get_result()
        took += [(after - before) * 1e6 for before, after in pairwise(_BEGUN)]
    cuts = quantiles(took, n=100)
    return {"p50_us": cuts[49], "p99_us": cuts[98]}


async def open_runs() -> None:
    async def begin(number: int) -> None:
        with SetWorkflowID(f"open-{number}"):
            await DBOS.start_workflow_async(two_steps, number)

    for first_number in range(0, OPEN_RUNS, IN_FLIGHT):
        numbers = range(first_number, min(first_number + IN_FLIGHT, OPEN_RUNS))
        await asyncio.gather(*(begin(number) for number in numbers))
    while len(await DBOS.list_workflows_async(status="PENDING", limit=OPEN_RUNS * 2)) < OPEN_RUNS:  # noqa: ASYNC110
        await asyncio.sleep(0.1)  # DBOS has no event for it: its list can only be asked for
    print(IS_OPEN, flush=True)
    await asyncio.Event().wait()


async def resume() -> dict[str, float]:
    """From the time at which the process before was killed."""
    while len(await DBOS.list_workflows_async(status="SUCCESS", limit=OPEN_RUNS * 2)) < OPEN_RUNS:  # noqa: ASYNC110
        await asyncio.sleep(0.05)  # as above; a wait on each handle would poll its database once per run
    return {"s": time.time() - float(sys.argv[4])}


async def main() -> None:
    mode, directory = sys.argv[1], Path(sys.argv[2])
    config: Any = {
        "name": "bench",
        "system_database_url": f"sqlite:///{directory / 'dbos.sqlite'}",
        "application_version": "1",
        "executor_id": "local",
        "log_level": "ERROR",
        "run_admin_server": False,
    }
    DBOS(config=config)
    DBOS.launch()
    if mode == "open":
        await open_runs()
    work = {"throughput": throughput, "latency": latency, "resume": resume}[mode]
    print(json.dumps(await work()), flush=True)
    DBOS.destroy()


if __name__ == "__main__":
    asyncio.run(main())
