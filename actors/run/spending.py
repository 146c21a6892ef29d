"""What an attempt of a step has cost so far, kept where its failure is told: an exception knows what raised it, and a step
that is out of time or can't keep its result has paid all the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import msgspec

from events.run import Used


class Spent(msgspec.Struct):
    """Of one attempt."""

    used: Used = Used()


_spent: ContextVar[Spent | None] = ContextVar("spent", default=None)


@contextmanager
def counting() -> Iterator[Spent]:
    """Counts what is spent inside, in tasks that are started there too."""
    spent = Spent()
    token = _spent.set(spent)
    try:
        yield spent
    finally:
        _spent.reset(token)


def spend(used: Used) -> None:
    """Say so when it is booked, before anything is awaited: what comes next may be cancelled."""
    if (spent := _spent.get()) is not None:
        before = spent.used
        spent.used = Used(
            before.cost_nano_usd + used.cost_nano_usd,
            before.input_tokens + used.input_tokens,
            before.output_tokens + used.output_tokens,
        )
