"""A tenant in memory: its mailbox, its turns, its epoch.

A turn takes the commands that wait, decides each on the state so far, appends all resulting events in one conditional
write, and only then changes the state and replies. What is not durable did not happen.
"""

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Protocol

import msgspec

from actors.aggregate import STATE_SCHEMA, State, answer, decide, evolve, fold, is_query
from actors.commit import Committer
from actors.fairness import Share
from actors.persistent import decode_hook, encode_hook
from actors.run.state import Run
from actors.run.state import evolve as evolve_run
from events import tracing
from events.catalog import DomainCommand, DomainEvent, decode_command
from events.clock import Clock
from events.codec import (
    GENESIS,
    Record,
    StoredEvent,
    chain,
    encode_data,
    next_hash,
    open_record,
)
from events.envelope import DEFECT, Envelope, Failed, Ok, Reply, decode_envelope, encode, moved_reply, reply_for
from events.errors import (
    ChainBrokenError,
    CommandIdReusedError,
    FencedError,
    IntegrityError,
    InvalidCommandError,
    KeyUnreadableError,
    OverloadedError,
    PlatformError,
    Refusal,
    StoreUnavailableError,
    TenantClosedError,
    TenantErasedError,
    TooLargeError,
    WrongExpectedPositionError,
)
from events.failpoints import failpoint
from events.ids import derived_id
from events.keys import Keys
from events.run import ReopenRun, RetryRun, RunEvent, run_stream
from events.scan import scan
from events.sealing import WITHOUT_KEY, Cipher, open_bytes, seal_bytes
from events.store import REPLY_SEAL, Append, Appended, CommandResult, EventStore, Head, Known, Placement, Snapshot
from events.tenant import CommandNoted
from events.timers import FireTimers
from events.witness import loss

log = logging.getLogger(__name__)

MAILBOX_MAX = 1_024
MAILBOX_BYTES_MAX = 8 * 1024 * 1024
SNAPSHOT_EVERY_EVENTS = 1_000  # bounds what an activation must replay to some milliseconds
COMMAND_ID_MAX = 128
# A refusal or a read writes nothing, so nothing fences it: it is given only on ownership proven this recently.
OWNERSHIP_TRUSTED_S = 1.0
# A store that is away for longer is reported to the callers instead of waited for.
STORE_PATIENCE_S = 15.0
_RETRY_FIRST_S, _RETRY_MAX_S = 0.05, 1.0
_REPLAYED_AT_ONCE = 64  # events
# What is due within that time is fired from here, to the millisecond; the scan of the durable timers, which finds all that
# is due, may be a second late.
ALARM_HORIZON_S = 10.0
_EARLY_S = 0.001  # the loop's clock is not the wall's: an alarm before its time would find nothing due
RETRY_AFTER_S_MAX = 10.0
_SNAPSHOT, _REPLY = "snapshot", REPLY_SEAL  # what sealed bytes are, so that none is opened as another

_UNTRACED = nullcontext()
_FIRE = msgspec.Raw(encode(FireTimers()))
Respond = Callable[[str, bytes], None]  # subject to reply to, encoded reply


class Request(msgspec.Struct, frozen=True):
    """A command as it lies in a turn, with where its answer goes."""

    envelope: Envelope
    command: DomainCommand | ReopenRun
    body_hash: bytes
    reply_to: str


class Draft(msgspec.Struct):
    """A turn in the making: state after the commands decided so far, and what would be written."""

    state: State
    versions: dict[str, int]
    records: list[Record]
    events: list[DomainEvent]
    commands: list[CommandResult]
    replies: list[tuple[str, bytes]]  # encoded; not to be sent before the append
    unfenced: list[tuple[Request, Reply]]  # wrote nothing: refusals, reads, no-ops


