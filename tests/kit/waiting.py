"""For what other processes do: nobody tells a test when it is done, so it can only be asked for."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from events.bus import Bus, ask_subject

WAIT_S = 120.0
_LOOK_S = 0.05

Found = TypeVar("Found")


def until(holds: Callable[[], Found], what: str, timeout_s: float = WAIT_S) -> Found:
    """The first answer that is true."""
    ends = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < ends, f"not in {timeout_s:g} s: {what}"
        time.sleep(_LOOK_S)
    return found


async def handed_out(bus: Bus, tenant: str, ask: Coroutine[Any, Any, Found]) -> asyncio.Task[Found]:
    """Asks, and returns when the broker has handed the question out: it waits in the socket of a process that is stopped."""
    seen = asyncio.Event()
    copies = await bus.subscribe(ask_subject(tenant), lambda data, _reply_to: seen.set() if data else None)
    asking = asyncio.create_task(ask)
    await asyncio.wait_for(seen.wait(), 30)
    await copies.unsubscribe()
    return asking
