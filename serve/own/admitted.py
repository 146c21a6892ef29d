"""Streams end with the key that opened them."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from events.errors import CommandRefusedError, ForbiddenError, KeyRefusedError, PlatformError
from serve.http_errors import as_http_error, error_body

RECHECK_S = 1.0
UNPROVEN_S_MAX = 60.0  # how long a stream goes on while nobody can say whether its key is good


async def while_admitted(
    frames: AsyncIterator[bytes],
    admit: Callable[[], Awaitable[object]],
    clock: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[bytes, None]:
    """``frames``, each second one at least, until ``admit`` refuses; then an event ``error`` that says why, and the end."""
    proven_s = asked_s = clock()
    async for frame in frames:
        if clock() - asked_s >= RECHECK_S:
            asked_s = clock()
            try:
                await admit()
                proven_s = asked_s
            except (KeyRefusedError, ForbiddenError, CommandRefusedError) as error:
                yield _last(error)
                return
            except PlatformError as error:
                if asked_s - proven_s > UNPROVEN_S_MAX:
                    yield _last(error)
                    return
        yield frame


def _last(error: PlatformError) -> bytes:
    return b"event: error\ndata: %b\n\n" % error_body(as_http_error(error))
