"""The contract of an ``EventStore`` with an archive: files and store together are one log. Subclass it as
``EventStoreContract``, with fixtures ``store`` and ``archive`` that belong together.
"""

import asyncio
import os
from collections import defaultdict
from pathlib import Path

import msgspec
import pytest

from events.archive import Archive, archive_log
from events.codec import GENESIS, StoredEvent, chain
from events.errors import AlreadyExistsError, ChainBrokenError, IntegrityError, NotFoundError
from events.memory_store import MemoryEventStore
from events.scan import read_range
from events.store import Append, EventStore
from events.verify import verify
from tests.contract.event_store import StoreContract
from tests.kit.factories import append_request, record, reserved
from tests.kit.logs import export_log, import_log


async def filled(store: EventStore, tenant: str, count: int) -> list[StoredEvent]:
    """A log of ``count`` events, and what it holds."""
    head = await store.claim(tenant)
    position, previous = head.position, head.hash
    while position < count:
        request = append_request(
            tenant, epoch=head.epoch, position=position, previous=previous, events=min(100, count - position)
        )
        await store.append(request)
        position, previous = position + len(request.entries), request.entries[-1].hash
    return await read_range(store, tenant, 0, count)


class ArchivingContract(StoreContract):
    async def test_files_and_store_are_one_log(self, store: EventStore, archive: Archive, tenant: str) -> None:
        """Whatever is read, from wherever to wherever, is what it was before."""
        log = await filled(store, tenant, 1_000)
        assert await archive_log(store, archive, tenant, keep=150, least=100) == 850
        assert await archive_log(store, archive, tenant, keep=150, least=100) == 0
        log = (await filled(store, tenant, 1_300))[:]
        assert await archive_log(store, archive, tenant, keep=50, least=100) == 400
        assert [(segment.first, segment.last) for segment in await archive.segments(tenant)] == [(1, 850), (851, 1250)]
        for after in (0, 1, 849, 850, 851, 1249, 1250, 1299, 1300, 1400):
            for limit in (1, 2, 500, 5_000):
                assert await store.read(tenant, after, limit) == log[after : after + limit], (after, limit)
                found = await store.read_stream(tenant, "tenant", after, limit)
                assert found == log[after : after + limit], (after, limit)
        assert (await verify(store, tenant)).events == 1_300

    async def test_many_streams_are_read_and_go_on_wherever_their_events_lie(
        self, store: EventStore, archive: Archive, tenant: str
    ) -> None:
        """Short ones that are archived whole, long ones that are archived in part."""
        epoch, previous, position = (await store.claim(tenant)).epoch, GENESIS, 0
        versions: dict[str, int] = defaultdict(int)
        written: dict[str, list[bytes]] = defaultdict(list)
        for turn in range(12):
            records = []
            for stream in ["tenant"] * 20 + [f"run/{turn}"] * 2 + ["run/long"] * 7 + ["run/0"] * (turn == 11):
                versions[stream] += 1
                made = record(reserved("c"), versions[stream], epoch=epoch)
                records.append(msgspec.structs.replace(made, stream=stream))
            made_entries = chain(previous, records)
            for entry in made_entries:
                written[entry.stream].append(entry.hash)
            await store.append(Append(tenant, epoch, position, previous, made_entries, []))
            position, previous = position + len(records), made_entries[-1].hash
            await archive_log(store, archive, tenant, keep=30, least=10)
            for stream, hashes in written.items():
                # from other places each turn, and always from the last but one on
                for after in (*range(turn, len(hashes), 16), len(hashes) - 1):
                    found = await store.read_stream(tenant, stream, after, 150)
                    assert [event.hash for event in found] == hashes[after : after + 150], (turn, stream, after)

    async def test_two_archivers_at_once_lose_and_double_nothing(
        self, store: EventStore, archive: Archive, tenant: str
    ) -> None:
        log = await filled(store, tenant, 1_000)
        other = Archive(archive.base)
        await asyncio.gather(
            archive_log(store, archive, tenant, keep=100, least=10),
            archive_log(store, other, tenant, keep=300, least=10),
        )
        await archive_log(store, other, tenant, keep=50, least=10)
        for each in (archive, other):
            segments = await each.segments(tenant)
            assert segments[0].first == 1
            assert segments[-1].last == 950
        assert await read_range(store, tenant, 0, 1_000) == log
        assert await store.read_stream(tenant, "tenant", 0, 2_000) == log

    async def test_drafts_of_runs_that_were_killed_are_removed(
        self, store: EventStore, archive: Archive, tenant: str
    ) -> None:
        await filled(store, tenant, 200)
        await archive_log(store, archive, tenant, keep=100, least=10)
        old, new = (Path(archive.base) / tenant / f"000000000101-000000000150.parquet.{name}" for name in ("a", "b"))
        for draft in (old, new):
            draft.write_bytes(b"half")
        os.utime(old, (0, 0))
        assert await archive_log(store, archive, tenant, keep=50, least=10) == 50
        assert not old.exists()
        assert new.exists()

    async def test_the_log_goes_on_after_all_of_it_was_archived(
        self, store: EventStore, archive: Archive, tenant: str
    ) -> None:
        await filled(store, tenant, 300)
        await archive_log(store, archive, tenant, keep=0, least=1)
        log = await filled(store, tenant, 301)
        assert await store.read(tenant, 299, 10) == log[299:]
        assert (await verify(store, tenant)).events == 301

    async def test_a_run_killed_between_sealing_and_dropping_is_repeated(
        self, store: EventStore, archive: Archive, tenant: str
    ) -> None:
        log = await filled(store, tenant, 400)
        await archive.add(tenant, bytes(32), log[:200])
        assert await archive_log(store, archive, tenant, keep=100, least=50) == 100
        assert await store.read(tenant, 0, 500) == log
        assert len(await archive.segments(tenant)) == 2

    async def test_a_damaged_segment_is_found_and_nothing_more_is_dropped(
        self, store: EventStore, archive: Archive, tenant: str
    ) -> None:
        log = await filled(store, tenant, 400)
        await archive_log(store, archive, tenant, keep=300, least=50)
        (segment,) = await archive.segments(tenant)
        forged = [*log[:50], StoredEvent(51, log[50].record.replace(b"small", b"large"), log[50].hash), *log[51:100]]
        with pytest.raises(ChainBrokenError, match="position 51"):
            await archive.add(tenant, bytes(32), forged)
        Path(segment.path).write_bytes(b"PAR1 rubbish PAR1")
        with pytest.raises(IntegrityError):
            await archive_log(store, archive, tenant, keep=0, least=50)
        assert len(await store.read(tenant, 100, 500)) == 300

    @pytest.mark.parametrize("count", [200, 400])
    async def test_a_log_that_was_set_back_and_has_grown_past_its_archive_loses_nothing(
        self, store: EventStore, archive: Archive, tenant: str, count: int
    ) -> None:
        """What was written since is nowhere else: the archive holds other events at its positions."""
        lost = MemoryEventStore()
        await lost.claim(tenant)  # so that its events are of another epoch
        await archive.add(tenant, GENESIS, await filled(lost, tenant, 200))
        log = await filled(store, tenant, count)
        for _ in range(2):
            with pytest.raises(ChainBrokenError, match="archive"):
                await archive_log(store, archive, tenant, keep=0, least=1)
        assert await read_range(store, tenant, 0, count) == log

    async def test_an_export_restores_into_an_empty_store(
        self, store: EventStore, archive: Archive, tenant: str, tmp_path: Path
    ) -> None:
        """Archived events included; the copy goes on as the original would."""
        log = await filled(store, tenant, 2_500)
        await archive_log(store, archive, tenant, keep=1_000, least=100)
        path = str(tmp_path / "acme.parquet")
        assert await export_log(store, tenant, path) == 2_500
        copy = MemoryEventStore()
        assert await import_log(copy, path) == (tenant, 2_500)
        assert await read_range(copy, tenant, 0, 2_500) == log
        assert await verify(copy, tenant) == await verify(store, tenant)
        assert await import_log(copy, path) == (tenant, 2_500)
        await filled(copy, tenant, 2_501)
        with pytest.raises(AlreadyExistsError):
            await import_log(copy, path)

    async def test_an_import_that_was_killed_goes_on(self, store: EventStore, tenant: str, tmp_path: Path) -> None:
        path = str(tmp_path / "acme.parquet")
        source = MemoryEventStore()
        log = await filled(source, tenant, 3_000)
        await export_log(source, tenant, path)
        await filled(store, tenant, 0)
        importing = asyncio.create_task(import_log(store, path))
        await asyncio.wait([importing], timeout=0.05)  # somewhere in the middle
        importing.cancel()
        await asyncio.wait([importing])
        assert await import_log(store, path) == (tenant, 3_000)
        assert await read_range(store, tenant, 0, 3_000) == log

    async def test_what_is_no_export_is_refused(self, store: EventStore, tenant: str, tmp_path: Path) -> None:
        rubbish = tmp_path / "x.parquet"
        rubbish.write_bytes(b"rubbish")
        with pytest.raises(IntegrityError):
            await import_log(store, str(rubbish))
        with pytest.raises(NotFoundError):
            await import_log(store, str(tmp_path / "nothing"))
        with pytest.raises(NotFoundError):
            await export_log(store, tenant, str(tmp_path / "y.parquet"))
