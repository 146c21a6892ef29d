"""Time as a value that is handed in: microseconds since 1970, UTC."""

import time
from typing import Protocol

TIME_US_MAX = 2**53 - 1  # what JSON numbers carry exactly


class Clock(Protocol):
    def now_us(self) -> int:
        """Wall-clock time in microseconds, UTC."""
        ...


class SystemClock:
    def now_us(self) -> int:
        return time.time_ns() // 1_000
