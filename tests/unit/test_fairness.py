"""Turns of a shard's tenants, on a store in memory: nothing here waits for anything but its own loop."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import count

import msgspec
import pytest

from actors import mailbox
from actors.activation import Activation
from actors.commit import EVENTS_MAX, REQUESTS_MAX, Committer
from actors.fairness import ALONE, BESIDE_OTHERS_MAX, BESIDE_OTHERS_MIN, OTHERS_REMEMBERED_S, Share
from events.envelope import MOVED, Envelope, Failed, Ok, Refused, decode_reply, encode
from events.memory_store import MemoryEventStore
from events.messages import Command
from events.store import Append, AppendOutcome
from events.tenant import CreateTenant, SetBudget
from tests.kit.clock import ManualClock
from tests.kit.factories import HOUR_US, NOW_US, append_request
from tests.kit.servers import keys_in_memory

FLOOD = 600


def test_alone_a_tenant_takes_many_commands_beside_others_its_share() -> None:
    share = Share()
    assert share.turn("a", 0.0) == ALONE
    assert share.turn("a", 0.1) == ALONE
    assert share.turn("b", 0.2).commands == BESIDE_OTHERS_MIN
    assert share.turn("a", 0.3).commands == BESIDE_OTHERS_MIN
    assert share.turn("a", 0.3 + OTHERS_REMEMBERED_S * 0.9).commands == BESIDE_OTHERS_MIN
    assert share.turn("a", 0.3 + OTHERS_REMEMBERED_S * 1.1) == ALONE


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        ({"flooder": 1000, "a": 1}, BESIDE_OTHERS_MIN),
        ({"flooder": 1000, "a": 1, "b": 2, "c": 1}, BESIDE_OTHERS_MIN),
        ({"a": 1000, "b": 1000}, BESIDE_OTHERS_MAX),
    ],
)
def test_a_share_follows_what_the_others_take(waiting: dict[str, int], expected: int) -> None:
    """Beside those who want little, a flood gets little; where all want much, all get more."""
    share, got = Share(), dict.fromkeys(waiting, 0)
    for round_number in range(200):
        for tenant, commands in waiting.items():
            got[tenant] = min(commands, share.turn(tenant, round_number * 0.01).commands)
            share.took(got[tenant])
    assert max(got.values()) == expected


def test_a_flood_does_not_grow_while_the_others_think() -> None:
    """It has most of the turns then, and they say nothing of what the others want."""
    share = Share()
    for second in range(30):
        for turn in range(9):
            wanted = share.turn("flooder", second * 0.9 + turn * 0.1).commands
            share.took(min(1000, wanted))
        if second:
            assert wanted == BESIDE_OTHERS_MIN
        share.turn("polls", second * 0.9 + 0.85)
        share.took(1)


class World:
    """Activations of one shard; ``answers`` are in the order in which they were given: (tenant, number, reply)."""

    def __init__(self, store: MemoryEventStore) -> None:
        self.store, self.clock = store, ManualClock()
        self.committer, self.share = Committer(store), Share()
        self.answers: list[tuple[str, int, object]] = []
        self._numbers = count(1)

    def _respond(self, reply_to: str, data: bytes) -> None:
        tenant, number = reply_to.split("/")
        self.answers.append((tenant, int(number), decode_reply(data)))

    async def activate(self, tenant: str) -> Activation:
        active = Activation(
            tenant, self.store, self.committer, self.share, self.clock, self._respond,
            lambda _: None, "pool", lambda _: None, keys_in_memory(),
        )  # fmt: skip
        await active.start()
        self.send(active, CreateTenant(tenant))
        await active.drain()
        self.answers.clear()
        return active

    def send(self, active: Activation, command: Command, *, deadline_us: int = NOW_US + HOUR_US) -> int:
        number = next(self._numbers)
        envelope = Envelope(
            f"c{number}", active.tenant, "test", deadline_us, "", "", msgspec.Raw(encode(command))
        )  # fmt: skip
        active.deliver(encode(envelope), f"{active.tenant}/{number}")
        return number


@pytest.fixture
async def world() -> World:
    return World(MemoryEventStore())


async def test_a_flood_takes_no_more_than_its_share_of_each_round(world: World) -> None:
    """Whoever asks for one thing while another tenant's flood waits is answered after a few turns of the flood."""
    flooder = await world.activate("flooder")
    others = [await world.activate(f"other-{number}") for number in range(5)]
    for number in range(FLOOD):
        world.send(flooder, SetBudget(number, "day"))
    for other in others:
        world.send(other, SetBudget(1, "day"))
    await asyncio.gather(*(active.drain() for active in (flooder, *others)))
    order = [tenant for tenant, _, _ in world.answers]
    before = order.index("flooder"), max(order.index(other.tenant) for other in others)
    assert order.count("flooder") == FLOOD
    assert order[: before[1]].count("flooder") <= 3 * BESIDE_OTHERS_MAX


async def test_large_commands_count_by_their_bytes(world: World) -> None:
    flooder, other = await world.activate("flooder"), await world.activate("other")
    for number in range(30):
        world.send(flooder, CreateTenant("x" * 60_000 + str(number)))
    world.send(other, SetBudget(1, "day"))
    await asyncio.gather(flooder.drain(), other.drain())
    order = [tenant for tenant, _, _ in world.answers]
    assert order[: order.index("other")].count("flooder") <= 8


