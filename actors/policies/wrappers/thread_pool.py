"""A bulkhead for functions that block: threads of its own, so that what gets stuck in it holds up nothing else.

A thread can't be stopped from outside. A call that is cancelled or out of time leaves its thread behind, which keeps its
permit until it returns: the dependency is never called by more threads than there are permits, and the event loop never
waits for one. Threads that run for too long are reported with what they are doing. They are daemons: they don't keep a
process from ending, as those of ``concurrent.futures`` would.
"""

import asyncio
import contextvars
import logging
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from actors.policies.wrappers.bulkhead import SemaphoreBulkhead

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class StuckThread(msgspec.Struct, frozen=True):
    """``stack`` is where it stood when it was looked at, newest call last."""

    pool: str
    function: str
    running_s: float
    stack: str


class _Job:
    def __init__(self, function: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.function, self.loop = function, loop
        self.result: asyncio.Future[Any] = loop.create_future()
        self.context = contextvars.copy_context()
        self.began_s = time.monotonic()
        self.thread_id = 0
        self.watch: asyncio.TimerHandle | None = None


class ThreadPoolBulkhead(SemaphoreBulkhead):
    """As many permits as threads. ``run`` is all that most callers need."""

    def __init__(
        self,
        name: str,
        threads: int,
        *,
        queue_max: int = 0,
        queue_wait_s: float = 1.0,
        stuck_after_s: float = 30.0,
        on_stuck: Callable[[StuckThread], None] | None = None,
    ) -> None:
        super().__init__(name, threads, queue_max=queue_max, queue_wait_s=queue_wait_s)
        self._stuck_after_s, self._on_stuck = stuck_after_s, on_stuck
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._running: set[_Job] = set()
        self._threads = 0

    async def run(self, function: Callable[[], Result], priority: int = 0) -> Result:
        """What the function returns or raises. Raises BulkheadFullError where no thread became free."""
        await self.enter(priority)
        return await self.execute(function)

    async def execute(self, function: Callable[[], Result]) -> Result:
        """As ``run``, for who has entered already. The permit goes to the thread: don't ``leave`` afterwards."""
        job = _Job(function, asyncio.get_running_loop())
        self._running.add(job)
        job.watch = job.loop.call_later(self._stuck_after_s, self._report, job)
        if self._threads < self.state.inside:
            self._threads += 1
            threading.Thread(target=self._work, name=f"{self.name}-{self._threads}", daemon=True).start()
        self._jobs.put(job)
        result: Result = await job.result
        return result

    def stuck(self) -> list[StuckThread]:
        """Threads that have been running for longer than ``stuck_after_s``, whether somebody still waits or not."""
        now_s = time.monotonic()
        late = [job for job in self._running if now_s - job.began_s >= self._stuck_after_s]
        return [self._described(job, now_s) for job in late]

    def close(self) -> None:
        """Idle threads end; those that are busy end after their job."""
        for _ in range(self._threads):
            self._jobs.put(None)
        self._threads = 0

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.thread_id = threading.get_ident()
            result, error = None, None
            try:
                result = job.context.run(job.function)
            except BaseException as raised:  # noqa: BLE001 - whatever it is, it is the caller's to see
                error = raised
            try:
                job.loop.call_soon_threadsafe(self._done, job, result, error)
            except RuntimeError:  # the loop has been closed: nobody is left to tell
                log.info("thread_pool.orphan_ended pool=%s", self.name)
            del job, result, error  # an idle thread keeps nothing alive

    def _done(self, job: _Job, result: Any, error: BaseException | None) -> None:
        if job.watch is not None:
            job.watch.cancel()
        self._running.discard(job)
        self.leave()
        if job.result.done():  # nobody waits any more
            return
        if error is None:
            job.result.set_result(result)
        elif isinstance(error, StopIteration):  # a future refuses to hold it
            job.result.set_exception(RuntimeError("the function raised StopIteration"))
        else:
            job.result.set_exception(error)

    def _report(self, job: _Job) -> None:
        found = self._described(job, time.monotonic())
        log.warning(
            "thread_pool.stuck pool=%s function=%s running_s=%.1f\n%s",
            found.pool,
            found.function,
            found.running_s,
            found.stack,
        )
        if self._on_stuck is not None:
            self._on_stuck(found)

    def _described(self, job: _Job, now_s: float) -> StuckThread:
        frame = sys._current_frames().get(job.thread_id)  # noqa: SLF001 - documented, despite its name
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        function = getattr(job.function, "__qualname__", repr(job.function))
        return StuckThread(self.name, function, now_s - job.began_s, stack)
