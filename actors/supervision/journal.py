"""Writes what supervisors decided into the system tenant's log: in order, until it is there, without holding them up."""

import asyncio
import logging
from collections import deque

from events.ask import Asker
from events.errors import PlatformError, Refusal
from events.slices import SYSTEM_TENANT
from events.system import SystemCommand

log = logging.getLogger(__name__)

_WAITING_MAX = 10_000
_RETRY_S = 0.5


class Journal:
    """One per supervisor. What a crash takes along unwritten, callers report to its successor."""

    def __init__(self, asker: Asker, actor: str) -> None:
        self._asker, self._actor = asker, actor
        self._waiting: deque[tuple[SystemCommand, str]] = deque()
        self._task: asyncio.Task[None] | None = None

    def write(self, command: SystemCommand, command_id: str) -> None:
        """The same id twice is written once."""
        if len(self._waiting) >= _WAITING_MAX:  # the store has been away for long; the newest say most
            lost, _ = self._waiting.popleft()
            log.error("journal.overflow lost=%r", lost)
        self._waiting.append((command, command_id))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="journal")

    async def _run(self) -> None:
        while self._waiting:
            command, command_id = self._waiting[0]
            try:
                await self._asker.ask(SYSTEM_TENANT, command, actor=self._actor, command_id=command_id)
            except Refusal as refusal:
                log.error("journal.refused command=%r: %s", command, refusal)
            except PlatformError as error:
                log.warning("journal.retried waiting=%s: %s", len(self._waiting), error)
                await asyncio.sleep(_RETRY_S)  # back-off; only asking again tells
                continue
            self._waiting.popleft()

    async def drained(self) -> None:
        """Returns when all that was written so far is in the log."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
