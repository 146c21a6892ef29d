"""What happened during a fault test, line by line, as clients and observers saw it: the checker's only input.

A file of JSON lines. An operation is invoked and ends as ``ok`` (done), ``fail`` (surely not done) or ``info`` (nobody
knows; a time-out is never a failure). Times are ``time.monotonic_ns`` of one machine.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from events.codec import decode_record
from events.errors import PlatformError

_SHOWN_CHARS_MAX = 240

Kind = Literal["ok", "fail", "info"]


class Invoked(msgspec.Struct, frozen=True, tag="invoke"):
    """``body`` tells commands apart that share an id; a read has ``writes`` false."""

    at_ns: int
    operation: int
    client: str
    tenant: str
    command: str
    command_id: str
    body: str
    writes: bool = True


class Ended(msgspec.Struct, frozen=True, tag="end"):
    """``position`` and ``result`` belong to ``ok``, ``code`` to the two others."""

    at_ns: int
    operation: int
    kind: Kind
    position: int = 0
    result: Any = None
    code: str = ""


class Claimed(msgspec.Struct, frozen=True, tag="claim"):
    """A process was given an epoch of a tenant."""

    at_ns: int
    process: int
    tenant: str
    epoch: int


class Seen(msgspec.Struct, frozen=True, tag="seen"):
    """Somebody looked at the end of a tenant's log while the test went on."""

    at_ns: int
    tenant: str
    position: int
    hash: bytes


class Fault(msgspec.Struct, frozen=True, tag="fault"):
    at_ns: int
    what: str


class Logged(msgspec.Struct, frozen=True, tag="log"):
    """An event of the final log."""

    tenant: str
    position: int
    record: bytes
    hash: bytes


class Final(msgspec.Struct, frozen=True, tag="final"):
    """What the store says of the tenant after everything has healed."""

    tenant: str
    position: int
    hash: bytes
    status: str


class Folded(msgspec.Struct, frozen=True, tag="fold"):
    """The final log folded up to a position, asked the same question as clients asked."""

    tenant: str
    position: int
    result: Any


class Projected(msgspec.Struct, frozen=True, tag="projected"):
    """A read model after its last event: what it says, and what the log says it must."""

    tenant: str
    checkpoint: int
    found: dict[str, int]
    expected: dict[str, int]


class Answered(msgspec.Struct, frozen=True, tag="answered"):
    """A client of the gateway has its model's answer, whole: the call is booked."""

    at_ns: int
    tenant: str
    call: str


class Quiet(msgspec.Struct, frozen=True, tag="quiet"):
    """Nobody calls a model any more, and every timer of the tenant has fired: no call is open."""

    tenant: str


Line = Invoked | Ended | Claimed | Seen | Fault | Logged | Final | Folded | Projected | Answered | Quiet
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Line).decode


class Recorder:
    """Collects lines in the order in which they were reported."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._operations = 0

    def invoke(self, client: str, tenant: str, command: str, command_id: str, body: str, *, writes: bool) -> int:
        self._operations += 1
        now_ns = time.monotonic_ns()
        self.lines.append(Invoked(now_ns, self._operations, client, tenant, command, command_id, body, writes))
        return self._operations

    def end(self, operation: int, kind: Kind, *, position: int = 0, result: Any = None, code: str = "") -> None:
        self.lines.append(Ended(time.monotonic_ns(), operation, kind, position, result, code))

    def add(self, *lines: Line) -> None:
        self.lines += lines


def write_history(path: Path, lines: Iterable[Line]) -> None:
    path.write_bytes(b"".join(_encode(line) + b"\n" for line in lines))


def read_history(path: Path) -> Sequence[Line]:
    return [_decode(line) for line in path.read_bytes().splitlines() if line]


def shown(line: Line) -> str:
    """One line for people."""
    if isinstance(line, Logged):
        try:
            record = decode_record(line.record)
            event = msgspec.msgpack.decode(record.data)
        except (PlatformError, msgspec.DecodeError):
            return f"log {line.position}: not a record"
        return f"log {line.position}: epoch={record.epoch} command={record.command_id} {event}"
    text = _encode(line).decode()
    return text if len(text) <= _SHOWN_CHARS_MAX else text[: _SHOWN_CHARS_MAX - 1] + "…"
