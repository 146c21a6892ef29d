"""Processes for the tests of what the cluster shares: callers of a dependency, and the supervisors.

python -m tests.faults.callers supervisors NATS_URL first|again
python -m tests.faults.callers caller NATS_URL PLAN     (the plan as JSON; a line of figures on stdout every 50 ms)
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from typing import Any

import aiohttp
import msgspec

from actors.policies.config import PoliciesConfig
from actors.policies.refusals import PolicyRefusal
from actors.supervision.clients import Resilience
from actors.supervision.shared import SharedSupervisors
from events.bus import Bus

BEAT_S = 0.05


def end_process() -> None:
    """Deaf. Not the platform's own: that would import Ray, for seconds."""
    os._exit(70)


class Plan(msgspec.Struct, frozen=True):
    """``tasks`` callers of each of ``dependencies``: name -> (URL, policies, tenant)."""

    dependencies: dict[str, tuple[str, dict[str, Any], str]]
    tasks: int = 20
    think_s: float = 0.25


class Figures(msgspec.Struct):
    """Of one dependency. ``retries`` are those of calls that ended. ``refusing_ns``: when this process' breaker was first
    open, on the machine's monotonic clock.
    """

    done: int = 0
    failed: int = 0
    retries: int = 0
    refused: dict[str, int] = {}
    refusing_ns: int = 0
    breaker: str = ""


def failed_in_http(error: BaseException) -> bool:
    """All its calls only read, so another attempt is harmless; by itself a policy would repeat trouble of the network alone."""
    return isinstance(error, aiohttp.ClientError)


class Caller:
    def __init__(self, plan: Plan, resilience: Resilience, http: aiohttp.ClientSession) -> None:
        self._plan, self._resilience, self._http = plan, resilience, http
        self.figures = {name: Figures(refused=Counter()) for name in plan.dependencies}

    async def run(self) -> None:
        await asyncio.gather(
            *(self._call(name) for name in self._plan.dependencies for _ in range(self._plan.tasks)), self._say()
        )

    async def _call(self, name: str) -> None:
        url, policies, tenant = self._plan.dependencies[name]
        label = name.split("#", 1)[0]
        parsed = PoliciesConfig.parse(policies, name)
        pipeline = self._resilience.pipeline(label, parsed, tenant=tenant, retryable=failed_in_http)
        figures = self.figures[name]
        attempts = 0

        async def attempt() -> None:
            nonlocal attempts
            attempts += 1
            await self._get(url)

        while True:
            attempts = 0
            try:
                await pipeline.call(attempt, tenant=tenant)
                figures.done += 1
            except PolicyRefusal as refusal:
                figures.refused[refusal.policy] += 1
                if refusal.policy == "breaker" and not figures.refusing_ns:
                    figures.refusing_ns = time.monotonic_ns()
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
                figures.failed += 1
            except Exception as error:
                if getattr(error, "code", "") != "dependency_timeout":
                    raise
                figures.failed += 1
            figures.retries += max(0, attempts - 1)
            if pipeline.breaker is not None:
                figures.breaker = pipeline.breaker.state.status
            await asyncio.sleep(self._plan.think_s)  # between calls, as callers have other things to do

    async def _get(self, url: str) -> None:
        async with self._http.get(url) as response:
            response.raise_for_status()
            json.loads(await response.read())

    async def _say(self) -> None:
        while True:
            print(msgspec.json.encode(self.figures).decode(), flush=True)
            await asyncio.sleep(BEAT_S)  # the report's own beat


async def supervise(nats_url: str, is_first: bool) -> None:
    bus = await Bus.connect(nats_url, "supervisors", end_process)
    supervisors = SharedSupervisors(bus, is_first=is_first)
    await supervisors.start()
    print("ready", flush=True)
    await asyncio.Event().wait()


async def call(nats_url: str, plan: Plan) -> None:
    bus = await Bus.connect(nats_url, "caller", end_process)
    resilience = Resilience(bus, f"caller-{os.getpid()}")
    await resilience.start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        caller = asyncio.create_task(Caller(plan, resilience, http).run())
        stop = asyncio.create_task(stopped.wait())
        await asyncio.wait([caller, stop], return_when=asyncio.FIRST_COMPLETED)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        await resilience.close()
        await bus.close()


def main() -> None:
    kind, nats_url, argument = sys.argv[1:]
    if kind == "supervisors":
        asyncio.run(supervise(nats_url, argument == "first"))
    else:
        asyncio.run(call(nats_url, msgspec.json.decode(argument, type=Plan)))


if __name__ == "__main__":
    main()
