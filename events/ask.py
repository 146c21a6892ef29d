"""Ask a tenant: send a command to whoever owns the tenant, have it activated where nobody does, get its reply."""

import asyncio
import time
from contextlib import nullcontext

import msgspec

from events import tracing
from events.bus import ACTIVATE, Bus, NoOneListensError, ask_subject
from events.clock import Clock, SystemClock
from events.envelope import MOVED, Envelope, Failed, Ok, Refused, Reply, decode_reply, encode
from events.errors import (
    BusUnavailableError,
    CommandFailedError,
    CommandRefusedError,
    NotServedError,
    OutcomeUnknownError,
    OverloadedError,
    PlatformError,
    TenantErasedError,
    TransientError,
)
from events.ids import IdSource, system_ids
from events.messages import Command
from events.unserved import Unserved, decode_unserved

ASK_TIMEOUT_S = 10.0
# An actor that was killed took its unanswered asks along: ask again, the command id makes that harmless.
_ATTEMPT_TIMEOUT_S = 2.0
_RETRY_S = 0.1
_INCONCLUSIVE = (OverloadedError.code,)


class Asker:
    """Commands in, results out. Safe for concurrent use; holds nothing per tenant."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock | None = None,
        ids: IdSource | None = None,
        attempt_timeout_s: float = _ATTEMPT_TIMEOUT_S,
    ) -> None:
        self._bus, self._attempt_timeout_s = bus, attempt_timeout_s
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
        is_keyed: bool = False,
    ) -> Ok:
        """The tenant's answer, after its events are durable. ``is_keyed``: see ``Envelope``.

        Raises:
            CommandRefusedError: The tenant said no; nothing was written.
            CommandFailedError: The tenant could not; nothing was written.
            TenantErasedError, UnservableError: Nobody can be asked any more, or before an operator has looked.
            NotServedError, BusUnavailableError: Surely not done.
            OutcomeUnknownError: Delivered at least once, and no answer that settles it. Repeat with the same
                ``command_id``.
        """
        identity = command_id or self.new_id()
        if tracing.tracer is None:
            return await self._send(tenant, command, actor, identity, correlation_id, timeout_s, is_keyed)
        span = tracing.child(f"ask {type(command).__name__}", "client", {"tenantry.tenant": tenant})
        with span or nullcontext():
            trace = span.traceparent if span is not None else ""
            return await self._send(tenant, command, actor, identity, correlation_id, timeout_s, is_keyed, trace)

    async def _send(
        self,
        tenant: str,
        command: Command,
        actor: str,
        identity: str,
        correlation_id: str,
        timeout_s: float,
        is_keyed: bool,
        trace: str = "",
    ) -> Ok:
        envelope = Envelope(
            command_id=identity,
            tenant=tenant,
            actor=actor,
            deadline_us=self._clock.now_us() + int(timeout_s * 1e6),
            correlation_id=correlation_id or identity,
            causation_id="",
            body=msgspec.Raw(encode(command)),
            trace=trace,
            is_keyed=is_keyed,
        )
        return await self._deliver(tenant, identity, encode(envelope), timeout_s)

    async def _deliver(self, tenant: str, command_id: str, data: bytes, timeout_s: float) -> Ok:
        """Ask until there is an answer. Once an attempt got none, it may still be carried out, so from then on only an
        answer from the log itself counts: a mailbox that is full now was perhaps not full then.
        """
        ends, is_open, was_activated = time.monotonic() + timeout_s, False, False
        problem: PlatformError | None = None
        while (left_s := ends - time.monotonic()) > 0:
            try:
                data_back = await self._bus.request(ask_subject(tenant), data, min(left_s, self._attempt_timeout_s))
                return _result(decode_reply(data_back))
            except NoOneListensError:
                if was_activated:  # its owner is being moved, or is about to connect again to a NATS that was restarted
                    await asyncio.sleep(_RETRY_S)
                was_activated = True
            except TimeoutError:
                # somebody is subscribed and does not answer: perhaps busy, perhaps stopped, and then nobody else would tell
                is_open = True
            except CommandFailedError as failure:
                if failure.code != MOVED:
                    raise
                is_open = True  # who answered had not begun it, but another actor may have heard it, too
                continue
            except CommandRefusedError as refusal:
                if not (is_open and refusal.code in _INCONCLUSIVE):
                    raise
                await asyncio.sleep(_RETRY_S)  # back-off; only asking again tells
                continue
            except TransientError as error:
                problem = error
                await asyncio.sleep(_RETRY_S)  # likewise
                continue
            unserved = await self._activate(tenant, ends)
            problem = unserved.error(tenant)
            if isinstance(problem, TenantErasedError):  # whatever became of the command is gone with the tenant
                raise problem
            if unserved.is_final:
                break
        if is_open:
            raise OutcomeUnknownError(tenant, command_id)
        raise problem or NotServedError(tenant, "no time was left to ask")

    async def _activate(self, tenant: str, ends: float) -> Unserved:
        """Have the tenant activated. What to say in case there is no time left to ask it again, or no use.

        Waits no longer than for any answer: a supervisor that was killed took the request along, and one that is still
        busy with it takes its repeat for the same.
        """
        left_s = max(0.01, ends - time.monotonic())
        try:
            answer = await self._bus.request(ACTIVATE, tenant.encode(), min(left_s, self._attempt_timeout_s))
        except TimeoutError:
            return _unserved("it could not be activated in time")
        except (NoOneListensError, BusUnavailableError):  # the supervisor itself is being restarted
            await asyncio.sleep(_RETRY_S)
            return _unserved("nobody could activate it")
        problem = decode_unserved(answer)
        if problem is None:
            return _unserved("it did not answer in time")
        if not problem.is_final:
            await asyncio.sleep(_RETRY_S)
        return problem


def _unserved(message: str) -> Unserved:
    return Unserved(NotServedError.code, message)


def _result(reply: Reply) -> Ok:
    match reply:
        case Ok() as ok:
            return ok
        case Refused(code, message, retry_after_s):
            raise CommandRefusedError(code, message, retry_after_s)
        case Failed(code, message):
            raise CommandFailedError(code, message)
