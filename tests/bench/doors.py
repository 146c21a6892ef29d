"""The rows of the gateway's doors: rates, tokens per second, and what a call takes longer than at the model server itself."""

import json
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from serve.client import AdminClient
from serve.installation import Running
from tests.bench import bare_app
from tests.bench.http_commands import Door, Kind, Loads
from tests.bench.load import Outcome
from tests.bench.results import Pairs, Say

REPEATS = 5
_MEASURE_S = 3.0
_LATENCY_S = 2.0

# the kind of request, the door, the figure
_RATES: dict[str, tuple[Kind, Door, Callable[[Outcome], float]]] = {
    "http_command": ("command", "serve", lambda found: found.per_second),
    "http_command_own": ("command", "own", lambda found: found.per_second),
    "chat": ("chat", "serve", lambda found: found.per_second),
    "chat_own": ("chat", "own", lambda found: found.per_second),
    "sse": ("stream", "serve", lambda found: found.events_per_second),
    "sse_own": ("stream", "own", lambda found: found.events_per_second),
}
_ADDED = {
    f"chat_added_{percentile}_{in_flight}": (in_flight, percentile)
    for in_flight in (1, 16, 64)
    for percentile in ("p50", "p99")
}
ROWS = (*_RATES, *_ADDED)


def deploy_ceiling(running: Running, model_url: str) -> str:
    """The bare application beside ours; the URL of the port of its own."""
    bare_app.deploy(running.nats_url, model_url)
    address = running.base_url.removesuffix("/v1") + f"{bare_app.PREFIX}/door"
    with urllib.request.urlopen(address, timeout=30) as answer:
        return f"http://127.0.0.1:{int(json.load(answer))}"


def own_url(admin: AdminClient) -> str:
    """Of the platform's one replica."""
    url: str = admin.call("GET", "/gateways")["data"][0]["url"]
    return url


async def measure(
    rows: Sequence[str], loads: Loads, say: Say, projected: Callable[[], Awaitable[None]]
) -> list[dict[str, Any]]:
    """``projected`` returns when what ours left to do is done: it would slow down the ceiling."""
    results = [await _measure_rate(row, loads, say, projected) for row in rows if row in _RATES]
    for in_flight in (1, 16, 64):
        if wanted := [row for row in rows if row in _ADDED and _ADDED[row][0] == in_flight]:
            results += await _measure_added(in_flight, wanted, loads, say, projected)
    return results


async def _measure_rate(row: str, loads: Loads, say: Say, projected: Callable[[], Awaitable[None]]) -> dict[str, Any]:
    kind, door, figure = _RATES[row]
    pairs = Pairs(row, say)
    for _ in range(REPEATS):
        mine = figure(await loads.ours(kind, door, _MEASURE_S))
        await projected()
        pairs.add(mine, figure(await loads.ceiling(kind, door, _MEASURE_S)))
    return pairs.verdict()


async def _measure_added(
    in_flight: int, rows: Sequence[str], loads: Loads, say: Say, projected: Callable[[], Awaitable[None]]
) -> list[dict[str, Any]]:
    """Microseconds that a call takes longer through the replica's own door than at the model server; as the ceiling, what it
    takes longer through the bare application.
    """
    pairs = {row: Pairs(row, say) for row in rows}
    for _ in range(REPEATS):
        direct = await loads.direct(_LATENCY_S, in_flight)
        mine = await loads.ours("chat", "own", _LATENCY_S, in_flight)
        await projected()
        bare = await loads.ceiling("chat", "own", _LATENCY_S, in_flight)
        for row, pair in pairs.items():
            of = f"{_ADDED[row][1]}_us"
            pair.add(getattr(mine, of) - getattr(direct, of), getattr(bare, of) - getattr(direct, of))
    return [pair.verdict() for pair in pairs.values()]
