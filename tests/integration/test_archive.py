"""Archive, export and import as an operator uses them; and what they are for: memory that does not grow with history."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from events.archive import Archive, Policy, archive_log
from events.archiver import Archiver
from events.codec import GENESIS
from events.errors import IntegrityError
from events.ids import uuid7
from events.memory_store import MemoryEventStore
from events.scan import scan
from events.segments import open_export
from events.slices import slice_of, slice_tag
from events.store import EventStore
from events.valkey_client import connect, execute
from events.valkey_store import ValkeyEventStore
from events.verify import verify
from tests.kit.cli import Cli
from tests.kit.factories import NOW_US, append_request
from tests.kit.gateway import World
from tests.kit.logs import export_log
from tests.kit.servers import Servers


async def grow(store: EventStore, tenant: str, count: int) -> None:
    """``count`` more events, each append with a command of its own."""
    head = await store.claim(tenant)
    position, previous = head.position, head.hash if head.position else GENESIS
    for _ in range(0, count, 50):
        command = uuid7(NOW_US, position.to_bytes(8, "big"))
        request = append_request(
            tenant, epoch=head.epoch, position=position, previous=previous, events=50, commands=(command,)
        )
        await store.append(request)
        position, previous = position + 50, request.entries[-1].hash


@pytest.fixture
async def archive(tmp_path: Path) -> Archive:
    return Archive(str(tmp_path / "archive"))


@pytest.fixture
async def store(servers: Servers, archive: Archive) -> AsyncIterator[ValkeyEventStore]:
    opened = ValkeyEventStore(connect(servers.valkey_url), archive)
    await opened.open()
    yield opened
    await opened.close()


async def test_memory_does_not_grow_with_history(store: ValkeyEventStore, archive: Archive, servers: Servers) -> None:
    """Round after round of events that go to files leave what Valkey holds of the tenant's log as it was."""
    client = connect(servers.valkey_url)
    assert isinstance(client, Redis)
    tenant, tag = "flat", slice_tag(slice_of("flat"))
    sizes = []
    for _ in range(6):
        await grow(store, tenant, 2_000)
        await archive_log(store, archive, tenant, keep=500, least=500)
        keys = [f"{tag}:{kind}:{tenant}" for kind in ("log", "streams", "meta")]
        sizes.append(sum([await execute(client, "MEMORY", "USAGE", key, "SAMPLES", 0) for key in keys]))
    assert max(sizes) < 1.1 * sizes[0], sizes
    assert (await verify(store, tenant)).events == 12_000
    await client.aclose()


async def test_a_log_in_files_is_read_on_without_a_look_at_the_store(
    store: ValkeyEventStore, archive: Archive, servers: Servers
) -> None:
    """Page after page costs the store a look per row group, and not two round trips each."""
    client = connect(servers.valkey_url)
    await grow(store, "long", 2_000)
    await archive_log(store, archive, "long", keep=0, least=1)

    async def looks() -> int:
        stats = await execute(client, "INFO", "commandstats")
        return sum(stats[name]["calls"] for name in ("cmdstat_xrange", "cmdstat_hmget") if name in stats)

    before = await looks()
    pages = [page async for page in scan(store, "long", 0, 2_000)]
    assert [event.position for page in pages for event in page] == list(range(1, 2_001))
    assert len(pages) == 4
    assert await looks() - before == 2  # is it in the log? and where does that end?
    await client.aclose()


async def test_the_archiver_moves_what_the_policy_says_and_one_bad_log_holds_up_nobody(
    store: ValkeyEventStore, archive: Archive, servers: Servers
) -> None:
    names = ["arch-bad", "arch-small", "arch-large"]
    for name, count in zip(names, (600, 100, 700), strict=True):
        await grow(store, name, count)
    client = connect(servers.valkey_url)
    await execute(client, "XDEL", f"{slice_tag(slice_of('arch-bad'))}:log:arch-bad", "50-0")
    archiver = Archiver(store, archive, Policy(keep=200, least=300), sorted({slice_of(name) for name in names}))
    assert await archiver.sweep() >= 500  # tenants of other tests may share their slices
    assert [(await archive.segments(name))[-1:] == [] for name in names] == [True, True, False]
    assert await archiver.sweep() == 0
    await grow(store, "arch-large", 300)
    assert await archiver.sweep() == 300
    assert (await verify(store, "arch-large")).events == 1_000
    await client.aclose()


@pytest.mark.parametrize("killed_after_s", [0.0, 0.02, 0.05, 0.1, 0.2])
async def test_an_archiver_may_be_killed_at_any_moment(
    store: ValkeyEventStore, archive: Archive, killed_after_s: float
) -> None:
    tenant = f"killed-{int(killed_after_s * 1000)}"
    await grow(store, tenant, 1_000)
    running = asyncio.create_task(Archiver(store, archive, Policy(100, 10), [slice_of(tenant)]).run(0.001))
    await asyncio.wait([running], timeout=killed_after_s)  # somewhere in the middle
    running.cancel()
    await asyncio.wait([running])
    assert (await verify(store, tenant)).events == 1_000
    await archive_log(store, archive, tenant, keep=100, least=10)
    assert (await archive.segments(tenant))[-1].last == 900
    assert (await verify(store, tenant)).events == 1_000


