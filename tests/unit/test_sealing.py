"""Personal fields: sealed wherever they rest, opened with the tenant's key and nothing else."""

from typing import Annotated

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events import codec
from events.codec import decode_event, decode_plain, encode_data
from events.errors import IntegrityError, KeyUnreadableError
from events.keys import Keys, MasterKeyError, new_master_key, parse_master_keys
from events.memory_vault import MemoryVault
from events.messages import PERSONAL, Event, Personal, personal_fields
from events.sealing import ERASED, WITHOUT_KEY, MissingCipher, TenantCipher, open_bytes, seal_bytes, seal_value
from events.tenant import CallReserved, KeyIssued, TenantCreated
from tests.kit.factories import created, in_clear, key_issued, reserved

CIPHER = TenantCipher("acme", b"k" * 32)


class Noted(Event, frozen=True, tag="test.noted.v1"):
    """Personal data of every kind."""

    who: Personal
    maybe: Personal | None
    body: Annotated[dict[str, str], PERSONAL]
    parts: list[Personal]
    raw: Annotated[bytes, PERSONAL]
    age: Annotated[int, PERSONAL]
    known: Annotated[bool, PERSONAL]
    plain: str


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Noted:
    """As if its family were in the catalog."""
    monkeypatch.setattr(codec, "_event_decoder", msgspec.msgpack.Decoder(Noted | TenantCreated))
    monkeypatch.setattr(codec, "CURRENT_TAGS", {"test.noted.v1"})
    monkeypatch.setattr(codec, "_PERSONAL", {Noted: frozenset(personal_fields(Noted))})
    return Noted("Ann", None, {"a": "secret"}, ["secret", "b"], b"secret", 41, True, "in clear")


def test_what_is_marked_is_sealed_and_nothing_else(noted: Noted) -> None:
    """One mark in the struct, and the field is unreadable at rest and as it was with the key."""
    assert personal_fields(Noted) == ("who", "maybe", "body", "parts", "raw", "age", "known")
    stored = bytes(encode_data(noted, CIPHER))
    assert b"secret" not in stored
    assert b"Ann" not in stored
    assert b"in clear" in stored
    assert decode_event(stored, CIPHER) == noted  # type: ignore[comparison-overlap]


def test_an_erased_event_keeps_its_shape(noted: Noted) -> None:
    assert decode_event(encode_data(noted, CIPHER), WITHOUT_KEY) == Noted(
        ERASED, None, {}, [], b"", 0, False, "in clear"
    )  # type: ignore[comparison-overlap]


def test_names_of_tenants_and_keys_are_personal() -> None:
    assert personal_fields(TenantCreated) == ("name",)
    assert personal_fields(KeyIssued) == ("name",)
    assert personal_fields(CallReserved) == ()


@given(st.text(max_size=200))
def test_any_name_survives(name: str) -> None:
    assert decode_event(encode_data(created(name), CIPHER), CIPHER) == created(name)


def test_the_same_twice_looks_different_each_time() -> None:
    assert bytes(encode_data(created(), CIPHER)) != bytes(encode_data(created(), CIPHER))


def test_events_from_before_encryption_stay_readable() -> None:
    for cipher in (CIPHER, WITHOUT_KEY, MissingCipher("acme"), None):
        assert decode_event(in_clear(created("Acme")), cipher) == created("Acme")


def test_nothing_personal_is_written_in_clear_by_mistake() -> None:
    with pytest.raises(AssertionError, match="cipher"):
        encode_data(created())
    assert encode_data(reserved()) == in_clear(reserved())


@pytest.mark.parametrize(
    "cipher", [TenantCipher("acme", b"x" * 32), TenantCipher("other", b"k" * 32), MissingCipher("acme")]
)
def test_another_key_another_tenant_or_none_is_an_error_not_a_placeholder(cipher: TenantCipher) -> None:
    with pytest.raises(KeyUnreadableError, match="can't be opened"):
        decode_event(encode_data(created(), CIPHER), cipher)


def test_a_sealed_value_can_not_be_moved_or_changed() -> None:
    """To another field, another event, or another kind of value."""
    stored = msgspec.msgpack.decode(encode_data(key_issued(), CIPHER))
    moved = {**msgspec.msgpack.decode(encode_data(created(), CIPHER)), "name": stored["name"]}
    data = bytearray(stored["name"].data)
    data[-1] ^= 1
    bent = {**stored, "name": msgspec.msgpack.Ext(1, bytes(data))}
    retyped = {**stored, "name": msgspec.msgpack.Ext(1, b"\x02" + bytes(stored["name"].data)[1:])}
    for forged in (moved, bent, retyped):
        with pytest.raises(KeyUnreadableError):
            decode_event(msgspec.msgpack.encode(forged), CIPHER)


