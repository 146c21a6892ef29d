"""What wrappers are handed instead of reaching for it: a monotonic clock in seconds, and chance."""

from collections.abc import Callable

Monotonic = Callable[[], float]  # seconds; only differences mean anything
Chance = Callable[[], float]  # 0 to 1
