"""A tenant's alarm: what is due soon is fired from its own process, to the millisecond.

The scan of the durable timers, which finds all that is due, may be a second late. So losing an alarm loses nothing.
"""

import asyncio
from collections.abc import Callable

from events.clock import Clock

ALARM_HORIZON_S = 10.0
_EARLY_S = 0.001  # the loop's clock is not the wall's: an alarm before its time would find nothing due


class Alarm:
    """Calls ``fire`` when the time it was set to has come."""

    __slots__ = ("_clock", "_due_us", "_fire", "_timer")

    def __init__(self, clock: Clock, fire: Callable[[], None]) -> None:
        self._clock, self._fire = clock, fire
        self._timer: asyncio.TimerHandle | None = None
        self._due_us = 0

    def set(self, due_us: int) -> None:
        """To this time (0: never) instead of the one before; a time beyond the horizon is left to the scan."""
        if due_us == self._due_us:
            return
        self.cancel()
        if not due_us:
            return
        delay_s = max(0.0, (due_us - self._clock.now_us()) / 1e6)
        if delay_s < ALARM_HORIZON_S:
            self._due_us = due_us
            self._timer = asyncio.get_running_loop().call_later(delay_s + _EARLY_S, self._fire)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due_us = 0
