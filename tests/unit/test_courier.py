"""Whether a told command that nobody has answered yet is lost: only if its owner is gone."""

import asyncio

import pytest

from events import courier
from events.courier import Courier, LostError
from events.envelope import Ok, Reply
from events.tenant import CreateTenant, SetBudget
from tests.kit.local_bus import TENANT, HeldStore, LocalBus, Owner, envelope

TOLD = envelope(SetBudget(7, "day"), "told")


class World:
    def __init__(self) -> None:
        self.bus, self.store = LocalBus(), HeldStore()
        self.owner = Owner(self.bus, self.store)
        self.courier = Courier(self.bus.as_bus)

    async def start(self) -> None:
        await self.owner.start()
        await self.owner.do(CreateTenant("Acme"), "c0")

    async def tell_during_an_append(self) -> "asyncio.Task[list[Reply]]":
        """The told command arrives while the owner waits for its store; ``let_one`` ends that."""
        self.store.is_held = True
        self.owner.activation.deliver(envelope(SetBudget(1, "day"), "asked"), "asked")
        await self.store.appending.wait()
        return asyncio.create_task(self.courier.deliver(TENANT, [TOLD]))

    async def probed(self, times: int) -> None:
        """Until whoever waits has looked so often whether the owner is still there."""
        subject = f"ask.t.{TENANT}"
        before = self.bus.asked.count(subject)
        while self.bus.asked.count(subject) < before + times:  # noqa: ASYNC110 - the courier's own beat
            await asyncio.sleep(0.005)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(courier, "_LOOK_EVERY_S", 0.02)
    world = World()
    await world.start()
    return world


async def test_an_owner_whose_append_takes_long_is_waited_for(world: World) -> None:
    """What asks whether it is there stands in the same turn as the command, and is answered behind it."""
    delivering = await world.tell_during_an_append()
    await world.probed(2)  # they wait for the turn after the append that is under way
    world.store.let_one()
    await world.store.appending.wait()
    await world.probed(2)
    assert not delivering.done()
    world.store.is_held = False
    world.store.let_one()
    (reply,) = await asyncio.wait_for(delivering, 10)
    assert isinstance(reply, Ok)


async def test_an_owner_with_a_full_mailbox_is_waited_for(world: World) -> None:
    """Whatever comes while it is full is refused at once, and says nothing of what came before."""
    delivering = await world.tell_during_an_append()
    await world.probed(1)
    number, depth = 0, -1
    while world.owner.activation.mailbox_depth > depth:
        depth, number = world.owner.activation.mailbox_depth, number + 1
        world.owner.activation.deliver(envelope(SetBudget(number, "day"), f"more-{number}"), "")
    await world.probed(2)
    assert not delivering.done()
    world.store.is_held = False
    world.store.let_one()
    (reply,) = await asyncio.wait_for(delivering, 10)
    assert isinstance(reply, Ok)


async def test_an_owner_that_ended_is_noticed(world: World) -> None:
    world.store.is_held = True
    delivering = asyncio.create_task(world.courier.deliver(TENANT, [TOLD]))
    await world.probed(1)
    world.bus.handlers.clear()
    with pytest.raises(LostError, match="ended before it answered"):
        await asyncio.wait_for(delivering, 10)
    world.store.let_one()
    await world.owner.activation.drain()
