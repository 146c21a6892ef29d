"""A bulkhead for callers of this process: a semaphore, with a bounded queue before it where it has one."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from actors.policies import bulkhead as machine
from actors.policies.bulkhead import Bulkhead, Left
from actors.policies.refusals import BulkheadFullError
from actors.policies.wrappers.timeout import deadline_s
from actors.policies.wrappers.timing import Monotonic

_RETRY_AFTER_S = 1.0


class SemaphoreBulkhead:
    """``enter`` or ``try_enter`` before the call, ``leave`` exactly once after it.

    ``queue_wait_s`` bounds how long one waits in the queue; a deadline in force (``timeout.deadline``) may shorten it.
    """

    def __init__(
        self,
        name: str,
        permits: int,
        *,
        queue_max: int = 0,
        queue_wait_s: float = 1.0,
        clock: Monotonic = time.monotonic,
    ) -> None:
        self.name, self._queue_wait_s, self._clock = name, queue_wait_s, clock
        self._state = Bulkhead(permits, queue_max)
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._refused = 0

    @property
    def state(self) -> Bulkhead:
        return self._state

    @property
    def demand(self) -> int:
        """How many are inside or would like to be."""
        return self._state.inside + len(self._state.queue)

    @property
    def refused(self) -> int:
        """Calls turned away so far."""
        return self._refused

    def try_enter(self) -> bool:
        """Without waiting: True where there was a free permit and nobody before us."""
        state = self._state
        if state.queue or state.inside >= state.limit:
            return False
        self._state, _ = machine.enter(state, 0, 0.0)
        return True

    async def enter(self, priority: int = 0) -> None:
        """Waits in the queue where there is one; higher priority enters first. Raises BulkheadFullError."""
        ends = min(self._clock() + self._queue_wait_s, deadline_s())
        self._state, entry = machine.enter(self._state, priority, ends)
        if entry.ticket == 0:
            return
        if entry.ticket < 0:
            raise self._refusal("all its permits and places in the queue are taken")
        if entry.shed:
            self._refuse(entry.shed, "a more urgent call took its place in the queue")
        await self._wait(entry.ticket, ends)

    async def _wait(self, ticket: int, ends: float) -> None:
        permit = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = permit
        try:
            async with asyncio.timeout(ends - self._clock()):
                await permit
        except BaseException as error:
            if permit.done() and not permit.cancelled() and permit.exception() is None:
                self.leave()  # it was let in at the very moment
            self._state = machine.abandon(self._state, ticket)
            if isinstance(error, TimeoutError):
                raise self._refusal("no permit became free in time") from error
            raise
        finally:
            self._waiting.pop(ticket, None)

    def leave(self) -> None:
        """The call is over."""
        state = self._state
        self._state, left = machine.leave(state, self._clock() if state.queue else 0.0)
        if left.entered or left.expired:
            self._wake(left)

    def resize(self, permits: int) -> None:
        """Another number of permits; a smaller one takes effect as calls end."""
        self._state, left = machine.resize(self._state, permits, self._clock())
        self._wake(left)

    @asynccontextmanager
    async def permit(self, priority: int = 0) -> AsyncIterator[None]:
        """``async with bulkhead.permit(): …``. Raises BulkheadFullError."""
        await self.enter(priority)
        try:
            yield
        finally:
            self.leave()

    def _wake(self, left: Left) -> None:
        for ticket in left.entered:
            permit = self._waiting.get(ticket)
            if permit is not None and not permit.done():
                permit.set_result(None)
            else:  # cancelled, and not yet run to say so
                self.leave()
        for ticket in left.expired:
            self._refuse(ticket, "no permit became free in time")

    def _refuse(self, ticket: int, reason: str) -> None:
        permit = self._waiting.get(ticket)
        if permit is not None and not permit.done():
            permit.set_exception(self._refusal(reason))

    def _refusal(self, reason: str) -> BulkheadFullError:
        self._refused += 1
        return BulkheadFullError(self.name, reason, _RETRY_AFTER_S)
