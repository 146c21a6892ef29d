"""The Ray shell of a projection runner."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from events.clock import SystemClock
from events.keys import Keys
from events.process import Connect, detached_actor, end_process
from projections.directory import DirectoryProjection
from projections.key_use import KeyUseProjection
from projections.model import Projection
from projections.retention import RunRetention
from projections.runner import ReadModels, Runner
from projections.runs import RunsProjection
from projections.spend import SpendProjection
from projections.usage import UsageProjection

log = logging.getLogger(__name__)

ACTOR_NAME = "projections"
PROJECTIONS: tuple[Projection, ...] = (
    UsageProjection(), DirectoryProjection(), SpendProjection(), KeyUseProjection(), RunsProjection(),
)  # fmt: skip


ConnectModels = Callable[[Keys], Awaitable[ReadModels]]


class ProjectionActor:
    """Keeps all read models of a range of slices. Restarted by Ray for ever; its checkpoints say where to go on."""

    # async only so that a loop runs already; Ray awaits it
    async def __init__(  # type: ignore[misc]
        self, name: str, connect: Connect, models: ConnectModels, slices: Sequence[int], keep_runs_us: int
    ) -> None:
        self._name, self._connect, self._connect_models, self._slices = name, connect, models, slices
        self._keep_runs_us = keep_runs_us
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            connections = await self._connect(self._name)
            models = await self._connect_models(connections.keys)
            runner = Runner(connections.store, models, connections.bus, PROJECTIONS, self._slices)
            retention = RunRetention(connections.store, models, SystemClock(), self._slices, self._keep_runs_us)
            async with asyncio.TaskGroup() as group:
                group.create_task(runner.run())
                group.create_task(retention.run())
        except Exception:
            log.exception("projection.failed name=%s", self._name)
            end_process()


def start_projections(connect: Connect, models: ConnectModels, slices: Sequence[int], keep_runs_us: int) -> None:
    """Start the actor that keeps the read models, or find the one that runs. ``keep_runs_us``: see ``RunRetention``."""
    detached_actor(ProjectionActor, ACTOR_NAME, ACTOR_NAME, connect, models, slices, keep_runs_us)
