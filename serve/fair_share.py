"""How much of a gateway replica one tenant may hold: a share of what is free, so that something always is.

Dynamic thresholds (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998): a tenant
may hold up to ``GREED`` times the places that nobody holds. Alone it gets three quarters of them all; two that want
everything get three sevenths each; and whoever comes next finds a place, however greedy the others are.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serve.http_errors import HttpError

GREED = 3


class FairShare:
    """Places for ``places`` calls at once. Not for use from several threads."""

    def __init__(self, places: int) -> None:
        self._free, self._held = places, Counter[str]()

    @contextmanager
    def place(self, tenant: str) -> Iterator[None]:
        """Raises HttpError at once: 429 where the tenant holds its share already, 503 where all places are held."""
        if not self._free:
            raise HttpError(503, "overloaded", "this gateway has as many model calls as it can hold", retry_after_s=1.0)
        if self._held[tenant] >= GREED * self._free:
            message = f"{self._held[tenant]} of your model calls are under way, your share of this gateway"
            raise HttpError(429, "rate_limited", message, retry_after_s=1.0)
        self._free -= 1
        self._held[tenant] += 1
        try:
            yield
        finally:
            self._free += 1
            self._held[tenant] -= 1
            if not self._held[tenant]:
                del self._held[tenant]
