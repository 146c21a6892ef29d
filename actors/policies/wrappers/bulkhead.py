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
_LOAD_MAX = 1_000_000  # priorities stand above loads


class SemaphoreBulkhead:
    """``enter`` or ``try_enter`` before the call, ``leave`` exactly once after it.

    ``queue_wait_s`` bounds how long one waits in the queue; a deadline in force (``timeout.deadline``) may shorten it.

    Where callers say for which ``tenant`` they call, the queue is fair: among calls of one priority, a tenant's next call
    stands behind as many others as that tenant has calls inside and waiting. A noisy tenant waits for itself.
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
        self._loads: dict[str, int] = {}  # calls inside and waiting, by tenant

    @property
    def state(self) -> Bulkhead:
        return self._state

    @property
    def demand(self) -> int:
        """How many are inside or would like to be."""
        return self._state.inside + len(self._state.queue)

    @property
    def is_live(self) -> bool:
        """Whether who is inside may begin another attempt. A permit of this process never ends."""
        return True

    @property
    def refused(self) -> int:
        """Calls turned away so far."""
        return self._refused

    def try_enter(self, tenant: str = "") -> bool:
        """Without waiting: True where there was a free permit and nobody before us."""
        state = self._state
        if state.queue or state.inside >= state.limit:
            return False
        self._state = machine.entered(state)
        if tenant:
            self._loads[tenant] = self._loads.get(tenant, 0) + 1
        return True

    async def enter(self, priority: int = 0, tenant: str = "") -> None:
        """Waits in the queue where there is one; higher priority enters first. Raises BulkheadFullError."""
        load = self._loads.get(tenant, 0) if tenant else 0
        if tenant:
            self._loads[tenant] = load + 1
        try:
            await self._enter(priority * _LOAD_MAX - min(load, _LOAD_MAX - 1))
        except BaseException:
            self._forget(tenant)
            raise

    def _forget(self, tenant: str) -> None:
        if tenant:
            load = self._loads[tenant] - 1
            if load:
                self._loads[tenant] = load
            else:
                del self._loads[tenant]

    async def _enter(self, rank: int) -> None:
        ends = min(self._clock() + self._queue_wait_s, deadline_s())
        self._state, entry = machine.enter(self._state, rank, ends)
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
                self._leave()  # it was let in at the very moment
            self._state = machine.abandon(self._state, ticket)
            if isinstance(error, TimeoutError):
                raise self._refusal("no permit became free in time") from error
            raise
        finally:
            self._waiting.pop(ticket, None)

    def leave(self, tenant: str = "") -> None:
        """The call is over."""
        if tenant:
            self._forget(tenant)
        self._leave()

    def _leave(self) -> None:
        state = self._state
        self._state, left = machine.leave(state, self._clock() if state.queue else 0.0)
        if left.entered or left.expired:
            self._wake(left)

    def resize(self, permits: int) -> None:
        """Another number of permits; a smaller one takes effect as calls end."""
        self._state, left = machine.resize(self._state, permits, self._clock())
        self._wake(left)

    @asynccontextmanager
    async def permit(self, priority: int = 0, tenant: str = "") -> AsyncIterator[None]:
        """``async with bulkhead.permit(): …``. Raises BulkheadFullError."""
        await self.enter(priority, tenant)
        try:
            yield
        finally:
            self.leave(tenant)

    def _wake(self, left: Left) -> None:
        for ticket in left.entered:
            permit = self._waiting.get(ticket)
            if permit is not None and not permit.done():
                permit.set_result(None)
            else:  # cancelled, and not yet run to say so
                self._leave()
        for ticket in left.expired:
            self._refuse(ticket, "no permit became free in time")

    def _refuse(self, ticket: int, reason: str) -> None:
        permit = self._waiting.get(ticket)
        if permit is not None and not permit.done():
            permit.set_exception(self._refusal(reason))

    def _refusal(self, reason: str) -> BulkheadFullError:
        self._refused += 1
        return BulkheadFullError(self.name, reason, _RETRY_AFTER_S)
