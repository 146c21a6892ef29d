"""A tenant asked over a real NATS, on a real Valkey, in this process."""

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from actors import fairness, mailbox, ownership, snapshots
from actors.activation import Activation
from actors.aggregate import STATE_SCHEMA
from actors.shard import Shard
from events.ask import Asker
from events.bus import Bus, ask_subject, unsubscribe
from events.clock import SystemClock
from events.codec import StoredEvent
from events.envelope import Failed, Refused, decode_reply
from events.errors import BusUnavailableError, CommandRefusedError, IntegrityError, PlatformError
from events.failpoints import arm
from events.keys import Keys
from events.slices import slice_of, slice_tag
from events.store import Snapshot
from events.tenant import (
    CreateTenant,
    DescribeTenant,
    IssueKey,
    ReserveCall,
    SetBudget,
    SettleCall,
)
from events.timers import FireTimers
from events.valkey_client import execute
from events.valkey_store import ValkeyEventStore
from events.valkey_vault import ValkeyVault
from events.verify import verify
from events.witness import accept_loss
from tests.kit.servers import PASSWORD, Servers

NewTenant = Callable[[], str]
HOUR_US = 3_600_000_000


async def create(asker: Asker, tenant: str, *, budget: int | None = None) -> None:
    await asker.ask(tenant, CreateTenant("Test"), actor="test")
    await asker.ask(tenant, IssueKey("k1", "default", b"d" * 32), actor="test")
    if budget is not None:
        await asker.ask(tenant, SetBudget(budget, "total"), actor="test")


def reserve(call: str, cost: int = 10) -> ReserveCall:
    return ReserveCall(call, "k1", "small", cost, HOUR_US)


async def test_the_first_ask_activates_the_tenant(asker: Asker, shard: Shard, new_tenant: NewTenant) -> None:
    tenant = new_tenant()
    ok = await asker.ask(tenant, CreateTenant("Acme", "pro"), actor="test")
    assert ok.position == 1
    assert ok.result["plan"] == "pro"
    assert shard.tenants == [tenant]


async def test_what_was_answered_is_in_the_log_with_who_asked(
    asker: Asker, valkey_store: ValkeyEventStore, new_tenant: NewTenant
) -> None:
    tenant = new_tenant()
    await create(asker, tenant, budget=100)
    found = await verify(valkey_store, tenant)
    assert found.events == 3


async def test_a_repeated_command_is_answered_from_the_log(asker: Asker, new_tenant: NewTenant) -> None:
    """Also where it would be refused if it were decided again, and also by the next activation."""
    tenant = new_tenant()
    first = await asker.ask(tenant, CreateTenant("Acme"), actor="test", command_id="once")
    again = await asker.ask(tenant, CreateTenant("Acme"), actor="test", command_id="once")
    assert again == first
    with pytest.raises(CommandRefusedError) as refusal:
        await asker.ask(tenant, CreateTenant("Other"), actor="test", command_id="once")
    assert refusal.value.code == "idempotency_mismatch"
    with pytest.raises(CommandRefusedError) as refusal:
        await asker.ask(tenant, CreateTenant("Acme"), actor="test", command_id="twice")
    assert refusal.value.code == "already_exists"


async def test_the_same_command_sent_many_times_at_once_happens_once(asker: Asker, new_tenant: NewTenant) -> None:
    tenant = new_tenant()
    await create(asker, tenant)
    answers = await asyncio.gather(
        *(asker.ask(tenant, reserve("c1"), actor="test", command_id="same") for _ in range(50))
    )
    assert len({answer.position for answer in answers}) == 1
    shown = await asker.ask(tenant, DescribeTenant(), actor="test")
    assert shown.result["calls_open"] == 1


async def test_500_parallel_reservations_against_a_budget_for_10_admit_exactly_10(
    asker: Asker, new_tenant: NewTenant
) -> None:
    tenant = new_tenant()
    await create(asker, tenant, budget=100)
    results = await asyncio.gather(
        *(asker.ask(tenant, reserve(f"c{n}"), actor="test") for n in range(500)), return_exceptions=True
    )
    refusals = [result for result in results if isinstance(result, CommandRefusedError)]
    assert len(refusals) == 490
    assert {refusal.code for refusal in refusals} == {"budget_exceeded"}


