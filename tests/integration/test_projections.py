"""Read models on a real Valkey: each event in them exactly once, whatever happens to the runner."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from events.bus import Bus
from events.catalog import DomainEvent
from events.codec import GENESIS, Record, StoredEvent, chain
from events.keys import Keys
from events.slices import slice_of, slice_tag
from events.store import Append
from events.tasks import end_tasks
from events.valkey_client import connect, execute
from events.valkey_store import ValkeyEventStore
from projections import runner
from projections.actor import PROJECTIONS
from projections.model import Write, checkpoint_key
from projections.runner import CheckpointMovedError, ReadModels, Runner, decoded
from projections.usage import UsageProjection, read_usage
from tests.kit.factories import created, record, settled
from tests.kit.servers import Servers

USAGE = UsageProjection()


@pytest.fixture
async def models(servers: Servers, keys: Keys) -> AsyncIterator[ReadModels]:
    opened = ReadModels(connect(servers.valkey_url, db=2), keys)
    await opened.open()
    yield opened
    await opened.close()


async def written(store: ValkeyEventStore, events: list[DomainEvent], tenant: str = "") -> str:
    """A tenant whose log ends with these events."""
    name = tenant or f"p{uuid.uuid4().hex[:12]}"
    head = await store.claim(name)
    records = [record(event, head.position + number, epoch=head.epoch) for number, event in enumerate(events, 1)]
    previous = head.hash if head.position else GENESIS
    await store.append(Append(name, head.epoch, head.position, previous, chain(previous, records), []))
    return name


async def requests_of(models: ReadModels, tenant: str) -> int:
    found = read_usage(await models.fields(USAGE, tenant))
    return sum(usage.requests for usage in found.values())


async def run_until(runner: Runner, reached: Callable[[], Awaitable[bool]]) -> None:
    running = asyncio.create_task(runner.run())
    try:
        async with asyncio.timeout(20):
            while not await reached():
                assert not running.done()
                await asyncio.sleep(0.01)  # what another process would see is all there is to look at
    finally:
        running.cancel()
        await asyncio.wait([running])


async def follow_until(runner: Runner, models: ReadModels, tenant: str, position: int) -> None:
    """Run until the usage of ``tenant`` has reached ``position``."""

    async def reached() -> bool:
        return await models.checkpoint(USAGE, tenant) >= position

    await run_until(runner, reached)


async def test_a_runner_starts_where_the_last_one_ended(
    valkey_store: ValkeyEventStore, models: ReadModels, bus: Bus
) -> None:
    tenant = await written(valkey_store, [created(), settled("a")])
    slices = [slice_of(tenant)]
    await follow_until(Runner(valkey_store, models, bus, [USAGE], slices), models, tenant, 2)
    await written(valkey_store, [settled("b"), settled("c")], tenant)
    await follow_until(Runner(valkey_store, models, bus, [USAGE], slices), models, tenant, 4)
    assert await requests_of(models, tenant) == 3


async def test_a_page_applied_twice_counts_once(valkey_store: ValkeyEventStore, models: ReadModels) -> None:
    """The read model and its checkpoint change in one step, so the second time is refused as a whole."""
    tenant = await written(valkey_store, [created(), settled("a")])
    page = decoded(await valkey_store.read(tenant, 0))
    assert await models.apply(USAGE, tenant, page, 0) == 2
    with pytest.raises(CheckpointMovedError):
        await models.apply(USAGE, tenant, page, 0)
    assert await requests_of(models, tenant) == 1


async def test_two_runners_at_once_still_count_once(
    valkey_store: ValkeyEventStore, models: ReadModels, bus: Bus
) -> None:
    """Ray may keep two copies of an actor alive for a while."""
    tenant = await written(valkey_store, [created()])
    runners = [Runner(valkey_store, models, bus, [USAGE], [slice_of(tenant)]) for _ in range(2)]
    other = asyncio.create_task(runners[1].run())
    for number in range(30):
        await written(valkey_store, [settled(f"c{number}")], tenant)
    await follow_until(runners[0], models, tenant, 31)
    assert await requests_of(models, tenant) == 30
    await written(valkey_store, [settled("last")], tenant)  # the one that is left goes on alone
    await follow_until(runners[0], models, tenant, 32)
    await end_tasks(other)
    assert runners[0].parked == runners[1].parked == []


async def test_dropped_pointers_cost_nothing_but_a_comparison(
    valkey_store: ValkeyEventStore, models: ReadModels, bus: Bus, servers: Servers
) -> None:
    tenant = await written(valkey_store, [created(), settled("a")])
    client = connect(servers.valkey_url)
    await execute(client, "XTRIM", f"{slice_tag(slice_of(tenant))}:appends", "MAXLEN", 0)
    await client.aclose()
    await follow_until(Runner(valkey_store, models, bus, [USAGE], [slice_of(tenant)]), models, tenant, 2)
    assert await requests_of(models, tenant) == 1


class Poisoned(UsageProjection):
    """Can't apply the events of one tenant."""

    def __init__(self, tenant: str) -> None:
        self._tenant = tenant

    def apply(self, tenant: str, record: Record, event: DomainEvent) -> list[Write]:
        if tenant == self._tenant:
            raise ValueError("poison")
        return super().apply(tenant, record, event)


