"""Rows of runs that ended long ago leave the list of runs. The log keeps the runs themselves, which can be shown as before."""

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from events.clock import Clock
from events.errors import PlatformError
from events.run import ENDS
from events.store import EventStore
from projections.runner import ReadModels
from projections.runs import (
    ALL,
    STUCK,
    RunsProjection,
    Standing,
    read_row,
    root_of,
    row_fields,
    saga_index,
    standing_field,
    status_index,
)

log = logging.getLogger(__name__)

PERIOD_S = 600.0
_PAGE, _STUCK_MAX = 500, 100_000
_RUNS = RunsProjection()


class RunRetention:
    """Of the tenants of some slices. What could not be undone stays listed for as long as it waits for a person."""

    def __init__(
        self, store: EventStore, models: ReadModels, clock: Clock, slices: Sequence[int], keep_us: int
    ) -> None:
        """``keep_us``: how long after its end a run is listed, in microseconds."""
        self._store, self._models, self._clock, self._slices, self._keep_us = store, models, clock, slices, keep_us

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                if dropped := await self.sweep():
                    log.info("runs.dropped_from_lists rows=%s", dropped)
            except PlatformError as error:
                log.warning("runs.retention_put_off in_s=%s: %s", PERIOD_S, error)
            except Exception:  # a row that can't be read is no reason to stop the read models
                log.exception("runs.retention_failed")
            await asyncio.sleep(PERIOD_S)  # the period itself

    async def sweep(self) -> int:
        """Returns how many rows were dropped. Raises PlatformError where the store can't be asked."""
        dropped = 0
        for number in self._slices:
            for tenant in await self._store.tenants(number):
                dropped += await self._sweep_tenant(tenant)
        return dropped

    async def _sweep_tenant(self, tenant: str) -> int:
        before_us, dropped = self._clock.now_us() - self._keep_us, 0
        stuck: set[str] | None = None
        for status in sorted(ENDS):
            after: tuple[int, str] | None = None
            # who started later can't have ended earlier
            while page := await self._models.ranked(
                _RUNS, tenant, status_index(status), _PAGE, highest=max(0, before_us), after=after
            ):
                if stuck is None:
                    stuck = {
                        root_of(member) for _, member in await self._models.ranked(_RUNS, tenant, STUCK, _STUCK_MAX)
                    }
                for _, run_id in page:
                    dropped += run_id not in stuck and await self._drop(tenant, run_id, before_us)
                after = page[-1]
        return dropped

    async def _drop(self, tenant: str, run_id: str, before_us: int) -> bool:
        fields = row_fields(run_id)
        row = read_row(run_id, await self._models.some_fields(_RUNS, tenant, fields))
        if row is None or row.status not in ENDS or row.ended_us >= before_us:
            return False
        indexes = [ALL, saga_index(row.saga), status_index(row.status)]
        # a run that is tried again at this very moment is no longer what was read, and stays
        as_read = (standing_field(run_id), msgspec.msgpack.encode(Standing(row.status, row.ended_us)))
        return await self._models.drop_row(_RUNS, tenant, fields, run_id, indexes, as_read)
