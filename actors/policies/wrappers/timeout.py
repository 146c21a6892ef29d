"""Time-outs that know of the deadline above them: whatever a call calls has no more time than the call itself.

The deadline travels in a context variable, so it reaches tasks that are started meanwhile, and threads of the pool; across
processes it travels in the envelope (``Envelope.deadline_us``) and is set again on the other side.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from actors.policies.refusals import CallTimeoutError, DeadlineExceededError

Result = TypeVar("Result")

_deadline_s: ContextVar[float] = ContextVar("deadline_s", default=float("inf"))


def deadline_s() -> float:
    """When the time of whoever calls this is over, on the monotonic clock; ``inf`` where nobody set one."""
    return _deadline_s.get()


def remaining_s() -> float:
    """What is left until the deadline; below zero when it has passed."""
    return _deadline_s.get() - time.monotonic()


@contextmanager
def deadline(timeout_s: float) -> Iterator[None]:
    """All that is called inside has to be done in ``timeout_s``, or in what an outer deadline leaves, if that is less."""
    token = _deadline_s.set(min(_deadline_s.get(), time.monotonic() + timeout_s))
    try:
        yield
    finally:
        _deadline_s.reset(token)


class Timeout:
    """A time-out of ``timeout_s`` for calls to ``name``, as often as wanted, in one event loop."""

    def __init__(self, name: str, timeout_s: float) -> None:
        self.name, self.timeout_s = name, timeout_s
        self._wheel: _Wheel | None = None

    async def run(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """The call's result, if it comes in time and before the deadline in force.

        Raises:
            DeadlineExceededError: No time was left before it began; it was not called.
            CallTimeoutError: It was called and has been cancelled; what it did meanwhile is unknown.
        """
        now_s, outer_s = time.monotonic(), _deadline_s.get()
        ends_s = now_s + self.timeout_s
        if outer_s < ends_s:
            ends_s = outer_s
            if ends_s <= now_s:
                raise DeadlineExceededError(self.name, "the deadline of its caller has passed")
        task = asyncio.current_task()
        assert task is not None
        wheel = self._wheel
        if wheel is None:
            wheel = self._wheel = _Wheel(self.timeout_s)
        watched = _Watched(task, task.cancelling())
        bucket = wheel.watch(watched, now_s, ends_s)
        token = _deadline_s.set(ends_s)
        try:
            return await call()
        except asyncio.CancelledError as error:
            if watched.is_ours():
                raise CallTimeoutError(self.name, ends_s - now_s) from error
            raise
        finally:
            _deadline_s.reset(token)
            bucket.discard(watched)
            if watched.expired:
                watched.settle()


async def within(name: str, timeout_s: float, call: Callable[[], Awaitable[Result]]) -> Result:
    """As ``Timeout(name, timeout_s).run(call)``, for a time-out that is used once."""
    return await Timeout(name, timeout_s).run(call)


class _Watched:
    """A task with a time-out. Follows asyncio.timeout in how it tells its own cancellation from somebody else's."""

    __slots__ = ("_cancelling", "_task", "expired")

    def __init__(self, task: "asyncio.Task[object]", cancelling: int) -> None:
        self._task, self._cancelling, self.expired = task, cancelling, False

    def expire(self) -> None:
        self.expired = True
        self._task.cancel()

    def is_ours(self) -> bool:
        """Whether the cancellation that has arrived is the time-out's, and nobody else's."""
        return self.expired and self._task.cancelling() - 1 <= self._cancelling

    def settle(self) -> None:
        self._task.uncancel()


class _Wheel:
    """Time-outs of one length, in buckets: one timer of the loop serves all that end in the same one.

    asyncio.timeout takes a timer per call, which costs more than all other policies together. A bucket is 1 % of the
    time-out wide and at least 5 ms: so much later a time-out may come.
    """

    def __init__(self, timeout_s: float) -> None:
        self._width_s = max(0.005, timeout_s / 100)
        self._buckets: dict[int, set[_Watched]] = {}

    def watch(self, watched: _Watched, now_s: float, ends_s: float) -> set[_Watched]:
        number = int(ends_s / self._width_s) + 1
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = set()
            asyncio.get_running_loop().call_later(number * self._width_s - now_s, self._expire, number)
        bucket.add(watched)
        return bucket

    def _expire(self, number: int) -> None:
        for watched in self._buckets.pop(number):
            watched.expire()
