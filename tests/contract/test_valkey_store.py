from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from events.archive import Archive
from events.errors import (
    IntegrityError,
    StoreMismatchError,
    StoreUnavailableError,
    TenantClosedError,
    WrongExpectedPositionError,
)
from events.slices import slice_of, slice_tag
from events.store import Appended, EventStore
from events.valkey_client import connect, execute, load_library
from events.valkey_store import IDENTITY_KEY, ValkeyEventStore, _append_args
from events.verify import verify
from tests.contract.archiving import ArchivingContract
from tests.contract.event_store import REFUSALS, EventStoreContract, filled, refused_append, tenant
from tests.kit.factories import append_request
from tests.kit.servers import Servers

__all__ = ["tenant"]


@pytest.fixture
async def client(servers: Servers) -> AsyncIterator[Redis]:
    raw = connect(servers.valkey_url)
    assert isinstance(raw, Redis)
    yield raw
    await raw.aclose()


class TestValkeyEventStore(EventStoreContract, ArchivingContract):
    @pytest.fixture
    def archive(self, tmp_path: Path) -> Archive:
        return Archive(str(tmp_path / "archive"))

    @pytest.fixture
    async def store(self, servers: Servers, archive: Archive) -> AsyncIterator[EventStore]:
        opened = ValkeyEventStore(connect(servers.valkey_url), archive)
        await opened.open()
        yield opened
        await opened.close()


async def test_keys_of_another_slice_or_tenant_are_refused(valkey_store: ValkeyEventStore, client: Redis) -> None:
    """A wrong tag would write where nobody ever reads."""
    keys = [f"{{s001}}:{kind}:a" for kind in ("log", "meta", "replies", "streams")] + [
        f"{{s001}}:{kind}" for kind in ("timers", "appends", "tenants")
    ]
    for index in range(7):
        wrong = [key.replace("s001", "s002") if at == index else key for at, key in enumerate(keys)]
        with pytest.raises(ResponseError, match="WRONGKEY"):
            await execute(client, "FCALL", "tenantry_v3_append", 7, *wrong, "a")
    with pytest.raises(ResponseError, match="WRONGKEY"):
        await execute(client, "FCALL", "tenantry_v3_append", 7, *keys, "b")


def keys_of(tenant: str) -> dict[str, str]:
    """Every key that an append can touch, and the snapshots."""
    tag = slice_tag(slice_of(tenant))
    own = {kind: f"{tag}:{kind}:{tenant}" for kind in ("log", "meta", "replies", "streams", "snapshots")}
    return own | {kind: f"{tag}:{kind}" for kind in ("timers", "appends", "tenants")}


async def stored_bytes(client: Redis, tenant: str) -> dict[str, bytes | None]:
    """What lies under each of these keys, as the server itself would write it to disk."""
    return {kind: await execute(client, "DUMP", key) for kind, key in keys_of(tenant).items()}


@pytest.mark.parametrize("why", REFUSALS)
async def test_a_refused_append_changes_no_byte(
    valkey_store: ValkeyEventStore, client: Redis, tenant: str, why: str
) -> None:
    good = await filled(valkey_store, tenant)
    before = await stored_bytes(client, tenant)
    assert None not in before.values()
    with pytest.raises(REFUSALS[why][0]):
        await valkey_store.append(refused_append(why, good))
    assert await stored_bytes(client, tenant) == before
    await valkey_store.append(good)
    after = await stored_bytes(client, tenant)
    assert {kind for kind in after if after[kind] == before[kind]} == {"snapshots", "tenants"}


@pytest.mark.parametrize("status", ["halted", "erased"])
async def test_an_append_to_a_closed_log_changes_no_byte(
    valkey_store: ValkeyEventStore, client: Redis, tenant: str, status: str
) -> None:
    good = await filled(valkey_store, tenant)
    await (valkey_store.halt(tenant, good.epoch, "odd") if status == "halted" else valkey_store.erase(tenant))
    before = await stored_bytes(client, tenant)
    with pytest.raises(TenantClosedError, match=status):
        await valkey_store.append(good)
    assert await stored_bytes(client, tenant) == before


