"""The Ray shell of an inbox relay. Ray restarts it for ever; what it had in hand comes again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from actors.relay import Relay, ReplacedError
from events.bus import Bus
from events.clock import SystemClock
from events.courier import Courier
from events.dead_letters import DeadLetters
from events.inbox import Inbox
from events.outcomes import Outcomes
from events.process import detached_actor, end_process, end_when_stuck
from events.slices import SLICE_COUNT
from events.store import EventStore

log = logging.getLogger(__name__)


class RelayConnections(msgspec.Struct, frozen=True):
    store: EventStore
    bus: Bus
    inbox: Inbox
    outcomes: Outcomes


# Called in the actor's own process with the name it goes by on the bus.
ConnectRelay = Callable[[str], Awaitable[RelayConnections]]


class RelayActor:
    """Relays what tenants of a range of slices are told."""

    # async only so that a loop runs already; Ray awaits it
    async def __init__(self, name: str, connect: ConnectRelay, first_slice: int, end_slice: int) -> None:  # type: ignore[misc]
        self._name, self._connect, self._slices = name, connect, range(first_slice, end_slice)
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(end_when_stuck())]

    async def _run(self) -> None:
        try:
            connections = await self._connect(self._name)
            relay = _relay(self._slices, connections)
            try:
                await relay.run()
            except (
                ReplacedError
            ) as error:  # Ray took us for dead, or there are more relays now: either way not our turn
                log.warning("relay.retired name=%s: %s", self._name, error)
            await relay.close()
            await connections.bus.close()
        except Exception:
            log.exception("relay.failed name=%s", self._name)
            end_process()


def _relay(slices: range, connections: RelayConnections) -> Relay:
    clock = SystemClock()
    letters = DeadLetters(connections.inbox, connections.outcomes, clock)
    return Relay(
        slices,
        connections.inbox,
        connections.store,
        connections.outcomes,
        letters,
        Courier(connections.bus),
        clock,
    )


def start_relays(connect: ConnectRelay, count: int) -> list[Any]:
    """Start the actors that relay what tenants are told, each a range of slices, or find those that run."""
    bounds = [number * SLICE_COUNT // count for number in range(count + 1)]
    return [
        detached_actor(RelayActor, name := f"inbox-relay-{number}", name, connect, bounds[number], bounds[number + 1])
        for number in range(count)
    ]
