"""Does this process still own the tenants it hosts? An owner that was overtaken learns it from its next append; one that
nobody asks would never learn it. So a shard asks the store now and then, and lets go of whom it has lost.

A process that was stopped for a while (Ray may have started another meanwhile) finds its clock far ahead when it wakes
up, and then asks about all of its tenants at once.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from events.errors import PlatformError, StoreUnavailableError
from events.store import EventStore

log = logging.getLogger(__name__)

PERIOD_S = 2.0
# About a millisecond of the store's time per beat. With more tenants than that in a shard, each has its turn later.
CHECKED_AT_ONCE_MAX = 500
_STALLED_AFTER_S = 2 * PERIOD_S
STORE_AWAY_MAX_S = 15.0  # an owner that can't prove to be one for so long lets go: perhaps another can


class Owner(Protocol):
    """A tenant in memory, with the epoch it was claimed under."""

    @property
    def tenant(self) -> str: ...

    def owned(self, epoch: int | None, asked_at: float) -> None:
        """The store's epoch, at a time (monotonic seconds) after it was asked: ends the owner where it is not its own."""
        ...

    def end(self) -> None: ...


class Heartbeat:
    """``owners`` are those to ask about, least recently begun first."""

    def __init__(self, store: EventStore, owners: Callable[[], Sequence[Owner]]) -> None:
        self._store, self._owners = store, owners
        self._next = 0
        self._proven_at = self._beat_at = time.monotonic()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(PERIOD_S)  # its own beat
            try:
                await self.beat()
            except Exception:
                log.exception("heartbeat.failed")

    async def beat(self) -> None:
        now = time.monotonic()
        stalled, self._beat_at = now - self._beat_at > _STALLED_AFTER_S, now
        owners = self._owners()
        if not owners:
            self._proven_at = now
            return
        try:
            for group in self._due(owners, everyone=stalled):
                await self._check(group)
            self._proven_at = now
        except StoreUnavailableError as error:
            if now - self._proven_at > STORE_AWAY_MAX_S:
                log.warning("heartbeat.store_away tenants=%s: %s", len(owners), error)
                for owner in owners:
                    owner.end()
        except PlatformError as error:
            log.warning("heartbeat.failed: %s", error)

    def _due(self, owners: Sequence[Owner], *, everyone: bool) -> list[Sequence[Owner]]:
        """In groups of what one call may ask for: all, or those whose turn it is."""
        size = CHECKED_AT_ONCE_MAX
        if everyone or len(owners) <= size:
            return [owners[first : first + size] for first in range(0, len(owners), size)]
        first = self._next if self._next < len(owners) else 0
        self._next = first + size
        return [owners[first : first + size]]

    async def _check(self, owners: Sequence[Owner]) -> None:
        asked_at = time.monotonic()
        epochs = await self._store.epochs([owner.tenant for owner in owners])
        for owner, epoch in zip(owners, epochs, strict=True):
            owner.owned(epoch, asked_at)