N_ENTRIES, FIRST_EVENTS_COUNT, POSITIONS = 10 + 10, 10 + 14, 10 + 18  # in a call with one command, entry and stream


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda call: call[:-1], "BADARGS count"),
        (lambda call: [*call, "one too many"], "BADARGS count"),
        (lambda call: [*call[:N_ENTRIES], 0, *call[N_ENTRIES + 1 :]], "BADARGS count"),
        (lambda call: [*call[:N_ENTRIES], 2, *call[N_ENTRIES + 1 :]], "BADARGS count"),
        (lambda call: [*call[:FIRST_EVENTS_COUNT], 2, *call[FIRST_EVENTS_COUNT + 1 :]], "BADARGS positions of 5 bytes"),
        (lambda call: [*call[:POSITIONS], b"", *call[POSITIONS + 1 :]], "BADARGS positions of 0 bytes"),
        (lambda call: call[: N_ENTRIES - 5], "user_function|script"),
        (lambda call: [text.replace("{s", "{s9") if str(text).startswith("{s") else text for text in call], "WRONGKEY"),
        (lambda call: [*call[:3], call[3].replace(":log:", ":lag:"), *call[4:]], "WRONGKEY"),
        (lambda call: [*call[:2], 6, *call[3:9], *call[10:]], "WRONGKEY missing key 7"),
    ],
)
async def test_a_malformed_call_of_the_append_function_changes_no_byte(
    valkey_store: ValkeyEventStore,
    client: Redis,
    tenant: str,
    change: Callable[[list[Any]], list[Any]],
    message: str,
) -> None:
    good = await filled(valkey_store, tenant)
    call = _append_args(good)
    assert (call[N_ENTRIES], call[FIRST_EVENTS_COUNT], len(call[POSITIONS]), len(call)) == (1, 1, 5, POSITIONS + 1)
    before = await stored_bytes(client, tenant)
    with pytest.raises(ResponseError, match=message):
        await execute(client, *change(call))
    assert await stored_bytes(client, tenant) == before
    assert await valkey_store.append(good) == Appended(4, 4)


@pytest.mark.parametrize("kind", ["log", "meta", "replies", "streams", "timers", "appends", "tenants"])
async def test_a_key_of_the_wrong_type_stops_the_append_before_it_writes(
    valkey_store: ValkeyEventStore, client: Redis, tenant: str, kind: str
) -> None:
    """Each key there is, at a tenant's first append, which is the one that writes to all of them."""
    epoch = (await valkey_store.claim(tenant)).epoch
    key = keys_of(tenant)[kind]
    aside = f"{slice_tag(slice_of(tenant))}:aside"
    is_there = await execute(client, "EXISTS", key)
    if is_there:
        await execute(client, "RENAME", key, aside)
    await execute(client, "SET", key, "oops")
    before = await stored_bytes(client, tenant)
    try:
        with pytest.raises(IntegrityError, match=r"is a string|WRONGTYPE"):
            await valkey_store.append(append_request(tenant, epoch=epoch, commands=("a",), next_timer_us=1))
        assert await stored_bytes(client, tenant) == before
    finally:
        await execute(client, "DEL", key)
        if is_there:
            await execute(client, "RENAME", aside, key)
    assert tenant not in await valkey_store.tenants(slice_of(tenant))


async def test_a_damaged_index_stops_the_append_before_it_writes(
    valkey_store: ValkeyEventStore, client: Redis, tenant: str
) -> None:
    good = await filled(valkey_store, tenant)
    await execute(client, "HSET", keys_of(tenant)["streams"], "tenant#0", "x")
    before = await stored_bytes(client, tenant)
    with pytest.raises(IntegrityError, match="index of stream tenant has 1 bytes at version 3"):
        await valkey_store.append(good)
    assert await stored_bytes(client, tenant) == before


async def test_a_log_that_is_ahead_of_its_head_stops_the_append_before_it_writes(
    valkey_store: ValkeyEventStore, client: Redis, tenant: str
) -> None:
    good = await filled(valkey_store, tenant)
    await execute(client, "XADD", keys_of(tenant)["log"], "9-0", "b", b"stray")
    before = await stored_bytes(client, tenant)
    with pytest.raises(IntegrityError, match="ahead of what the store knows"):
        await valkey_store.append(good)
    assert await stored_bytes(client, tenant) == before


async def test_the_other_functions_check_before_they_write_too(
    valkey_store: ValkeyEventStore, client: Redis, tenant: str
) -> None:
    good, keys = await filled(valkey_store, tenant), keys_of(tenant)
    before = await stored_bytes(client, tenant)
    log, meta, streams, timers = (keys[kind] for kind in ("log", "meta", "streams", "timers"))
    for call in (
        ("claim", 1, meta, "another"),
        ("claim", 1, log, tenant),
        ("halt", 2, meta, timers, "another", good.epoch, "why"),
        ("halt", 2, meta, keys["tenants"], tenant, good.epoch, "why"),
        ("set_timer", 2, meta, timers, "another", good.epoch, 1),
        ("set_timer", 2, meta, keys["tenants"], tenant, good.epoch, 1),
        ("trim", 3, log, meta, streams, "another", 1),
        ("trim", 3, log, meta, timers, tenant, 1),
    ):
        with pytest.raises(ResponseError, match="WRONGKEY"):
            await execute(client, "FCALL", f"tenantry_v3_{call[0]}", *call[1:])
    with pytest.raises(WrongExpectedPositionError, match="is at 3, trimmed through 4"):
        await valkey_store.trim(tenant, 4)
    assert await stored_bytes(client, tenant) == before


