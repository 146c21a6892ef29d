"""Group commit: whatever a shard's tenants want to append while one round trip is under way goes into the next one,
so that one fsync serves many.
"""

import asyncio
from collections.abc import Sequence

from events.failpoints import failpoint
from events.store import Append, Appended, AppendOutcome, EventStore, Known
from events.vault import Witnessed
from events.witness import Witness

REQUESTS_MAX = 64
# The store is one thread: what is in a group before a tenant's own append is what that tenant waits for.
EVENTS_MAX = 512

Waiting = tuple[Append, asyncio.Future[Appended | Known]]


class Committer:
    """One per shard. A request that finds nothing under way goes out at once and alone; all that come meanwhile form the
    next group.
    """

    def __init__(self, store: EventStore, witness: Witness | None = None) -> None:
        self._store, self._witness = store, witness
        self._waiting: list[Waiting] = []
        self._is_busy = False
        self._task: asyncio.Task[None] | None = None  # asyncio itself holds tasks only weakly

    async def append(self, request: Append) -> Appended | Known:
        """As ``EventStore.append``. At most one request per tenant may be under way."""
        if self._is_busy:
            future: asyncio.Future[Appended | Known] = asyncio.get_running_loop().create_future()
            self._waiting.append((request, future))
            return await future
        self._is_busy = True
        try:  # in the caller's own task: to wake another one twice would cost the only caller of a tenant a tenth of its time
            (outcome,) = await self._outcomes([request])
        finally:
            if self._waiting:
                self._task = asyncio.create_task(self._commit(), name="group-commit")
            else:
                self._is_busy = False
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _commit(self) -> None:
        while self._waiting:
            count = _group_size([request for request, _ in self._waiting])
            group, self._waiting = self._waiting[:count], self._waiting[count:]
            outcomes = await self._outcomes([request for request, _ in group])
            for (_, future), outcome in zip(group, outcomes, strict=True):
                if future.done():  # its tenant was abandoned meanwhile
                    continue
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)
        self._is_busy = False

    def _note(self, requests: Sequence[Append], outcomes: Sequence[AppendOutcome]) -> None:
        if self._witness is None:
            return
        for request, outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, Appended):
                head = Witnessed(outcome.last_position, request.entries[-1].hash, request.epoch)
                self._witness.note(request.tenant, head)

    async def _outcomes(self, requests: Sequence[Append]) -> Sequence[AppendOutcome]:
        try:
            failpoint("append.before_fcall")
            outcomes = await self._store.append_many(requests)
            failpoint("append.after_fcall_before_reply")
            self._note(requests, outcomes)
            return outcomes
        except Exception as error:  # noqa: BLE001 - a defect in the adapter must reach the callers, not end the loop
            return [error] * len(requests)


def _group_size(waiting: Sequence[Append]) -> int:
    """How many of the first go into one group: in order of arrival, which is fair, because no tenant waits twice."""
    events = 0
    for count, request in enumerate(waiting[:REQUESTS_MAX]):
        events += len(request.entries)
        if count and events > EVENTS_MAX:
            return count
    return min(len(waiting), REQUESTS_MAX)
