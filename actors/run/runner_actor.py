"""The Ray shell of a runner. Ray restarts it for ever; what it had in hand comes again."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import ray
from ray.exceptions import GetTimeoutError, RayActorError

from actors.run.runner import Handler, Runner
from events.ask import Asker
from events.bus import Bus
from events.keys import Keys
from events.objects import Objects
from events.process import NAMESPACE, detached_actor, end_process, end_when_stuck
from events.work import WorkQueue

log = logging.getLogger(__name__)

_DRAIN_S = 10.0  # steps may take minutes: what is not done by then is done again, elsewhere or after the next start


class RunnerConnections(msgspec.Struct, frozen=True):
    """``handlers`` by kind of step; ``close`` lets go of what they hold."""

    bus: Bus
    keys: Keys
    objects: Objects
    handlers: Mapping[str, Handler]
    steps_at_once: int
    close: Callable[[], Awaitable[None]]


# Called in the actor's own process with the name it goes by on the bus.
ConnectRunner = Callable[[str], Awaitable[RunnerConnections]]


class RunnerActor:
    """Carries out steps of all tenants' runs."""

    # async only so that a loop runs already; Ray awaits it
    async def __init__(self, name: str, connect: ConnectRunner) -> None:  # type: ignore[misc]
        self._name, self._connect = name, connect
        self._connections: RunnerConnections | None = None
        self._runner: Runner | None = None
        self._running = asyncio.create_task(self._run())
        self._watching = asyncio.create_task(end_when_stuck())

    async def _run(self) -> None:
        try:
            connections = self._connections = await self._connect(self._name)
            queue = WorkQueue(connections.bus)
            await queue.prepare()
            self._runner = Runner(
                queue,
                Asker(connections.bus),
                connections.keys,
                connections.objects,
                connections.handlers,
                connections.steps_at_once,
            )
            await self._runner.run()
        except Exception:
            log.exception("runner.failed name=%s", self._name)
            end_process()

    async def close(self) -> None:
        """Take no more steps and finish those under way; give up on long ones, whose messages come again."""
        if self._runner is not None:
            try:
                async with asyncio.timeout(_DRAIN_S):
                    await self._runner.drain()
            except TimeoutError:
                log.warning("runner.steps_cut name=%s after_s=%s", self._name, _DRAIN_S)
        self._running.cancel()
        await asyncio.wait((self._running,))
        if self._connections is not None:
            await self._connections.close()


def start_runners(connect: ConnectRunner, count: int) -> list[Any]:
    """Start the actors that carry out steps, or find those that run."""
    return [detached_actor(RunnerActor, name := _name(number), name, connect) for number in range(count)]


def stop_runners() -> None:
    """Have all of them finish and close, while the tenants still take results."""
    closing: list[Any] = []
    for number in itertools.count():
        try:
            closing.append(ray.get_actor(_name(number), namespace=NAMESPACE).close.remote())
        except ValueError:
            break
    try:
        ray.get(closing, timeout=_DRAIN_S * 2)
    except (GetTimeoutError, RayActorError) as error:
        log.warning("runners.stop_cut: %s", error)


def _name(number: int) -> str:
    return f"runner-{number}"
