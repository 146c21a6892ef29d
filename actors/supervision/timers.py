"""Timers: wake every tenant whose timer is due, active or not, and whatever was restarted in between.

A tenant's next timer lies in the store, written by the append that made it; so all there is to do is look, and ask.
"""

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from events.ask import Asker
from events.clock import Clock
from events.errors import PlatformError
from events.store import EventStore
from events.timers import FireTimers

log = logging.getLogger(__name__)

PERIOD_S = 1.0
WAKING_MAX = 200  # at once: more would only wait in line at the store
_REST_FIRST_S, _REST_MAX_S = 1.0, 60.0


class Rest(msgspec.Struct, frozen=True):
    """A tenant that could not be woken is left alone until then, so that others get their turn."""

    until_us: int
    next_rest_s: float


class TimerScan:
    """Keeps no state that matters: what is due is still due for the next scan, here or after a restart."""

    def __init__(self, store: EventStore, asker: Asker, clock: Clock) -> None:
        self._store, self._asker, self._clock = store, asker, clock
        self._waking: dict[str, asyncio.Task[None]] = {}
        self._resting: dict[str, Rest] = {}
        self._turn = 0

    async def run(self) -> None:
        """For ever. Polling: a timer is a promise to be late by a second at most."""
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                await self.tick()
            except PlatformError as error:
                log.warning("timers.unread: %s", error)
            except Exception:  # a defect must not stop every timer there is
                log.exception("timers.tick_failed")

    async def tick(self) -> Sequence[str]:
        """Start to wake who is due, as many as there is room for; returns their ids. Raises StoreUnavailableError."""
        now_us = self._clock.now_us()
        rested = {tenant for tenant, rest in self._resting.items() if rest.until_us <= now_us}
        passed_over = (self._resting.keys() - rested) | self._waking.keys()
        due = await self._store.due(now_us, passed_over)
        room = WAKING_MAX - len(self._waking)
        chosen = self._in_turn(due)[:room]
        for tenant in chosen:
            self._waking[tenant] = asyncio.create_task(self._wake(tenant), name=f"wake-{tenant}")
        for tenant in rested.difference(due, passed_over):  # it is not due any more
            self._resting.pop(tenant, None)  # a wake that ended meanwhile may have done so
        return chosen

    def _in_turn(self, due: Sequence[str]) -> Sequence[str]:
        """The store lists by slice: begin where the last tick had no room for more."""
        if len(due) <= WAKING_MAX - len(self._waking):
            return due
        self._turn = (self._turn + WAKING_MAX) % len(due)
        return [*due[self._turn :], *due[: self._turn]]

    async def _wake(self, tenant: str) -> None:
        try:
            await self._asker.ask(tenant, FireTimers(), actor="supervisor")
            self._resting.pop(tenant, None)
        except PlatformError as error:
            before = self._resting.get(tenant)
            rest_s = before.next_rest_s if before else _REST_FIRST_S
            until_us = self._clock.now_us() + int(rest_s * 1e6)
            self._resting[tenant] = Rest(until_us, min(rest_s * 2, _REST_MAX_S))
            log.warning("timers.wake_failed tenant=%s rests_s=%s: %s", tenant, rest_s, error)
        finally:
            del self._waking[tenant]