async def test_reads_alone_do_not_hold_the_loop(world: World) -> None:
    """A turn that writes nothing awaits nothing: the next one must not begin before others had theirs."""
    flooder, other = await world.activate("flooder"), await world.activate("other")
    for _ in range(FLOOD):
        world.send(flooder, CreateTenant("again"))
    world.send(other, SetBudget(1, "day"))
    await asyncio.gather(flooder.drain(), other.drain())
    order = [tenant for tenant, _, _ in world.answers]
    assert order[: order.index("other")].count("flooder") <= 3 * BESIDE_OTHERS_MAX


async def test_a_full_mailbox_says_at_once_how_long_it_takes_to_empty(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox, "MAILBOX_MAX", 3)
    active = await world.activate("busy")
    numbers = [world.send(active, SetBudget(number, "day")) for number in range(5)]
    refused = [(number, reply) for _, number, reply in world.answers]
    assert [number for number, _ in refused] == numbers[3:]
    for _, reply in refused:
        assert isinstance(reply, Refused)
        assert reply.code == "rate_limited"
        assert reply.retry_after_s is not None
        assert 0.1 <= reply.retry_after_s <= mailbox.RETRY_AFTER_S_MAX
    await active.drain()
    assert sum(isinstance(reply, Ok) for _, _, reply in world.answers) == 3


async def test_a_mailbox_is_bounded_in_bytes_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "MAILBOX_BYTES_MAX", 100_000)
    active = await world.activate("busy")
    for _ in range(4):
        world.send(active, CreateTenant("x" * 60_000))
    assert len(world.answers) == 2
    await active.drain()
    world.answers.clear()
    world.send(active, SetBudget(1, "day"))
    await active.drain()
    assert isinstance(world.answers[0][2], Ok)


async def test_what_is_past_its_deadline_is_dropped_unread(world: World) -> None:
    active = await world.activate("late")
    world.send(active, SetBudget(1, "day"), deadline_us=world.clock.now_us() + 1)
    world.clock.advance(1.0)
    await active.drain()
    assert world.answers == []
    assert active.position == 1


async def test_what_was_not_begun_when_the_tenant_is_let_go_is_sent_to_the_next_owner(world: World) -> None:
    active = await world.activate("moving")
    numbers = {world.send(active, SetBudget(number, "day")) for number in range(5)}
    active.end()
    numbers.add(world.send(active, SetBudget(9, "day")))
    assert {number for _, number, _ in world.answers} == numbers
    assert all(isinstance(reply, Failed) and reply.code == MOVED for _, _, reply in world.answers)
    assert active.position == 1


async def test_an_overtaken_owner_sends_on_what_it_could_not_write(world: World) -> None:
    """Its append was refused, so nothing of it happened."""
    older = await world.activate("contested")
    await world.store.claim("contested")
    numbers = {world.send(older, SetBudget(number, "day")) for number in range(5)}
    await older.drain()
    assert older.has_ended
    assert {number for _, number, _ in world.answers} == numbers
    assert all(isinstance(reply, Failed) and reply.code == MOVED for _, _, reply in world.answers)


class Recorded(MemoryEventStore):
    """Remembers how many events each group held, and lets a group wait."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[int] = []
        self.go_on = asyncio.Event()

    async def append_many(self, requests: Sequence[Append]) -> list[AppendOutcome]:
        self.groups.append(sum(len(request.entries) for request in requests))
        await self.go_on.wait()
        return await super().append_many(requests)


async def test_a_group_commit_is_bounded_and_serves_all_in_the_order_they_came() -> None:
    store = Recorded()
    done: list[str] = []
    committer = Committer(store)

    async def append(tenant: str, events: int, note: Callable[[str], None]) -> None:
        head = await store.claim(tenant)
        await committer.append(append_request(tenant, epoch=head.epoch, events=events))
        note(tenant)

    names = [f"t{number}" for number in range(REQUESTS_MAX + 10)]
    tasks = [asyncio.create_task(append(name, 40, done.append)) for name in names]
    store.go_on.set()
    await asyncio.gather(*tasks)
    assert max(store.groups) <= EVENTS_MAX
    assert sum(store.groups) == 40 * len(names)
    assert done == names


async def test_whoever_finds_nothing_under_way_goes_at_once_and_all_that_come_meanwhile_go_together() -> None:
    """Also where the first one's caller is cancelled in the middle: those behind it are served all the same."""
    store = Recorded()
    committer = Committer(store)
    requests = [append_request(f"t{number}", epoch=(await store.claim(f"t{number}")).epoch) for number in range(5)]
    first = asyncio.create_task(committer.append(requests[0]))
    await asyncio.sleep(0)
    assert store.groups == [1]
    others = [asyncio.create_task(committer.append(request)) for request in requests[1:]]
    await asyncio.sleep(0)
    first.cancel()
    store.go_on.set()
    await asyncio.gather(*others)
    assert store.groups == [1, 4]
    assert first.cancelled()