async def test_a_reader_without_the_archive_sees_a_gap_not_a_shorter_history(
    store: ValkeyEventStore, archive: Archive, valkey_store: ValkeyEventStore
) -> None:
    await grow(store, "elsewhere", 500)
    await archive_log(store, archive, "elsewhere", keep=100, least=10)
    with pytest.raises(IntegrityError, match="position 1"):
        await verify(valkey_store, "elsewhere")


async def test_a_file_of_many_row_groups_is_written_and_read_a_group_at_a_time(tmp_path: Path) -> None:
    store, path = MemoryEventStore(), str(tmp_path / "large.parquet")
    await grow(store, "large", 12_000)
    assert await export_log(store, "large", path) == 12_000
    assert [len(group) for group in open_export(path)] == [5_000, 5_000, 2_000]


async def test_archive_run_and_list_show_and_export_see_one_log(
    cli: Cli,
    world: World,
    tmp_path: Path,
) -> None:
    tenant = world.tenant
    await grow(world.store, tenant, 400)
    (moved,) = await cli("archive", "run", tenant, "--keep", "50", "--least", "10")
    assert moved == {
        "tenant": tenant,
        "moved": moved["through"],
        "through": moved["position"] - 50,
        "position": moved["position"],
    }
    (again,) = await cli("archive", "run", tenant, "--keep", "50", "--least", "10")
    assert again["moved"] == 0
    (listed,) = [row for row in await cli("archive", "list") if row["tenant"] == tenant]
    assert [(segment["first"], segment["last"]) for segment in listed["segments"]] == [(1, moved["through"])]
    assert (await cli("verify", tenant))["events"] == moved["position"]
    exported = await cli("export", tenant, str(tmp_path / "t.parquet"))
    assert exported["events"] == moved["position"]
    assert len((await world.admin.get(f"/tenants/{tenant}/events", params={"limit": 3})).json()["data"]) == 3
    rows = await cli("archive", "run", "--all")
    assert tenant in {row["tenant"] for row in rows}


async def test_an_exported_tenant_comes_back_into_an_empty_store_and_works(
    cli: Cli,
    world: World,
    servers: Servers,
    tmp_path: Path,
) -> None:
    """The copy knows its keys, its budget and its figures; what is in the file is what was written."""
    tenant, path = world.tenant, tmp_path / "t.parquet"
    await world.admin.put(f"/tenants/{tenant}/budget", json={"limit_usd": "5.00", "window": "month"})
    await grow(world.store, "other-tenant", 100)
    before = (await world.admin.get(f"/tenants/{tenant}")).json()
    exported = await cli("export", tenant, str(path))
    client = connect(servers.valkey_url)
    tag = slice_tag(slice_of(tenant))
    for kind in ("log", "meta", "replies", "streams", "snapshots"):
        await execute(client, "DEL", f"{tag}:{kind}:{tenant}")  # as in a store that never had it
    await client.aclose()
    assert await cli("import", str(path)) == {"tenant": tenant, "events": exported["events"], "file": str(path)}
    assert await cli("import", str(path)) == {"tenant": tenant, "events": exported["events"], "file": str(path)}
    assert (await cli("verify", tenant))["events"] == exported["events"]
    after = (await world.admin.get(f"/tenants/{tenant}")).json()
    assert {**after, "position": 0} == {**before, "position": 0}


async def test_an_import_over_another_log_is_refused_and_so_is_a_changed_file(
    cli: Cli,
    world: World,
    tmp_path: Path,
) -> None:
    tenant, path = world.tenant, tmp_path / "t.parquet"
    other = MemoryEventStore()
    await grow(other, tenant, 200)
    await export_log(other, tenant, str(path))
    before = (await cli("verify", tenant))["head_hash"]
    with pytest.raises(Exception, match="HTTP 409"):
        await cli("import", str(path))
    assert (await cli("verify", tenant))["head_hash"] == before
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(IntegrityError):
        await cli("import", str(path))


async def test_pages_that_are_none_are_refused(world: World) -> None:
    for content in (b"", b"\xc1", b"\x90"):
        refused = await world.admin.post(f"/tenants/{world.tenant}/log", content=content)
        assert refused.status_code == 400, refused.text
    for method, path in (
        ("POST", "/tenants/A!/log"),
        ("GET", "/tenants/nobody/log"),
        ("POST", "/tenants/nobody/archive"),
    ):
        assert (await world.admin.request(method, path)).status_code == 404
