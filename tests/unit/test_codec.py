import uuid
from typing import Any

import msgspec
import pytest

from events import codec
from events.catalog import DomainEvent
from events.codec import GENESIS, chain, decode_event, decode_record, encode_data, encode_record, next_hash, open_record
from events.errors import IntegrityError, UnknownEventError
from events.ids import derived_id, uuid7
from events.slices import SLICE_COUNT, is_tenant_id, slice_of
from events.tenant import CallCredited, TenantCreated
from tests.kit.factories import created, in_clear, record
from tests.kit.scenario import CIPHER


def test_a_record_survives_the_wire() -> None:
    first = record(created())
    assert decode_record(encode_record(first)) == first


def test_every_hash_depends_on_all_before_it() -> None:
    records = [record(created(name)) for name in "abc"]
    one, other = chain(GENESIS, records), chain(GENESIS, [records[1], *records[1:]])
    assert one[0].hash == next_hash(GENESIS, encode_record(records[0]))
    assert all(a.hash != b.hash for a, b in zip(one, other, strict=True))


def test_an_old_shape_is_lifted_to_the_newest_through_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(plain: dict[str, Any]) -> dict[str, Any]:
        return {**plain, "name": plain["title"]}

    def timed(plain: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in plain.items() if key != "title"} | {"created_us": 7}

    steps = {"tenant.born.v1": ("tenant.born.v2", named), "tenant.born.v2": ("tenant.created.v1", timed)}
    monkeypatch.setattr(codec, "UPCASTERS", steps)
    old = msgspec.msgpack.encode({"type": "tenant.born.v1", "title": "Acme", "plan": "pro"})
    assert decode_event(old) == TenantCreated("Acme", "pro", 7)


def test_an_event_from_the_future_is_named_not_skipped() -> None:
    with pytest.raises(UnknownEventError, match=r"tenant\.created\.v99"):
        decode_event(msgspec.msgpack.encode({"type": "tenant.created.v99"}))


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x01", msgspec.msgpack.encode({"type": "tenant.created.v1"})])
def test_bytes_that_are_no_event_are_an_integrity_error(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode_event(data)


def test_a_field_that_a_newer_release_added_does_not_stop_an_older_one() -> None:
    plain = {"type": "tenant.created.v1", "name": "A", "plan": "free", "created_us": 1, "colour": "red"}
    assert decode_event(msgspec.msgpack.encode(plain)) == TenantCreated("A", "free", 1)


@pytest.mark.parametrize("event", [created("Acme"), CallCredited("c1", "k1", "small", 5, 0, 0, "the bill says so")])
def test_a_record_opened_at_once_is_what_it_holds_in_clear_and_sealed(event: DomainEvent) -> None:
    for data in (encode_data(event, CIPHER), in_clear(event)):
        written = msgspec.structs.replace(record(event, 7), data=data)
        opened = open_record(encode_record(written), CIPHER)
        assert opened.event == decode_event(data, CIPHER) == event
        assert msgspec.structs.astuple(opened)[:-1] == msgspec.structs.astuple(written)[:-1]


def test_a_record_opened_at_once_fails_as_it_does_step_by_step() -> None:
    future = msgspec.structs.replace(record(created()), data=msgspec.Raw(msgspec.msgpack.encode({"type": "x.v99"})))
    with pytest.raises(UnknownEventError, match=r"x\.v99"):
        open_record(encode_record(future), CIPHER)
    with pytest.raises(IntegrityError, match="not an event record"):
        open_record(b"\xc1", CIPHER)


def test_ids_sort_by_time_and_derived_ones_repeat() -> None:
    ids = [uuid7(1_790_000_000_000_000 + step, bytes(8)) for step in range(0, 5_000, 50)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert uuid.UUID(ids[0]).version == 7
    assert all(str(uuid.UUID(each)) == each for each in [*ids, derived_id("acme", "key")])
    assert derived_id("acme", "key") == derived_id("acme", "key") != derived_id("acm", "ekey")


def test_slices_never_move() -> None:
    """A tenant's slice is part of its keys' names: another hash would lose every log."""
    assert [slice_of(name) for name in ("demo", "acme", "system", "a1")] == [121, 69, 86, 66]
    spread = {slice_of(f"tenant-{number}") for number in range(2_000)}
    assert len(spread) == SLICE_COUNT


@pytest.mark.parametrize("text", ["a", "-a", "A1", "a_b", "a b", "a.b", "*", ">", "", "ab\n", "a" * 64])
def test_what_could_be_a_pattern_is_no_tenant_id(text: str) -> None:
    assert not is_tenant_id(text)
