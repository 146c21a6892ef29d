"""Shards and runners are killed at every failpoint of sagas, and the books of their dependencies are compared with the log.

One seed of each of those here. ``TENANTRY_SWEEP_SEEDS=20`` or ``uv run python -m tests.faults.saga_sweep`` for all of it, and at the
failpoints of the tenant's actor, too.
"""

from collections import Counter
from pathlib import Path

import pytest

from events.failpoints import POINTS
from tests.faults.conftest import SEEDS
from tests.faults.saga_sweep import PASSES, Schedule, run_one
from tests.kit.servers import Servers

OF_SAGAS = [point for point in POINTS if point.startswith("saga.")]


def test_every_failpoint_of_sagas_is_swept() -> None:
    assert set(OF_SAGAS) <= PASSES.keys()


@pytest.mark.timeout(300 + 300 * SEEDS)
async def test_every_effect_happens_once_wherever_a_process_is_killed(servers: Servers, tmp_path: Path) -> None:
    """I10, I11 and I17 hold, and in the sweep as a whole everything happened that could have broken them."""
    seen: Counter[str] = Counter()
    points = OF_SAGAS if SEEDS == 1 else PASSES
    for number, schedule in enumerate(Schedule(point, seed) for point in points for seed in range(SEEDS)):
        verdict = await run_one(schedule, servers, tmp_path / str(number))
        assert not verdict.violations, str(verdict)
        assert not verdict.invalid, str(verdict)
        seen += verdict.seen
    for what in ("completed", "compensated", "repeats without effect"):
        assert seen[what] > 0, seen
