"""The Ray shell of the supervisors of bulkheads and breakers: one process for both, restarted by Ray for ever."""

import asyncio
import logging

import ray

from actors.supervision.shared import SHARED_NAME, SharedSupervisors
from events.process import Connect, detached_actor, end_process

log = logging.getLogger(__name__)


class SharedSupervisorsActor:
    # async only so that a loop runs already; Ray awaits it
    async def __init__(self, connect: Connect) -> None:  # type: ignore[misc]
        self._connect = connect
        self._starting = asyncio.create_task(self._start())

    async def _start(self) -> None:
        try:
            connections = await self._connect(SHARED_NAME)
            # restarted in the place of one that died: permits it had lent may still be in use
            is_first = not ray.get_runtime_context().was_current_actor_reconstructed
            self._supervisors = SharedSupervisors(connections.bus, is_first=is_first)
            await self._supervisors.start()
        except Exception:
            log.exception("shared_supervisors.start_failed")
            end_process()


def start_shared_supervisors(connect: Connect) -> None:
    """Start them, or find those that run."""
    detached_actor(SharedSupervisorsActor, SHARED_NAME, connect)
