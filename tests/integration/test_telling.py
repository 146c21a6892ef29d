"""Commands told over a real JetStream, relayed to tenants in this process, on a real Valkey."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from actors import relay
from events import inbox as inboxes
from events import tell as tells
from events.envelope import Ok, Refused, Reply
from events.errors import BusUnavailableError, InvalidCommandError, QueueFullError
from events.tenant import ChangePlan, DescribeTenant, IssueKey, SetBudget
from tests.kit.inbox import InboxWorld, inbox_world, until
from tests.kit.telling import budgets_of, create, tell_budget, tell_budgets


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[InboxWorld]:
    async with inbox_world(tmp_path) as running:
        yield running


async def test_what_was_told_happens_in_order_once_and_its_outcome_is_known(world: InboxWorld) -> None:
    await create(world, "acme")
    accepted = await tell_budgets(world, "acme", 600)
    assert [one.sequence for one in accepted] == list(range(1, 601))
    assert await world.inbox.is_queued(accepted[0].sequence, inboxes.tell_subject("acme"))
    async with world.relaying():
        await world.until_empty()
    assert await budgets_of(world, "acme") == list(range(1, 601))
    assert not await world.inbox.is_queued(accepted[0].sequence, inboxes.tell_subject("acme"))
    stored = await world.store.replies("acme", [one.command_id for one in accepted])
    assert len(stored) == 600


async def test_a_tenant_that_sleeps_is_woken_and_others_go_on_beside_it(world: InboxWorld) -> None:
    tenants = [f"tenant{number}" for number in range(12)]
    await create(world, *tenants)
    for tenant in tenants:
        await world.shard.release(tenant)
    for number in range(1, 21):
        for tenant in tenants:
            await tell_budget(world, tenant, number)
    async with world.relaying():
        await world.until_empty()
    for tenant in tenants:
        assert await budgets_of(world, tenant) == list(range(1, 21))


async def test_refusals_and_no_ops_are_outcomes_too_and_nothing_is_retried(world: InboxWorld) -> None:
    await create(world, "acme")
    bad = await world.teller.tell("acme", SetBudget(-1, "total"), actor="test")
    await tell_budget(world, "acme", 7)
    same = await world.teller.tell("acme", ChangePlan("free"), actor="test")
    nobody = await world.teller.tell("nobody", IssueKey("k", "n", b"d" * 32), actor="test")
    async with world.relaying():
        await world.until_empty()
    outcomes = await world.outcomes.find("acme", [bad.command_id, same.command_id])
    assert isinstance(refused := outcomes[bad.command_id], Refused)
    assert (refused.code, "negative" in refused.message) == ("invalid_request", True)
    assert isinstance(outcomes[same.command_id], Ok)
    assert isinstance((await world.outcomes.find("nobody", [nobody.command_id]))[nobody.command_id], Refused)
    assert await budgets_of(world, "acme") == [7]
    assert await world.dead_letters.page(None, 0, 10) == []


async def test_q1_duplicates(world: InboxWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same message in the broker's window; out of it; another message with the same command id; another body."""
    await create(world, "acme")
    first = await tell_budget(world, "acme", 5, "once")
    again = await tell_budget(world, "acme", 5, "once")
    assert (again.sequence, again.repeated) == (first.sequence, True)
    assert await world.queued() == 1
    await tell_budget(world, "acme", 6, "next")
    numbers = itertools.count()
    # as the broker sees a repeat after its window
    monkeypatch.setattr(tells, "message_id", lambda tenant, command, body: f"{tenant}:{command}:{next(numbers)}")
    await tell_budget(world, "acme", 5, "once")
    async with world.relaying():
        await world.until_empty()
        await tell_budget(world, "acme", 5, "once")  # also long after it was applied
        other = await tell_budget(world, "acme", 99, "once")
        await world.until_empty()
    assert await budgets_of(world, "acme") == [5, 6]
    ((_, letter),) = await world.dead_letters.page("acme", 0, 10)
    assert (letter.cause, letter.command_id, letter.sequence) == ("reused", "once", other.sequence)
    assert b'"once"' not in letter.data
    assert "once" in (await world.store.replies("acme", ["once"]))


