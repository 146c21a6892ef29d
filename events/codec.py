"""How an event is written down, and the hash chain that makes the log tamper-evident.

A log entry is two byte strings: the record (MessagePack) and its hash, ``SHA-256(previous hash || record)``. The hash
covers the stored bytes themselves, so a log can be verified without knowing what its events mean.
"""

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any

import msgspec

from events.catalog import DomainEvent
from events.errors import ChainBrokenError, IntegrityError, UnknownEventError
from events.messages import Event, personal_fields
from events.sealing import Cipher, is_sealed, open_value, seal_value

GENESIS = bytes(32)  # the hash before the first event

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

# tag of an old shape -> (tag of the next one, function over plain dicts). Chained until the tag is current.
UPCASTERS: dict[str, tuple[str, Upcaster]] = {}


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One event as written. ``version`` counts the events of its stream; the position is the log entry's own id."""

    stream: str
    version: int
    time_us: int
    command_id: str
    actor: str
    correlation_id: str
    causation_id: str
    epoch: int
    data: msgspec.Raw


class OpenRecord(msgspec.Struct, frozen=True, array_like=True):
    """A record with its event decoded."""

    stream: str
    version: int
    time_us: int
    command_id: str
    actor: str
    correlation_id: str
    causation_id: str
    epoch: int
    event: DomainEvent


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A record as it goes into the log, with the place in its stream that the record itself states."""

    record: bytes
    hash: bytes
    stream: str
    version: int


class StoredEvent(msgspec.Struct, frozen=True, array_like=True):
    position: int
    record: bytes
    hash: bytes


_encoder = msgspec.msgpack.Encoder()
_record_decoder = msgspec.msgpack.Decoder(Record)
_open_decoder = msgspec.msgpack.Decoder(OpenRecord)
_event_decoder: msgspec.msgpack.Decoder[DomainEvent] = msgspec.msgpack.Decoder(DomainEvent)


def event_type(event: Event | type[Event]) -> str:
    tag = event.__struct_config__.tag
    assert isinstance(tag, str)
    return tag


def encode_data(event: Event, cipher: Cipher | None = None) -> msgspec.Raw:
    """The event as it is stored: personal fields sealed, all others in clear. ``cipher`` is the tenant's, and needed
    only where there are personal fields.
    """
    kind = type(event)
    if kind not in _PERSONAL:
        return msgspec.Raw(_encoder.encode(event))
    tag = event_type(event)
    assert cipher is not None, f"{tag} has personal fields: it is written with its tenant's cipher"
    plain: dict[str, Any] = msgspec.to_builtins(event, builtin_types=(bytes,))
    for name in _PERSONAL[kind] & plain.keys():  # a default may be left out
        plain[name] = seal_value(cipher, f"{tag}.{name}", plain[name])
    return msgspec.Raw(_encoder.encode(plain))


def encode_record(record: Record) -> bytes:
    return _encoder.encode(record)


def decode_record(record: bytes) -> Record:
    try:
        return _record_decoder.decode(record)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise IntegrityError(f"not an event record: {error}") from error


def decode_event(data: bytes | msgspec.Raw, cipher: Cipher | None = None) -> DomainEvent:
    """The event in its newest shape. ``cipher`` is the tenant's, and needed only where fields are sealed; an erased
    tenant's opens nothing, and the fields hold placeholders.

    Raises:
        UnknownEventError: The tag is neither current nor known to an upcaster.
        KeyUnreadableError: A field is sealed under another key.
        IntegrityError: The bytes are not an event at all.
    """
    try:
        return _event_decoder.decode(data)  # fails for events with sealed fields, too: rare, and hot ones pay nothing
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _decode_slowly(data, cipher, error)


def open_record(record: bytes, cipher: Cipher | None = None) -> OpenRecord:
    """``decode_record`` and ``decode_event`` in one pass over the bytes. Errors as theirs."""
    try:
        return _open_decoder.decode(record)  # fails where ``decode_event``'s quick way fails, and for no more
    except (msgspec.DecodeError, UnicodeDecodeError):
        read = decode_record(record)
        return OpenRecord(
            read.stream,
            read.version,
            read.time_us,
            read.command_id,
            read.actor,
            read.correlation_id,
            read.causation_id,
            read.epoch,
            decode_event(read.data, cipher),
        )


def decode_plain(data: bytes | msgspec.Raw, cipher: Cipher | None = None) -> dict[str, Any]:
    """The event as it was written, whatever its version: plain data, sealed fields opened. Errors as ``decode_event``."""
    try:
        plain = msgspec.msgpack.decode(data)
        tag = plain["type"]
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise IntegrityError(f"not an event: {error}") from error
    for name, value in plain.items():
        if is_sealed(value):
            assert cipher is not None, f"{tag} has sealed fields: it is read with its tenant's cipher"
            plain[name] = open_value(cipher, f"{tag}.{name}", value)
    opened: dict[str, Any] = plain
    return opened


def _decode_slowly(data: bytes | msgspec.Raw, cipher: Cipher | None, cause: Exception) -> DomainEvent:
    """Open what is sealed, then lift the shape, step by step, to the newest."""
    plain = decode_plain(data, cipher)
    tag = plain["type"]
    while tag in UPCASTERS:
        tag, upcast = UPCASTERS[tag]
        plain = {**upcast(plain), "type": tag}
    if tag not in CURRENT_TAGS:
        raise UnknownEventError(str(tag)) from cause
    try:
        return _event_decoder.decode(_encoder.encode(plain))  # a tenth of what msgspec.convert takes
    except msgspec.ValidationError as error:
        raise IntegrityError(f"event {tag!r} does not have its shape: {error}") from error


CURRENT_TAGS: frozenset[str] = frozenset(event_type(kind) for kind in DomainEvent.__args__)
# by kind of event, for those that have any; a field that could not be erased is found at import
_PERSONAL = {kind: frozenset(fields) for kind in DomainEvent.__args__ if (fields := personal_fields(kind))}


def next_hash(previous: bytes, record: bytes) -> bytes:
    return sha256(previous + record).digest()


def check_chain(tenant: str, previous: bytes, first_position: int, events: Sequence[StoredEvent]) -> bytes:
    """The hash of the last event. Raises ChainBrokenError at the first that does not follow."""
    for expected, event in enumerate(events, first_position):
        if event.position != expected:
            raise ChainBrokenError(tenant, expected, f"missing; the next event has position {event.position}")
        previous = next_hash(previous, event.record)
        if event.hash != previous:
            raise ChainBrokenError(tenant, expected, "its hash does not follow from its bytes and the hash before")
    return previous


def chain(previous: bytes, records: Iterable[Record]) -> list[Entry]:
    """Entries for records that follow an event whose hash is ``previous``."""
    entries = []
    for record in records:
        written = encode_record(record)
        previous = next_hash(previous, written)
        entries.append(Entry(written, previous, record.stream, record.version))
    return entries
