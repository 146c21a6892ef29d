"""Time that jumps, and processes that can be killed: asyncio without a machine underneath."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tests.kit.factories import NOW_US

T = TypeVar("T")
_current: contextvars.ContextVar["Process | None"] = contextvars.ContextVar("process", default=None)


class NothingWillHappenError(Exception):
    """Everybody waits, and for nobody."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Waits for nothing: where asyncio would sleep until the next timer, it is that time already. The same calls in the same
    order every time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._selector = self  # what asyncio asks for news from files and sockets
        self._clock_resolution = 1e-6  # of months in a float
        self.set_task_factory(_in_process)

    def time(self) -> float:
        return self._now_s

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise NothingWillHappenError
        self._now_s += timeout
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        pass


class Clock:
    """The loop's time as the platform's modules ask for it: as a wall clock, and in place of the module ``time``."""

    def now_us(self) -> int:
        return NOW_US + round(asyncio.get_running_loop().time() * 1e6)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


class Process:
    """What is started in here dies with it, at whatever await it is in, and is never heard of again."""

    def __init__(self, name: str) -> None:
        self.name, self.is_alive = name, True
        self._context = contextvars.copy_context()
        self._context.run(_current.set, self)
        self.tasks: dict[asyncio.Future[Any], None] = {}  # in order, so that they end in order

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """From outside, as the arrival of a message is."""
        if self.is_alive:
            self._context.run(function, *arguments)

    def start(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        return asyncio.get_running_loop().create_task(work, context=self._context)

    def kill(self) -> None:
        self.is_alive = False
        for task in list(self.tasks):
            task.cancel()


def _in_process(
    loop: asyncio.AbstractEventLoop, work: Any, context: contextvars.Context | None = None
) -> "asyncio.Task[Any]":
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, context=context)
    process = context[_current] if context is not None and _current in context else _current.get()
    if process is not None:
        process.tasks[task] = None
        task.add_done_callback(process.tasks.pop)
    return task


def run_virtually(work: Coroutine[Any, Any, T]) -> T:
    """In a loop of its own, with nothing left of it on return."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(work)
    finally:
        while tasks := asyncio.all_tasks(loop):
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()
