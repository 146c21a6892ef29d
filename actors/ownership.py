"""Whether an activation still owns its tenant.

An append is fenced by its epoch. A refusal or a read writes nothing, so nothing fences it: it is given only on ownership
proven lately.
"""

import time

from events.store import EventStore

OWNERSHIP_TRUSTED_S = 1.0


class Ownership:
    """Of one epoch. ``proven_at`` is when the store was asked, not when it answered, in monotonic seconds."""

    __slots__ = ("_store", "_tenant", "epoch", "proven_at")

    def __init__(self, store: EventStore, tenant: str) -> None:
        self._store, self._tenant = store, tenant
        self.epoch, self.proven_at = 0, 0.0

    def begin(self, epoch: int, asked_at: float) -> None:
        self.epoch, self.proven_at = epoch, asked_at

    def proven(self, asked_at: float) -> None:
        self.proven_at = max(self.proven_at, asked_at)

    @property
    def is_sure(self) -> bool:
        return time.monotonic() - self.proven_at < OWNERSHIP_TRUSTED_S

    async def prove(self) -> None:
        """Raises FencedError where the tenant is another's; StoreUnavailableError where nobody can say."""
        if self.is_sure:
            return
        asked_at = time.monotonic()
        await self._store.check(self._tenant, self.epoch)
        self.proven_at = asked_at
