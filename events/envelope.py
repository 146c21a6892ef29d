"""What travels: commands to a tenant, replies from it. MessagePack on the wire."""

from typing import Any

import msgspec

from events.errors import PlatformError, Refusal


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """A command on its way to a tenant.

    ``command_id`` makes a repeat harmless: the log remembers the reply to an id for 48 h. ``deadline_us`` is wall-clock
    time, UTC; a command found later than that in a mailbox is dropped unread. ``body`` is the tagged command.
    ``is_keyed``: the id stands for a client's Idempotency-Key, so the answer is kept even where nothing had to be done.
    """

    command_id: str
    tenant: str
    actor: str
    deadline_us: int
    correlation_id: str
    causation_id: str
    body: msgspec.Raw
    trace: str = ""  # W3C's traceparent of whoever asks, where it is traced
    is_keyed: bool = False


class Batch(msgspec.Struct, frozen=True, array_like=True, tag="batch"):
    """Encoded envelopes for one tenant that are to be decided in this order, as one message. It is answered by one message,
    an array of encoded replies in the same order; where a reply is missing, there is no answer at all.
    """

    envelopes: list[bytes]


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
DEFECT = "internal_error"  # the code of a command whose deciding raised what nobody expected

_encoder = msgspec.msgpack.Encoder()
_reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)


_batch_decoder = msgspec.msgpack.Decoder(Batch)
_replies_decoder = msgspec.msgpack.Decoder(list[bytes])
_BATCH_START = _encoder.encode(Batch([]))[:-1]  # an envelope begins otherwise


def is_batch(data: bytes) -> bool:
    return data.startswith(_BATCH_START)


def decode_batch(data: bytes) -> Batch:
    """Raises msgspec.DecodeError (or ValidationError) where the bytes are not a batch."""
    return _batch_decoder.decode(data)


def decode_replies(data: bytes) -> list[Reply]:
    return [decode_reply(reply) for reply in _replies_decoder.decode(data)]


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
