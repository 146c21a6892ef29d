from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from events.archive import Archive
from events.errors import IntegrityError, StoreMismatchError, StoreUnavailableError
from events.slices import slice_of, slice_tag
from events.store import Appended, EventStore
from events.valkey_store import IDENTITY_KEY, ValkeyEventStore, connect, execute, load_library
from events.verify import verify
from tests.contract.archiving import ArchivingContract
from tests.contract.event_store import EventStoreContract, tenant
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
            await execute(client, "FCALL", "tenantry_v2_append", 7, *wrong, "a")
    with pytest.raises(ResponseError, match="WRONGKEY"):
        await execute(client, "FCALL", "tenantry_v2_append", 7, *keys, "b")


@pytest.mark.parametrize("kind", ["log", "meta", "replies", "streams"])
async def test_a_key_of_the_wrong_type_stops_the_append_before_it_writes(
    valkey_store: ValkeyEventStore, client: Redis, tenant: str, kind: str
) -> None:
    epoch = (await valkey_store.claim(tenant)).epoch
    key = f"{slice_tag(slice_of(tenant))}:{kind}:{tenant}"
    await execute(client, "DEL", key)
    await execute(client, "SET", key, "oops")
    with pytest.raises(IntegrityError, match=r"is a string|WRONGTYPE"):
        await valkey_store.append(append_request(tenant, epoch=epoch, commands=("a",)))
    assert tenant not in await valkey_store.tenants(slice_of(tenant))


async def test_a_damaged_index_stops_the_append_before_it_writes(
    valkey_store: ValkeyEventStore, client: Redis, tenant: str
) -> None:
    epoch = (await valkey_store.claim(tenant)).epoch
    first = append_request(tenant, epoch=epoch, events=3)
    await valkey_store.append(first)
    await execute(client, "HSET", f"{slice_tag(slice_of(tenant))}:streams:{tenant}", "tenant#0", "x")
    with pytest.raises(IntegrityError, match="index of stream tenant has 1 bytes at version 3"):
        await valkey_store.append(append_request(tenant, epoch=epoch, position=3, previous=first.entries[-1].hash))
    assert len(await valkey_store.read(tenant, 0)) == 3


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
    """The append that finds it missing fails without effect, its repeat works."""
    epoch = (await valkey_store.claim(tenant)).epoch
    await execute(client, "FUNCTION", "DELETE", "tenantry_v2")
    with pytest.raises(StoreUnavailableError):
        await valkey_store.append(append_request(tenant, epoch=epoch))
    assert await valkey_store.append(append_request(tenant, epoch=epoch)) == Appended(1, 1)


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
