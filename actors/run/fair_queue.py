"""Which step a runner takes next: tenants get turns in proportion to their weights, whoever else waits for however much.

Stride scheduling: each tenant has a pass, the next step is that of the tenant with the smallest, and a step moves the
tenant's pass on by ``1 / weight``. A tenant that comes back after a pause begins where the others are, so it can't save up
turns; where only one tenant waits, it gets them all. Within a tenant, higher priority goes first, then age.

Source: C. Waldspurger and W. Weihl, Stride Scheduling (MIT, 1995).
"""

import heapq
from itertools import count
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """In memory, for one runner. Pure: no clock, no I/O."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[tuple[int, int, Item]]] = {}
        self._passes: dict[str, float] = {}
        self._turns: list[tuple[float, int, str]] = []  # (pass, tie-breaker, tenant), one entry per waiting tenant
        self._weights: dict[str, float] = {}
        self._now = 0.0  # the pass of the last turn given
        self._numbers = count()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def push(self, tenant: str, item: Item, *, priority: int = 0, weight: float = 1.0) -> None:
        """``weight`` is positive; the tenant's newest one counts."""
        assert weight > 0, weight
        self._weights[tenant] = weight
        if tenant not in self._waiting:
            self._waiting[tenant] = []
            start = max(self._passes.get(tenant, 0.0), self._now)
            self._passes[tenant] = start
            heapq.heappush(self._turns, (start, next(self._numbers), tenant))
        heapq.heappush(self._waiting[tenant], (-priority, next(self._numbers), item))

    def pop(self) -> Item:
        """The next item. Raises IndexError where none waits."""
        self._now, _, tenant = heapq.heappop(self._turns)
        items = self._waiting[tenant]
        _, _, item = heapq.heappop(items)
        self._passes[tenant] = self._now + 1.0 / self._weights[tenant]
        if items:
            heapq.heappush(self._turns, (self._passes[tenant], next(self._numbers), tenant))
        else:
            del self._waiting[tenant]
            self._forget_old()
        return item

    def _forget_old(self) -> None:
        """Passes behind everybody's are as good as none: memory follows who waits, not who ever did."""
        if not self._waiting:  # nobody to be fair to
            self._passes, self._weights, self._now = {}, {}, 0.0
        elif len(self._passes) > 2 * len(self._waiting) + 64:
            self._passes = {
                tenant: at for tenant, at in self._passes.items() if tenant in self._waiting or at > self._now
            }
            self._weights = {tenant: self._weights[tenant] for tenant in self._passes}
