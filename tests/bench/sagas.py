"""The sagas of the rows about runs, for the platform that ``tests.bench.runs`` starts. Their steps do nothing."""

import asyncio
import os
from pathlib import Path

from actors.run import Saga, Step, register
from actors.run.function import Flow, saga_function
from actors.run.functions import step_function

HOLD_VARIABLE = "TENANTRY_BENCH_HOLD"  # while that file is there, second steps do not end


@step_function("bench.first")
async def first(given: int) -> int:
    return given + 1


@step_function("bench.second")
async def second(given: int) -> int:
    hold = os.environ.get(HOLD_VARIABLE)
    if hold and Path(hold).exists():
        await asyncio.Event().wait()
    return given + 1


register(
    Saga(
        "bench-two",
        steps=(
            Step("first", function="bench.first", args=lambda run: run.input),
            Step("second", function="bench.second", args=lambda run: run["first"], timeout_s=3_600),
        ),
        output=lambda run: run["second"],
    )
)


@saga_function("bench-many")
async def many(flow: Flow, count: int) -> int:
    for number in range(count):
        await flow.function(f"s{number}", "bench.first", number)
    return count
