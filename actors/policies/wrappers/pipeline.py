"""All policies around one call, in their order: health, rate limiter, bulkhead, breaker, retry, time-out, the call itself.

Each is optional. The order is what makes them work together: what the limiter or the bulkhead turns away never reaches
the breaker's figures; an open breaker costs no retries; every attempt has a time-out of its own, inside the deadline.
"""

import time
from collections.abc import Awaitable, Callable
from math import inf
from typing import TypeVar

from actors.policies.refusals import DeadlineExceededError, PolicyRefusal
from actors.policies.wrappers.breaker import CircuitBreaker
from actors.policies.wrappers.bulkhead import SemaphoreBulkhead
from actors.policies.wrappers.health import HealthChecker
from actors.policies.wrappers.rate_limiter import RateLimiter
from actors.policies.wrappers.retry import Retry
from actors.policies.wrappers.thread_pool import ThreadPoolBulkhead
from actors.policies.wrappers.timeout import Timeout, deadline_s, remaining_s
from actors.policies.wrappers.timing import Monotonic
from events.errors import Refusal

Result = TypeVar("Result")
Counts = Callable[[BaseException], bool | None]


def counts_as_failure(error: BaseException) -> bool | None:
    """True: the dependency failed. False: it did its work and the caller asked for something wrong (a ``Refusal``).
    None: it says nothing about the dependency (a policy refused, the call was cancelled).
    """
    if isinstance(error, PolicyRefusal) or not isinstance(error, Exception):
        return None
    return not isinstance(error, Refusal)


class Pipeline:
    """``name`` is the dependency. Build one from configuration with ``config.build_pipeline``."""

    def __init__(
        self,
        name: str,
        *,
        limiter: RateLimiter | None = None,
        bulkhead: SemaphoreBulkhead | None = None,
        breaker: CircuitBreaker | None = None,
        retry: Retry | None = None,
        timeout_s: float | None = None,
        health: HealthChecker | None = None,
        counts: Counts = counts_as_failure,
        clock: Monotonic = time.monotonic,
    ) -> None:
        self.name = name
        self.timeout = Timeout(name, timeout_s) if timeout_s else None
        self.limiter, self.bulkhead, self.breaker, self.retry, self.health = limiter, bulkhead, breaker, retry, health
        self._counts, self._clock = counts, clock
        # an attempt in a thread takes its own permit
        self._hedges_enter = None if isinstance(bulkhead, ThreadPoolBulkhead) else bulkhead

    def share(self, bulkhead: SemaphoreBulkhead) -> None:
        """Use this bulkhead from now on. Before the first call only."""
        self.bulkhead = self._hedges_enter = bulkhead

    async def call(
        self,
        function: Callable[[], Awaitable[Result]],
        *,
        cost: float = 1.0,
        priority: int = 0,
        tenant: str = "",
        idempotent: bool = True,
    ) -> Result:
        """What ``function`` returns. It may be called several times, once per attempt.

        Args:
            function: Starts one attempt.
            cost: What the call takes from the rate limiter.
            priority: Higher enters the bulkhead first.
            tenant: For whom it is, so that a bulkhead that many share is fair between them.
            idempotent: Whether a second attempt is harmless; otherwise only what surely had no effect is repeated.

        Raises:
            PolicyRefusal: Not called at all; its ``policy`` says which one refused, ``retry_after_s`` for how long.
            CallTimeoutError: The last attempt took too long.
            Exception: Whatever the last attempt raised.
        """
        if self._must_wait(cost):
            assert self.limiter is not None
            await self.limiter.acquire(cost)
        bulkhead = self.bulkhead
        if bulkhead is None:
            return await self._judged(function, idempotent)
        if not bulkhead.try_enter(tenant):
            await bulkhead.enter(priority, tenant)
        try:
            return await self._judged(function, idempotent)
        finally:
            bulkhead.leave(tenant)

    async def call_blocking(
        self, function: Callable[[], Result], *, cost: float = 1.0, priority: int = 0, idempotent: bool = True
    ) -> Result:
        """As ``call``, for a function that blocks: each attempt runs in a thread of the bulkhead, which must be a
        ``ThreadPoolBulkhead``. An attempt that is out of time leaves its thread behind, with the permit.
        """
        pool = self.bulkhead
        assert isinstance(pool, ThreadPoolBulkhead), f"{self.name!r} needs a bulkhead of strategy 'threads'"
        if self._must_wait(cost):
            assert self.limiter is not None
            await self.limiter.acquire(cost)
        if not pool.try_enter():
            await pool.enter(priority)
        holds = True

        async def attempt() -> Result:
            nonlocal holds
            if not holds:
                await pool.enter(priority)
            holds = False  # the thread has it now
            return await pool.execute(function)

        try:
            return await self._judged(attempt, idempotent)
        finally:
            if holds:
                pool.leave()

    def _must_wait(self, cost: float) -> bool:
        """What needs no waiting, without a coroutine: on most calls, nothing does. True: the limiter may ask for patience."""
        if self.health is not None:
            self.health.require()
        if self.timeout is None and deadline_s() < inf and remaining_s() <= 0:  # else the time-out looks
            raise DeadlineExceededError(self.name, "the deadline of its caller has passed")
        limiter = self.limiter
        if limiter is None:
            return False
        if limiter.wait_max_s:
            return True
        limiter.take(cost)
        return False

    async def _judged(self, function: Callable[[], Awaitable[Result]], idempotent: bool) -> Result:
        """The attempts, and their outcome to the breaker and the health checker."""
        breaker = self.breaker
        generation = breaker.permit() if breaker is not None else 0
        began_s = self._clock()
        try:
            if self.retry is not None:
                attempt = self._attempt
                result = await self.retry.run(
                    lambda: attempt(function),
                    idempotent=idempotent,
                    may_go_on=self._may_go_on,
                    hedge=self._hedges_enter,
                )
            else:
                result = await self._attempt(function)
        except BaseException as error:
            self._judge(generation, self._counts(error), began_s)
            raise
        if breaker is not None:
            now_s = self._clock()
            breaker.record(generation, failed=False, duration_s=now_s - began_s, now_s=now_s)
        if self.health is not None:
            self.health.observe(ok=True)
        return result

    def _judge(self, generation: int, failed: bool | None, began_s: float) -> None:
        if failed is None:
            if self.breaker is not None:
                self.breaker.release(generation)
            return
        if self.breaker is not None:
            self.breaker.record(generation, failed=failed, duration_s=self._clock() - began_s)
        if self.health is not None:
            self.health.observe(ok=not failed)

    def _attempt(self, function: Callable[[], Awaitable[Result]]) -> Awaitable[Result]:
        return function() if self.timeout is None else self.timeout.run(function)

    def _may_go_on(self) -> bool:
        """Before another attempt: the breaker has not opened, and the bulkhead's permits are still ours to use."""
        return (self.breaker is None or not self.breaker.is_open) and (self.bulkhead is None or self.bulkhead.is_live)
