"""Steps on their way to runners: a JetStream work queue.

Subjects: ``work.<kind>.<tenant>.<attempt>``, one per attempt of a step, and at most one message per subject: as long as an
attempt waits or runs, handing it out again changes nothing, for however long that is.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, BadRequestError, NotFoundError

from events.bus import Bus
from events.errors import BusUnavailableError
from events.run import StepOrder
from events.streams import count_messages, purge_messages

STREAM, CONSUMER = "WORK", "runners"
# What a dead runner had in hand comes again after that; a live one says three times as often that it is at it.
ACK_WAIT_S = 10.0
_ACK_PENDING_MAX = 65_536
_STREAM_BYTES_MAX = 1024 * 2**20
_SUBJECT_IS_TAKEN = 10_077
_TIMEOUT_S = 5.0


class WorkItem(msgspec.Struct, frozen=True, array_like=True):
    """One attempt of a step. ``idempotency_key`` is the same for all attempts; ``again``: it may have been handed out
    before, so a runner asks the tenant first whether it is still wanted.
    """

    tenant: str
    run_id: str
    saga: str
    version: int
    order: StepOrder
    args: bytes
    attempt: int
    idempotency_key: str
    key_id: str = ""
    tags: dict[str, str] = {}
    again: bool = False


class Message(msgspec.Struct, frozen=True, array_like=True):
    """What lies in the queue: who it is for and how urgent it is in clear, all else as the tenant's actor sealed it."""

    tenant: str
    weight: float
    priority: int
    body: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


def work_subject(tenant: str, item: WorkItem) -> str:
    attempt = hashlib.sha256(f"{item.run_id}\x00{item.order.step}\x00{item.attempt}".encode()).hexdigest()[:24]
    return f"work.{item.order.kind}.{tenant}.{attempt}"


class Taken:
    """A message that is ours until it is acknowledged, or until ``ACK_WAIT_S`` after the last ``hold``."""

    def __init__(self, raw: Msg) -> None:
        self._raw = raw
        self.message: Message = _decode(raw.data)
        self.is_redelivered = raw.metadata.num_delivered > 1

    async def done(self) -> None:
        await _quietly(self._raw.ack())

    async def hold(self) -> None:
        await _quietly(self._raw.in_progress())

    async def give_back(self, delay_s: float) -> None:
        await _quietly(self._raw.nak(delay=delay_s))


async def _quietly(call: Any) -> None:
    """A lost acknowledgement means a redelivery, which finds that the step is finished."""
    try:
        await call
    except (NatsError, OSError):
        return


class WorkQueue:
    """Every method raises BusUnavailableError where the broker does not answer or can't do it now."""

    def __init__(self, bus: Bus) -> None:
        self._jetstream: JetStreamContext = bus.jetstream()
        self._pulling: JetStreamContext.PullSubscription | None = None

    async def prepare(self) -> None:
        """Make the stream and its consumer, or give them today's configuration. Safe to repeat, and by several at once."""
        stream = StreamConfig(
            name=STREAM,
            subjects=["work.*.*.*"],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            discard_new_per_subject=True,
            max_msgs_per_subject=1,
            max_bytes=_STREAM_BYTES_MAX,
        )
        consumer = ConsumerConfig(
            name=CONSUMER,
            durable_name=CONSUMER,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_S,
            max_ack_pending=_ACK_PENDING_MAX,
            max_deliver=-1,
        )
        try:
            try:
                await self._jetstream.add_stream(stream)
            except BadRequestError:  # it is there with other settings
                await self._jetstream.update_stream(stream)
            await self._jetstream.add_consumer(STREAM, consumer)
        except (NatsError, OSError, TimeoutError) as error:
            raise BusUnavailableError(f"{type(error).__name__}: {error}") from error

    async def put(self, subject: str, message: Message) -> None:
        """Returns when it is in the queue, or was already."""
        try:
            await self._jetstream.publish(subject, _encode(message), timeout=_TIMEOUT_S)
        except APIError as error:
            if error.err_code != _SUBJECT_IS_TAKEN:
                raise BusUnavailableError(str(error)) from error
        except (NatsError, OSError, TimeoutError) as error:
            raise BusUnavailableError(f"{type(error).__name__}: {error}") from error

    async def take(self, count: int, wait_s: float) -> Sequence[Taken]:
        """Up to ``count`` messages, as soon as there is one; none after ``wait_s``."""
        try:
            if self._pulling is None:
                self._pulling = await self._jetstream.pull_subscribe_bind(CONSUMER, STREAM)
            return [Taken(raw) for raw in await self._pulling.fetch(count, timeout=wait_s)]
        except (TimeoutError, NatsTimeoutError):
            return []
        except NotFoundError as error:
            self._pulling = None
            raise BusUnavailableError("the work queue is not there") from error
        except (NatsError, OSError) as error:
            raise BusUnavailableError(f"{type(error).__name__}: {error}") from error

    async def count(self, tenant: str) -> int:
        """How many steps of a tenant wait or are in a runner's hands."""
        return await count_messages(self._jetstream, STREAM, f"work.*.{tenant}.*")

    async def purge(self, tenant: str) -> None:
        """Drop all that waits of a tenant that is being erased."""
        await purge_messages(self._jetstream, STREAM, f"work.*.{tenant}.*")