class Folded(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot holds: the state, and how many events each stream had by then."""

    state: State
    versions: dict[str, int]


_encode_folded = msgspec.msgpack.Encoder(enc_hook=encode_hook).encode
_decode_folded = msgspec.msgpack.Decoder(Folded, dec_hook=decode_hook).decode


class Effects(Protocol):
    """What a tenant's events bring about beyond the log: started after they are durable, and never awaited."""

    def appended(self, tenant: str, state: State, events: Sequence[DomainEvent], cipher: Cipher) -> None:
        """``state`` is the one after the events."""
        ...

    def activated(self, tenant: str, state: State, cipher: Cipher) -> None:
        """The state as it was replayed: what the activation before this one may not have got to is started again."""
        ...


class NoEffects:
    def appended(self, tenant: str, state: State, events: Sequence[DomainEvent], cipher: Cipher) -> None:
        pass

    def activated(self, tenant: str, state: State, cipher: Cipher) -> None:
        pass


class Activation:
    """One tenant, served by this process under one epoch.

    ``on_end`` is called once, when the tenant is let go; ``on_misplaced`` when its plan wants another kind of shard than
    the one it ``serves`` from.
    """

    def __init__(
        self,
        tenant: str,
        store: EventStore,
        committer: Committer,
        share: Share,
        clock: Clock,
        respond: Respond,
        on_end: Callable[["Activation"], None],
        serves: Placement,
        on_misplaced: Callable[["Activation"], None],
        keys: Keys,
        effects: Effects | None = None,
    ) -> None:
        self.tenant = tenant
        self._store, self._committer, self._share, self._clock = store, committer, share, clock
        self._respond, self._on_end = respond, on_end
        self.crash = ""  # the defect that ended it, if one did
        self._serves, self._on_misplaced = serves, on_misplaced
        self._keys, self._effects = keys, effects or NoEffects()
        self._cipher: Cipher = WITHOUT_KEY
        self._mailbox: deque[tuple[bytes, str]] = deque()
        self._mailbox_bytes = 0
        self._command_took_s = 0.0  # of the last turn
        self._used_at = time.monotonic()
        self._running: asyncio.Task[None] | None = None
        self._ended = False
        self._state = State()
        self._versions: dict[str, int] = {}
        self._position, self._head = 0, GENESIS
        self._epoch, self._owned_at = 0, 0.0
        self._snapshot_position = 0
        self._timer_us = -1  # unknown: the first append sets it
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_us = 0

    @property
    def state(self) -> State:
        return self._state

    @property
    def position(self) -> int:
        return self._position

    @property
    def used_at(self) -> float:
        """When it was asked last, monotonic seconds."""
        return self._used_at

    @property
    def mailbox_depth(self) -> int:
        """Commands that wait for a turn."""
        return len(self._mailbox)

    @property
    def has_ended(self) -> bool:
        return self._ended

    async def start(self) -> None:
        """Claim a new epoch, then replay the log. Nothing may be delivered before this returns.

        Raises:
            TenantErasedError: Its data was destroyed on purpose.
        TenantClosedError: The tenant was halted; a person has to look.
        LogRewoundError: The store holds less than was acknowledged; the tenant is halted now.
            IntegrityError: The log is not what the store says it is.
        """
        asked_at = time.monotonic()
        head = await self._store.claim(self.tenant)
        failpoint("claim.after_epoch_before_load", self.tenant)
        self._epoch, self._owned_at = head.epoch, asked_at
        if head.status == "erased":
            raise TenantErasedError(f"tenant {self.tenant!r} is erased: nothing can be asked of it any more")
        if head.status != "active":
            raise TenantClosedError(f"tenant {self.tenant!r} is {head.status}: `tenantry verify` says why")
        if rewound := await loss(self._store, self._keys.vault, self.tenant, head):
            log.critical("tenant.log_rewound tenant=%s: %s", self.tenant, rewound)
            await self._halt(rewound)
            raise rewound
        self._cipher = await self._keys.cipher(self.tenant, create=True)
        await self._load_snapshot(head)
        await self._catch_up()
        if self._position < head.position or (self._position == head.position and self._head != head.hash):
            raise ChainBrokenError(self.tenant, self._position + 1, f"the store says that {head.position} are there")
        self._effects.activated(self.tenant, self._state, self._cipher)
        self._set_alarm()

    def _set_alarm(self) -> None:
        """Have the next timer fired in time, where that is soon. Losing an alarm loses nothing: the timer lies in the store."""
        due_us = self._state.next_timer_us
        if due_us == self._alarm_us:
            return
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._alarm_us = 0
        delay_s = max(0.0, (due_us - self._clock.now_us()) / 1e6)
        if due_us and delay_s < ALARM_HORIZON_S:
            self._alarm_us = due_us
            self._alarm = asyncio.get_running_loop().call_later(delay_s + _EARLY_S, self._fire)

    def _fire(self) -> None:
        """As the scan would ask, but from here; where both do, the second finds nothing due."""
        command_id = derived_id(self.tenant, "alarm", str(self._epoch), str(self._position))
        envelope = Envelope(
            command_id=command_id,
            tenant=self.tenant,
            actor="tenant",
            deadline_us=self._clock.now_us() + int(ALARM_HORIZON_S * 1e6),
            correlation_id=command_id,
            causation_id="",
            body=_FIRE,
        )
        used_at = self._used_at
        self.deliver(encode(envelope), "")
        self._used_at = used_at  # a timer is no reason to stay in memory

    async def _load_snapshot(self, head: Head) -> None:
        """Begin the replay at the newest snapshot that fits the log; at the first event where none does."""
        for snapshot in await self._store.load_snapshots(self.tenant):
            if snapshot.schema != STATE_SCHEMA or not 0 < snapshot.position <= head.position:
                continue
            page = await self._store.read(self.tenant, snapshot.position - 1, 1)
            if not page or page[0].hash != snapshot.hash:
                continue
            try:
                folded = _decode_folded(open_bytes(self._cipher, _SNAPSHOT, snapshot.state) or b"")
            except (msgspec.DecodeError, UnicodeDecodeError, KeyUnreadableError):
                log.warning("tenant.snapshot_unreadable tenant=%s position=%s", self.tenant, snapshot.position)
                continue
            self._state, self._versions = folded.state, folded.versions
            self._position, self._head = snapshot.position, snapshot.hash
            self._snapshot_position = snapshot.position
            return

    async def save_snapshot(self) -> None:
        """A cache: losing it costs a longer replay, so a store that is away is no reason to fail."""
        if self._position == self._snapshot_position:
            return
        state = seal_bytes(self._cipher, _SNAPSHOT, _encode_folded(Folded(self._state, self._versions)))
        snapshot = Snapshot(STATE_SCHEMA, self._position, self._head, state)
        self._snapshot_position = snapshot.position
        failpoint("snap.before_write")
        try:
            await self._store.save_snapshot(self.tenant, snapshot)
        except PlatformError as error:
            log.warning("tenant.snapshot_lost tenant=%s position=%s: %s", self.tenant, snapshot.position, error)

    def deliver(self, data: bytes, reply_to: str) -> None:
        """Put a command into the mailbox; a full mailbox answers at once, as long as it is surely the owner's."""
        if self._ended:
            self._send(reply_to, encode(moved_reply))
            return
        self._used_at = time.monotonic()
        if len(self._mailbox) >= MAILBOX_MAX or self._mailbox_bytes >= MAILBOX_BYTES_MAX:
            if self._surely_owns:
                refusal = OverloadedError(self.tenant, len(self._mailbox), self._wait_s())
                self._send(reply_to, encode(reply_for(refusal)))
            return
        self._mailbox.append((data, reply_to))
        self._mailbox_bytes += len(data)
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name=f"turns-{self.tenant}")

    def _wait_s(self) -> float:
        """About how long the mailbox takes to empty, in tenths of a second, at the pace of the last turn."""
        return max(0.1, min(round(len(self._mailbox) * self._command_took_s, 1), RETRY_AFTER_S_MAX))

    async def drain(self) -> None:
        """Finish what is in the mailbox."""
        if self._running is not None:
            await asyncio.wait([self._running])

    def end(self) -> None:
        """Let the tenant go. What waits in the mailbox was not begun: whoever asked is told to ask again."""
        if not self._ended:
            self._ended = True
            if self._alarm is not None:
                self._alarm.cancel()
            self._send_away(reply_to for _, reply_to in self._mailbox)
            self._mailbox.clear()
            self._on_end(self)

    def _send_away(self, reply_tos: Iterable[str]) -> None:
        moved = encode(moved_reply)
        for reply_to in reply_tos:
            self._send(reply_to, moved)

    def _take(self) -> list[tuple[bytes, str]]:
        """The commands of the next turn: this tenant's share of a round, and at least one."""
        commands, size_bytes = self._share.turn(self.tenant, time.monotonic())
        taken: list[tuple[bytes, str]] = []
        while self._mailbox and len(taken) < commands and size_bytes > 0:
            message = self._mailbox.popleft()
            size_bytes -= len(message[0])
            self._mailbox_bytes -= len(message[0])
            taken.append(message)
        self._share.took(len(taken))
        return taken

    async def _run(self) -> None:
        try:
            while self._mailbox and not self._ended:
                began, messages = time.monotonic(), self._take()
                await self._turn(messages)
                if self._state.is_erased:
                    self.end()
                    return
                self._command_took_s = (time.monotonic() - began) / len(messages)
                if self._position - self._snapshot_position >= SNAPSHOT_EVERY_EVENTS:
                    await self.save_snapshot()
                if self._state.exists and self._state.placement != self._serves:
                    self._on_misplaced(self)
                await asyncio.sleep(0)  # a turn that only read awaited nothing: now the others
        except FencedError as error:
            log.warning("tenant.fenced tenant=%s epoch=%s: %s", self.tenant, self._epoch, error)
            self.end()
        except StoreUnavailableError as error:
            # whether the last append happened is unknown; the next activation reads it from the log
            log.warning("tenant.store_away tenant=%s position=%s: %s", self.tenant, self._position, error)
            self.end()
        except IntegrityError as error:
            log.exception("tenant.halted tenant=%s position=%s", self.tenant, self._position)
            await self._halt(error)
            self.end()
        except Exception as error:
            # a defect: the state may be half a turn ahead of the log, so it is thrown away and replayed
            log.exception("tenant.crashed tenant=%s position=%s", self.tenant, self._position)
            self.crash = f"{type(error).__name__}: {error}"
            self.end()
        finally:
            self._running = None

    async def _halt(self, error: IntegrityError) -> None:
        """So that the next activation doesn't fork the log either."""
        try:
            await self._store.halt(self.tenant, self._epoch, str(error))
        except PlatformError as failure:
            log.warning("tenant.halt_failed tenant=%s: %s", self.tenant, failure)

    async def _turn(self, messages: Sequence[tuple[bytes, str]]) -> None:
        waiting = [request for data, reply_to in messages if (request := self._open(data, reply_to))]
        for at, request in enumerate(waiting):
            if isinstance(request.command, RetryRun) and request.command.run_id not in self._state.runs.open:
                waiting[at] = await self._with_history(request, request.command.run_id)
        await self._serve(waiting)

    async def _with_history(self, request: Request, run_id: str) -> Request:
        """The memory of an ended run is its stream: read it, so that what follows is decided on it. Unchanged where there
        is no such run.
        """
        run, stream, version = Run(), run_stream(run_id), 0
        while page := await self._store.read_stream(self.tenant, stream, version):
            for stored in page:
                event = open_record(stored.record, self._cipher).event
                assert isinstance(event, RunEvent)
                run = evolve_run(run, event)
            version += len(page)
        if not version:
            return request
        self._versions[stream] = version
        return msgspec.structs.replace(request, command=ReopenRun(run_id, encode(run)))

    async def _serve(self, waiting: Sequence[Request]) -> None:
        while waiting and not self._ended:
            draft = self._decide_all(waiting)
            try:
                with self._traced(draft, waiting):
                    known = await self._commit(draft)
            except TooLargeError as error:
                await self._serve_in_parts(waiting, error)
                return
            except FencedError:  # nothing of it was written
                self._send_away(request.reply_to for request in waiting)
                raise
            if known is None:
                failpoint("actor.after_append_before_reply")
                for reply_to, encoded in draft.replies:
                    self._send(reply_to, encoded)
                    failpoint("actor.mid_replies")
                self._effects.appended(self.tenant, self._state, draft.events, self._cipher)
                await self._answer_unfenced(draft.unfenced)
                return
            waiting = await self._answer_known(waiting, known)

    def _traced(self, draft: Draft, waiting: Sequence[Request]) -> AbstractContextManager[None]:
        """A span of the append in the trace of each command that has one."""
        if tracing.tracer is None or not draft.records:
            return _UNTRACED
        written = {result.command_id for result in draft.commands}
        traces = [request.envelope.trace for request in waiting if request.envelope.command_id in written]
        attributes: tracing.Attributes = {
            "db.system.name": "valkey",
            "db.operation.name": "append",
            "db.operation.batch.size": len(draft.records),
            "tenantry.tenant": self.tenant,
        }
        return tracing.children(traces, "append", "client", attributes)

    async def _serve_in_parts(self, waiting: Sequence[Request], error: TooLargeError) -> None:
        """Too much for one append, and nothing of it was written: smaller turns, and a refusal for one that is too large
        by itself.
        """
        if len(waiting) == 1:
            self._send(waiting[0].reply_to, encode(reply_for(error)))
            return
        middle = len(waiting) // 2
        await self._serve(waiting[:middle])
        await self._serve(waiting[middle:])

    def _open(self, data: bytes, reply_to: str) -> Request | None:
        """The message as a request; None where it was answered or dropped already."""
        failpoint("actor.before_decode")
        try:
            envelope = decode_envelope(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._send(reply_to, encode(reply_for(InvalidCommandError(f"not an envelope: {error}"))))
            return None
        if envelope.deadline_us < self._clock.now_us():
            return None  # nobody waits for the answer any more
        try:
            if not 0 < len(envelope.command_id) <= COMMAND_ID_MAX:
                raise TooLargeError("a command id in characters", len(envelope.command_id), COMMAND_ID_MAX)
            if envelope.tenant != self.tenant:
                raise InvalidCommandError(f"a command for {envelope.tenant!r} came to tenant {self.tenant!r}")
            command = decode_command(envelope.body)
        except Refusal as refusal:
            self._send(reply_to, encode(reply_for(refusal)))
            return None
        return Request(envelope, command, hashlib.sha256(envelope.body).digest(), reply_to)

    def _decide_all(self, requests: Sequence[Request]) -> Draft:
        draft = Draft(self._state, dict(self._versions), [], [], [], [], [])
        now_us = self._clock.now_us()
        first: dict[str, tuple[bytes, Reply]] = {}
        for request in requests:
            command_id = request.envelope.command_id
            if command_id in first:  # asked again before the first was answered
                body_hash, reply = first[command_id]
                same = body_hash == request.body_hash
                draft.unfenced.append((request, reply if same else reply_for(CommandIdReusedError(command_id))))
                continue
            reply = self._decide_one(draft, request, now_us)
            if not is_query(request.command):
                first[command_id] = (request.body_hash, reply)
        return draft

    def _decide_one(self, draft: Draft, request: Request, now_us: int) -> Reply:
        try:
            events = decide(draft.state, self.tenant, request.command, now_us)
            after = reduce(evolve, events, draft.state)
            result = answer(after, self.tenant, request.command, now_us)
        except Refusal as refusal:
            return self._without_events(draft, request, reply_for(refusal))
        except Exception:  # pure code has failed: a defect, which one tenant's command must not turn into an outage
            log.exception("tenant.decide_failed tenant=%s command=%s", self.tenant, type(request.command).__name__)
            return self._without_events(draft, request, Failed(DEFECT, "the command could not be decided"))
        if not events and request.envelope.is_keyed and after.exists and not is_query(request.command):
            events = [CommandNoted()]
            after = evolve(after, events[0])
        reply = Ok(result, self._position + len(draft.records) + len(events))
        if not events:
            return self._without_events(draft, request, reply)
        for event in events:
            draft.records.append(self._record(draft, request.envelope, event, now_us))
            draft.events.append(event)
        draft.state = after
        encoded = encode(reply)
        kept = seal_bytes(self._cipher, _REPLY, encoded) if request.command.reply_is_personal else encoded
        draft.commands.append(CommandResult(request.envelope.command_id, request.body_hash, kept))
        draft.replies.append((request.reply_to, encoded))
        return reply

    @staticmethod
    def _without_events(draft: Draft, request: Request, reply: Reply) -> Reply:
        draft.unfenced.append((request, reply))
        return reply

    def _record(self, draft: Draft, envelope: Envelope, event: DomainEvent, now_us: int) -> Record:
        stream = event.stream
        version = draft.versions[stream] = draft.versions.get(stream, 0) + 1
        return Record(
            stream=stream,
            version=version,
            time_us=now_us,
            command_id=envelope.command_id,
            actor=envelope.actor,
            correlation_id=envelope.correlation_id,
            causation_id=envelope.causation_id,
            epoch=self._epoch,
            data=encode_data(event, self._cipher),
        )

    async def _commit(self, draft: Draft) -> Sequence[str] | None:
        """Write the draft and make it the state. A list: nothing was written, because these command ids were answered
        before (empty: the log has more than we knew).
        """
        if not draft.records:
            return None
        timer_us = draft.state.next_timer_us
        request = Append(
            tenant=self.tenant,
            epoch=self._epoch,
            expected_position=self._position,
            previous_hash=self._head,
            entries=chain(self._head, draft.records),
            commands=draft.commands,
            placement=draft.state.placement,
            status="erased" if draft.state.is_erased else "active",
            next_timer_us=None if timer_us == self._timer_us else timer_us,
        )
        outcome = await self._append_until_known(request)
        if not isinstance(outcome, Appended):
            return outcome
        self._state, self._versions = draft.state, draft.versions
        for event in draft.events:
            if event.ends_stream:
                self._versions.pop(event.stream, None)
        self._position, self._head = outcome.last_position, request.entries[-1].hash
        self._timer_us = timer_us
        self._set_alarm()
        return None

    async def _append_until_known(self, request: Append) -> Appended | Sequence[str]:
        """While the store is away nobody knows whether the append happened, so the tenant can do nothing but repeat it:
        the command ids in it make that harmless.

        Raises:
            StoreUnavailableError: It stayed away. Then the tenant is let go, so that callers are told.
        """
        delay_s, gives_up_at = _RETRY_FIRST_S, time.monotonic() + STORE_PATIENCE_S
        while True:
            asked_at = time.monotonic()
            try:
                outcome = await self._committer.append(request)
            except StoreUnavailableError as error:
                if time.monotonic() > gives_up_at:
                    raise
                log.warning("tenant.append_retried tenant=%s in_s=%s: %s", self.tenant, delay_s, error)
            except WrongExpectedPositionError as error:
                return await self._explain_position(error)
            except CommandIdReusedError as error:
                return [error.command_id]
            else:
                self._owned_at = asked_at  # not later: ownership is known for the time of asking
                return list(outcome.replies) if isinstance(outcome, Known) else outcome
            await asyncio.sleep(delay_s)  # back-off: the only way to learn that the store is back is to ask it
            delay_s = min(delay_s * 2, _RETRY_MAX_S)

    async def _explain_position(self, error: WrongExpectedPositionError) -> Sequence[str]:
        """Ours alone is the epoch, so the log can only hold more than we know (an append of ours whose answer got lost).
        A log that holds less has lost what was acknowledged: stop, rather than fork it.
        """
        before = self._position
        await self._catch_up()
        if self._position == before:
            raise IntegrityError(f"the store has lost acknowledged events: {error}; restore it before going on")
        return []

    async def _answer_known(self, requests: Sequence[Request], command_ids: Sequence[str]) -> list[Request]:
        """Answer what the log answered before; return what is still to be decided, on the caught-up state."""
        await self._catch_up()
        stored = await self._store.replies(self.tenant, command_ids) if command_ids else {}
        failpoint("actor.after_dedupe_read")
        undecided = []
        for request in requests:
            before = None if is_query(request.command) else stored.get(request.envelope.command_id)
            if before is None:
                undecided.append(request)
            else:
                self._send(request.reply_to, self._first_answer(before, request))
        return undecided

    async def _answer_unfenced(self, unfenced: Sequence[tuple[Request, Reply]]) -> None:
        """Refusals, reads and no-ops. A command that was granted before gets the answer it got then."""
        if not unfenced:
            return
        commands = [request.envelope.command_id for request, _ in unfenced if not is_query(request.command)]
        try:
            stored = await self._store.replies(self.tenant, commands) if commands else {}
            await self._prove_ownership()
            if any(isinstance(request.command, FireTimers) for request, _ in unfenced):
                # nothing was due after all: without this the tenant would be woken for it every second
                await self._store.set_timer(self.tenant, self._state.next_timer_us)
        except StoreUnavailableError as error:
            log.warning("tenant.unanswered tenant=%s requests=%s: %s", self.tenant, len(unfenced), error)
            return  # who can't prove to be the owner says nothing; they ask again
        except FencedError:
            self._send_away(request.reply_to for request, _ in unfenced)
            raise
        for request, reply in unfenced:
            before = None if is_query(request.command) else stored.get(request.envelope.command_id)
            self._send(request.reply_to, encode(reply) if before is None else self._first_answer(before, request))

    @property
    def _surely_owns(self) -> bool:
        return time.monotonic() - self._owned_at < OWNERSHIP_TRUSTED_S

    def owned(self, epoch: int | None, asked_at: float) -> None:
        """The store's epoch, at a time (monotonic seconds) after it was asked: where it is another's, let go."""
        if epoch == self._epoch:
            self._owned_at = max(self._owned_at, asked_at)
        elif not self._ended:
            log.warning(
                "tenant.fenced tenant=%s epoch=%s: epoch is %s, found while idle", self.tenant, self._epoch, epoch
            )
            self.end()

    async def _prove_ownership(self) -> None:
        if self._surely_owns:
            return
        asked_at = time.monotonic()
        await self._store.check(self.tenant, self._epoch)
        self._owned_at = asked_at

    async def _catch_up(self) -> None:
        async for page in scan(self._store, self.tenant, self._position):
            for first in range(0, len(page), _REPLAYED_AT_ONCE):
                self._replay(page[first : first + _REPLAYED_AT_ONCE])
                await asyncio.sleep(0)  # a long log is no reason for the shard's others to wait

    def _replay(self, page: Sequence[StoredEvent]) -> None:
        """Fold a page into the state, all of it or nothing. Raises ChainBrokenError where an event does not follow."""
        versions: dict[str, int] = {}
        ended: set[str] = set()
        events: list[DomainEvent] = []
        head, cipher = self._head, self._cipher
        for stored in page:
            written = stored.record
            head = next_hash(head, written)
            if head != stored.hash:
                raise ChainBrokenError(self.tenant, stored.position, "it does not follow what was replayed before")
            record = open_record(written, cipher)
            stream, event = record.stream, record.event
            events.append(event)
            versions[stream] = record.version
            if event.ends_stream:
                ended.add(stream)
            elif ended:
                ended.discard(stream)
        state = fold(self._state, events)
        self._state, self._position, self._head = state, page[-1].position, head
        self._versions |= versions
        for stream in ended:
            del self._versions[stream]
        self._timer_us = -1  # set by an append whose answer never came, or by another activation

    def _first_answer(self, before: CommandResult, request: Request) -> bytes:
        """The stored reply of a command, for its repeat; a refusal for another command under its id."""
        if before.body_hash != request.body_hash:
            return encode(reply_for(CommandIdReusedError(request.envelope.command_id)))
        reply = open_bytes(self._cipher, _REPLY, before.reply)
        assert reply is not None, "an activation has its tenant's key"
        return reply

    def _send(self, reply_to: str, data: bytes) -> None:
        if not reply_to:
            return
        try:
            self._respond(reply_to, data)
        except PlatformError as error:  # the log has it; who asked will ask again and be answered from there
            log.warning("tenant.reply_lost tenant=%s: %s", self.tenant, error)
