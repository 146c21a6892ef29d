"""What ``tenantry bench`` runs. Each row is measured by turns with its ceiling, in one run: compare the two, not machines."""

from collections.abc import Sequence
from typing import Any

from tests.bench import access, doors, live, policies, runs, servegen, starts, store, tenants
from tests.bench.programs import guarded
from tests.bench.results import Say, chosen

_TELLS = ("tell_throughput", "tell_latency", "tell_latency_p99")
_LIVE = ("ask_throughput", "ask_latency", *_TELLS, *doors.ROWS, *access.ROWS, *tenants.ROWS, *servegen.ROWS)
_STARTS = ("startup", "memory_idle")


def run(rows: list[str], say: Say) -> list[dict[str, Any]]:
    """Measure the rows, or all where none is named: dicts of row, value, unit, ceiling, ratio, reach, ok.

    Call it in the main thread. Whatever was started is gone on return, also by Ctrl-C or an error.

    Raises:
        UnknownRowError: Before anything is started.
        BenchError: A measurement could not be taken.
    """
    names = chosen(rows)
    results: list[dict[str, Any]] = []
    with guarded() as instance:
        rooms = (
            (store.ROWS, store.measure),
            (policies.ROWS, policies.measure),
            (_LIVE, live.measure),
            (runs.ROWS, runs.measure),
            (_STARTS, starts.measure),
        )
        for group, measure in rooms:
            if wanted := _among(group, names):
                results += measure(wanted, instance, say)
    return results


def _among(group: Sequence[str], names: Sequence[str]) -> list[str]:
    return [name for name in names if name in group]
