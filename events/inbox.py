"""The tenants' inbox: a JetStream work queue of commands that nobody waits for, and the stream of those that failed for good.

Subjects: ``tell.<slice>.<tenant>`` (work queue: a message is gone once its relay has acknowledged it) and
``dead.<slice>.<tenant>.<id>`` (kept for ``DEAD_LETTER_DAYS``; one message per subject, so a letter that is written twice
is still there once). A tenant's full queue refuses that tenant alone: the limit is per subject.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import msgspec
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    ConsumerInfo,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import APIError, BadRequestError, NotFoundError

from events.bus import Bus
from events.errors import BusUnavailableError, QueueFullError, TooLargeError
from events.slices import SLICE_COUNT, slice_of

TELL_STREAM, DEAD_STREAM = "TELL", "DEAD"
QUEUE_MAX = 10_000  # per tenant
MESSAGE_BYTES_MAX = 256 * 1024
COMMAND_AGE_MAX_S = 24 * 3600  # less than the 48 h for which a reply is remembered: no duplicate outlives its record
DEAD_LETTER_DAYS = 30
COMMAND_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")  # a part of subjects
_DUPLICATE_WINDOW_S = 120.0  # the first line only; the log's own record of command ids is the one that counts
_STREAM_BYTES_MAX = 512 * 2**20
ACK_WAIT_S = 30.0
ACK_PENDING_MAX = 65_536  # more than all tenants together hold back: at this number the server would fall silent
_FULL_SUBJECT, _FULL_STREAM = 10_077, (10_047, 10_023, 10_167)
_NOT_UNIQUE = 10_100

Result = TypeVar("Result")


def tell_subject(tenant: str) -> str:
    return f"tell.{slice_of(tenant):03d}.{tenant}"


def dead_subject(tenant: str, letter_id: str) -> str:
    return f"dead.{slice_of(tenant):03d}.{tenant}.{letter_id}"


def tenant_of(subject: str) -> str:
    """The tenant of a ``tell`` or ``dead`` subject."""
    return subject.split(".")[2]


class Stored(msgspec.Struct, frozen=True):
    """The server's word that a message is on its disk; ``repeated``: the same message was there before."""

    sequence: int
    repeated: bool


class ConsumerLostError(Exception):
    """The relay's consumer is not there any more."""


