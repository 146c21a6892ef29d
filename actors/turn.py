"""A turn: the commands that waited, decided one after the other, each on the state that the ones before it lead to.

Nothing here waits or writes. What comes out is a draft: records for one append, the answers that go out once it is durable,
and those of commands that write nothing.
"""

import hashlib
import logging
from collections.abc import Sequence

import msgspec

from actors.aggregate import State, act, answer, evolve, is_query
from actors.memory import Memory
from events.catalog import DomainCommand, DomainEvent, decode_command
from events.codec import Record, encode_data
from events.envelope import DEFECT, Envelope, Failed, Ok, Reply, decode_envelope, encode, reply_for
from events.errors import CommandIdReusedError, InvalidCommandError, Refusal, TooLargeError
from events.run import ReopenRun
from events.sealing import Cipher, seal_bytes
from events.store import REPLY_SEAL, CommandResult
from events.tenant import CommandNoted

log = logging.getLogger(__name__)

COMMAND_ID_MAX = 128


class Request(msgspec.Struct, frozen=True):
    """A command as it lies in a turn, with where its answer goes."""

    envelope: Envelope
    command: DomainCommand | ReopenRun
    body_hash: bytes
    reply_to: str


def open_request(tenant: str, data: bytes, reply_to: str, now_us: int) -> Request | Reply | None:
    """A message as a request to this tenant; the reply to it where it is none; None where nobody waits for one any more."""
    try:
        envelope = decode_envelope(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return reply_for(InvalidCommandError(f"not an envelope: {error}"))
    if envelope.deadline_us < now_us:
        return None
    try:
        if not 0 < len(envelope.command_id) <= COMMAND_ID_MAX:
            raise TooLargeError("a command id in characters", len(envelope.command_id), COMMAND_ID_MAX)
        if envelope.tenant != tenant:
            raise InvalidCommandError(f"a command for {envelope.tenant!r} came to tenant {tenant!r}")
        command = decode_command(envelope.body)
    except Refusal as refusal:
        return reply_for(refusal)
    return Request(envelope, command, hashlib.sha256(envelope.body).digest(), reply_to)


class Draft:
    """A turn in the making: the state after the commands decided so far, and what would be written.

    ``versions`` are those of the streams it adds to. ``replies``, encoded, are not to be sent before the append; those that
    are ``unfenced`` wrote nothing: refusals, reads, no-ops.
    """

    __slots__ = (
        "_cipher", "_epoch", "_memory", "_now_us", "_tenant", "commands", "events", "records", "replies", "state", "unfenced",
        "versions",
    )  # fmt: skip

    def __init__(self, tenant: str, epoch: int, cipher: Cipher, memory: Memory, now_us: int) -> None:
        self._tenant, self._epoch, self._cipher, self._now_us = tenant, epoch, cipher, now_us
        self._memory = memory
        self.state: State = memory.state
        self.versions: dict[str, int] = {}
        self.records: list[Record] = []
        self.events: list[DomainEvent] = []
        self.commands: list[CommandResult] = []
        self.replies: list[tuple[str, bytes]] = []
        self.unfenced: list[tuple[Request, Reply]] = []

    def decide_all(self, requests: Sequence[Request]) -> None:
        first: dict[str, tuple[bytes, Reply]] = {}
        for request in requests:
            command_id = request.envelope.command_id
            if command_id in first:  # asked again before the first was answered
                body_hash, reply = first[command_id]
                same = body_hash == request.body_hash
                self.unfenced.append((request, reply if same else reply_for(CommandIdReusedError(command_id))))
                continue
            reply = self._decide(request)
            if not is_query(request.command):
                first[command_id] = (request.body_hash, reply)

    def _decide(self, request: Request) -> Reply:
        command, envelope = request.command, request.envelope
        try:
            events, after = act(self.state, self._tenant, command, self._now_us)
            result = answer(after, self._tenant, command, self._now_us)
        except Refusal as refusal:
            return self._without_events(request, reply_for(refusal))
        except Exception:  # pure code has failed: a defect, which one tenant's command must not turn into an outage
            log.exception("tenant.decide_failed tenant=%s command=%s", self._tenant, type(command).__name__)
            return self._without_events(request, Failed(DEFECT, "the command could not be decided"))
        if not events and envelope.is_keyed and after.exists and not is_query(command):
            events = [CommandNoted()]
            after = evolve(after, events[0])
        reply = Ok(result, self._memory.position + len(self.records) + len(events))
        if not events:
            return self._without_events(request, reply)
        for event in events:
            self.records.append(self._record(envelope, event))
        self.events += events
        self.state = after
        encoded = encode(reply)
        kept = seal_bytes(self._cipher, REPLY_SEAL, encoded) if command.reply_is_personal else encoded
        self.commands.append(CommandResult(envelope.command_id, request.body_hash, kept))
        self.replies.append((request.reply_to, encoded))
        return reply

    def _without_events(self, request: Request, reply: Reply) -> Reply:
        self.unfenced.append((request, reply))
        return reply

    def _record(self, envelope: Envelope, event: DomainEvent) -> Record:
        stream, versions = event.stream, self.versions
        before = versions[stream] if stream in versions else self._memory.versions.get(stream, 0)
        versions[stream] = before + 1
        return Record(
            stream,
            before + 1,
            self._now_us,
            envelope.command_id,
            envelope.actor,
            envelope.correlation_id,
            envelope.causation_id,
            self._epoch,
            encode_data(event, self._cipher),
        )
