"""Whatever dies around the queue, told commands happen once and in order; and what can't happen ends as one dead letter."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from actors.relay import ATTEMPTS_MAX
from events.bus import Bus
from events.clock import SystemClock
from events.courier import Courier, LostError
from events.dead_letters import DeadLetter
from events.envelope import Envelope, Failed, Reply, encode
from events.errors import NotFoundError
from events.failpoints import POINTS
from events.inbox import COMMAND_AGE_MAX_S, tell_subject
from events.tenant import SetBudget
from tests.faults.inbox_programs import ENDS_PROCESS, HANGS, RAISES, Kind, Program
from tests.kit.inbox import InboxWorld, inbox_world, until
from tests.kit.servers import kill_and_wait
from tests.kit.telling import budgets_of, create, tell_budget, tell_budgets

_RELAY_POINTS = [point for point in POINTS if point.startswith("relay.")]
_DECIDING_S = 0.02


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[InboxWorld]:
    async with inbox_world(tmp_path) as running:
        yield running


@asynccontextmanager
async def shard_process(world: InboxWorld, kind: Kind) -> AsyncIterator[Program]:
    program = Program(kind, world.servers, restart=True)
    try:
        yield program
    finally:
        await program.stop()


async def letters_of(world: InboxWorld, tenant: str) -> list[DeadLetter]:
    return [letter for _, letter in await world.dead_letters.page(tenant, 0, 100)]


async def put(world: InboxWorld, tenant: str, data: bytes, identity: str) -> None:
    """What no teller of ours would send."""
    await world.inbox.put(tell_subject(tenant), data, identity, {}, 5.0)


@pytest.mark.parametrize("point", _RELAY_POINTS)
async def test_a_relay_killed_at_its_worst_moments_neither_loses_nor_repeats(world: InboxWorld, point: str) -> None:
    tenants = ["ann", "bob", "eve"]
    await create(world, *tenants)
    for number in range(1, 41):
        for tenant in tenants:
            await tell_budget(world, tenant, number)
    await put(world, "bob", b"\xc1 not a command", "rubbish")
    for tenant in tenants:
        await tell_budgets(world, tenant, 10, first=41)
    killed = Program("relay", world.servers, f"{point}=crash")
    assert await killed.ended() == -9
    async with world.relaying():
        await world.until_empty()
    for tenant in tenants:
        assert await budgets_of(world, tenant) == list(range(1, 51))
    assert [letter.cause for letter in await letters_of(world, "bob")] == ["undecodable"]


async def test_relays_killed_again_and_again_in_the_middle_of_traffic(world: InboxWorld) -> None:
    await create(world, "acme")
    killed, told = 0, 0

    async def kill_in_midst() -> None:
        nonlocal killed
        for _ in range(3):
            before = len(await budgets_of(world, "acme"))
            relay = Program("relay", world.servers)
            await until(lambda before=before: _more_than(world, before + 5), "the relay is in the midst of it")  # type: ignore[misc]
            await relay.stop()
            killed += 1

    killing = asyncio.create_task(kill_in_midst())
    while not killing.done():
        if await world.queued() > 500:  # they are told faster than they are decided
            await asyncio.wait([killing], timeout=0.1)
            continue
        told += 1
        await tell_budget(world, "acme", told)
    await killing
    async with world.relaying():
        await world.until_empty()
    assert killed == 3
    assert await budgets_of(world, "acme") == list(range(1, told + 1))


async def _more_than(world: InboxWorld, count: int) -> bool:
    return len(await budgets_of(world, "acme")) > count


async def test_b1_nats_killed_under_load_loses_nothing_that_was_accepted(world: InboxWorld) -> None:
    """Published and applied reconcile: what was accepted is in the log, once, in the order of the queue."""
    tenants = ["ann", "bob"]
    await create(world, *tenants)
    accepted: dict[str, list[tuple[int, int]]] = {tenant: [] for tenant in tenants}
    stop = asyncio.Event()

    async def tell(tenant: str) -> None:
        for number in itertools.count(1):
            if stop.is_set():
                return
            one = await world.teller.tell(
                tenant, _budget(number), actor="test", command_id=f"{tenant}-{number}", timeout_s=60
            )
            accepted[tenant].append((one.sequence, number))

    async with world.relaying():
        telling = [asyncio.create_task(tell(tenant)) for tenant in tenants]
        for kill in range(3):
            want = 60 * (kill + 1)
            await until(lambda want=want: _told(accepted, want), "load before the kill")  # type: ignore[misc]
            await asyncio.to_thread(kill_and_wait, world.servers.nats)
        await until(lambda: _told(accepted, 240), "load after the last kill")
        stop.set()
        await asyncio.gather(*telling)
        await world.until_empty()
    for tenant in tenants:
        assert await budgets_of(world, tenant) == [number for _, number in sorted(accepted[tenant])]


def _budget(number: int) -> SetBudget:
    return SetBudget(number, "total")


async def _told(accepted: dict[str, list[tuple[int, int]]], count: int) -> bool:
    return all(len(done) >= count for done in accepted.values())


async def test_valkey_killed_under_load_is_no_reason_for_a_dead_letter(world: InboxWorld) -> None:
    await create(world, "acme")
    await tell_budgets(world, "acme", 400)
    async with world.relaying():
        await until(lambda: _more_than(world, 20), "the relay is in the midst of it")
        await asyncio.to_thread(kill_and_wait, world.servers.valkey)
        await world.until_empty()
    assert await budgets_of(world, "acme") == list(range(1, 401))
    assert await letters_of(world, "acme") == []


@pytest.mark.parametrize(
    ("poison", "cause", "ends"),
    [(RAISES, "defect", 0), (ENDS_PROCESS, "unanswered", 5), (HANGS, "unanswered", 5)],
)
async def test_q4_poison_becomes_one_dead_letter_and_the_queue_moves_on(
    tmp_path: Path, poison: int, cause: str, ends: int
) -> None:
    """And Q5: with the defect mended a replay applies it, once, under its own command id."""
    async with inbox_world(tmp_path, with_shard=False) as world:
        async with shard_process(world, "shard") as shard:
            await create(world, "sick", "well")
            await tell_budgets(world, "sick", 5)
            bad = await tell_budget(world, "sick", poison, "bad")
            await tell_budgets(world, "sick", 5, first=6)
            await tell_budgets(world, "well", 5)
            async with world.relaying():
                await world.until_empty()
            assert len(shard.ends) <= ends
        (letter,) = await letters_of(world, "sick")
        assert (letter.id, letter.command_id, letter.cause, letter.sequence) == ("bad", "bad", cause, bad.sequence)
        assert letter.attempts == (1 if cause == "defect" else 3)
        assert isinstance((await world.outcomes.find("sick", ["bad"]))["bad"], Failed)
        async with shard_process(world, "healthy-shard"), world.relaying():
            assert await budgets_of(world, "sick") == list(range(1, 11))
            assert await budgets_of(world, "well") == [1, 2, 3, 4, 5]
            for _ in range(2):  # a second replay finds nothing to replay
                replaying = world.dead_letters.replay("sick", "bad")
                if await letters_of(world, "sick"):
                    await replaying
                else:
                    with pytest.raises(NotFoundError):
                        await replaying
            await world.until_empty()
            assert await budgets_of(world, "sick") == [*range(1, 11), poison]
            assert await letters_of(world, "sick") == []
            assert await world.outcomes.find("sick", ["bad"]) == {}
            assert "bad" in await world.store.replies("sick", ["bad"])


class CrashingCourier(Courier):
    """The process of all tenants ends over one command, and takes along all that is being decided in it."""

    def __init__(self, bus: Bus, poison: bytes) -> None:
        super().__init__(bus)
        self._poison = poison
        self._crash: asyncio.Event | None = None
        self.crashes = 0

    async def deliver(self, tenant: str, envelopes: Sequence[bytes]) -> list[Reply]:
        crash = self._crash = self._crash or asyncio.Event()
        if self._poison in envelopes:
            await asyncio.sleep(_DECIDING_S / 2)  # the others are in the middle of theirs
            self.crashes += 1
            self._crash = None
            crash.set()
        try:
            async with asyncio.timeout(_DECIDING_S):
                await crash.wait()
        except TimeoutError:
            return await super().deliver(tenant, envelopes)
        raise LostError(tenant, "its process ended")


async def test_who_only_shared_the_process_of_poison_is_not_buried_with_it(world: InboxWorld) -> None:
    """However often they come to grief together: an attempt counts only while no other suspect is tried."""
    await create(world, "sick", *(f"well-{n}" for n in range(5)))
    await tell_budget(world, "sick", 1, "bad")
    for tenant in range(5):
        await tell_budgets(world, f"well-{tenant}", 20)
    poison = (await world.bus.jetstream().get_msg("TELL", 1)).data
    assert poison
    courier = CrashingCourier(world.bus, poison)
    async with world.relaying(world.relay(courier=courier)):
        await world.until_empty()
    assert [letter.command_id for letter in await letters_of(world, "sick")] == ["bad"]
    assert courier.crashes == ATTEMPTS_MAX + 2  # in a batch, then in company, then alone
    for tenant in range(5):
        assert await letters_of(world, f"well-{tenant}") == []
        assert await budgets_of(world, f"well-{tenant}") == list(range(1, 21))


@pytest.mark.parametrize("kind", ["no envelope", "another tenant's", "no command", "a command nobody knows"])
async def test_what_cannot_be_decoded_is_kept_as_it_came(world: InboxWorld, kind: str) -> None:
    await create(world, "acme")
    deadline_us = SystemClock().now_us() + 3_600_000_000

    def envelope(tenant: str, body: object) -> bytes:
        return encode(Envelope("odd", tenant, "test", deadline_us, "", "", _raw(body)))

    data = {
        "no envelope": b"\xc1\x00\xff",
        "another tenant's": envelope("other", {"type": "budget.set", "limit_nano_usd": 1, "window": "total"}),
        "no command": envelope("acme", 17),
        "a command nobody knows": envelope("acme", {"type": "of.next.release"}),
    }[kind]
    await tell_budget(world, "acme", 1)
    await put(world, "acme", data, "odd")
    await tell_budget(world, "acme", 2)
    async with world.relaying():
        await world.until_empty()
    (letter,) = await letters_of(world, "acme")
    assert (letter.cause, letter.data, letter.sequence) == ("undecodable", data, 2)
    assert letter.headers == {"Nats-Msg-Id": "odd"}
    assert letter.message
    assert letter.release
    assert await budgets_of(world, "acme") == [1, 2]


def _raw(body: object) -> msgspec.Raw:
    return msgspec.Raw(encode(body))


class LateClock:
    """A relay that comes back after a long time."""

    def __init__(self) -> None:
        self.late_us = 0

    def now_us(self) -> int:
        return SystemClock().now_us() + self.late_us


async def test_q3_a_stale_command_is_never_applied_and_can_be_replayed(tmp_path: Path) -> None:
    clock = LateClock()
    async with inbox_world(tmp_path, clock=clock) as world:
        await create(world, "acme")
        await tell_budgets(world, "acme", 3)
        clock.late_us = (COMMAND_AGE_MAX_S + 1) * 1_000_000
        async with world.relaying():
            await world.until_empty()
            assert await budgets_of(world, "acme") == []
            letters = await letters_of(world, "acme")
            assert [(letter.id, letter.cause) for letter in letters] == [(f"acme-{n}", "stale") for n in (1, 2, 3)]
            await world.dead_letters.replay("acme", "acme-2")
            await world.until_empty()
        assert await budgets_of(world, "acme") == [2]


async def test_a_letter_is_discarded_once_and_its_outcome_stays(world: InboxWorld) -> None:
    await create(world, "acme")
    await put(world, "acme", b"\xc1", "odd")
    async with world.relaying():
        await world.until_empty()
    (letter,) = await letters_of(world, "acme")
    assert (await world.dead_letters.find("acme", letter.id)) == letter
    assert (await world.dead_letters.discard("acme", letter.id)).id == letter.id
    with pytest.raises(NotFoundError):
        await world.dead_letters.discard("acme", letter.id)
    assert await letters_of(world, "acme") == []


async def test_erasing_a_tenant_takes_its_queue_letters_and_outcomes_along(world: InboxWorld) -> None:
    await create(world, "gone", "stays")
    for tenant in ("gone", "stays"):
        await put(world, tenant, b"\xc1", f"odd-{tenant}")
        await tell_budget(world, tenant, -1)
    async with world.relaying():
        await world.until_empty()
    for tenant in ("gone", "stays"):
        await tell_budget(world, tenant, 1)
    await world.inbox.purge("gone")
    await world.outcomes.erase("gone")
    assert (await letters_of(world, "gone"), await world.outcomes.find("gone", ["gone--1"])) == ([], {})
    assert len(await letters_of(world, "stays")) == len(await world.outcomes.find("stays", ["stays--1"])) == 1
    assert await world.queued() == 1
