"""How an event is written down, and the hash chain that makes the log tamper-evident.

A log entry is two byte strings: the record (MessagePack) and its hash, ``SHA-256(previous hash || record)``. The hash
covers the stored bytes themselves, so a log can be verified without knowing what its events mean.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from events.catalog import DomainEvent
from events.errors import IntegrityError, UnknownEventError
from events.messages import Event

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
_event_decoder: msgspec.msgpack.Decoder[DomainEvent] = msgspec.msgpack.Decoder(DomainEvent)


def event_type(event: Event) -> str:
    tag = event.__struct_config__.tag
    assert isinstance(tag, str)
    return tag


def encode_data(event: Event) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(event))


def encode_record(record: Record) -> bytes:
    return _encoder.encode(record)


def decode_record(record: bytes) -> Record:
    try:
        return _record_decoder.decode(record)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise IntegrityError(f"not an event record: {error}") from error


def decode_event(data: bytes | msgspec.Raw) -> DomainEvent:
    """The event in its newest shape.

    Raises:
        UnknownEventError: The tag is neither current nor known to an upcaster.
        IntegrityError: The bytes are not an event at all.
    """
    try:
        return _event_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _decode_old_event(data, error)


def _decode_old_event(data: bytes | msgspec.Raw, cause: Exception) -> DomainEvent:
    try:
        plain = msgspec.msgpack.decode(data)
        tag = plain["type"]
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise IntegrityError(f"not an event: {error}") from error
    if tag not in UPCASTERS:
        if tag in _CURRENT_TAGS:
            raise IntegrityError(f"event {tag!r} does not have its shape: {cause}") from cause
        raise UnknownEventError(str(tag)) from cause
    while tag in UPCASTERS:
        tag, upcast = UPCASTERS[tag]
        plain = {**upcast(plain), "type": tag}
    event: DomainEvent = msgspec.convert(plain, DomainEvent)
    return event


_CURRENT_TAGS = {kind.__struct_config__.tag for kind in DomainEvent.__args__}


def next_hash(previous: bytes, record: bytes) -> bytes:
    return hashlib.sha256(previous + record).digest()


def chain(previous: bytes, records: Iterable[Record]) -> list[Entry]:
    """Entries for records that follow an event whose hash is ``previous``."""
    entries = []
    for record in records:
        written = encode_record(record)
        previous = next_hash(previous, written)
        entries.append(Entry(written, previous, record.stream, record.version))
    return entries
