"""What a breaker remembers of recent calls: the last N of them, or those of the last T seconds. Values, not objects."""

import msgspec

SLOTS = 10


class Counts(msgspec.Struct, frozen=True, array_like=True):
    """``failures`` and ``slow`` (which may overlap) of so many ``calls``."""

    calls: int = 0
    failures: int = 0
    slow: int = 0

    def plus(self, other: "Counts") -> "Counts":
        return Counts(self.calls + other.calls, self.failures + other.failures, self.slow + other.slow)

    @property
    def failure_rate(self) -> float:
        return self.failures / self.calls if self.calls else 0.0

    @property
    def slow_rate(self) -> float:
        return self.slow / self.calls if self.calls else 0.0


class CountWindow(msgspec.Struct, frozen=True, tag="count"):
    """The last ``size`` calls, a bit each: whether it failed, whether it was slow."""

    size: int
    calls: int = 0
    failed_bits: int = 0
    slow_bits: int = 0

    def add(self, *, failed: bool, slow: bool, now_s: float) -> "CountWindow":
        if not (failed or slow or self.failed_bits or self.slow_bits) and self.calls == self.size:
            return self  # one more good call among good ones
        mask = (1 << self.size) - 1
        return CountWindow(
            self.size,
            min(self.calls + 1, self.size),
            (self.failed_bits << 1 | failed) & mask,
            (self.slow_bits << 1 | slow) & mask,
        )

    def counts(self, now_s: float) -> Counts:
        return Counts(self.calls, self.failed_bits.bit_count(), self.slow_bits.bit_count())

    def empty(self) -> "CountWindow":
        return CountWindow(self.size)


class TimeWindow(msgspec.Struct, frozen=True, tag="time"):
    """Calls of the last ``window_s`` seconds in ten slots; one leaves up to a slot later than it is old."""

    window_s: float
    slots: tuple[tuple[int, Counts], ...] = ()

    def add(self, *, failed: bool, slow: bool, now_s: float) -> "TimeWindow":
        return self.merged(Counts(1, int(failed), int(slow)), now_s)

    def merged(self, counts: Counts, now_s: float) -> "TimeWindow":
        """With a whole batch of calls added."""
        number = int(now_s * SLOTS // self.window_s)
        if self.slots and number <= self.slots[-1][0]:  # the same slot; or a clock that ran back
            number, newest = self.slots[-1]
            return TimeWindow(self.window_s, (*self.slots[:-1], (number, newest.plus(counts))))
        live = tuple(slot for slot in self.slots if slot[0] > number - SLOTS)
        return TimeWindow(self.window_s, (*live, (number, counts)))

    def counts(self, now_s: float) -> Counts:
        oldest = int(now_s * SLOTS // self.window_s) - SLOTS
        calls = failures = slow = 0
        for number, counts in self.slots:
            if number > oldest:
                calls += counts.calls
                failures += counts.failures
                slow += counts.slow
        return Counts(calls, failures, slow)

    def empty(self) -> "TimeWindow":
        return TimeWindow(self.window_s)


Window = CountWindow | TimeWindow
