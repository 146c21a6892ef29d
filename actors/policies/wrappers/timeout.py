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


async def within(name: str, timeout_s: float, call: Callable[[], Awaitable[Result]], *, least_s: float = 0.0) -> Result:
    """The call's result, if it comes in ``timeout_s`` and before the deadline in force. ``name`` is what is called.

    Raises:
        DeadlineExceededError: Less than ``least_s`` was left before it began; it was not called.
        CallTimeoutError: It was called and has been cancelled; what it did meanwhile is unknown.
    """
    now_s, outer_s = time.monotonic(), _deadline_s.get()
    ends = now_s + timeout_s
    if outer_s < ends:
        ends = outer_s
        if ends - now_s <= least_s:
            raise DeadlineExceededError(name, "the deadline of its caller has passed")
    token = _deadline_s.set(ends)
    scope = asyncio.timeout(ends - now_s)
    try:
        async with scope:
            return await call()
    except TimeoutError as error:
        if scope.expired():
            raise CallTimeoutError(name, ends - now_s) from error
        raise
    finally:
        _deadline_s.reset(token)
