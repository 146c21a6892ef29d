"""What travels: commands to a tenant, replies from it. MessagePack on the wire."""

from typing import Any

import msgspec

from events.errors import PlatformError, Refusal


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """A command on its way to a tenant.

    ``command_id`` makes a repeat harmless: the log remembers the reply to an id for 48 h. ``deadline_us`` is wall-clock
    time, UTC; a command found later than that in a mailbox is dropped unread. ``body`` is the tagged command.
    """

    command_id: str
    tenant: str
    actor: str
    deadline_us: int
    correlation_id: str
    causation_id: str
    body: msgspec.Raw


class Ok(msgspec.Struct, frozen=True, array_like=True, tag="ok"):
    """The command's events are durable up to ``position``; ``result`` is plain data."""

    result: Any
    position: int


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """Nothing was written; the caller has to change something or wait."""

    code: str
    message: str
    retry_after_s: float | None = None


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """Nothing was written, and it was not the caller's fault."""

    code: str
    message: str


MOVED = "moved"
# From an actor that does not, or no longer, own the tenant, for what it had not begun: ask again at once. Another
# actor may have heard the same command, so this says nothing of what becomes of it there.
moved_reply = Failed(MOVED, "the tenant is served elsewhere now: ask again")

Reply = Ok | Refused | Failed

_encoder = msgspec.msgpack.Encoder()
_reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)


def encode(value: object) -> bytes:
    return _encoder.encode(value)


def decode_envelope(data: bytes) -> Envelope:
    """Raises msgspec.DecodeError (or ValidationError) where the bytes are not an envelope."""
    return _envelope_decoder.decode(data)


def decode_reply(data: bytes) -> Reply:
    return _reply_decoder.decode(data)


def reply_for(error: PlatformError) -> Refused | Failed:
    if isinstance(error, Refusal):
        return Refused(error.code, str(error), error.retry_after_s)
    return Failed(error.code, str(error))
