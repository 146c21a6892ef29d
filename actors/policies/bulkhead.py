"""The bulkhead as a pure state machine: permits, and a bounded queue with priorities and deadlines before them.

At most ``limit`` are inside and at most ``queue_max`` wait. Higher priority enters first, then who came first. Where the
queue is full, a newcomer takes the place of the least urgent one that waits if it is more urgent, else it is refused. A
limit that was lowered takes effect as callers leave; who waits past the deadline never enters.
"""

from bisect import insort

import msgspec


class Waiting(msgspec.Struct, frozen=True, order=True):
    """In the order of entry: ``urgency`` is the negative priority."""

    urgency: int
    ticket: int
    deadline_s: float


class Bulkhead(msgspec.Struct, frozen=True):
    limit: int
    queue_max: int = 0
    inside: int = 0
    queue: tuple[Waiting, ...] = ()
    tickets: int = 0  # handed out so far


class Entry(msgspec.Struct, frozen=True):
    """``ticket`` is 0 where the caller is inside already, -1 where it was refused, else what it waits under.
    ``shed`` is the ticket of the one who lost its place to it, 0 for nobody.
    """

    ticket: int
    shed: int = 0


class Left(msgspec.Struct, frozen=True):
    """Tickets of those who enter now, and of those whose deadline has passed."""

    entered: tuple[int, ...] = ()
    expired: tuple[int, ...] = ()


INSIDE, REFUSED, NOBODY = Entry(0), Entry(-1), Left()


def enter(bulkhead: Bulkhead, priority: int, deadline_s: float) -> tuple[Bulkhead, Entry]:
    """One more caller. ``deadline_s``: when waiting ends for it, on the clock that ``leave`` is told."""
    if bulkhead.inside < bulkhead.limit and not bulkhead.queue:
        return _with(bulkhead, bulkhead.inside + 1, bulkhead.queue), INSIDE
    newcomer = Waiting(-priority, bulkhead.tickets + 1, deadline_s)
    if len(bulkhead.queue) < bulkhead.queue_max:
        return _queued(bulkhead, bulkhead.queue, newcomer), Entry(newcomer.ticket)
    if bulkhead.queue and newcomer.urgency < bulkhead.queue[-1].urgency:
        return _queued(bulkhead, bulkhead.queue[:-1], newcomer), Entry(newcomer.ticket, bulkhead.queue[-1].ticket)
    return bulkhead, REFUSED


def entered(bulkhead: Bulkhead) -> Bulkhead:
    """``enter`` where there is surely a free permit and nobody waits."""
    return Bulkhead(bulkhead.limit, bulkhead.queue_max, bulkhead.inside + 1, (), bulkhead.tickets)


def leave(bulkhead: Bulkhead, now_s: float) -> tuple[Bulkhead, Left]:
    """A caller that was inside has left."""
    assert bulkhead.inside > 0
    inside = bulkhead.inside - 1
    if not bulkhead.queue:
        return Bulkhead(bulkhead.limit, bulkhead.queue_max, inside, (), bulkhead.tickets), NOBODY
    return _admit(_with(bulkhead, inside, bulkhead.queue), now_s)


def resize(bulkhead: Bulkhead, limit: int, now_s: float) -> tuple[Bulkhead, Left]:
    """Another limit; those who fit in now enter, and nobody is thrown out."""
    return _admit(msgspec.structs.replace(bulkhead, limit=limit), now_s)


def abandon(bulkhead: Bulkhead, ticket: int) -> Bulkhead:
    """Somebody waits no more (cancelled, or out of time)."""
    queue = tuple(waiting for waiting in bulkhead.queue if waiting.ticket != ticket)
    return _with(bulkhead, bulkhead.inside, queue)


def _admit(bulkhead: Bulkhead, now_s: float) -> tuple[Bulkhead, Left]:
    queue, inside = bulkhead.queue, bulkhead.inside
    entered: list[int] = []
    expired: list[int] = []
    taken = 0
    for waiting in queue:
        if inside >= bulkhead.limit:
            break
        taken += 1
        if waiting.deadline_s <= now_s:
            expired.append(waiting.ticket)
        else:
            entered.append(waiting.ticket)
            inside += 1
    return _with(bulkhead, inside, queue[taken:]), Left(tuple(entered), tuple(expired))


def _queued(bulkhead: Bulkhead, others: tuple[Waiting, ...], newcomer: Waiting) -> Bulkhead:
    queue = list(others)
    insort(queue, newcomer)
    return Bulkhead(bulkhead.limit, bulkhead.queue_max, bulkhead.inside, tuple(queue), newcomer.ticket)


def _with(bulkhead: Bulkhead, inside: int, queue: tuple[Waiting, ...]) -> Bulkhead:
    return Bulkhead(bulkhead.limit, bulkhead.queue_max, inside, queue, bulkhead.tickets)
