"""Ending tasks for sure.

Before Python 3.12 ``asyncio.wait_for``, which redis-py's sends and nats-py's requests end in, swallows a cancellation that
arrives together with the result it waits for.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancel them, as often as it takes; returns when all are over, whatever they ended with."""
    while undone := [task for task in tasks if not task.done()]:
        for task in undone:
            task.cancel()
        await asyncio.wait(undone, timeout=0.1)


async def cancellable(call: Coroutine[Any, Any, T]) -> T:
    """The call's result; cancelled at once also where the call would swallow it and wait on. Costs a task."""
    task = asyncio.create_task(call)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await end_tasks(task)
        raise
