"""A clock that is advanced, not slept on."""

from tests.kit.factories import NOW_US


class ManualClock:
    def __init__(self, now_us: int = NOW_US) -> None:
        self._now_us = now_us

    def now_us(self) -> int:
        return self._now_us

    def advance(self, seconds: float) -> None:
        self._now_us += int(seconds * 1e6)
