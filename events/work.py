"""Steps on their way to runners: a JetStream work queue.

Subjects: ``work.<kind>.<tenant>.<attempt>``, one per attempt of a step, and at most one message per subject: as long as an
attempt waits or runs, handing it out again changes nothing, for however long that is.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress

import msgspec
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError

from events.bus import Bus, NoOneListensError
from events.errors import BusUnavailableError
from events.pull import BrokenPullError, Delivery, Puller
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


class _PutError(msgspec.Struct, frozen=True):
    err_code: int = 0
    description: str = ""


class _PutAnswer(msgspec.Struct, frozen=True):
    """What JetStream says of a message: where it is, or why it is not."""

    error: _PutError | None = None


_decode_put_answer = msgspec.json.Decoder(_PutAnswer).decode


class Taken:
    """A message that is ours until it is acknowledged, or until ``ACK_WAIT_S`` after the last ``hold``. What is said about it is
    best effort: where it gets lost, the message comes again, and whoever gets it finds that the step is finished.
    """

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self.message: Message = _decode(delivery.data)
        self.is_redelivered = delivery.delivered > 1

    def done(self) -> None:
        with suppress(BusUnavailableError):
            self._delivery.acknowledge()

    def hold(self) -> None:
        with suppress(BusUnavailableError):
            self._delivery.keep()

    def give_back(self, delay_s: float) -> None:
        with suppress(BusUnavailableError):
            self._delivery.give_back(delay_s)


class WorkQueue:
    """Every method raises BusUnavailableError where the broker does not answer or can't do it now."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._jetstream: JetStreamContext = bus.jetstream()
        self._puller: Puller | None = None

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
            answer = _decode_put_answer(await self._bus.request(subject, _encode(message), _TIMEOUT_S))
        except NoOneListensError as error:
            raise BusUnavailableError("the work queue is not there") from error
        except (TimeoutError, msgspec.DecodeError) as error:
            raise BusUnavailableError(f"{type(error).__name__}: {error}") from error
        if answer.error is not None and answer.error.err_code != _SUBJECT_IS_TAKEN:
            raise BusUnavailableError(answer.error.description)

    async def pull(self, take: Callable[[Taken], None], room: Callable[[], int]) -> None:
        """Until cancelled: hand each message to ``take`` as it comes, never more than there is ``room`` for; ``look`` says that
        there is room again. Several may pull: each message goes to one of them.
        """
        self._puller = Puller(self._bus, STREAM, CONSUMER, lambda found: take(Taken(found)), room, is_shared=True)
        try:
            await self._puller.run()
        except (BrokenPullError, NatsError, OSError) as error:
            raise BusUnavailableError(f"{type(error).__name__}: {error}") from error

    def look(self) -> None:
        if self._puller is not None:
            self._puller.look()

    async def count(self, tenant: str) -> int:
        """How many steps of a tenant wait or are in a runner's hands."""
        return await count_messages(self._jetstream, STREAM, f"work.*.{tenant}.*")

    async def purge(self, tenant: str) -> None:
        """Drop all that waits of a tenant that is being erased."""
        await purge_messages(self._jetstream, STREAM, f"work.*.{tenant}.*")
