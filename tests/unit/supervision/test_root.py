"""The root supervisor, without Ray."""

import asyncio
from types import SimpleNamespace

import pytest

from actors.shard import Limits
from actors.supervision import root
from actors.supervision.homes import Homes
from actors.supervision.root import RootSupervisor
from events.memory_store import MemoryEventStore
from events.process import Connections
from events.tasks import end_tasks
from tests.kit.local_bus import LocalBus
from tests.kit.servers import keys_in_memory


class Shards:
    """Stands for ``ShardActors``: there are none."""

    def __init__(self) -> None:
        self.homes, self.is_closed = Homes(1), False

    @staticmethod
    def names() -> list[str]:
        return []

    async def close(self) -> None:
        self.is_closed = True


async def test_a_supervisor_that_ray_has_just_restarted_closes_as_soon_as_it_has_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a stop at that moment would drain no tenant."""
    shards, connected = Shards(), asyncio.Event()
    monkeypatch.setattr(root, "ShardActors", lambda *_: shards)
    monkeypatch.setattr(root, "Cluster", lambda: SimpleNamespace(pool_shards=lambda: None, draining=lambda: None))

    async def connect(_name: str) -> Connections:
        await connected.wait()
        return Connections(MemoryEventStore(), LocalBus().as_bus, keys_in_memory())

    supervisor = RootSupervisor.__new__(RootSupervisor)
    await supervisor.__init__(connect, 1, Limits())  # type: ignore[misc]  # as Ray constructs it
    closing = asyncio.create_task(supervisor.close())
    await asyncio.sleep(0)
    assert not closing.done()
    connected.set()
    await asyncio.wait_for(closing, 10)
    assert shards.is_closed
    await end_tasks(*supervisor._tasks)
