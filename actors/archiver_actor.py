"""The Ray shell of the archiver."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from events.archiver import Archiver
from events.process import detached_actor, end_process

log = logging.getLogger(__name__)

ACTOR_NAME = "archiver"

ConnectArchiver = Callable[[], Awaitable[Archiver]]


class ArchiverActor:
    """Moves old events to files, period after period. Restarted by Ray for ever; keeps nothing that could be lost."""

    # async only so that a loop runs already; Ray awaits it
    async def __init__(self, connect: ConnectArchiver, period_s: float) -> None:  # type: ignore[misc]
        self._connect, self._period_s = connect, period_s
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            await (await self._connect()).run(self._period_s)
        except Exception:
            log.exception("archive.actor_failed")
            end_process()


def start_archiver(connect: ConnectArchiver, period_s: float) -> None:
    """Start the actor that archives, or find the one that runs."""
    detached_actor(ArchiverActor, ACTOR_NAME, connect, period_s)
