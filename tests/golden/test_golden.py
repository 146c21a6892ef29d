"""Every log that a release has written is read by today's code, to the same state."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.aggregate import State
from actors.history import state_at
from actors.run import machine, open_runs
from actors.run.open_runs import Runs
from events.catalog import DomainEvent
from events.codec import CURRENT_TAGS, GENESIS, decode_record, event_type
from events.errors import ChainBrokenError
from events.memory_store import MemoryEventStore
from events.messages import personal_fields
from events.run import ENDS, RunEnded, RunEvent
from events.sealing import WITHOUT_KEY, is_sealed
from events.store import Append
from events.verify import verify
from tests.golden.history import DIRECTORY, History, Line, events_of, folded, read, summary
from tests.golden.record import recorded, turns_of
from tests.golden.scenarios import SCENARIOS
from tests.golden.shapes import shapes

FILES = sorted(DIRECTORY.glob("*/*.jsonl"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")


async def restored(history: History) -> MemoryEventStore:
    store, tenant = MemoryEventStore(), history.header.tenant
    epoch = (await store.claim(tenant)).epoch
    await store.append(Append(tenant, epoch, 0, GENESIS, [line.entry for line in history.lines], []))
    return store


def stored_fields(history: History) -> list[dict[str, Any]]:
    """Each event's fields as they lie in the log: sealed ones sealed."""
    return [msgspec.msgpack.decode(decode_record(line.entry.record).data) for line in history.lines]


@each_file
async def test_a_recorded_log_verifies_and_folds_to_the_state_it_had_then(path: Path) -> None:
    history = read(path)
    lines = history.lines
    store, tenant = await restored(history), history.header.tenant
    verified = await verify(store, tenant)
    assert (verified.events, verified.head_hash) == (len(lines), lines[-1].hash)
    expected: dict[str, Any] = {}
    events = events_of([line.entry for line in lines], history.cipher)
    for line, found in zip(lines, folded(events), strict=True):
        expected = {place: value for place, value in expected.items() if place not in line.drops} | line.sets
        assert found == expected, f"after the event at {line.position}, {line.type}"
    state, _ = await state_at(store, history.cipher, tenant, len(lines))
    assert summary(state) == expected


@each_file
async def test_a_recorded_log_is_read_without_its_key_as_an_erased_tenants_is(path: Path) -> None:
    history = read(path)
    state, _ = await state_at(await restored(history), WITHOUT_KEY, history.header.tenant, len(history.lines))
    assert state != State()


@each_file
async def test_a_changed_byte_of_a_recorded_log_is_found(path: Path) -> None:
    history = read(path)
    middle = len(history.lines) // 2
    lines = list(history.lines)
    lines[middle] = msgspec.structs.replace(lines[middle], hash="00" * 32)
    store = await restored(msgspec.structs.replace(history, lines=lines))
    with pytest.raises(ChainBrokenError, match=f"position {middle + 1}:"):
        await verify(store, history.header.tenant)


def test_every_kind_of_event_is_in_a_recorded_log() -> None:
    covered = {line.type for path in FILES for line in read(path).lines}
    missing = ", ".join(sorted(CURRENT_TAGS - covered))
    assert not missing, f"no golden history has {missing}: add to tests/golden/scenarios.py, then record (see there)"


def test_every_personal_field_is_sealed_in_a_recorded_log() -> None:
    sealed = {
        (fields["type"], name)
        for path in FILES
        for fields in stored_fields(read(path))
        for name, value in fields.items()
        if is_sealed(value)
    }
    personal = {(event_type(kind), name) for kind in DomainEvent.__args__ for name in personal_fields(kind)}
    assert personal <= sealed


def test_todays_code_writes_what_some_release_has_recorded() -> None:
    """A field that was added, renamed or dropped is a new form of its event: the release that ships it records it."""
    shipped = [plain for path in FILES for plain in read(path).plain()]
    for family, events in SCENARIOS.items():
        unknown = [plain["type"] for plain in recorded("", family, turns_of(events)).plain() if plain not in shipped]
        assert not unknown, f"{family}: {unknown}: run `uv run python -m tests.golden.record RELEASE`"


RUN_FILES = [path for path in FILES if path.stem.startswith("run-")]


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_todays_code_has_nothing_to_add_to_a_recorded_run(path: Path) -> None:
    """After each turn: a saga that would now do something else, or no longer knows what it did, breaks runs under way."""
    history = read(path)
    runs, events = Runs(), events_of([line.entry for line in history.lines], history.cipher)
    for at, (line, event) in enumerate(zip(history.lines, events, strict=True)):
        if isinstance(event, RunEvent):
            runs = open_runs.fold(runs, event)
        if at + 1 < len(events) and command_of(history.lines[at + 1]) == command_of(line):
            continue
        for run_id in runs.open:
            more = machine.follow(runs, run_id, decode_record(line.entry.record).time_us)
            assert more == [], f"after position {line.position} today's code would go on with {more}"


def command_of(line: Line) -> str:
    return decode_record(line.entry.record).command_id


def test_runs_of_every_shape_are_recorded() -> None:
    assert {path.stem for path in RUN_FILES} >= shapes().keys()
    events = [event for turns in shapes().values() for _, turn in turns for event in turn]
    assert {event.status for event in events if isinstance(event, RunEnded)} == ENDS


def test_a_summary_leaves_out_what_has_its_default() -> None:
    assert summary(State()) == {}
    assert summary(State(tenant=msgspec.structs.replace(State().tenant, name="Acme"))) == {"tenant/name": "Acme"}
