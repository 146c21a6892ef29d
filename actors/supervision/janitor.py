"""Reconciles what runs with what is wanted: actors that Ray still has and nobody needs are ended.

A supervisor that was killed in the middle of a move or a retirement leaves such actors behind: silos of tenants that have
moved to the pool, pool shards above the number there should be, actors that have a successor. A silo whose tenant merely sleeps says so itself (``VACANT``).
"""

import asyncio
import logging

from ray.exceptions import RayError

from actors.supervision.homes import ActorName
from actors.supervision.shards import ShardActors
from events.errors import PlatformError
from events.store import EventStore

log = logging.getLogger(__name__)

PERIOD_S = 30.0
_AGAIN_S = 10.0  # a move takes a second or two


class Janitor:
    """An actor is ended only when two looks in a row, ``_AGAIN_S`` apart, find it unwanted: a move takes a moment."""

    def __init__(self, store: EventStore, shards: ShardActors) -> None:
        self._store, self._shards = store, shards
        self._suspects: set[str] = set()

    async def run(self) -> None:
        while True:
            try:
                await self.sweep()
            except (PlatformError, RayError) as error:
                log.warning("janitor.sweep_failed: %s", error)
            except Exception:  # a defect: the next sweep may go well
                log.exception("janitor.sweep_failed")
            await asyncio.sleep(_AGAIN_S if self._suspects else PERIOD_S)  # the janitor's own beat

    async def sweep(self) -> list[str]:
        """Names of the actors that were ended."""
        names = await asyncio.to_thread(self._shards.names)  # a call of Ray's that blocks
        unwanted = {name for name in names if not await self._is_wanted(name)}
        ended = sorted(unwanted & self._suspects)
        for name in ended:
            await self._shards.end(name)
        self._suspects = unwanted - set(ended)
        return ended

    async def _is_wanted(self, name: str) -> bool:
        tenant = ActorName.parse(name).tenant
        head = await self._store.head(tenant) if tenant else None
        return self._shards.is_wanted(name, head.placement if head is not None else None)
