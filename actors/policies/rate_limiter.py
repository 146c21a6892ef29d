"""Rate limiters, as pure functions of state and time.

Three strategies, one contract: ``take(state, cost, now_s)`` returns the state afterwards and how long to wait, in
seconds. 0 means granted; otherwise nothing was taken, and the same call is granted after the wait if nobody else comes
first; ``inf`` means never, the cost is above the limit. Time may stand still and may not run backwards further than a
clock does: an earlier ``now_s`` is treated as the latest one seen.

``give_back(cost, granted_s)`` returns part of what was granted at that time and turned out not to be needed;
``left(now_s)`` is what could be taken now, and in how many seconds all of it could.

What each guarantees about granted cost, whatever the schedule:
- token bucket: at most ``burst + rate_per_s * T`` in any interval of length T.
- fixed window: at most ``limit`` per window of the clock, so up to twice that across a border.
- sliding window: at most ``limit`` in any interval of length ``window_s``. Kept in slots, not in a list of calls: memory
  is bounded, and a call counts for up to one slot (1/20 of the window) longer than it has to.
"""

import math

import msgspec

_SLOTS = 20
_CRUMB = 1e-9  # of a sum of floats
_TICK_S = 1e-6  # added to waits: rounded, they must still be long enough when they are over


class TokenBucket(msgspec.Struct, frozen=True, tag="token_bucket"):
    """``tokens`` at ``at_s``; it fills at ``rate_per_s`` up to ``burst``."""

    rate_per_s: float
    burst: float
    tokens: float
    at_s: float = 0.0

    @classmethod
    def full(cls, rate_per_s: float, burst: float, now_s: float = 0.0) -> "TokenBucket":
        return cls(rate_per_s, burst, burst, now_s)

    def take(self, cost: float, now_s: float) -> "tuple[TokenBucket, float]":
        rate_per_s, burst, at_s = self.rate_per_s, self.burst, self.at_s
        tokens = self.tokens
        if now_s > at_s:
            tokens += (now_s - at_s) * rate_per_s
            at_s = now_s
        tokens = min(tokens, burst)
        left = tokens - cost
        if left >= -_CRUMB:
            return TokenBucket(rate_per_s, burst, left, at_s), 0.0
        return self, math.inf if cost > burst else -left / rate_per_s + _TICK_S

    def give_back(self, cost: float, _granted_s: float) -> "TokenBucket":
        return TokenBucket(self.rate_per_s, self.burst, min(self.burst, self.tokens + cost), self.at_s)

    def left(self, now_s: float) -> tuple[float, float]:
        tokens = min(self.burst, self.tokens + (max(now_s, self.at_s) - self.at_s) * self.rate_per_s)
        return tokens, (self.burst - tokens) / self.rate_per_s


class FixedWindow(msgspec.Struct, frozen=True, tag="fixed_window"):
    """``used`` of ``limit`` in the window number ``window`` of the clock."""

    limit: float
    window_s: float
    window: int = 0
    used: float = 0.0

    def take(self, cost: float, now_s: float) -> "tuple[FixedWindow, float]":
        window = max(int(now_s // self.window_s), self.window)
        used = self.used if window == self.window else 0.0
        if used + cost <= self.limit + _CRUMB:
            return FixedWindow(self.limit, self.window_s, window, used + cost), 0.0
        if cost > self.limit:
            return self, math.inf
        return self, (window + 1) * self.window_s - now_s + _TICK_S

    def give_back(self, cost: float, granted_s: float) -> "FixedWindow":
        if max(int(granted_s // self.window_s), 0) != self.window:
            return self
        return FixedWindow(self.limit, self.window_s, self.window, max(0.0, self.used - cost))

    def left(self, now_s: float) -> tuple[float, float]:
        window = max(int(now_s // self.window_s), self.window)
        used = self.used if window == self.window else 0.0
        return self.limit - used, (window + 1) * self.window_s - now_s if used else 0.0


class SlidingWindow(msgspec.Struct, frozen=True, tag="sliding_window"):
    """``slots``: (number, cost granted in it), oldest first; those that may reach into the window are kept."""

    limit: float
    window_s: float
    slots: tuple[tuple[int, float], ...] = ()

    def take(self, cost: float, now_s: float) -> "tuple[SlidingWindow, float]":
        width_s = self.window_s / _SLOTS
        slot = int(now_s // width_s)
        if self.slots and self.slots[-1][0] > slot:
            slot = self.slots[-1][0]
        first = slot - _SLOTS  # its end, at least, is less than a window ago
        live = self.slots if not self.slots or self.slots[0][0] >= first else _from(self.slots, first)
        used = sum(granted for _, granted in live)
        if used + cost <= self.limit + _CRUMB:
            return SlidingWindow(self.limit, self.window_s, _added(live, slot, cost)), 0.0
        if cost > self.limit:
            return self, math.inf
        return self, self._wait_s(live, used + cost - self.limit, now_s, width_s)

    @staticmethod
    def _wait_s(live: tuple[tuple[int, float], ...], excess: float, now_s: float, width_s: float) -> float:
        """Until so many of the oldest slots have left that the excess is gone."""
        leaves = 0
        for number, granted in live:
            leaves = number + _SLOTS + 1
            excess -= granted
            if excess <= _CRUMB:
                break
        return max(0.0, leaves * width_s - now_s) + _TICK_S

    def give_back(self, cost: float, granted_s: float) -> "SlidingWindow":
        number = int(granted_s // (self.window_s / _SLOTS))
        slots = tuple((at, max(0.0, used - cost) if at == number else used) for at, used in self.slots)
        return SlidingWindow(self.limit, self.window_s, slots)

    def left(self, now_s: float) -> tuple[float, float]:
        width_s = self.window_s / _SLOTS
        live = _from(self.slots, int(now_s // width_s) - _SLOTS)
        used = sum(granted for _, granted in live)
        return self.limit - used, max(0.0, (live[-1][0] + _SLOTS + 1) * width_s - now_s) if used else 0.0


Limiter = TokenBucket | FixedWindow | SlidingWindow


def _from(slots: tuple[tuple[int, float], ...], first: int) -> tuple[tuple[int, float], ...]:
    return tuple(slot for slot in slots if slot[0] >= first)


def _added(slots: tuple[tuple[int, float], ...], number: int, cost: float) -> tuple[tuple[int, float], ...]:
    if slots and slots[-1][0] == number:
        return (*slots[:-1], (number, slots[-1][1] + cost))
    return (*slots, (number, cost))
