"""Processes of the platform: how an actor gets one, what it is handed, and what it does when it goes deaf."""

import asyncio
import faulthandler
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from events.bus import Bus
from events.keys import Keys
from events.store import EventStore

NAMESPACE = "tenantry"  # the Ray namespace of all actors
_CONCURRENCY_MAX = 1_000
STUCK_AFTER_S = 30.0


class Connections(msgspec.Struct, frozen=True):
    store: EventStore
    bus: Bus
    keys: Keys


# Called in the actor's own process with the name it goes by on the bus. Handed in, so that actors and projections know
# nothing of settings, and only serve/bootstrap/ opens connections.
Connect = Callable[[str], Awaitable[Connections]]


def end_process() -> None:
    """A process that can't hear any more is worth less than none: Ray starts a new one, which replays and goes on."""
    logging.getLogger(__name__).critical("process.deaf pid=%s: ending it, Ray starts another", os.getpid())
    os._exit(70)


async def end_when_stuck(after_s: float = STUCK_AFTER_S) -> None:
    """For ever, as a task of its own: a process whose event loop has not come round for that long is ended, with what it
    was doing on standard error. Its tenants get another, and the command that it is stuck in is found out by its relay.

    The clock runs in C, without the interpreter's lock, so that a regular expression without end is caught, too.
    """
    try:
        while True:
            faulthandler.dump_traceback_later(
                after_s, exit=True
            )  # anew each time: only a loop that is stuck lets it run out
            await asyncio.sleep(1.0)
    finally:
        faulthandler.cancel_dump_traceback_later()


def detached_actor(kind: type, name: str, *args: object, node: str = "") -> Any:
    """The handle of a named actor that outlives its creator and is restarted for ever; created where there is none, on
    the ``node`` with that id (hex) as long as that one can take it, and where there is no ``node`` wherever Ray likes.

    It takes no CPU of Ray's: commands reach it over NATS, and how much it may do is not Ray's to count.
    """
    preferred: dict[str, Any] = {}
    if node:
        # Ray places at random whoever asks for no resource at all, whatever node it prefers: so a byte is asked for
        preferred = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True), "memory": 1}
    actor: Any = ray.remote(kind).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_concurrency=_CONCURRENCY_MAX,
        num_cpus=0,
        **preferred,
    )
    return actor.remote(*args)