async def test_b9_a_full_queue_refuses_its_tenant_alone(tmp_path: Path) -> None:
    async with inbox_world(tmp_path, queue_max=50) as world:
        await create(world, "flood", "calm")
        await tell_budgets(world, "flood", 50)
        with pytest.raises(QueueFullError) as refusal:
            await tell_budget(world, "flood", 51)
        assert (refusal.value.code, refusal.value.retry_after_s) == ("rate_limited", 5.0)
        assert (await tell_budget(world, "flood", 50)).repeated  # a repeat is no second command, so it is not refused
        await tell_budget(world, "calm", 1)
        async with world.relaying():
            await world.until_empty()
            await tell_budget(world, "flood", 51)
            await world.until_empty()
        assert await budgets_of(world, "flood") == list(range(1, 52))
        assert await budgets_of(world, "calm") == [1]


async def test_a_tenant_that_cannot_be_served_gets_its_commands_back_and_holds_up_nobody(
    world: InboxWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its messages are given back for ever longer; when it can be served again they are applied in their order."""
    monkeypatch.setattr(relay, "_PARK_FROM_S", 0.0)
    await create(world, "halted", "well")
    head = await world.store.head("halted")
    assert head is not None
    await world.shard.release("halted")
    await world.store.halt("halted", head.epoch, "for the test")
    async with world.relaying() as running:
        for number in range(1, 31):
            await tell_budget(world, "halted", number)
            await tell_budget(world, "well", number)
        await until(lambda: _has(world, "well", 30), "the well tenant's commands are applied")
        await until(lambda: _none_in_hand(running.in_hand), "the halted tenant's messages are given back")
        assert await budgets_of(world, "halted") == []
        await world.store.resume("halted")
        await world.until_empty()
    assert await budgets_of(world, "halted") == list(range(1, 31))


async def _has(world: InboxWorld, tenant: str, count: int) -> bool:
    return len(await budgets_of(world, tenant)) == count


async def _none_in_hand(count: int) -> bool:
    return count == 0


async def test_a_slow_tenants_backlog_does_not_keep_the_others_out(
    world: InboxWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of it waits than a relay may hold, and it is healthy, only slow: the others come through in between."""
    monkeypatch.setattr(relay, "IN_HAND_MAX", 200)
    monkeypatch.setattr(relay, "BATCH_MAX", 5)
    await create(world, "slow", "well")
    await tell_budgets(world, "slow", 400)
    await tell_budgets(world, "well", 10)
    running = world.relay()
    deliver, go_on = running._courier.deliver, asyncio.Event()

    async def slowly(tenant: str, envelopes: Sequence[bytes]) -> list[Reply]:
        if tenant == "slow" and not go_on.is_set():
            await asyncio.wait([asyncio.ensure_future(go_on.wait())], timeout=0.2)
        return await deliver(tenant, envelopes)

    monkeypatch.setattr(running._courier, "deliver", slowly)
    async with world.relaying(running):
        await until(lambda: _has(world, "well", 10), "the well tenant's commands are applied")
        assert len(await budgets_of(world, "slow")) < 400
        go_on.set()
        await world.until_empty()
    assert await budgets_of(world, "slow") == list(range(1, 401))
    assert await budgets_of(world, "well") == list(range(1, 11))


async def test_two_relays_share_the_slices_and_each_tenant_keeps_its_order(world: InboxWorld) -> None:
    tenants = [f"tenant{number}" for number in range(12)]
    await create(world, *tenants)
    async with world.relaying(world.relay(range(64))), world.relaying(world.relay(range(64, 128))):
        for number in range(1, 31):
            for tenant in tenants:
                await tell_budget(world, tenant, number)
        await world.until_empty()
    for tenant in tenants:
        assert await budgets_of(world, tenant) == list(range(1, 31))


async def test_a_relay_that_was_replaced_retires_and_order_survives_the_change(world: InboxWorld) -> None:
    await create(world, "acme")
    bus = await world.connect("old")
    old, ready = world.relay(bus=bus), asyncio.Event()
    running = asyncio.create_task(old.run(ready.set))
    await ready.wait()
    telling = asyncio.create_task(tell_budgets(world, "acme", 300))
    await until(lambda: _some_budgets(world, 20), "the first relay is at work")
    async with world.relaying():
        with pytest.raises(relay.ReplacedError):
            async with asyncio.timeout(30):
                await running
        await telling
        await world.until_empty()
    await old.close()
    assert await budgets_of(world, "acme") == list(range(1, 301))


async def _some_budgets(world: InboxWorld, count: int) -> bool:
    return len(await budgets_of(world, "acme")) >= count


@pytest.mark.parametrize("lost", ["consumer", "stream"])
async def test_b7_a_deleted_consumer_or_stream_is_made_anew(world: InboxWorld, lost: str) -> None:
    """With the consumer nothing is lost; with the stream what waited in it is, and no more than that."""
    await create(world, "acme")
    async with world.relaying() as running:
        await tell_budgets(world, "acme", 20)
        await world.until_empty()
        if lost == "consumer":
            await world.inbox.delete_consumer(running.consumer)
        else:
            await world.bus.jetstream().delete_stream("TELL")
        await tell_budgets(world, "acme", 20, first=21)
        await world.until_empty()
    assert await budgets_of(world, "acme") == list(range(1, 41))


async def test_q7_a_consumer_that_fell_silent_is_replaced(world: InboxWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paused, it delivers nothing though messages wait, as one does whose limit of unacknowledged messages is reached."""
    monkeypatch.setattr(inboxes, "ACK_WAIT_S", 1.0)
    monkeypatch.setattr(relay, "STALL_CHECK_S", 0.5)
    await create(world, "acme")
    async with world.relaying() as running:
        await world.bus.jetstream().pause_consumer("TELL", running.consumer, "2100-01-01T00:00:00Z")
        silent = running.consumer
        await tell_budgets(world, "acme", 20)
        await world.until_empty()
        assert running.consumer != silent
    assert await budgets_of(world, "acme") == list(range(1, 21))


async def test_q7_messages_that_somebody_else_took_and_kept_come_back_in_order(
    world: InboxWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of unacknowledged messages is reached by another client of our consumer, which never acknowledges."""
    monkeypatch.setattr(inboxes, "ACK_WAIT_S", 1.0)
    monkeypatch.setattr(inboxes, "ACK_PENDING_MAX", 10)
    await create(world, "acme")
    async with world.relaying() as running:
        thief = await (await world.connect("thief")).jetstream().pull_subscribe_bind(running.consumer, "TELL")
        stealing = asyncio.create_task(thief.fetch(10, timeout=2))
        await asyncio.sleep(0)
        await tell_budgets(world, "acme", 40)
        assert await stealing
        await world.until_empty()
    assert await budgets_of(world, "acme") == list(range(1, 41))


async def test_q6_a_command_that_takes_longer_than_the_brokers_patience_happens_once(
    world: InboxWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats get lost too: the broker delivers it again while it is being decided."""
    monkeypatch.setattr(inboxes, "ACK_WAIT_S", 0.5)
    monkeypatch.setattr(relay.Relay, "_keep_in_hand", lambda self: asyncio.Event().wait())
    await create(world, "acme")
    await tell_budgets(world, "acme", 5)
    await world.pause_store(1500)
    async with world.relaying():
        await world.until_empty()
    assert await budgets_of(world, "acme") == [1, 2, 3, 4, 5]


async def test_what_cannot_be_told_is_refused_before_it_is_queued(world: InboxWorld) -> None:
    for tenant, command, command_id in (
        ("UPPER", SetBudget(1, "total"), "ok"),
        ("acme", DescribeTenant(), "ok"),
        ("acme", SetBudget(1, "total"), "with.dot"),
        ("acme", SetBudget(1, "total"), "x" * 129),
    ):
        with pytest.raises(InvalidCommandError):
            await world.teller.tell(tenant, command, actor="test", command_id=command_id)
    assert await world.queued() == 0


async def test_without_a_stream_nothing_is_accepted(world: InboxWorld) -> None:
    await world.bus.jetstream().delete_stream("TELL")
    with pytest.raises(BusUnavailableError):
        await world.teller.tell("acme", SetBudget(1, "total"), actor="test", timeout_s=0.5)
