"""Commands that failed for good: kept aside with all that is known of them, until somebody replays or discards them."""

import contextlib
from importlib.metadata import version
from typing import Literal

import msgspec

from events.clock import Clock
from events.envelope import Failed, decode_envelope, encode
from events.errors import NotFoundError, TransientError
from events.inbox import COMMAND_AGE_MAX_S, Inbox, RawMessage, dead_subject, tell_subject, tenant_of
from events.outcomes import Outcomes

# undecodable: no release of ours wrote it, or another one did; defect: deciding it raised; unanswered: whoever was to
# decide it died, or never came back, each time; stale: older than 24 h; reused: another command had its id before
Cause = Literal["undecodable", "defect", "unanswered", "stale", "reused"]

_TIMEOUT_S = 10.0
_MESSAGE_CHARS_MAX = 1_000


class DeadLetter(msgspec.Struct, frozen=True):
    """``id`` is the command's id, or names the place in the queue of what had none. ``headers`` are the message's own."""

    id: str
    tenant: str
    command_id: str
    cause: Cause
    message: str
    attempts: int
    told_us: int
    died_us: int
    sequence: int
    data: bytes
    headers: dict[str, str] = {}
    release: str = version("tenantry")


_PREFIX = "Tenantry-"


class DeadLetters:
    """Every method raises BusUnavailableError or StoreUnavailableError where it can't do its work now."""

    def __init__(self, inbox: Inbox, outcomes: Outcomes, clock: Clock) -> None:
        self._inbox, self._outcomes, self._clock = inbox, outcomes, clock

    async def bury(self, letter: DeadLetter) -> None:
        """Durable on return, and there once, however often it is repeated."""
        subject = dead_subject(letter.tenant, letter.id)
        # not the same id at the next death of a command that was replayed, or the broker would swallow the letter
        identity = f"dead:{letter.tenant}:{letter.id}:{letter.sequence}"
        try:
            await self._inbox.put(subject, letter.data, identity, _to_headers(letter), _TIMEOUT_S)
        except TimeoutError as error:
            raise TransientError(f"the dead letter {letter.id!r} was not acknowledged") from error
        if letter.command_id and letter.cause != "reused":
            failed = Failed(letter.cause, letter.message)
            await self._outcomes.record(letter.tenant, {letter.command_id: failed})

    async def page(self, tenant: str | None, after: int, limit: int) -> list[tuple[int, DeadLetter]]:
        """Letters in the order of their deaths, each with the number that the next page begins after."""
        subject = dead_subject(tenant, "*") if tenant else "dead.>"
        letters: list[tuple[int, DeadLetter]] = []
        while len(letters) < limit:
            found = await self._inbox.dead_message(after=after, subject=subject)
            if found is None:
                break
            letters.append((found.sequence, _from_message(found)))
            after = found.sequence
        return letters

    async def find(self, tenant: str, letter_id: str) -> DeadLetter:
        """Raises NotFoundError."""
        return _from_message(await self._message(tenant, letter_id))

    async def replay(self, tenant: str, letter_id: str) -> DeadLetter:
        """Queue the command again, behind what waits now, under its own command id: if it ever happened, the log answers
        for it. The letter goes once the command is on disk again.

        Raises:
            NotFoundError: There is no such letter.
            QueueFullError: The tenant's queue has no room now.
        """
        found = await self._message(tenant, letter_id)
        letter = _from_message(found)
        if letter.command_id:
            await self._outcomes.forget(tenant, letter.command_id)
        identity = f"replay:{tenant}:{letter_id}:{found.sequence}"  # its first id may still be in the broker's window
        try:
            await self._inbox.put(tell_subject(tenant), self._renewed(letter.data), identity, {}, _TIMEOUT_S)
        except TimeoutError as error:
            raise TransientError(f"the broker did not acknowledge the replay of {letter_id!r}: repeat it") from error
        await self._inbox.delete_dead(found.sequence)
        return letter

    async def discard(self, tenant: str, letter_id: str) -> DeadLetter:
        """Drop the letter for good; its outcome stays on record. Raises NotFoundError."""
        found = await self._message(tenant, letter_id)
        await self._inbox.delete_dead(found.sequence)
        return _from_message(found)

    async def _message(self, tenant: str, letter_id: str) -> RawMessage:
        found = await self._inbox.dead_message(subject=dead_subject(tenant, letter_id))
        if found is None:
            raise NotFoundError("dead letter", letter_id[:128])
        return found

    def _renewed(self, data: bytes) -> bytes:
        """With another 24 h to live. What can't be decoded goes as it is: perhaps today's release can."""
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            deadline_us = self._clock.now_us() + COMMAND_AGE_MAX_S * 1_000_000
            return encode(msgspec.structs.replace(decode_envelope(data), deadline_us=deadline_us))
        return data


def _to_headers(letter: DeadLetter) -> dict[str, str]:
    fields = {
        name: getattr(letter, name) for name in letter.__struct_fields__ if name not in ("data", "headers", "tenant")
    }
    fields["message"] = letter.message[:_MESSAGE_CHARS_MAX].encode("ascii", "backslashreplace").decode()
    own = {_PREFIX + name.replace("_", "-").title(): str(value) for name, value in fields.items()}
    return {**{f"Original-{name}": value for name, value in letter.headers.items()}, **own}


def _from_message(found: RawMessage) -> DeadLetter:
    plain = {
        name: found.headers[header].strip()
        for name in DeadLetter.__struct_fields__
        if (header := _PREFIX + name.replace("_", "-").title()) in found.headers
    }
    original = {
        name.removeprefix("Original-"): text for name, text in found.headers.items() if name.startswith("Original-")
    }
    return msgspec.convert(
        {**plain, "tenant": tenant_of(found.subject), "data": found.data, "headers": original}, DeadLetter, strict=False
    )
