"""What policies cost a call, and how fast the cluster's breaker is. Needs no platform: NATS alone."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any

from actors.policies.config import PoliciesConfig
from actors.policies.refusals import BreakerOpenError
from actors.policies.wrappers.breaker import CircuitBreaker
from actors.policies.wrappers.build import build_pipeline
from actors.supervision.clients import Resilience
from actors.supervision.shared import SharedSupervisors
from events.bus import Bus
from tests.bench.results import Pairs, Say
from tests.kit.servers import running_servers

ROWS = ("policies", "breaker_p99")
_REPEATS, _BURSTS, _CALLS = 5, 100, 100
_CALLERS, _ROUNDS, _FAILURES = 3, 50, 50
_ALL_FIVE = {"rate_limit": {"limit": 1e9}, "bulkhead": 5, "breaker": {}, "retry": {}, "timeout_s": 10}
_BREAKER = {"breaker": {"calls_min": _FAILURES, "window_s": 10, "open_s": 60}}


def measure(rows: Sequence[str], _instance: str, say: Say) -> list[dict[str, Any]]:
    return asyncio.run(_measure(rows, say))


async def _measure(rows: Sequence[str], say: Say) -> list[dict[str, Any]]:
    return [await (_policies(say) if row == "policies" else _breaker(say)) for row in rows]


async def _noop() -> None:
    pass


async def _policies(say: Say) -> dict[str, Any]:
    """What five policies add to a bare await of a no-op, burst by burst beside it. The fastest burst of each counts, as
    ``timeit`` has it: what is above it is the machine's other work.
    """
    pairs = Pairs("policies", say)
    pipeline = build_pipeline("noop", PoliciesConfig.parse(_ALL_FIVE, "bench"))
    for _ in range(_REPEATS):
        bursts = [(await _burst_us(lambda: pipeline.call(_noop)), await _burst_us(_noop)) for _ in range(_BURSTS)]
        pairs.add(min(ours for ours, _ in bursts) - min(bare for _, bare in bursts))
    return pairs.verdict()


async def _burst_us(call: Callable[[], Awaitable[None]]) -> float:
    await asyncio.sleep(0)  # as in any program, the loop comes round
    began = time.perf_counter()
    for _ in range(_CALLS):
        await call()
    return (time.perf_counter() - began) / _CALLS * 1e6


async def _breaker(say: Say) -> dict[str, Any]:
    """From the 50th failure, of all callers together, until the last of them refuses; p99 of so many openings."""
    pairs = Pairs("breaker_p99", say)
    with (
        TemporaryDirectory(prefix="tb-", ignore_cleanup_errors=True) as directory,
        running_servers(Path(directory)) as servers,
    ):
        async with AsyncExitStack() as stack:
            buses = [await Bus.connect(servers.nats_url, "bench", lambda: None) for _ in range(_CALLERS + 1)]
            for bus in buses:
                stack.push_async_callback(bus.close)
            supervisors = SharedSupervisors(buses[0], is_first=True)
            await supervisors.start()
            stack.push_async_callback(supervisors.close)
            callers = [Resilience(bus, f"caller-{number}") for number, bus in enumerate(buses[1:])]
            for caller in callers:
                await caller.start()
                stack.push_async_callback(caller.close)
            reactions = [await _reaction_ms(callers, f"dependency-{number}") for number in range(_ROUNDS)]
    pairs.add(quantiles(reactions, n=100, method="inclusive")[-1])
    return pairs.verdict()


async def _reaction_ms(callers: Sequence[Resilience], name: str) -> float:
    config, failures = PoliciesConfig.parse(_BREAKER, "bench"), list[float]()
    breakers = [caller.pipeline(name, config).breaker for caller in callers]
    refused = await asyncio.gather(*(_until_refused(breaker, failures) for breaker in breakers if breaker is not None))
    return (max(refused) - failures[_FAILURES - 1]) * 1e3


async def _until_refused(breaker: CircuitBreaker, failures: list[float]) -> float:
    while True:
        try:
            generation = breaker.permit()
        except BreakerOpenError:
            return time.monotonic()
        breaker.record(generation, failed=True, duration_s=0.001)
        failures.append(time.monotonic())
        await asyncio.sleep(
            0.002
        )  # the load: a failing call takes a moment, and the rate of failures is part of the figure
