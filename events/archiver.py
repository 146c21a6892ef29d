"""Archiving by itself: looks at every log from time to time and moves what the policy says."""

import asyncio
import logging
from collections.abc import Sequence

from events.archive import Archive, Policy, archive_log
from events.errors import PlatformError
from events.slices import SLICE_COUNT
from events.store import EventStore

log = logging.getLogger(__name__)


class Archiver:
    """Safe to kill at any moment, and to run twice: each segment is sealed and verified before anything is dropped."""

    def __init__(
        self, store: EventStore, archive: Archive, policy: Policy, slices: Sequence[int] = range(SLICE_COUNT)
    ) -> None:
        self._store, self._archive, self._policy, self._slices = store, archive, policy, slices
        self._through: dict[str, int] = {}  # as far as we know; not knowing costs a look into the archive

    async def run(self, period_s: float) -> None:
        """Until cancelled. What fails is tried again a period later."""
        while True:
            await asyncio.sleep(period_s)  # the job's own beat
            try:
                await self.sweep()
            except PlatformError as error:
                log.warning("archive.sweep_failed: %s", error)

    async def sweep(self) -> int:
        """Look at all logs once; returns how many events were moved. A log that can't be archived holds up no other."""
        moved = 0
        for number in self._slices:
            for tenant in await self._store.tenants(number):
                try:
                    moved += await self._visit(tenant)
                except (PlatformError, OSError) as error:
                    log.warning("archive.failed tenant=%s: %s", tenant, error)
        return moved

    async def _visit(self, tenant: str) -> int:
        head = await self._store.head(tenant)
        if head is None or head.position - self._policy.keep - self._through.get(tenant, 0) < self._policy.least:
            return 0
        moved = await archive_log(self._store, self._archive, tenant, keep=self._policy.keep, least=self._policy.least)
        segments = await self._archive.segments(tenant)
        self._through[tenant] = segments[-1].last if segments else 0
        if moved:
            log.info("archive.moved tenant=%s events=%s through=%s", tenant, moved, self._through[tenant])
        return moved
