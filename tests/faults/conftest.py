import os
from pathlib import Path

import pytest

from tests.faults.sweep import Schedule, Verdict, run_one
from tests.kit.servers import Servers

# How many seeds each point gets. The full sweep is `uv run python -m tests.faults.sweep`: 20 seeds of each.
SEEDS = int(os.environ.get("TENANTRY_SWEEP_SEEDS", "1"))


@pytest.fixture
def seeds() -> range:
    return range(SEEDS)


class Sweeper:
    def __init__(self, servers: Servers, directory: Path) -> None:
        self._servers, self._directory = servers, directory
        self._count = 0

    async def __call__(self, schedule: Schedule) -> Verdict:
        self._count += 1
        return await run_one(schedule, self._servers, self._directory / str(self._count))


@pytest.fixture
def sweeper(servers: Servers, tmp_path: Path) -> Sweeper:
    return Sweeper(servers, tmp_path)
