"""Ask a tenant: send a command to whoever owns the tenant, have it activated where nobody does, get its reply."""

import asyncio
import time

import msgspec

from events.bus import ACTIVATE, Bus, NoOneListensError, ask_subject
from events.clock import Clock, SystemClock
from events.envelope import Envelope, Failed, Ok, Refused, decode_reply, encode
from events.errors import (
    BusUnavailableError,
    CommandFailedError,
    CommandRefusedError,
    NotServedError,
    OutcomeUnknownError,
    PlatformError,
    StoreUnavailableError,
    TransientError,
)
from events.ids import IdSource, system_ids
from events.tenant import Command

ASK_TIMEOUT_S = 10.0
# An actor that was killed took its unanswered asks along: ask again, the command id makes that harmless.
_ATTEMPT_TIMEOUT_S = 2.0
_ACTIVATION_RETRY_S = 0.1


class Asker:
    """Commands in, results out. Safe for concurrent use; holds nothing per tenant."""

    def __init__(self, bus: Bus, clock: Clock | None = None, ids: IdSource | None = None) -> None:
        self._bus = bus
        self._clock = clock or SystemClock()
        self.new_id = ids or system_ids(self._clock)

    async def ask(
        self,
        tenant: str,
        command: Command,
        *,
        actor: str,
        command_id: str | None = None,
        correlation_id: str = "",
        timeout_s: float = ASK_TIMEOUT_S,
    ) -> Ok:
        """The tenant's answer, after its events are durable.

        Raises:
            CommandRefusedError: The tenant said no; nothing was written.
            CommandFailedError: The tenant could not; nothing was written.
            NotServedError, BusUnavailableError: It was not delivered.
            OutcomeUnknownError: Delivered, but no answer in time. Repeat with the same ``command_id``.
        """
        identity = command_id or self.new_id()
        envelope = Envelope(
            command_id=identity,
            tenant=tenant,
            actor=actor,
            deadline_us=self._clock.now_us() + int(timeout_s * 1e6),
            correlation_id=correlation_id or identity,
            causation_id="",
            body=msgspec.Raw(encode(command)),
        )
        match decode_reply(await self._deliver(tenant, identity, encode(envelope), timeout_s)):
            case Ok() as ok:
                return ok
            case Refused(code, message, retry_after_s):
                raise CommandRefusedError(code, message, retry_after_s)
            case Failed(code, message) if code == StoreUnavailableError.code:
                raise StoreUnavailableError(message)
            case Failed(code, message):
                raise CommandFailedError(code, message)

    async def _deliver(self, tenant: str, command_id: str, data: bytes, timeout_s: float) -> bytes:
        ends = time.monotonic() + timeout_s
        problem: PlatformError = NotServedError(tenant, "no time was left to ask")
        while (left_s := ends - time.monotonic()) > 0:
            try:
                return await self._bus.request(ask_subject(tenant), data, min(left_s, _ATTEMPT_TIMEOUT_S))
            except NoOneListensError:
                if not isinstance(problem, OutcomeUnknownError):
                    problem = NotServedError(tenant, "activation did not end in time")
                await self._activate(tenant, ends)
            except TimeoutError:
                problem = OutcomeUnknownError(tenant, command_id)
        raise problem

    async def _activate(self, tenant: str, ends: float) -> None:
        """Returns when the supervisor says the tenant is served, or to be asked again after a moment."""
        left_s = ends - time.monotonic()
        if left_s <= 0:
            return
        try:
            answer = await self._bus.request(ACTIVATE, tenant.encode(), left_s)
        except (NoOneListensError, TimeoutError):  # the supervisor itself is being restarted
            await asyncio.sleep(_ACTIVATION_RETRY_S)
            return
        if answer:
            raise NotServedError(tenant, answer.decode())


def retry_after_s(error: PlatformError) -> float | None:
    """When to try again, for errors where trying again can help."""
    if isinstance(error, CommandRefusedError):
        return error.retry_after_s
    return 1.0 if isinstance(error, TransientError | BusUnavailableError) else None
