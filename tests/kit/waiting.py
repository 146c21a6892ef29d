"""For what other processes do: nobody tells a test when it is done, so it can only be asked for."""

import time
from collections.abc import Callable
from typing import TypeVar

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
