"""Real clients' loads side by side, one of them at a hundred times its share: what do the others notice?

The loads are those of the busiest clients of a day in ServeGen's data: their rates in the busiest ten minutes, and the gaps
between their requests as measured (gamma). Each client is a tenant; its requests come whether or not earlier ones are
answered, through the replica's own door, to a model that takes as long as models do. The ceiling is the same load with
that one as it was.
"""

import asyncio
import csv
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from serve.client import AdminClient
from tests.bench.programs import THINKING
from tests.bench.results import Pairs, Say

ROWS = ("servegen_served", "servegen_p99")
DATA = Path(__file__).parents[3] / "shared" / "data" / "servegen" / "reason" / "deepseek-r1"
TENANTS = 10
_NOISE = 100
_REPEATS = 3
_SECONDS = 15.0
_BODY = {"model": THINKING, "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 200}


class Client(msgspec.Struct, frozen=True):
    """``per_second`` and ``shape`` (of the gamma distribution of the gaps) in the client's busiest ten minutes; its share is
    what it asks for in the mean of the day.
    """

    name: str
    per_second: float
    shape: float
    share: float


class Seen(msgspec.Struct):
    """What became of the requests of all tenants but the noisy one."""

    served: int = 0
    refused: int = 0
    latencies_ms: list[float] = []

    def p99_ms(self) -> float:
        return sorted(self.latencies_ms)[int(len(self.latencies_ms) * 0.99)]


def busiest(count: int) -> list[Client]:
    found = []
    for path in DATA.glob("chunk-*-trace.csv"):
        with path.open(newline="") as file:
            windows = [(float(line[1]), float(line[4] or 1)) for line in csv.reader(file)]
        rate, shape = max(windows)
        mean = sum(window[0] for window in windows) / len(windows)
        found.append(Client(f"client-{path.stem.split('-')[1]}", rate, shape, mean))
    return sorted(found, key=lambda client: -client.share)[:count]


def arrivals(client: Client, per_second: float, seconds: float, rng: random.Random) -> list[float]:
    """Moments of its requests, in seconds from the start."""
    moments, now = [], 0.0
    while (now := now + rng.gammavariate(client.shape, 1 / (client.shape * per_second))) < seconds:
        moments.append(now)
    return moments


async def measure(rows: Sequence[str], own_url: str, admin: AdminClient, say: Say) -> list[dict[str, Any]]:
    clients = busiest(TENANTS)
    # the one in the middle of the field: a hundred times the busiest would only measure this machine
    noisy = clients[TENANTS // 2]
    keys = {client.name: await asyncio.to_thread(_key_of, admin, client.name) for client in clients}
    pairs = {row: Pairs(row, say) for row in rows}
    for repeat in range(_REPEATS):
        alone = await _drive(clients, noisy, noisy.per_second, keys, own_url, random.Random(repeat))
        beside = await _drive(clients, noisy, noisy.share * _NOISE, keys, own_url, random.Random(repeat))
        say(f"the noisy one offers {noisy.share * _NOISE:.0f}/s; of the others' {beside.refused} were refused")
        if "servegen_served" in pairs:
            pairs["servegen_served"].add(beside.served / _SECONDS, alone.served / _SECONDS)
        if "servegen_p99" in pairs:
            pairs["servegen_p99"].add(beside.p99_ms(), alone.p99_ms())
    return [pair.verdict() for pair in pairs.values()]


def _key_of(admin: AdminClient, tenant: str) -> str:
    admin.call("POST", "/tenants", {"id": tenant, "name": tenant})
    key: str = admin.call("POST", f"/tenants/{tenant}/keys", {"name": "bench"})["key"]
    return key


async def _drive(
    clients: Sequence[Client],
    noisy: Client,
    noise_per_second: float,
    keys: dict[str, str],
    own_url: str,
    rng: random.Random,
) -> Seen:
    """The others' requests are the same whether or not one is noisy: the draws of each client are its own."""
    seen, ends = Seen(), asyncio.get_running_loop().time() + _SECONDS
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(own_url, connector=connector, timeout=timeout) as http:

        async def call(client: Client) -> None:
            began = time.perf_counter()
            headers = {"authorization": f"Bearer {keys[client.name]}"}
            try:
                async with http.post("/v1/chat/completions", json=_BODY, headers=headers) as answer:
                    await answer.read()
                is_served = answer.status == 200
            except (aiohttp.ClientError, TimeoutError):
                is_served = False
            if client is noisy:
                return
            seen.latencies_ms.append((time.perf_counter() - began) * 1e3)
            if not is_served:
                seen.refused += 1
            elif asyncio.get_running_loop().time() < ends + 1:
                seen.served += 1

        async def play(client: Client, draws: random.Random) -> None:
            rate = noise_per_second if client is noisy else client.per_second
            async with asyncio.TaskGroup() as calls:
                for moment in arrivals(client, rate, _SECONDS, draws):
                    await asyncio.sleep(max(0.0, ends - _SECONDS + moment - asyncio.get_running_loop().time()))
                    calls.create_task(call(client))

        async with asyncio.TaskGroup() as playing:
            for client in clients:
                playing.create_task(play(client, random.Random(rng.random())))
    return seen
