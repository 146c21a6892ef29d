"""Work that goes on beside a test."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(work: Callable[[], object]) -> Iterator[None]:
    """Again and again in a thread of its own, until the block is left, however it is left. What it raises ends it, and is
    raised at the block's end. It keeps no process from exiting.
    """
    stop, raised = threading.Event(), list[Exception]()

    def run() -> None:
        try:
            while not stop.is_set():
                work()
        except Exception as error:  # noqa: BLE001 - raised below
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if raised:
        raise raised[0]