async def test_a_log_of_the_first_release_is_read_and_continued(
    valkey_store: ValkeyEventStore, client: Redis, tenant: str
) -> None:
    """Its entries held one event each, in fields of their own."""
    epoch = (await valkey_store.claim(tenant)).epoch
    old = append_request(tenant, epoch=epoch, events=40)
    await valkey_store.append(old)
    key = f"{slice_tag(slice_of(tenant))}:log:{tenant}"
    await execute(client, "DEL", key)
    for position, entry in enumerate(old.entries, 1):
        await execute(client, "XADD", key, f"{position}-0", "e", entry.record, "h", entry.hash)
    new = append_request(tenant, epoch=epoch, position=40, previous=old.entries[-1].hash, events=50)
    await valkey_store.append(new)
    hashes = [entry.hash for entry in (*old.entries, *new.entries)]
    assert [event.hash for event in await valkey_store.read(tenant, 0)] == hashes
    assert [event.hash for event in await valkey_store.read_stream(tenant, "tenant", 30, 20)] == hashes[30:50]
    assert (await verify(valkey_store, tenant)).events == 90


async def test_an_entry_that_cannot_be_read_is_an_integrity_error(
    valkey_store: ValkeyEventStore, client: Redis, tenant: str
) -> None:
    epoch = (await valkey_store.claim(tenant)).epoch
    await valkey_store.append(append_request(tenant, epoch=epoch))
    key = f"{slice_tag(slice_of(tenant))}:log:{tenant}"
    await execute(client, "DEL", key)
    await execute(client, "XADD", key, "1-0", "b", b"\xc1")
    with pytest.raises(IntegrityError, match="entry at position 1"):
        await valkey_store.read(tenant, 0)


async def test_a_flushed_library_is_loaded_again(valkey_store: ValkeyEventStore, client: Redis, tenant: str) -> None:
    """The call that finds it missing fails without effect, its repeat works."""
    await execute(client, "FUNCTION", "DELETE", "tenantry_v3")
    with pytest.raises(StoreUnavailableError):
        await valkey_store.claim(tenant)
    epoch = (await valkey_store.claim(tenant)).epoch
    assert epoch == 1
    await execute(client, "FUNCTION", "DELETE", "tenantry_v3")
    with pytest.raises(StoreUnavailableError):
        await valkey_store.append(append_request(tenant, epoch=epoch))
    assert await valkey_store.append(append_request(tenant, epoch=epoch)) == Appended(1, 1)
    await execute(client, "FUNCTION", "DELETE", "tenantry_v3")
    with pytest.raises(StoreUnavailableError):
        await valkey_store.halt(tenant, epoch, "looked odd")
    await valkey_store.halt(tenant, epoch, "looked odd")
    head = await valkey_store.head(tenant)
    assert head is not None
    assert head.status == "halted"


async def test_another_library_under_our_name_is_refused(client: Redis) -> None:
    source = "#!lua name=other_v1\nredis.register_function('other_v1_f', function() return 1 end)\n"
    await load_library(client, "other_v1", source)
    await load_library(client, "other_v1", source)
    with pytest.raises(StoreMismatchError):
        await load_library(client, "other_v1", source + "-- changed\n")


async def test_a_store_with_another_number_of_slices_is_refused(servers: Servers) -> None:
    other = connect(servers.valkey_url, db=7)
    await execute(other, "HSET", IDENTITY_KEY, "slices", 64)
    with pytest.raises(StoreMismatchError, match="64 slices"):
        await ValkeyEventStore(other).open()
    await other.aclose()


async def test_a_full_store_refuses_before_it_writes(
    valkey_store: ValkeyEventStore, client: Redis, tenant: str
) -> None:
    epoch = (await valkey_store.claim(tenant)).epoch
    await execute(client, "CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailableError, match="OOM"):
            await valkey_store.append(append_request(tenant, epoch=epoch))
    finally:
        await execute(client, "CONFIG", "SET", "maxmemory", "0")
    assert await valkey_store.append(append_request(tenant, epoch=epoch)) == Appended(1, 1)


async def test_a_store_that_is_away_is_a_transient_error() -> None:
    store = ValkeyEventStore(connect("redis://127.0.0.1:1", timeout_s=1))
    for call in (store.claim("a1"), store.head("a1"), store.due(0), store.open()):
        with pytest.raises(StoreUnavailableError):
            await call
    await store.close()


async def test_tampering_with_a_stored_event_is_found(
    valkey_store: ValkeyEventStore, client: Redis, tenant: str
) -> None:
    """verify names the position whose bytes are not those that were written."""
    epoch = (await valkey_store.claim(tenant)).epoch
    request = append_request(tenant, epoch=epoch, events=5)
    await valkey_store.append(request)
    assert (await verify(valkey_store, tenant)).events == 5
    key = f"{slice_tag(slice_of(tenant))}:log:{tenant}"
    stored = await valkey_store.read(tenant, 0)
    await execute(client, "DEL", key)
    for event in stored:
        forged = event.record.replace(b"small", b"large") if event.position == 3 else event.record
        await execute(client, "XADD", key, f"{event.position}-0", "e", forged, "h", event.hash)
    with pytest.raises(IntegrityError, match="position 3"):
        await verify(valkey_store, tenant)
