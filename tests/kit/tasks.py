"""Tasks that have to end."""

import asyncio
from typing import Any


async def cancel(task: asyncio.Task[Any]) -> None:
    """Returns when the task is over, whatever it ended with.

    Once is not enough: before Python 3.12 ``asyncio.wait_for`` (redis-py sends with it, nats-py requests with it) swallows
    a cancellation that arrives together with the result it waits for.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
