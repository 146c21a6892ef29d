"""A rate limiter for callers of this process."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from actors.policies.rate_limiter import Limiter
from actors.policies.refusals import RateLimitedError
from actors.policies.wrappers.timing import Monotonic


class RateLimiter:
    """``name`` is what is limited. ``wait_max_s``: up to this long ``acquire`` waits instead of refusing."""

    def __init__(
        self,
        name: str,
        limiter: Limiter,
        *,
        wait_max_s: float = 0.0,
        clock: Monotonic = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name, self.wait_max_s = name, wait_max_s
        self._limiter, self._clock, self._sleep = limiter, clock, sleep

    @property
    def state(self) -> Limiter:
        return self._limiter

    def try_take(self, cost: float = 1.0) -> float:
        """0: granted. Else the seconds to wait, and nothing was taken; ``inf``: it can never be granted."""
        self._limiter, wait_s = self._limiter.take(cost, self._clock())
        return wait_s

    def take(self, cost: float = 1.0) -> None:
        """Raises RateLimitedError, which says how long to wait."""
        if wait_s := self.try_take(cost):
            raise self._refusal(cost, wait_s)

    async def acquire(self, cost: float = 1.0) -> None:
        """As ``take``, after waiting where the wait is at most ``wait_max_s`` in all."""
        ends = self._clock() + self.wait_max_s
        while wait_s := self.try_take(cost):
            if self._clock() + wait_s > ends:
                raise self._refusal(cost, wait_s)
            await self._sleep(wait_s)

    def _refusal(self, cost: float, wait_s: float) -> RateLimitedError:
        if wait_s == float("inf"):
            return RateLimitedError(self.name, f"a cost of {cost:g} is above its rate limit and never granted")
        return RateLimitedError(self.name, "its rate limit is reached", wait_s)
