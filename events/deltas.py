"""What a model step has written so far, for whoever watches its run while it writes.

The broker keeps it for an hour in memory, sealed under the tenant's key and bounded in bytes: so a watcher that comes back
gets the rest from here, and never from a second call of the model. The finished text is in the tenant's log; losing this
(a broker that restarts, a flood) loses a view and no result, which is why it costs no disk.

Subjects: ``delta.<tenant>.<hash of the run's id>``. A run's deltas are in the order in which they were written.
"""

import hashlib
import time
import uuid

import msgspec
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError, NoStreamResponseError, NotFoundError

from events.bus import Bus, Handler, Subscription, live_subject
from events.errors import BusUnavailableError
from events.sealing import Cipher, open_bytes, seal_bytes
from events.streams import count_messages, purge_messages

STREAM = "DELTAS"
KEPT_S = 3600.0
_STREAM_BYTES_MAX = 128 * 2**20
_READ_MAX = 500
_SEALED_AS = "delta"
_TIMEOUT_S = 5.0


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """``text`` continues what ``call`` has written for the step; ``offset`` counts the characters before it. A step that is
    tried again, or whose runner died, begins anew at offset 0 under another ``call``.
    """

    step: str
    attempt: int
    call: str
    offset: int
    text: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Delta).decode


def _subject(tenant: str, run_id: str) -> str:
    return f"delta.{tenant}.{_digest(run_id)}"


def _hint_subject(tenant: str, run_id: str) -> str:
    """Apart from what is kept: where watchers listened there, a publish without a stream would wait for an acknowledgement
    instead of failing at once.
    """
    return live_subject(tenant, f"delta-{_digest(run_id)}")


def _digest(run_id: str) -> str:
    return hashlib.sha256(run_id.encode()).hexdigest()[:24]


class Deltas:
    """Every method raises BusUnavailableError where the broker does not answer."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._jetstream: JetStreamContext = bus.jetstream()

    @staticmethod
    def new_call() -> str:
        """A name for what one call writes."""
        return uuid.uuid4().hex

    async def prepare(self) -> None:
        """Make the stream. Safe to repeat, and by several at once."""
        config = StreamConfig(
            name=STREAM,
            subjects=["delta.*.*"],
            storage=StorageType.MEMORY,
            discard=DiscardPolicy.OLD,
            max_age=KEPT_S,
            max_bytes=_STREAM_BYTES_MAX,
            allow_direct=True,
            # so that numbers grow across restarts of the broker, which forgets the stream: watchers come back with them
            first_seq=int(time.time() * 1e3),
        )
        try:
            await self._jetstream.add_stream(config)
        except BadRequestError:
            return  # it is there, with its own first number
        except (NatsError, OSError, TimeoutError) as error:
            raise BusUnavailableError(f"{type(error).__name__}: {error}") from error

    async def put(self, tenant: str, run_id: str, delta: Delta, cipher: Cipher) -> None:
        """Returns when it can be read."""
        body = seal_bytes(cipher, _SEALED_AS, _encode(delta))
        try:
            try:
                await self._jetstream.publish(_subject(tenant, run_id), body, timeout=_TIMEOUT_S)
            except NoStreamResponseError:
                await self.prepare()
                await self._jetstream.publish(_subject(tenant, run_id), body, timeout=_TIMEOUT_S)
            self._bus.publish(_hint_subject(tenant, run_id), b"")
        except (NatsError, OSError, TimeoutError) as error:
            raise BusUnavailableError(f"{type(error).__name__}: {error}") from error

    async def after(self, tenant: str, run_id: str, cursor: int, cipher: Cipher) -> list[tuple[int, Delta]]:
        """What was written after the cursor (0: all that is kept), each with the cursor that is behind it."""
        found: list[tuple[int, Delta]] = []
        try:
            while len(found) < _READ_MAX:
                raw = await self._jetstream.get_msg(
                    STREAM, seq=cursor + 1, subject=_subject(tenant, run_id), direct=True, next=True
                )
                assert raw.seq is not None
                cursor = raw.seq
                body = open_bytes(cipher, _SEALED_AS, raw.data or b"")
                if body is not None:  # else its tenant was erased
                    found.append((cursor, _decode(body)))
        except (NotFoundError, NoRespondersError):
            return found
        except (NatsError, OSError, TimeoutError) as error:
            raise BusUnavailableError(f"{type(error).__name__}: {error}") from error
        return found

    async def watch(self, tenant: str, run_id: str, handler: Handler) -> Subscription:
        """Call the handler whenever there is more (a hint, which can get lost)."""
        return await self._bus.subscribe(_hint_subject(tenant, run_id), handler)

    async def count(self, tenant: str) -> int:
        return await count_messages(self._jetstream, STREAM, f"delta.{tenant}.*")

    async def purge(self, tenant: str) -> None:
        """Drop all of a tenant that is being erased."""
        await purge_messages(self._jetstream, STREAM, f"delta.{tenant}.*")