def test_a_sealed_field_is_opened_before_its_event_is_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upcasters see plain data, also of an erased tenant."""
    steps = {"tenant.born.v1": ("tenant.created.v1", lambda plain: {**plain, "name": plain["title"].upper()})}
    stored = msgspec.msgpack.decode(encode_data(created("acme"), CIPHER))
    monkeypatch.setattr(codec, "UPCASTERS", steps)
    sealed = seal_value(CIPHER, "tenant.born.v1.title", "acme")
    old = msgspec.msgpack.encode({**stored, "type": "tenant.born.v1", "title": sealed})
    plain = msgspec.msgpack.decode(old)
    del plain["name"]
    old = msgspec.msgpack.encode(plain)
    assert decode_event(old, CIPHER) == created("ACME")
    assert decode_event(old, WITHOUT_KEY) == created(ERASED.upper())
    assert decode_plain(old, CIPHER)["title"] == "acme"


def test_a_struct_can_not_be_personal() -> None:
    class Inner(msgspec.Struct):
        name: Personal

    class Bad(Event, frozen=True):
        inner: Inner

    class Good(Event, frozen=True):
        inner: list[Inner]

    with pytest.raises(TypeError, match="is a struct"):
        personal_fields(Bad)
    assert personal_fields(Good) == ("inner",)


@pytest.mark.parametrize("data", [b"", b"plain", b"\xc7", "ǅ plain".encode(), msgspec.msgpack.encode({"a": 1})])
def test_bytes_in_clear_pass_through(data: bytes) -> None:
    assert open_bytes(CIPHER, "snapshot", data) == data


def test_sealed_bytes_open_only_as_what_they_are() -> None:
    sealed = seal_bytes(CIPHER, "snapshot", b"state")
    assert b"state" not in sealed
    assert open_bytes(CIPHER, "snapshot", sealed) == b"state"
    assert open_bytes(WITHOUT_KEY, "snapshot", sealed) is None
    with pytest.raises(KeyUnreadableError):
        open_bytes(CIPHER, "reply", sealed)


def test_damaged_sealed_events_are_integrity_errors() -> None:
    stored = bytes(encode_data(created(), CIPHER))
    with pytest.raises(IntegrityError):
        decode_event(stored[:-3], CIPHER)


@pytest.mark.parametrize(
    ("text", "says"), [("", "0"), ("YWJj", "has 32 bytes, got 3"), ("€", "ASCII"), ("a", "base64")]
)
def test_a_master_key_that_is_none_says_what_one_is(text: str, says: str) -> None:
    with pytest.raises(MasterKeyError, match=says):
        parse_master_keys(text)


async def test_tenants_keys_survive_a_new_master_key() -> None:
    """Rotation: the new one first, the old one after it, rewrap, then the old one can go."""
    vault, old, new = MemoryVault(), new_master_key(), new_master_key()
    sealed = seal_bytes(await Keys(vault, parse_master_keys(old)).cipher("acme", create=True), "snapshot", b"state")
    with pytest.raises(KeyUnreadableError, match="not at hand"):
        await Keys(vault, parse_master_keys(new)).cipher("acme")
    assert await Keys(vault, parse_master_keys(new)).unreadable() == ["acme"]
    both = Keys(vault, parse_master_keys(f"{new},{old}"))
    assert await both.rewrap() == (1, 1)
    assert await both.rewrap() == (1, 0)
    rotated = Keys(vault, parse_master_keys(new))
    assert await rotated.unreadable() == []
    assert open_bytes(await rotated.cipher("acme"), "snapshot", sealed) == b"state"


async def test_a_wrapped_key_of_another_tenant_is_of_no_use() -> None:
    vault = MemoryVault()
    keys = Keys(vault, [b"m" * 32])
    await keys.cipher("acme", create=True)
    stolen = await vault.key("acme")
    vault._keys["other"] = stolen  # type: ignore[assignment]
    with pytest.raises(KeyUnreadableError, match="damaged, or another tenant's"):
        await keys.cipher("other")


async def test_a_process_forgets_a_destroyed_key_within_half_a_minute() -> None:
    """And at once in the process that destroyed it."""
    now, vault = [0.0], MemoryVault()
    elsewhere = Keys(vault, [b"m" * 32], monotonic=lambda: now[0])
    here = Keys(vault, [b"m" * 32])
    sealed = seal_bytes(await elsewhere.cipher("acme", create=True), "snapshot", b"state")
    await here.cipher("acme")
    await here.destroy("acme")
    assert open_bytes(await here.cipher("acme", create=True), "snapshot", sealed) is None
    assert open_bytes(await elsewhere.cipher("acme"), "snapshot", sealed) == b"state"
    now[0] = 30.1
    assert open_bytes(await elsewhere.cipher("acme"), "snapshot", sealed) is None


async def test_without_a_key_only_what_is_sealed_fails() -> None:
    cipher = await Keys(MemoryVault(), [b"m" * 32]).cipher("acme")
    assert open_bytes(cipher, "snapshot", b"plain") == b"plain"
    with pytest.raises(KeyUnreadableError):
        cipher.seal(b"", b"")
