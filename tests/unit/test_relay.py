"""What the relay makes of messages whose acknowledgements get lost; queue, outcomes and letters are in memory."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from actors.relay import Relay
from events.clock import SystemClock
from events.courier import Courier
from events.envelope import Reply
from events.errors import BusUnavailableError
from events.pull import Delivery
from events.tenant import CreateTenant, SetBudget
from tests.kit.local_bus import TENANT, HeldStore, LocalBus, Owner, envelope


class Outcomes:
    def __init__(self) -> None:
        self.known: dict[str, Reply] = {}

    async def record(self, tenant: str, outcomes: Mapping[str, Reply]) -> None:
        self.known |= outcomes

    async def find(self, tenant: str, command_ids: Sequence[str]) -> dict[str, Reply]:
        return {name: self.known[name] for name in command_ids if name in self.known}


class Letters:
    def __init__(self) -> None:
        self.buried: list[str] = []

    async def bury(self, letter: Any) -> None:
        self.buried.append(letter.command_id)


class Queue(LocalBus):
    """``acknowledged`` are numbers of messages; while it is ``full`` nothing can be published."""

    def __init__(self) -> None:
        super().__init__()
        self.acknowledged: list[int] = []
        self.is_full = False

    def publish(self, subject: str, data: bytes) -> None:
        if not subject.startswith("ack-"):
            super().publish(subject, data)
        elif self.is_full:
            raise BusUnavailableError("OutboundBufferLimitError")
        elif not data:
            self.acknowledged.append(int(subject[4:]))

    def message(self, number: int, data: bytes, delivered: int = 1) -> Delivery:
        return Delivery(
            self.as_bus, f"tell.000.{TENANT}", data, b"", f"ack-{number}", number, delivered, number, told_us=0
        )


class World:
    def __init__(self) -> None:
        self.queue, self.store, self.outcomes, self.letters = Queue(), HeldStore(), Outcomes(), Letters()
        self.owner = Owner(self.queue, self.store)
        self.relay = Relay(
            range(128),
            cast("Any", None),
            self.store,
            cast("Any", self.outcomes),
            cast("Any", self.letters),
            Courier(self.queue.as_bus),
            SystemClock(),
        )

    async def relayed(self, *messages: Delivery) -> None:
        """Returns when the relay holds nothing any more."""
        for message in messages:
            self.relay._on_delivery(message)
        async with asyncio.timeout(10):
            while self.relay.in_hand:  # noqa: ASYNC110 - nothing tells when a lane is done
                await asyncio.sleep(0.005)


@pytest.fixture
async def world() -> World:
    world = World()
    await world.owner.start()
    await world.owner.do(CreateTenant("Acme"), "c0")
    return world


async def test_what_could_not_be_acknowledged_is_let_go_of_and_comes_again(world: World) -> None:
    """Kept in hand it would take a place for ever, and the broker would never bring it again."""
    told = [envelope(SetBudget(number, "day"), f"told-{number}") for number in (1, 2)]
    world.queue.is_full = True
    await world.relayed(*(world.queue.message(number, data) for number, data in enumerate(told, 1)))
    assert world.queue.acknowledged == []
    world.queue.is_full = False
    await world.relayed(*(world.queue.message(number, data, delivered=2) for number, data in enumerate(told, 1)))
    assert world.queue.acknowledged == [1, 2]
    assert world.owner.activation.position == 3


async def test_what_was_decided_is_no_dead_letter_however_late_it_comes_again(world: World) -> None:
    """Its acknowledgement got lost, and then all stood still for a day: a replay of the letter would do it twice."""
    await world.owner.do(SetBudget(7, "day"), "granted")
    world.outcomes.known["refused"] = await world.owner.do(SetBudget(7, "day"), "no-op")
    late = [envelope(SetBudget(7, "day"), name, lasts_us=-1) for name in ("granted", "refused", "never-decided")]
    await world.relayed(*(world.queue.message(number, data, delivered=2) for number, data in enumerate(late, 1)))
    assert world.queue.acknowledged == [1, 2, 3]
    assert world.letters.buried == ["never-decided"]
