"""Clocks that are advanced, not slept on."""

from tests.kit.factories import NOW_US


class ManualClock:
    def __init__(self, now_us: int = NOW_US) -> None:
        self._now_us = now_us

    def now_us(self) -> int:
        return self._now_us

    def advance(self, seconds: float) -> None:
        self._now_us += int(seconds * 1e6)


class ManualMonotonic:
    """A monotonic clock in seconds, to be called as ``time.monotonic`` is; ``sleep`` advances it at once."""

    def __init__(self, now_s: float = 1_000.0) -> None:
        self.now_s = now_s
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(seconds)
