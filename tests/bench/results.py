"""Rows, what they have to reach, and the verdict."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from statistics import median
from typing import Any

import msgspec

from events.errors import PlatformError

Say = Callable[[str], None]


class UnknownRowError(PlatformError):
    code = "unknown_row"

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(name, known)
        self.name, self.known = name, known

    def __str__(self) -> str:
        close = get_close_matches(self.name, self.known, n=1)
        guess = f" (did you mean {close[0]!r}?)" if close else ""
        return f"unknown row {self.name!r}{guess}: the rows are {', '.join(self.known)}"


class BenchError(PlatformError):
    """A measurement could not be taken; the message says what went wrong."""

    code = "bench_failed"


class Row(msgspec.Struct, frozen=True):
    """``reach`` bounds the ratio to the ceiling: from below where more is better, else from above. Where no program
    could be the ceiling, ``goal`` stands in its place.
    """

    name: str
    unit: str
    reach: float
    more_is_better: bool
    goal: float | None = None


_ALL = (
    Row("append", "events/s", 0.85, more_is_better=True),
    Row("replay", "events/s", 0.50, more_is_better=True),
    # no figures to reach are given for the rest of the store's rows: these are what the extra work may cost
    Row("verify", "events/s", 0.50, more_is_better=True),
    Row("archive", "events/s", 0.25, more_is_better=True),
    Row("unarchive", "events/s", 0.50, more_is_better=True),
    Row("store_memory", "bytes/event", 1.25, more_is_better=False),
    Row("stream_read", "us", 3.0, more_is_better=False),
    Row("store_restart", "s", 1.5, more_is_better=False),
    Row("policies", "us", 1.0, more_is_better=False, goal=15.0),
    Row("breaker_p99", "ms", 1.0, more_is_better=False, goal=250.0),
    Row("ask_throughput", "commands/s", 0.80, more_is_better=True),
    Row("ask_latency", "us", 1.3, more_is_better=False),
    Row("restart", "s", 1.5, more_is_better=False),
    Row("activation_1", "ms", 3.0, more_is_better=False),
    Row("activation_1e3", "ms", 2.0, more_is_better=False),
    Row("activation_1e5", "ms", 2.0, more_is_better=False),
    Row("activation_1e5_snapshot", "ms", 3.0, more_is_better=False),
    Row("pool_activations", "tenants/s", 0.5, more_is_better=True),
    Row("pool_ask_p99", "ms", 2.0, more_is_better=False),
    Row("tenant_memory", "KiB", 1.0, more_is_better=False, goal=50.0),
    Row("move_pause_p50", "ms", 1.0, more_is_better=False, goal=50.0),
    Row("move_pause_p99", "ms", 1.0, more_is_better=False, goal=250.0),
    Row("node_move_pause_p50", "ms", 1.0, more_is_better=False, goal=50.0),
    Row("node_move_pause_p99", "ms", 1.0, more_is_better=False, goal=250.0),
    Row("noisy_neighbour", "commands/s", 0.90, more_is_better=True),
    Row("tell_throughput", "commands/s", 0.70, more_is_better=True),
    # no figure to reach is given anywhere: a queued command may take half as long again as the least way, one in a hundred twice
    Row("tell_latency", "us", 1.5, more_is_better=False),
    Row("tell_latency_p99", "us", 2.0, more_is_better=False),
    # through Serve, and through the port of the gateway replica's own
    Row("http_command", "requests/s", 0.80, more_is_better=True),
    Row("http_command_own", "requests/s", 0.80, more_is_better=True),
    Row("chat", "requests/s", 0.80, more_is_better=True),
    Row("chat_own", "requests/s", 0.80, more_is_better=True),
    Row("sse", "tokens/s", 0.70, more_is_better=True),
    Row("sse_own", "tokens/s", 0.70, more_is_better=True),
    # no figure to reach is given for the rest: a call may take half as long again as the least way, one in a hundred twice
    *(
        Row(f"chat_added_{percentile}_{in_flight}", "us", reach, more_is_better=False)
        for in_flight in (1, 16, 64)
        for percentile, reach in (("p50", 1.5), ("p99", 2.0))
    ),
    Row("servegen_served", "requests/s", 0.90, more_is_better=True),
    Row("servegen_p99", "ms", 2.0, more_is_better=False),
    Row("revocation_p50", "ms", 1.0, more_is_better=False, goal=1_000.0),
    Row("revocation_p99", "ms", 1.0, more_is_better=False, goal=1_000.0),
    Row("suspension_p50", "ms", 1.0, more_is_better=False, goal=1_000.0),
    Row("suspension_p99", "ms", 1.0, more_is_better=False, goal=1_000.0),
    # beside DBOS on SQLite, in place of a ceiling: ten times its workflows, steps and a restart no slower than its own
    Row("run_throughput", "runs/s", 10.0, more_is_better=True),
    Row("run_steps", "steps/s", 10.0, more_is_better=True),
    Row("run_step_p50", "us", 1.0, more_is_better=False),
    Row("run_step_p99", "us", 1.0, more_is_better=False),
    Row("run_resume", "s", 1.0, more_is_better=False),
    Row("startup", "s", 1.5, more_is_better=False),
    # no figure to reach is given anywhere: half as much again is what supervision, projections and a guard may cost
    Row("memory_idle", "MiB", 1.5, more_is_better=False),
)
ROWS = {row.name: row for row in _ALL}


def chosen(names: Sequence[str]) -> list[str]:
    """The rows to measure, in the order in which they are measured; all where none is named. Raises UnknownRowError."""
    for name in names:
        if name not in ROWS:
            raise UnknownRowError(name, list(ROWS))
    return [name for name in ROWS if not names or name in names]


def verdict(row: Row, ours: Sequence[float], ceilings: Sequence[float]) -> dict[str, Any]:
    """Medians of the repeats, as ``tenantry bench --json`` prints them. ``ok`` is decided before anything is rounded."""
    value, ceiling = median(ours), median(ceilings)
    ratio = value / ceiling
    ok = ratio >= row.reach if row.more_is_better else ratio <= row.reach
    return {
        "row": row.name,
        "value": _rounded(value),
        "unit": row.unit,
        "ceiling": _rounded(ceiling),
        "ratio": round(ratio, 3),
        "reach": row.reach,
        "ok": ok,
    }


def _rounded(figure: float) -> float:
    """More digits than these are noise."""
    return round(figure, 2 if figure < 100 else 0)


class Pairs:
    """Repeats of one row, ours and the ceiling by turns: the machine's mood of the moment then meets both."""

    def __init__(self, name: str, say: Say) -> None:
        self._row, self._say = ROWS[name], say
        self._ours: list[float] = []
        self._ceilings: list[float] = []

    def add(self, ours: float, ceiling: float | None = None) -> None:
        row = self._row
        ceiling = row.goal if ceiling is None else ceiling
        assert ceiling is not None, row.name
        self._ours.append(ours)
        self._ceilings.append(ceiling)
        self._say(f"{row.name} {len(self._ours)}: {ours:,.1f} {row.unit}, ceiling {ceiling:,.1f}")

    def verdict(self) -> dict[str, Any]:
        return verdict(self._row, self._ours, self._ceilings)