class Inbox:
    """The streams and their consumers. Errors of nats-py end here: what rises is the platform's.

    Every method raises BusUnavailableError where the broker does not answer or can't do it now.
    """

    def __init__(self, bus: Bus, queue_max: int = QUEUE_MAX) -> None:
        self.bus, self._queue_max = bus, queue_max
        self._jetstream = bus.jetstream()

    async def prepare(self) -> None:
        """Make the streams, or give them today's configuration. Safe to repeat, and by several at once."""
        for config in (self._tell_config(), _DEAD_CONFIG):
            try:
                await self._call(lambda config=config: self._jetstream.add_stream(config))  # type: ignore[misc]
            except BadRequestError:  # it is there with other settings
                await self._call(lambda config=config: self._jetstream.update_stream(config))  # type: ignore[misc]

    def _tell_config(self) -> StreamConfig:
        return StreamConfig(
            name=TELL_STREAM,
            subjects=["tell.*.*"],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,  # the default would throw away what waits longest
            discard_new_per_subject=True,
            max_msgs_per_subject=self._queue_max,
            max_bytes=_STREAM_BYTES_MAX,
            max_msg_size=MESSAGE_BYTES_MAX,
            duplicate_window=_DUPLICATE_WINDOW_S,
        )

    async def put(
        self, subject: str, data: bytes, message_id: str, headers: Mapping[str, str], timeout_s: float
    ) -> Stored:
        """Returns when the message is on disk.

        Raises:
            QueueFullError: The subject holds as many as it may; the message was not taken.
            TooLargeError: The message alone is too large.
            TimeoutError: Nobody knows; repeat it with the same ``message_id``.
        """
        if len(data) > MESSAGE_BYTES_MAX:
            raise TooLargeError("a command in bytes", len(data), MESSAGE_BYTES_MAX)
        try:
            found = await self._jetstream.publish(
                subject, data, timeout=timeout_s, headers={**headers, "Nats-Msg-Id": message_id}
            )
        except NatsTimeoutError as error:
            raise TimeoutError(subject) from error
        except APIError as error:
            if error.err_code == _FULL_SUBJECT:
                raise QueueFullError(tenant_of(subject), self._queue_max) from error
            if error.err_code in _FULL_STREAM:
                raise BusUnavailableError(f"the platform's queue is full: {error.description}") from error
            raise BusUnavailableError(str(error)) from error
        except (NatsError, OSError) as error:  # among them: no such stream, until a relay has made it
            raise BusUnavailableError(f"{type(error).__name__}: {error}") from error
        return Stored(found.seq, bool(found.duplicate))

    async def is_queued(self, sequence: int, subject: str) -> bool:
        """Does the message with that number still wait in the queue of that subject?"""
        try:
            message = await self._call(lambda: self._jetstream.get_msg(TELL_STREAM, seq=sequence))
        except NotFoundError:
            return False
        return message.subject == subject

    async def purge(self, tenant: str) -> None:
        """Drop all that waits or failed of a tenant that is being erased."""
        for stream, subject in ((TELL_STREAM, tell_subject(tenant)), (DEAD_STREAM, dead_subject(tenant, "*"))):
            try:
                await self._call(lambda s=stream, f=subject: self._jetstream.purge_stream(s, subject=f))  # type: ignore[misc]
            except NotFoundError:
                continue

    async def left(self, tenant: str) -> tuple[int, int]:
        """How many commands of the tenant are queued, and how many dead letters it has."""
        counts = []
        for stream, subject in ((TELL_STREAM, tell_subject(tenant)), (DEAD_STREAM, dead_subject(tenant, "*"))):
            try:
                info = await self._call(lambda s=stream, f=subject: self._jetstream.stream_info(s, subjects_filter=f))  # type: ignore[misc]
            except NotFoundError:
                counts.append(0)
            else:
                counts.append(sum((info.state.subjects or {}).values()))
        return counts[0], counts[1]

    async def counts(self) -> tuple[int, int]:
        """How many commands of all tenants are queued, and how many dead letters there are. Zero where nothing ever was."""
        counts = []
        for stream in (TELL_STREAM, DEAD_STREAM):
            try:
                counts.append((await self._call(lambda s=stream: self._jetstream.stream_info(s))).state.messages)  # type: ignore[misc]
            except NotFoundError:
                counts.append(0)
        return counts[0], counts[1]

    async def consumers_of(self, slices: range) -> list[ConsumerInfo]:
        """Consumers that serve any of these slices. Empty where there is no stream."""
        try:
            found = await self._call(lambda: self._jetstream.consumers_info(TELL_STREAM))
        except NotFoundError:
            return []
        return [info for info in found if slices_of(info) & set(slices)]

    async def create_consumer(self, name: str, slices: range) -> bool:
        """False: another consumer serves some of these slices. The server allows one per message, and so is the judge."""
        config = ConsumerConfig(
            name=name,
            durable_name=name,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_S,
            max_ack_pending=ACK_PENDING_MAX,
            max_deliver=-1,
            **_filter(slices),
        )
        try:
            await self._call(lambda: self._jetstream.add_consumer(TELL_STREAM, config))
        except BadRequestError as error:
            if error.err_code != _NOT_UNIQUE:
                raise BusUnavailableError(str(error)) from error
            return False
        return True

    async def consumer(self, name: str) -> ConsumerInfo:
        """Raises ConsumerLostError where there is none of that name."""
        try:
            return await self._call(lambda: self._jetstream.consumer_info(TELL_STREAM, name))
        except NotFoundError as error:
            raise ConsumerLostError(name) from error

    async def delete_consumer(self, name: str) -> None:
        try:
            await self._call(lambda: self._jetstream.delete_consumer(TELL_STREAM, name))
        except NotFoundError:
            return

    async def dead_message(self, *, after: int = 0, subject: str = "dead.>") -> "RawMessage | None":
        """The next dead letter after a number whose subject matches."""
        try:
            found = await self._call(
                lambda: self._jetstream.get_msg(DEAD_STREAM, seq=after + 1, subject=subject, next=True)
            )
        except NotFoundError:
            return None
        assert found.seq is not None
        return RawMessage(found.seq, found.subject or "", found.data or b"", dict(found.headers or {}))

    async def delete_dead(self, sequence: int) -> None:
        try:
            await self._call(lambda: self._jetstream.delete_msg(DEAD_STREAM, sequence))
        except (NotFoundError, BadRequestError):  # gone already
            return

    async def _call(self, request: Callable[[], Awaitable[Result]]) -> Result:
        """Lets through what the caller can judge: "not found" and "bad request"."""
        try:
            return await request()
        except (NotFoundError, BadRequestError):
            raise
        except (NatsError, OSError, TimeoutError) as error:
            raise BusUnavailableError(f"{type(error).__name__}: {error}") from error


class RawMessage(msgspec.Struct, frozen=True):
    sequence: int
    subject: str
    data: bytes
    headers: dict[str, str]


_DEAD_CONFIG = StreamConfig(
    name=DEAD_STREAM,
    subjects=["dead.*.*.*"],
    retention=RetentionPolicy.LIMITS,
    storage=StorageType.FILE,
    discard=DiscardPolicy.OLD,
    max_msgs_per_subject=1,
    max_age=DEAD_LETTER_DAYS * 24 * 3600.0,
    max_bytes=_STREAM_BYTES_MAX,
    duplicate_window=_DUPLICATE_WINDOW_S,
)


def _filter(slices: range) -> dict[str, Any]:
    if len(slices) == SLICE_COUNT:
        return {"filter_subject": "tell.*.*"}
    return {"filter_subjects": [f"tell.{number:03d}.*" for number in slices]}


def slices_of(info: ConsumerInfo) -> set[int]:
    """Whose commands a consumer brings."""
    subjects = info.config.filter_subjects or [info.config.filter_subject or "tell.*.*"]
    tokens = [subject.split(".")[1] for subject in subjects]
    return set(range(SLICE_COUNT)) if "*" in tokens else {int(token) for token in tokens}
