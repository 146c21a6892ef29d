"""The Ray shell of the supervisors of bulkheads and breakers: one process for both, restarted by Ray for ever."""

import asyncio
import logging

import ray

from actors.supervision.breakers import BreakerSupervisor
from actors.supervision.bulkheads import BulkheadSupervisor
from actors.supervision.journal import Journal
from events.ask import Asker
from events.bus import Bus
from events.clock import SystemClock
from events.process import Connect, detached_actor, end_process
from events.system import RecordStart

log = logging.getLogger(__name__)

SHARED_NAME = "shared-supervisors"


class SharedSupervisors:
    """Both supervisors on one connection. No Ray in here: tests run it in processes of their own."""

    def __init__(self, bus: Bus, *, is_first: bool) -> None:
        incarnation = SystemClock().now_us()
        asker = Asker(bus)
        self.journal = Journal(asker, "supervisor")
        self.bulkheads = BulkheadSupervisor(bus, self.journal, incarnation, is_first=is_first)
        self.breakers = BreakerSupervisor(bus, asker, self.journal, incarnation)
        self._incarnation = incarnation

    async def start(self) -> None:
        await self.bulkheads.start()
        await self.breakers.start()
        self.journal.write(RecordStart(SHARED_NAME, self._incarnation), f"start-{self._incarnation}")

    async def close(self) -> None:
        await self.bulkheads.close()
        await self.breakers.close()
        self.journal.close()


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
