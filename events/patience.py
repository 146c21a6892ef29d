"""Wait out a short absence of the store, for reads that nobody else repeats."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from events.errors import StoreUnavailableError

PATIENCE_S = 8.0
_RETRY_S = 0.1

Result = TypeVar("Result")


async def patiently(read: Callable[[], Awaitable[Result]], patience_s: float = PATIENCE_S) -> Result:
    """The read's result, tried again while the store is away. Raises StoreUnavailableError when patience ends."""
    ends = time.monotonic() + patience_s
    while True:
        try:
            return await read()
        except StoreUnavailableError:
            if time.monotonic() > ends:
                raise
        await asyncio.sleep(_RETRY_S)  # only asking again tells that it is back
