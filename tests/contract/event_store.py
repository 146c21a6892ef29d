"""The contract of ``EventStore``. Subclass it, give a ``store`` fixture, and your adapter is held to the same promises.

``archiving.py`` beside it has the promises of a store with an archive.
"""

import asyncio
import os
import re
import uuid
from typing import Any, NamedTuple

import msgspec
import pytest

from events.codec import GENESIS, StoredEvent, chain, decode_record
from events.errors import (
    CommandIdReusedError,
    FencedError,
    PlatformError,
    TenantClosedError,
    TenantErasedError,
    TooLargeError,
    WrongExpectedPositionError,
)
from events.scan import scan
from events.slices import slice_of
from events.store import (
    APPEND_BYTES_MAX,
    COMMANDS_MAX,
    EVENTS_MAX,
    RECORD_BYTES_MAX,
    REPLY_BYTES_MAX,
    STREAM_CHARS_MAX,
    Append,
    Appended,
    AppendOutcome,
    CommandResult,
    EventStore,
    Head,
    Known,
    Snapshot,
)
from events.tasks import end_tasks
from tests.kit.factories import NOW_US, append_request, entries, record, reserved

# By each of two writers: `TENANTRY_INTERLEAVED_APPENDS=100000 uv run pytest tests/contract -k interleaved_writers` for all.
INTERLEAVED = int(os.environ.get("TENANTRY_INTERLEAVED_APPENDS", "2000"))
_PIPELINED = 250


def new_tenant() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def tenant() -> str:
    return new_tenant()


class Kept(NamedTuple):
    """All that the port shows of a tenant."""

    head: Head | None
    epochs: list[int | None]
    log: list[StoredEvent]
    streams: list[list[StoredEvent]]
    replies: dict[str, CommandResult]
    snapshots: list[Snapshot]
    is_due: bool
    cursor: str
    leftovers: dict[str, int]


async def kept(store: EventStore, tenant: str) -> Kept:
    number = slice_of(tenant)
    return Kept(
        await store.head(tenant),
        await store.epochs([tenant]),
        await store.read(tenant, 0),
        [await store.read_stream(tenant, stream, 0) for stream in ("tenant", "run/1")],
        await store.replies(tenant, ["a", "b", "new"]),
        await store.load_snapshots(tenant),
        tenant in await store.due(NOW_US),
        (await store.newest_cursors([number]))[number],
        await store.leftovers(tenant),
    )