async def test_one_tenants_poison_stops_that_tenant_only(
    valkey_store: ValkeyEventStore, models: ReadModels, bus: Bus
) -> None:
    sick, well = [await written(valkey_store, [created(), settled("a")]) for _ in range(2)]
    slices = sorted({slice_of(sick), slice_of(well)})
    runner = Runner(valkey_store, models, bus, [Poisoned(sick)], slices)
    await follow_until(runner, models, well, 2)
    await written(valkey_store, [settled("b")], well)

    async def both_were_reached() -> bool:  # in whichever order their slices come
        return await models.checkpoint(USAGE, well) == 3 and ("usage", sick) in runner.parked

    await run_until(runner, both_were_reached)
    assert await models.checkpoint(USAGE, sick) == 0


async def test_a_lost_checkpoint_is_noticed_not_counted_again(
    valkey_store: ValkeyEventStore, models: ReadModels, servers: Servers
) -> None:
    tenant = await written(valkey_store, [created(), settled("a")])
    page = decoded(await valkey_store.read(tenant, 0))
    await models.apply(USAGE, tenant, page, 0)
    client = connect(servers.valkey_url, db=2)
    await execute(client, "HSET", checkpoint_key(USAGE.name, USAGE.generation, slice_of(tenant)), tenant, 1)
    await client.aclose()
    with pytest.raises(CheckpointMovedError):
        await models.apply(USAGE, tenant, page, 2)


async def test_a_runner_ends_when_it_is_cancelled_whatever_it_waits_for(
    servers: Servers, models: ReadModels, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """redis-py on Python 3.11 can swallow a cancellation that meets a reply; then only the store would end the runner."""
    monkeypatch.setattr(runner, "_BLOCK_MS", 300_000)
    store = ValkeyEventStore(connect(servers.valkey_url, timeout_s=600))
    await store.open()
    tenant = await written(store, [created()])
    for turn in range(150):
        await written(store, [settled(f"c{turn}")], tenant)
        running = asyncio.create_task(Runner(store, models, bus, [USAGE], [slice_of(tenant)]).run())
        for _ in range(turn % 50):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running], timeout=60)
        assert running.cancelled(), turn
    await store.close()


async def test_all_projections_of_a_page_share_one_read_of_the_log(
    valkey_store: ValkeyEventStore, models: ReadModels, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await written(valkey_store, [created(), settled("a")])
    reads, read = list[str](), valkey_store.read

    async def counted(name: str, *arguments: int) -> list[StoredEvent]:
        reads.append(name)
        return await read(name, *arguments)

    monkeypatch.setattr(valkey_store, "read", counted)

    async def reached() -> bool:
        return all([await models.checkpoint(one, tenant) == 2 for one in PROJECTIONS])

    await run_until(Runner(valkey_store, models, bus, PROJECTIONS, [slice_of(tenant)]), reached)
    assert len(PROJECTIONS) > 1
    assert reads.count(tenant) == 1
