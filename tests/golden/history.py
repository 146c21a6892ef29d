"""A recorded log as a file: what it looks like, and how it is folded."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from actors.aggregate import State, evolve
from events.catalog import DomainEvent
from events.codec import Entry, decode_event, decode_plain, decode_record
from events.sealing import Cipher, MissingCipher, TenantCipher

DIRECTORY = Path(__file__).parent


class Header(msgspec.Struct, frozen=True):
    """``key`` is the tenant's, in hex: made for this file, it opens nothing else. Empty: nothing is sealed."""

    release: str
    tenant: str
    key: str


class Line(msgspec.Struct, frozen=True):
    """An event: its stored bytes in base64, its hash in hex, and which places of the summary it ``sets`` and ``drops``."""

    position: int
    type: str
    record: str
    hash: str
    sets: dict[str, Any]
    drops: list[str]

    @property
    def entry(self) -> Entry:
        raw = base64.b64decode(self.record)
        record = decode_record(raw)
        return Entry(raw, bytes.fromhex(self.hash), record.stream, record.version)


class History(msgspec.Struct, frozen=True):
    header: Header
    lines: Sequence[Line]

    @property
    def cipher(self) -> Cipher:
        key = bytes.fromhex(self.header.key)
        return TenantCipher(self.header.tenant, key) if key else MissingCipher(self.header.tenant)

    def plain(self) -> list[dict[str, Any]]:
        """Each event as it was written, sealed fields opened."""
        return [decode_plain(decode_record(line.entry.record).data, self.cipher) for line in self.lines]


def read(path: Path) -> History:
    first, *rest = path.read_bytes().splitlines()
    return History(msgspec.json.decode(first, type=Header), [msgspec.json.decode(line, type=Line) for line in rest])


def write(path: Path, history: History) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.Encoder(order="sorted").encode_lines([history.header, *history.lines]))


def folded(events: Sequence[DomainEvent]) -> Iterator[dict[str, Any]]:
    """The summary after each event."""
    state = State()
    for event in events:
        state = evolve(state, event)
        yield summary(state)


def events_of(entries: Sequence[Entry], cipher: Cipher) -> list[DomainEvent]:
    return [decode_event(decode_record(entry.record).data, cipher) for entry in entries]


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What an event sets and drops."""
    sets = {place: value for place, value in after.items() if place not in before or before[place] != value}
    return sets, sorted(before.keys() - after.keys())


def summary(state: State) -> dict[str, Any]:
    """A state as plain data, by place (``tenant/keys/k1/name``). What has its default is left out, so that a field which
    a later release adds changes no recorded summary as long as old events say nothing about it.
    """
    found: dict[str, Any] = {}
    for name, value in _plain(state).items():
        _flatten(name, value, found)
    return found


def _flatten(place: str, plain: Any, found: dict[str, Any]) -> None:
    if isinstance(plain, dict) and plain:
        for name, value in plain.items():
            _flatten(f"{place}/{name}", value, found)
    else:
        assert place not in found, f"two places are written {place}"
        found[place] = plain


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {name: _plain(held) for name, held, default in _fields(value) if held != default}
    if isinstance(value, Mapping):
        return {_name(key): _plain(held) for key, held in value.items()}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value))
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _fields(value: msgspec.Struct) -> Iterator[tuple[str, Any, Any]]:
    """Name, value, default of each field."""
    for field in msgspec.structs.fields(value):
        made = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        yield field.name, getattr(value, field.name), made


def _name(key: Any) -> str:
    return "@".join(key) if isinstance(key, tuple) else str(key)