def refused_append(why: str, good: Append) -> Append:
    """An append that has one thing wrong with it, and is otherwise like ``good``."""
    entry, (command,) = good.entries[-1], good.commands
    long = msgspec.structs.replace(entry, stream="s" * (STREAM_CHARS_MAX + 1))
    large = msgspec.structs.replace(entry, record=bytes(RECORD_BYTES_MAX + 1))
    full = msgspec.structs.replace(entry, record=bytes(RECORD_BYTES_MAX))
    changes: dict[str, dict[str, Any]] = {
        "stale epoch": {"epoch": good.epoch - 1},
        "epoch of the future": {"epoch": good.epoch + 1},
        "position before": {"expected_position": good.expected_position - 1},
        "position after": {"expected_position": good.expected_position + 1},
        "another previous hash": {"previous_hash": b"x" * 32},
        "stream version before": {"entries": [msgspec.structs.replace(entry, version=entry.version - 1)]},
        "stream version after": {"entries": [msgspec.structs.replace(entry, version=entry.version + 1)]},
        "second stream's version": {"entries": [entry, msgspec.structs.replace(entry, stream="run/1", version=7)]},
        "command with another body": {"commands": [command, CommandResult("a", b"2" * 32, b"")]},
        "long name of a stream": {"entries": [long]},
        "large event": {"entries": [large]},
        "large reply": {"commands": [CommandResult("new", b"b" * 32, bytes(REPLY_BYTES_MAX + 1))]},
        "many events": {"entries": [entry] * (EVENTS_MAX + 1)},
        "many commands": {"commands": [command] * (COMMANDS_MAX + 1)},
        "large append": {"entries": [full] * (APPEND_BYTES_MAX // RECORD_BYTES_MAX + 1)},
    }
    return msgspec.structs.replace(good, **changes[why])


REFUSALS: dict[str, tuple[type[PlatformError], str]] = {
    "stale epoch": (FencedError, "epoch is 2"),
    "epoch of the future": (FencedError, "epoch is 2"),
    "position before": (WrongExpectedPositionError, "is at 3, expected 2"),
    "position after": (WrongExpectedPositionError, "is at 3, expected 4"),
    "another previous hash": (WrongExpectedPositionError, "another event is at 3"),
    "stream version before": (WrongExpectedPositionError, "stream tenant is at 3, expected 2"),
    "stream version after": (WrongExpectedPositionError, "stream tenant is at 3, expected 4"),
    "second stream's version": (WrongExpectedPositionError, "stream run/1 is at 0, expected 6"),
    "command with another body": (CommandIdReusedError, "'a' was used before"),
    "long name of a stream": (TooLargeError, "a stream's name"),
    "large event": (TooLargeError, "an event in bytes"),
    "large reply": (TooLargeError, "a reply in bytes"),
    "many events": (TooLargeError, "events in one append"),
    "many commands": (TooLargeError, "commands in one append"),
    "large append": (TooLargeError, "one append in bytes"),
}


async def filled(store: EventStore, tenant: str) -> Append:
    """A tenant with something in every place, and the append that would come next: it changes every place."""
    await store.claim(tenant)
    epoch = (await store.claim(tenant)).epoch
    first = append_request(tenant, epoch=epoch, events=3, commands=("a", "b"), next_timer_us=NOW_US)
    await store.append(first)
    await store.save_snapshot(tenant, Snapshot(1, 2, bytes(32), b"state"))
    previous = first.entries[-1].hash
    return append_request(
        tenant, epoch=epoch, position=3, previous=previous, commands=("new",), next_timer_us=0, placement="silo"
    )


class StoreContract:
    """Each test uses a tenant of its own, so the store may be shared."""

    @pytest.fixture
    def tenant(self) -> str:
        return new_tenant()


class EventStoreContract(StoreContract):
    """What every adapter promises."""

    async def test_a_tenant_nobody_wrote_to_has_no_head(self, store: EventStore, tenant: str) -> None:
        assert await store.head(tenant) is None
        await store.claim(tenant)
        assert await store.head(tenant) is None
        assert await store.read(tenant, 0) == []

    async def test_epochs_rise_and_positions_have_no_gap(self, store: EventStore, tenant: str) -> None:
        first = await store.claim(tenant)
        assert (first.epoch, first.position, first.hash) == (1, 0, GENESIS)
        request = append_request(tenant, epoch=1, events=3)
        assert await store.append(request) == Appended(1, 3)
        again = await store.claim(tenant)
        assert (again.epoch, again.position, again.hash) == (2, 3, request.entries[-1].hash)
        more = append_request(tenant, epoch=2, position=3, previous=again.hash, events=2)
        assert await store.append(more) == Appended(4, 5)
        log = await store.read(tenant, 0)
        assert [stored.position for stored in log] == [1, 2, 3, 4, 5]
        assert [stored.hash for stored in log] == [entry.hash for entry in (*request.entries, *more.entries)]
        assert log[0].record == request.entries[0].record

    async def test_an_older_epoch_writes_nothing(self, store: EventStore, tenant: str) -> None:
        await store.claim(tenant)
        await store.claim(tenant)
        with pytest.raises(FencedError):
            await store.append(append_request(tenant, epoch=1))
        with pytest.raises(FencedError):
            await store.check(tenant, 1)
        await store.check(tenant, 2)
        assert await store.epochs([tenant, f"{tenant}-never"]) == [2, None]
        assert await store.epochs([]) == []
        assert await store.head(tenant) is None

    async def test_nobody_writes_without_a_claim(self, store: EventStore, tenant: str) -> None:
        with pytest.raises(FencedError):
            await store.append(append_request(tenant, epoch=0))

    @pytest.mark.parametrize("expected", [0, 1, 3])
    async def test_a_wrong_expected_position_writes_nothing(
        self, store: EventStore, tenant: str, expected: int
    ) -> None:
        epoch = (await store.claim(tenant)).epoch
        first = append_request(tenant, epoch=epoch, events=2)
        await store.append(first)
        wrong = append_request(tenant, epoch=epoch, position=expected, previous=first.entries[-1].hash)
        with pytest.raises(WrongExpectedPositionError):
            await store.append(wrong)
        assert len(await store.read(tenant, 0)) == 2

    async def test_a_fork_of_the_chain_is_refused(self, store: EventStore, tenant: str) -> None:
        """The position fits, but what the writer believes to be there is another event; at the beginning, too."""
        epoch = (await store.claim(tenant)).epoch
        with pytest.raises(WrongExpectedPositionError):
            await store.append(append_request(tenant, epoch=epoch, previous=b"x" * 32))
        await store.append(append_request(tenant, epoch=epoch))
        with pytest.raises(WrongExpectedPositionError):
            await store.append(append_request(tenant, epoch=epoch, position=1, previous=b"x" * 32))

    async def test_a_repeated_command_gets_its_first_reply_and_writes_nothing(
        self, store: EventStore, tenant: str
    ) -> None:
        epoch = (await store.claim(tenant)).epoch
        request = append_request(tenant, epoch=epoch, commands=("a", "b"), events=2)
        await store.append(request)
        later = append_request(tenant, epoch=epoch, position=2, previous=request.entries[-1].hash, commands=("c", "b"))
        assert await store.append(later) == Known({"b": b"reply to b"})
        assert (await store.head(tenant)).position == 2  # type: ignore[union-attr]
        replies = await store.replies(tenant, ["a", "nobody", "b"])
        assert {name: found.reply for name, found in replies.items()} == {"a": b"reply to a", "b": b"reply to b"}

    async def test_even_a_fenced_writer_learns_what_became_of_its_command(self, store: EventStore, tenant: str) -> None:
        epoch = (await store.claim(tenant)).epoch
        request = append_request(tenant, epoch=epoch, commands=("a",))
        await store.append(request)
        await store.claim(tenant)
        assert await store.append(request) == Known({"a": b"reply to a"})

    async def test_a_command_id_with_another_body_is_refused(self, store: EventStore, tenant: str) -> None:
        epoch = (await store.claim(tenant)).epoch
        await store.append(append_request(tenant, epoch=epoch, commands=("a",), body=b"1" * 32))
        with pytest.raises(CommandIdReusedError):
            await store.append(append_request(tenant, epoch=epoch, commands=("a",), body=b"2" * 32))

    async def test_a_halted_log_takes_no_more_events(self, store: EventStore, tenant: str) -> None:
        epoch = (await store.claim(tenant)).epoch
        last = append_request(tenant, epoch=epoch, status="halted")
        await store.append(last)
        with pytest.raises(TenantClosedError):
            await store.append(append_request(tenant, epoch=epoch, position=1, previous=last.entries[-1].hash))

    async def test_caps_refuse_before_anything_is_written(self, store: EventStore, tenant: str) -> None:
        epoch = (await store.claim(tenant)).epoch
        too_many_commands = tuple(str(n) for n in range(COMMANDS_MAX + 1))
        for request in (
            append_request(tenant, epoch=epoch, events=EVENTS_MAX + 1),
            append_request(tenant, epoch=epoch, commands=too_many_commands),
        ):
            with pytest.raises(TooLargeError):
                await store.append(request)
        assert len(entries(GENESIS, 1, 1)[0].record) < RECORD_BYTES_MAX
        assert await store.head(tenant) is None

    async def test_the_largest_append_is_one_write(self, store: EventStore, tenant: str) -> None:
        epoch = (await store.claim(tenant)).epoch
        commands = tuple(str(n) for n in range(COMMANDS_MAX))
        request = append_request(tenant, epoch=epoch, events=EVENTS_MAX, commands=commands)
        assert await store.append(request) == Appended(1, EVENTS_MAX)

    async def test_one_append_may_touch_as_many_streams_as_it_has_events(self, store: EventStore, tenant: str) -> None:
        epoch, previous = (await store.claim(tenant)).epoch, GENESIS
        for turn in range(2):
            records = [
                msgspec.structs.replace(record(reserved(f"c{n}"), turn + 1, epoch=epoch), stream=f"run/{n}")
                for n in range(EVENTS_MAX)
            ]
            written = chain(previous, records)
            assert isinstance(
                await store.append(Append(tenant, epoch, turn * EVENTS_MAX, previous, written, [])), Appended
            )
            previous = written[-1].hash
        for number in (0, 1, EVENTS_MAX // 2, EVENTS_MAX - 1):
            found = await store.read_stream(tenant, f"run/{number}", 0)
            assert [event.position for event in found] == [number + 1, EVENTS_MAX + number + 1]

    async def test_pages_of_any_size_from_anywhere_are_parts_of_one_log(self, store: EventStore, tenant: str) -> None:
        """However many events an append had: 1 to 100 here."""
        epoch, position, previous = (await store.claim(tenant)).epoch, 0, GENESIS
        hashes = []
        for events in (1, 100, 1, 1, 33, 2, 64, 1, 1, 1, 7, 32):
            request = append_request(tenant, epoch=epoch, position=position, previous=previous, events=events)
            await store.append(request)
            hashes += [entry.hash for entry in request.entries]
            position, previous = len(hashes), hashes[-1]
        for after in range(0, position + 1, 3):
            for limit in (1, 2, 31, 32, 33, 500):
                page = await store.read(tenant, after, limit)
                assert [event.hash for event in page] == hashes[after : after + limit]
                assert [event.position for event in page] == list(range(after + 1, min(after + limit, position) + 1))

    async def test_reads_are_paged(self, store: EventStore, tenant: str) -> None:
        epoch = (await store.claim(tenant)).epoch
        await store.append(append_request(tenant, epoch=epoch, events=7))
        pages, after = [], 0
        while page := await store.read(tenant, after, 3):
            pages.append([stored.position for stored in page])
            after = page[-1].position
        assert pages == [[1, 2, 3], [4, 5, 6], [7]]

    async def test_appends_of_several_tenants_are_independent(self, store: EventStore) -> None:
        """One that fails in a group fails alone."""
        tenants = [f"g{uuid.uuid4().hex[:12]}" for _ in range(3)]
        for tenant in tenants:
            await store.claim(tenant)
        requests = [append_request(name, epoch=epoch) for name, epoch in zip(tenants, (1, 7, 1), strict=True)]
        first, second, third = await store.append_many(requests)
        assert (first, third) == (Appended(1, 1), Appended(1, 1))
        assert isinstance(second, FencedError)

    async def test_a_follower_sees_each_append_once_and_the_tenants_of_its_slice(
        self, store: EventStore, tenant: str
    ) -> None:
        number = slice_of(tenant)
        cursors = await store.newest_cursors([number])
        epoch = (await store.claim(tenant)).epoch
        request = append_request(tenant, epoch=epoch, events=2)
        await store.append(request)
        await store.append(append_request(tenant, epoch=epoch, position=2, previous=request.entries[-1].hash))
        pointers = (await store.tail(cursors, 1000))[number]
        assert [(pointer.tenant, pointer.last_position) for pointer in pointers] == [(tenant, 2), (tenant, 3)]
        assert await store.tail({number: pointers[-1].cursor}, 10) == {}
        assert tenant in await store.tenants(number)

    async def test_a_waiting_follower_is_woken_by_an_append(self, store: EventStore, tenant: str) -> None:
        number = slice_of(tenant)
        cursors = await store.newest_cursors([number])
        epoch = (await store.claim(tenant)).epoch
        waiting = asyncio.create_task(store.tail(cursors, 4000))
        await asyncio.sleep(0)
        await store.append(append_request(tenant, epoch=epoch))
        assert (await waiting)[number][0].tenant == tenant

    async def test_a_follower_that_was_cancelled_is_nobody_else_s_wait(self, store: EventStore, tenant: str) -> None:
        """It may have left a blocking read behind; the next one is answered all the same, and so are two at once."""
        number = slice_of(tenant)
        cursors = await store.newest_cursors([number])
        waiting = asyncio.create_task(store.tail(cursors, 4_500))
        await store.claim(tenant)  # by now it waits
        await end_tasks(waiting)
        async with asyncio.timeout(4):
            assert not any(await asyncio.gather(store.tail(cursors, 10), store.tail(cursors, 10)))

    async def test_timers_are_set_kept_and_cleared_with_the_append(self, store: EventStore, tenant: str) -> None:
        epoch = (await store.claim(tenant)).epoch
        previous, position = GENESIS, 0
        for timer_us, is_due in ((NOW_US, True), (None, True), (NOW_US + 1, False), (0, False)):
            request = append_request(tenant, epoch=epoch, position=position, previous=previous, next_timer_us=timer_us)
            await store.append(request)
            previous, position = request.entries[-1].hash, position + 1
            assert (tenant in await store.due(NOW_US)) is is_due

    async def test_more_due_timers_than_one_look_shows_are_all_seen_by_passing_over(self, store: EventStore) -> None:
        """However many of a slice are stuck at the front of its line."""
        mark = uuid.uuid4().hex[:8]
        ours = [name for n in range(20_000) if slice_of(name := f"{mark}-{n}") == 17][:120]
        for order, name in enumerate(ours):
            await store.set_timer(name, 0, order + 1)
        try:
            first = await store.due(NOW_US)
            rest = await store.due(NOW_US, first)  # of other tests, too
            assert [name for name in first + rest if name.startswith(mark)] == ours
        finally:
            for name in ours:
                await store.set_timer(name, 0, 0)

    async def test_only_the_owner_corrects_a_timer(self, store: EventStore, tenant: str) -> None:
        """An owner that was overtaken finds nothing due; what is due is its successor's."""
        stale, current = (await store.claim(tenant)).epoch, (await store.claim(tenant)).epoch
        await store.append(append_request(tenant, epoch=current, next_timer_us=NOW_US))
        await store.set_timer(tenant, stale, 0)
        assert tenant in await store.due(NOW_US)
        await store.set_timer(tenant, current, NOW_US + 1)
        assert tenant not in await store.due(NOW_US)
        assert tenant in await store.due(NOW_US + 1)
        await store.set_timer(tenant, current, 0)
        assert tenant not in await store.due(NOW_US + 1)

    @pytest.mark.timeout(900)
    async def test_interleaved_writers_of_two_epochs_leave_one_history(self, store: EventStore, tenant: str) -> None:
        """The older one is refused every single time, also where its appends arrive among the newer one's."""
        stale, current = (await store.claim(tenant)).epoch, (await store.claim(tenant)).epoch
        hashes, outcomes = list[bytes](), list[AppendOutcome]()
        for begin in range(0, INTERLEAVED, _PIPELINED):
            both = []
            for position in range(begin, min(begin + _PIPELINED, INTERLEAVED)):
                previous = hashes[-1] if hashes else GENESIS
                rival = append_request(tenant, epoch=stale, position=position, previous=previous)
                request = append_request(tenant, epoch=current, position=position, previous=previous)
                # before it, where its position is still free, or after it
                both += [rival, request] if position % 2 else [request, rival]
                hashes.append(request.entries[-1].hash)
            outcomes += await store.append_many(both)
        assert sum(isinstance(outcome, FencedError) for outcome in outcomes) == INTERLEAVED
        written = [outcome for outcome in outcomes if isinstance(outcome, Appended)]
        assert written == [Appended(position, position) for position in range(1, INTERLEAVED + 1)]
        log = [event async for page in scan(store, tenant, 0, INTERLEAVED) for event in page]
        assert [event.position for event in log] == list(range(1, INTERLEAVED + 1))
        assert [event.hash for event in log] == hashes
        assert await store.read(tenant, INTERLEAVED) == []
        assert {decode_record(event.record).epoch for event in log} == {current}

    async def test_a_stream_is_read_by_version_wherever_its_events_lie(self, store: EventStore, tenant: str) -> None:
        """Three streams grow turn by turn, one of them past the size of an index field."""
        epoch, position, previous = (await store.claim(tenant)).epoch, 0, GENESIS
        versions, written = dict.fromkeys(("tenant", "run/1", "run/2"), 0), dict[str, list[bytes]]()
        for turn in range(60):
            records = []
            for stream, count in (("tenant", 5), ("run/1", turn % 3), ("run/2", 1)):
                for _ in range(count):
                    versions[stream] += 1
                    made = record(reserved(f"{stream}-{versions[stream]}"), versions[stream], epoch=epoch)
                    records.append(msgspec.structs.replace(made, stream=stream))
            made_entries = chain(previous, records)
            for entry in made_entries:
                written.setdefault(entry.stream, []).append(entry.record)
            await store.append(Append(tenant, epoch, position, previous, made_entries, []))
            position, previous = position + len(records), made_entries[-1].hash
        for stream, expected in written.items():
            found, after = [], 0
            while page := await store.read_stream(tenant, stream, after, 77):
                found += [stored.record for stored in page]
                after += len(page)
            assert found == expected
        assert len(written["tenant"]) == 300
        (last,) = await store.read_stream(tenant, "run/2", 59, 10)
        assert last.position == position
        assert await store.read_stream(tenant, "run/2", 60) == []
        assert await store.read_stream(tenant, "nobody", 0) == []

    @pytest.mark.parametrize("version", [1, 3])
    async def test_a_gap_or_repeat_in_a_stream_writes_nothing(
        self, store: EventStore, tenant: str, version: int
    ) -> None:
        epoch = (await store.claim(tenant)).epoch
        first = append_request(tenant, epoch=epoch)
        await store.append(first)
        wrong = chain(first.entries[-1].hash, [record(reserved("x"), version, epoch=epoch)])
        with pytest.raises(WrongExpectedPositionError):
            await store.append(Append(tenant, epoch, 1, first.entries[-1].hash, wrong, []))
        assert len(await store.read(tenant, 0)) == 1

    @pytest.mark.parametrize("why", REFUSALS)
    async def test_a_refused_append_changes_nothing(self, store: EventStore, tenant: str, why: str) -> None:
        """Log, streams, head, replies, timer, snapshots and what followers see; and the good append still fits."""
        good = await filled(store, tenant)
        before = await kept(store, tenant)
        error, words = REFUSALS[why]
        with pytest.raises(error, match=re.escape(words)):
            await store.append(refused_append(why, good))
        assert await kept(store, tenant) == before
        assert await store.append(good) == Appended(4, 4)
        assert (await kept(store, tenant)).is_due is False

    @pytest.mark.parametrize("status", ["halted", "erased"])
    async def test_a_closed_log_refuses_by_name_and_changes_nothing(
        self, store: EventStore, tenant: str, status: str
    ) -> None:
        good = await filled(store, tenant)
        await (store.halt(tenant, good.epoch, "looked odd") if status == "halted" else store.erase(tenant))
        before = await kept(store, tenant)
        assert (before.head and before.head.status, before.is_due) == (status, False)
        assert before.head
        assert before.head.halted_because == ("looked odd" if status == "halted" else "")
        with pytest.raises(TenantClosedError, match=status) as refused:
            await store.append(good)
        assert isinstance(refused.value, TenantErasedError) is (status == "erased")
        assert await kept(store, tenant) == before

    async def test_only_the_owner_halts_and_resuming_opens_the_log_again(self, store: EventStore, tenant: str) -> None:
        good = await filled(store, tenant)
        before = await kept(store, tenant)
        await store.halt(tenant, good.epoch - 1, "a stale owner thinks so")
        assert await kept(store, tenant) == before
        await store.halt(tenant, good.epoch, "looked odd")
        await store.resume(tenant)
        assert await kept(store, tenant) == before
        assert await store.append(good) == Appended(4, 4)

    async def test_erasing_closes_the_log_for_ever_and_leaves_only_events(self, store: EventStore, tenant: str) -> None:
        """Whoever owns it; a second time changes nothing, and no other tenant loses anything."""
        good, other = await filled(store, tenant), new_tenant()
        await filled(store, other)
        others = await kept(store, other)
        log = await store.read(tenant, 0)
        assert await store.leftovers(tenant) == {"replies": 2, "snapshots": 1, "timers": 1}
        for _ in range(2):
            await store.erase(tenant)
            assert await store.leftovers(tenant) == {"replies": 0, "snapshots": 0, "timers": 0}
        assert await store.replies(tenant, ["a", "b"]) == {}
        assert await store.load_snapshots(tenant) == []
        assert await store.read(tenant, 0) == log
        await store.resume(tenant)
        assert (await store.claim(tenant)).status == "erased"
        with pytest.raises(TenantErasedError):
            await store.append(msgspec.structs.replace(good, epoch=good.epoch + 1))
        after = await kept(store, other)
        assert after._replace(cursor="") == others._replace(cursor="")

    async def test_a_tenant_nobody_knows_has_nothing_left(self, store: EventStore, tenant: str) -> None:
        assert await store.leftovers(tenant) == {"replies": 0, "snapshots": 0, "timers": 0}

    async def test_the_two_newest_snapshots_are_kept(self, store: EventStore, tenant: str) -> None:
        assert await store.load_snapshots(tenant) == []
        snapshots = [Snapshot(1, position, bytes(32), b"state %d" % position) for position in (10, 30, 20, 40)]
        for snapshot in snapshots:
            await store.save_snapshot(tenant, snapshot)
        assert [kept.position for kept in await store.load_snapshots(tenant)] == [40, 30]
        assert (await store.load_snapshots(tenant))[0] == snapshots[3]
