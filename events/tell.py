"""Tell a tenant: queue a command durably and go on. Its relay has the tenant decide it, in order, once."""

import asyncio
import hashlib
import time

import msgspec

from events.clock import Clock, SystemClock
from events.envelope import Envelope, encode
from events.errors import BusUnavailableError, InvalidCommandError, OutcomeUnknownError
from events.ids import IdSource, system_ids
from events.inbox import COMMAND_AGE_MAX_S, COMMAND_ID, Inbox, tell_subject
from events.messages import Command, Query
from events.slices import is_tenant_id

TELL_TIMEOUT_S = 10.0
_ATTEMPT_TIMEOUT_S = 2.0
_RETRY_S = 0.1


class Accepted(msgspec.Struct, frozen=True):
    """The command is on disk and will be decided. ``sequence`` is its number in the queue; ``repeated``: the same command
    was accepted before, in the last two minutes, and this one is not a second.
    """

    command_id: str
    sequence: int
    repeated: bool = False


class Teller:
    """Commands in, acceptances out. Safe for concurrent use; holds nothing per tenant."""

    def __init__(self, inbox: Inbox, clock: Clock | None = None, ids: IdSource | None = None) -> None:
        self._inbox = inbox
        self._clock = clock or SystemClock()
        self.new_id = ids or system_ids(self._clock)

    async def tell(
        self,
        tenant: str,
        command: Command,
        *,
        actor: str,
        command_id: str | None = None,
        correlation_id: str = "",
        timeout_s: float = TELL_TIMEOUT_S,
    ) -> Accepted:
        """Queue the command behind all that the tenant was told before. Returns when it is on the broker's disk.

        What becomes of it is found under its command id: the tenant's reply, a refusal, or a dead letter.

        Raises:
            QueueFullError: The tenant has as many commands waiting as it may (429); other tenants are not affected.
            InvalidCommandError, TooLargeError: It can't be queued at all.
            BusUnavailableError: Surely not queued.
            OutcomeUnknownError: Perhaps queued. Repeat it with the same ``command_id``.
        """
        identity = command_id or self.new_id()
        _check(tenant, command, identity)
        body = encode(command)
        envelope = Envelope(
            command_id=identity,
            tenant=tenant,
            actor=actor,
            deadline_us=self._clock.now_us() + COMMAND_AGE_MAX_S * 1_000_000,
            correlation_id=correlation_id or identity,
            causation_id="",
            body=msgspec.Raw(body),
        )
        return await self._put(envelope, message_id(tenant, identity, body), timeout_s)

    async def _put(self, envelope: Envelope, identity: str, timeout_s: float) -> Accepted:
        subject, data = tell_subject(envelope.tenant), encode(envelope)
        ends, is_open = time.monotonic() + timeout_s, False
        problem: BusUnavailableError | None = None
        while (left_s := ends - time.monotonic()) > 0:
            try:
                stored = await self._inbox.put(subject, data, identity, {}, min(left_s, _ATTEMPT_TIMEOUT_S))
                return Accepted(envelope.command_id, stored.sequence, stored.repeated)
            except TimeoutError:
                is_open = True
                continue
            except BusUnavailableError as error:
                problem = error
            await asyncio.sleep(_RETRY_S)  # back-off; only telling again tells
        if is_open:
            raise OutcomeUnknownError(envelope.tenant, envelope.command_id)
        raise problem or BusUnavailableError("no time was left to tell")


def message_id(tenant: str, command_id: str, body: bytes) -> str:
    """The broker compares ids only, never bodies: with a hash of the body in it, another body is another message, which
    the tenant then refuses by its own record.
    """
    return f"{tenant}:{command_id}:{hashlib.sha256(body).hexdigest()[:16]}"


def _check(tenant: str, command: Command, command_id: str) -> None:
    if not is_tenant_id(tenant):
        raise InvalidCommandError(f"{tenant[:80]!r} is not a tenant id")
    if isinstance(command, Query):
        raise InvalidCommandError(f"{type(command).__name__} is a question: ask it, nobody would hear the answer")
    if not COMMAND_ID.fullmatch(command_id):
        raise InvalidCommandError(f"a command id that is told matches {COMMAND_ID.pattern}, got {command_id[:80]!r}")