async def test_a_restarted_tenant_knows_all_it_had_acknowledged(
    asker: Asker, shard: Shard, new_tenant: NewTenant
) -> None:
    tenant = new_tenant()
    await create(asker, tenant, budget=1000)
    await asker.ask(tenant, reserve("c1"), actor="test")
    before = await asker.ask(tenant, DescribeTenant(), actor="test")
    await shard.release(tenant)
    assert shard.tenants == []
    after = await asker.ask(tenant, DescribeTenant(), actor="test")
    assert after == before


async def test_an_owner_that_was_overtaken_writes_and_answers_nothing_more(
    asker: Asker,
    shard: Shard,
    valkey_store: ValkeyEventStore,
    bus: Bus,
    keys: Keys,
    new_tenant: NewTenant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both still listen; the newer one alone answers, whatever is asked."""
    monkeypatch.setattr(ownership, "OWNERSHIP_TRUSTED_S", 0.0)
    tenant = new_tenant()
    await create(asker, tenant)
    newer = Shard("newer", "pool", valkey_store, bus, SystemClock(), keys)
    await newer.host(tenant)
    await asker.ask(tenant, reserve("c1"), actor="test")
    await asker.ask(tenant, DescribeTenant(), actor="test")
    assert (await verify(valkey_store, tenant)).events == 3
    assert newer.tenants == [tenant]
    assert shard.tenants == []
    await newer.close()


async def test_a_full_mailbox_answers_at_once(
    asker: Asker, bus: Bus, new_tenant: NewTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox, "MAILBOX_MAX", 5)
    tenant = new_tenant()
    await create(asker, tenant)
    results = await asyncio.gather(
        *(asker.ask(tenant, reserve(f"c{n}"), actor="test") for n in range(300)), return_exceptions=True
    )
    refusals = [result for result in results if isinstance(result, CommandRefusedError)]
    assert {refusal.code for refusal in refusals} == {"rate_limited"}
    assert all(refusal.retry_after_s for refusal in refusals)
    shown = await asker.ask(tenant, DescribeTenant(), actor="test")
    assert shown.result["calls_open"] == 300 - len(refusals)


async def test_rubbish_on_the_subject_is_refused_and_harms_nobody(
    asker: Asker, bus: Bus, new_tenant: NewTenant
) -> None:
    tenant = new_tenant()
    await create(asker, tenant)
    for rubbish in (b"", b"\x00" * 100, b"\xc1", b"x" * 100_000):
        reply = decode_reply(await bus.request(ask_subject(tenant), rubbish, 2.0))
        assert isinstance(reply, Refused | Failed)
    await asker.ask(tenant, reserve("c1"), actor="test")


async def test_an_append_whose_answer_got_lost_is_neither_lost_nor_repeated(
    asker: Asker, valkey_store: ValkeyEventStore, new_tenant: NewTenant
) -> None:
    """Valkey drops all connections again and again while commands are under way."""
    tenant = new_tenant()
    await create(asker, tenant)
    kicking = True

    async def kick() -> int:
        count = 0
        while kicking:
            await execute(valkey_store._client, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            count += 1
            await asyncio.sleep(0.02)  # the fault's own rhythm
        return count

    kicker = asyncio.create_task(kick())
    try:
        answers = await asyncio.gather(*(asker.ask(tenant, reserve(f"c{n}"), actor="test") for n in range(200)))
    finally:
        kicking = False
        assert await kicker > 0
    assert sorted(answer.position for answer in answers) == list(range(3, 203))
    assert (await verify(valkey_store, tenant)).events == 202


async def test_a_due_timer_books_a_dead_gateways_call(
    asker: Asker, valkey_store: ValkeyEventStore, new_tenant: NewTenant
) -> None:
    tenant = new_tenant()
    await create(asker, tenant, budget=100)
    await asker.ask(tenant, ReserveCall("c1", "k1", "small", 70, 1), actor="test")
    now_us = SystemClock().now_us()
    assert tenant in await valkey_store.due(now_us)
    await asker.ask(tenant, FireTimers(), actor="supervisor")
    assert tenant not in await valkey_store.due(now_us + HOUR_US)
    shown = (await asker.ask(tenant, DescribeTenant(), actor="test")).result
    assert (shown["spent_nano_usd"], shown["reserved_nano_usd"], shown["calls_open"]) == (70, 0, 0)
    # its gateway was not dead after all: what it reports late corrects the booking, once
    await asker.ask(tenant, SettleCall("c1", 1, 1, 1, "ok", "measured"), actor="test")
    assert (await asker.ask(tenant, DescribeTenant(), actor="test")).result["spent_nano_usd"] == 1
    with pytest.raises(CommandRefusedError, match="reservation 'c1' does not exist"):
        await asker.ask(tenant, SettleCall("c1", 1, 1, 1, "ok", "measured"), actor="test")


async def test_a_log_that_lost_acknowledged_events_stops_the_tenant(
    asker: Asker, shard: Shard, valkey_store: ValkeyEventStore, vault: ValkeyVault, new_tenant: NewTenant
) -> None:
    """A store that comes back with less than it acknowledged must not be forked."""
    tenant = new_tenant()
    await create(asker, tenant)
    log, meta = (f"{slice_tag(slice_of(tenant))}:{kind}:{tenant}" for kind in ("log", "meta"))
    first = (await valkey_store.read(tenant, 0))[0]
    await execute(valkey_store._client, "DEL", log)
    await execute(valkey_store._client, "XADD", log, "1-0", "e", first.record, "h", first.hash)
    await execute(valkey_store._client, "HSET", meta, "position", 1, "head", first.hash)
    index = f"{slice_tag(slice_of(tenant))}:streams:{tenant}"
    await execute(valkey_store._client, "HSET", index, "tenant", 1, "tenant#0", (1).to_bytes(5, "big"))
    for _ in range(2):  # also the next activation does not write where others wrote
        with pytest.raises(PlatformError):
            await asker.ask(tenant, reserve("c1"), actor="test", timeout_s=3.0)
        assert shard.tenants == []
    head = await valkey_store.head(tenant)
    assert head is not None
    assert (head.position, head.status) == (1, "halted")
    await accept_loss(valkey_store, vault, tenant)  # a person has looked
    await valkey_store.resume(tenant)
    await asker.ask(tenant, IssueKey("k1", "default", b"d" * 32), actor="test")
    assert (await verify(valkey_store, tenant)).events == 2


async def test_an_event_that_is_not_what_was_written_stops_the_activation(
    asker: Asker, shard: Shard, valkey_store: ValkeyEventStore, new_tenant: NewTenant
) -> None:
    tenant = new_tenant()
    await create(asker, tenant)
    await shard.release(tenant)
    key = f"{slice_tag(slice_of(tenant))}:log:{tenant}"
    await execute(valkey_store._client, "DEL", f"{slice_tag(slice_of(tenant))}:snapshots:{tenant}")
    await execute(valkey_store._client, "XDEL", key, "2-0")
    with pytest.raises(IntegrityError):
        await shard.host(tenant)


async def test_an_ended_activation_never_takes_its_successor_along(
    asker: Asker, shard: Shard, valkey_store: ValkeyEventStore, new_tenant: NewTenant
) -> None:
    tenant = new_tenant()
    await create(asker, tenant)
    old = shard._active[tenant].activation
    old.end()
    assert shard.tenants == []
    await asker.ask(tenant, reserve("c1"), actor="test")
    old._on_end(old)
    assert shard.tenants == [tenant]
    await asker.ask(tenant, reserve("c2"), actor="test")


async def test_a_tenant_whose_plan_wants_an_actor_of_its_own_leaves_the_pool(
    asker: Asker, shard: Shard, silo: Shard, new_tenant: NewTenant
) -> None:
    tenant = new_tenant()
    await asker.ask(tenant, CreateTenant("Acme", "pro"), actor="test")
    async with asyncio.timeout(60):
        while silo.tenants != [tenant]:  # noqa: ASYNC110 - nothing tells when a tenant has moved
            await asyncio.sleep(0.01)  # the shard lets it go in a task of its own, after the reply
    assert shard.tenants == []


async def test_one_id_with_two_bodies_in_one_turn_gets_two_answers(asker: Asker, new_tenant: NewTenant) -> None:
    """Also where the first of them was answered long ago."""
    tenant = new_tenant()
    await create(asker, tenant)
    first = await asker.ask(tenant, reserve("c1"), actor="test", command_id="same")
    for _ in range(5):
        again, other = await asyncio.gather(
            asker.ask(tenant, reserve("c1"), actor="test", command_id="same"),
            asker.ask(tenant, reserve("c2"), actor="test", command_id="same"),
            return_exceptions=True,
        )
        assert again == first
        assert isinstance(other, CommandRefusedError)
        assert other.code == "idempotency_mismatch"


async def test_a_slow_store_never_turns_a_refusal_into_a_lie(
    asker: Asker, valkey_store: ValkeyEventStore, new_tenant: NewTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that waited unanswered and then found the mailbox full on its second try may have been carried out."""
    monkeypatch.setattr(mailbox, "MAILBOX_MAX", 60)
    monkeypatch.setattr(fairness, "ALONE", fairness.Turn(20, 100_000))
    tenant = new_tenant()
    await create(asker, tenant)
    await execute(valkey_store._client, "CLIENT", "PAUSE", 2500, "WRITE")
    results = await asyncio.gather(
        *(asker.ask(tenant, reserve(f"c{n}"), actor="test", command_id=f"id{n}") for n in range(60)),
        return_exceptions=True,
    )
    done = sum(not isinstance(result, BaseException) for result in results)
    refused = sum(isinstance(result, CommandRefusedError) for result in results)
    shown = (await asker.ask(tenant, DescribeTenant(), actor="test")).result
    assert done + refused == 60
    assert shown["calls_open"] == done


async def test_more_callers_than_connections_is_no_error(valkey_store: ValkeyEventStore) -> None:
    assert await asyncio.gather(*(valkey_store.head("nobody") for _ in range(500))) == [None] * 500


async def test_a_broker_that_is_not_there_or_refuses_us_is_an_error_within_seconds(servers: Servers) -> None:
    wrong = servers.nats_url.replace(PASSWORD, "wrong")
    for url in ("nats://127.0.0.1:1", wrong):
        with pytest.raises(BusUnavailableError):
            await Bus.connect(url, "test", lambda: None)


async def test_an_activation_starts_from_its_snapshot_and_gets_to_the_same_state(
    asker: Asker, shard: Shard, valkey_store: ValkeyEventStore, new_tenant: NewTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken by count and at passivation; replay of the whole log agrees with snapshot and rest."""
    monkeypatch.setattr(snapshots, "SNAPSHOT_EVERY_EVENTS", 10)
    tenant = new_tenant()
    await create(asker, tenant, budget=1000)
    for number in range(25):
        await asker.ask(tenant, reserve(f"c{number}"), actor="test")
    before = await asker.ask(tenant, DescribeTenant(), actor="test")
    assert [kept.position for kept in await valkey_store.load_snapshots(tenant)] == [20, 10]
    await shard.release(tenant)
    assert [kept.position for kept in await valkey_store.load_snapshots(tenant)] == [28, 20]
    assert await asker.ask(tenant, DescribeTenant(), actor="test") == before
    await shard.release(tenant)
    for kept in await valkey_store.load_snapshots(tenant):
        await valkey_store.save_snapshot(tenant, Snapshot(STATE_SCHEMA + 1, kept.position, kept.hash, kept.state))
    assert await asker.ask(tenant, DescribeTenant(), actor="test") == before


def spoilt_snapshots(good: Snapshot) -> dict[str, Snapshot]:
    flipped = bytearray(good.state)
    flipped[len(flipped) // 2] ^= 1
    return {
        "another chain": msgspec.structs.replace(good, hash=b"x" * 32),
        "no state": msgspec.structs.replace(good, state=b"\xc1"),
        "a future position": msgspec.structs.replace(good, position=good.position + 7),
        "a flipped bit": msgspec.structs.replace(good, state=bytes(flipped)),
        "cut short": msgspec.structs.replace(good, state=good.state[:-1]),
        "an older schema": msgspec.structs.replace(good, schema=STATE_SCHEMA - 1),
        "a future schema": msgspec.structs.replace(good, schema=STATE_SCHEMA + 1),
        "a future schema, unreadable": msgspec.structs.replace(good, schema=STATE_SCHEMA + 1, state=b"?"),
    }


SPOILT = list(spoilt_snapshots(Snapshot(0, 0, b"", b"state")))


@pytest.mark.parametrize("spoilt", SPOILT)
async def test_a_snapshot_that_does_not_fit_the_log_is_ignored(
    asker: Asker, shard: Shard, valkey_store: ValkeyEventStore, new_tenant: NewTenant, spoilt: str
) -> None:
    """And the log goes on from the state that it has itself."""
    tenant = new_tenant()
    await create(asker, tenant, budget=1000)
    before = await asker.ask(tenant, DescribeTenant(), actor="test")
    await shard.release(tenant)
    (good,) = await valkey_store.load_snapshots(tenant)
    await valkey_store.save_snapshot(tenant, spoilt_snapshots(good)[spoilt])
    assert await asker.ask(tenant, DescribeTenant(), actor="test") == before
    assert (await asker.ask(tenant, reserve("c1"), actor="test")).position == before.position + 1


async def test_a_snapshot_whose_stored_bytes_rot_is_ignored(
    asker: Asker, shard: Shard, valkey_store: ValkeyEventStore, new_tenant: NewTenant
) -> None:
    """Whichever byte of what lies in the store it is."""
    tenant = new_tenant()
    await create(asker, tenant, budget=1000)
    before = await asker.ask(tenant, DescribeTenant(), actor="test")
    await shard.release(tenant)
    key = f"{slice_tag(slice_of(tenant))}:snapshots:{tenant}"
    (stored,) = await execute(valkey_store._client, "HVALS", key)
    for at in (*range(64), len(stored) // 2, len(stored) - 1):
        rotten = stored[:at] + bytes([stored[at] ^ 0xFF]) + stored[at + 1 :]
        await execute(valkey_store._client, "HSET", key, before.position, rotten)
        assert await asker.ask(tenant, DescribeTenant(), actor="test") == before, at
        await shard.release(tenant)


@pytest.mark.parametrize("spoilt", SPOILT)
async def test_where_the_newest_snapshot_is_spoilt_the_one_before_it_serves(
    asker: Asker,
    shard: Shard,
    valkey_store: ValkeyEventStore,
    new_tenant: NewTenant,
    monkeypatch: pytest.MonkeyPatch,
    spoilt: str,
) -> None:
    """The log is read from that one on, not from its beginning."""
    tenant = new_tenant()
    await create(asker, tenant, budget=1000)
    await shard.release(tenant)
    await asker.ask(tenant, reserve("c1"), actor="test")
    await shard.release(tenant)
    newest, older = await valkey_store.load_snapshots(tenant)
    key = f"{slice_tag(slice_of(tenant))}:snapshots:{tenant}"
    await execute(valkey_store._client, "HDEL", key, newest.position)
    await valkey_store.save_snapshot(tenant, spoilt_snapshots(newest)[spoilt])
    read, begun_at = valkey_store.read, []

    async def noted(tenant: str, after_position: int, limit: int = 500) -> list[StoredEvent]:
        begun_at.append(after_position)
        return await read(tenant, after_position, limit)

    monkeypatch.setattr(valkey_store, "read", noted)
    assert (await asker.ask(tenant, reserve("c2"), actor="test")).position == newest.position + 1
    assert older.position in begun_at
    assert 0 not in begun_at


async def test_a_snapshot_broken_off_in_the_middle_costs_nothing(
    asker: Asker, shard: Shard, valkey_store: ValkeyEventStore, new_tenant: NewTenant
) -> None:
    """It ends between the new snapshot's write and the drop of the oldest: any of the three may serve next."""
    tenant = new_tenant()
    await create(asker, tenant, budget=1000)
    for number in range(3):
        await asker.ask(tenant, reserve(f"c{number}"), actor="test")
        arm("snap.mid_write=raise" if number == 2 else "")
        await shard.release(tenant)
    arm("")
    assert [kept.position for kept in await valkey_store.load_snapshots(tenant)] == [6, 5, 4]
    described = await asker.ask(tenant, DescribeTenant(), actor="test")
    assert described.position == 6
    assert (await asker.ask(tenant, reserve("c9"), actor="test")).position == 7
    await shard.release(tenant)
    assert [kept.position for kept in await valkey_store.load_snapshots(tenant)] == [7, 6]


async def test_an_owner_that_listens_and_never_answers_is_not_waited_for(
    bus: Bus, shard: Shard, asker: Asker, new_tenant: NewTenant
) -> None:
    """A stopped process stays subscribed, so "no responders" never comes: the tenant has to be activated elsewhere."""
    tenant = new_tenant()
    stopped = await bus.subscribe(ask_subject(tenant), lambda _data, _reply_to: None)
    impatient = Asker(bus, attempt_timeout_s=0.3)
    ok = await impatient.ask(tenant, CreateTenant("Acme"), actor="test")
    assert ok.position == 1
    assert shard.tenants == [tenant]
    await unsubscribe(stopped)


@pytest.mark.timeout(30)
async def test_a_tenant_asked_for_at_the_moment_it_has_left_comes_back(
    asker: Asker, shard: Shard, new_tenant: NewTenant
) -> None:
    """Between a departure's last step and the callbacks of its task, waiting for it must not spin for ever."""
    tenant = new_tenant()
    await create(asker, tenant)
    leaving = shard._active[tenant].activation
    on_end, coming_back = leaving._on_end, []

    def ended(ending: Activation) -> None:
        on_end(ending)
        coming_back.append(asyncio.create_task(shard.host(tenant)))

    leaving._on_end = ended
    await shard.release(tenant)
    await asyncio.gather(*coming_back)
    assert shard.tenants == [tenant]
    await asker.ask(tenant, reserve("c1"), actor="test")
