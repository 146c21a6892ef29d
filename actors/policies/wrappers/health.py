"""Keeps a verdict on a dependency: asks it from time to time (active), and hears how real calls went (passive)."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from actors.policies import health as machine
from actors.policies.health import Health, HealthRules
from actors.policies.refusals import UnhealthyError
from actors.policies.wrappers.timing import Monotonic

log = logging.getLogger(__name__)


class HealthChecker:
    """``check`` asks the dependency and raises where it is not well. ``run`` checks for ever; cancel it to stop."""

    def __init__(
        self,
        name: str,
        rules: HealthRules,
        check: Callable[[], Awaitable[object]],
        *,
        clock: Monotonic = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        on_change: Callable[[Health], None] | None = None,
    ) -> None:
        self.name, self._rules, self._check = name, rules, check
        self._clock, self._sleep, self._on_change = clock, sleep, on_change
        self._health = Health(since_s=clock())

    @property
    def health(self) -> Health:
        return self._health

    def require(self) -> None:
        """Raises UnhealthyError where the dependency is down; active checks bring it back."""
        if not self._health.is_up:
            raise UnhealthyError(self.name, f"it is down ({self._health.cause})", self._rules.period_s)

    def observe(self, *, ok: bool, cause: str = "") -> None:
        """Passive: a real call succeeded, or failed in a way that is the dependency's fault."""
        before = self._health
        self._health = machine.observed(self._rules, before, ok=ok, now_s=self._clock(), cause=cause)
        if before.is_up != self._health.is_up:
            log.warning("health.changed name=%s up=%s cause=%s", self.name, self._health.is_up, self._health.cause)
            if self._on_change is not None:
                self._on_change(self._health)

    async def check_once(self) -> None:
        """Active: one check, within the rules' time-out."""
        try:
            async with asyncio.timeout(self._rules.timeout_s):
                await self._check()
        except Exception as error:  # noqa: BLE001 - any failure of the check is its result
            self.observe(ok=False, cause=f"check failed: {str(error) or type(error).__name__}")
        else:
            self.observe(ok=True)

    async def run(self) -> None:
        while True:
            await self.check_once()
            await self._sleep(self._rules.period_s)
