"""The supervisors of what the cluster shares, together in one process. No Ray in here."""

from actors.supervision.breakers import BreakerSupervisor
from actors.supervision.bulkheads import BulkheadSupervisor
from actors.supervision.journal import Journal
from events.ask import Asker
from events.bus import Bus
from events.clock import SystemClock
from events.system import RecordStart

SHARED_NAME = "shared-supervisors"


class SharedSupervisors:
    """Bulkheads and breakers on one connection. ``is_first``: see ``BulkheadSupervisor``."""

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
