"""A tenant in memory: claimed under an epoch, replayed, then asked, turn after turn, until it is let go.

A turn takes the commands that wait, decides each on the state so far, appends all resulting events in one conditional
write, and only then changes the state and replies. What is not durable did not happen.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import msgspec

from actors import snapshots
from actors.aggregate import State, is_query
from actors.alarm import ALARM_HORIZON_S, Alarm
from actors.commit import Committer
from actors.effects import Effects, NoEffects
from actors.fairness import Share
from actors.mailbox import Mailbox, Message
from actors.memory import Memory
from actors.ownership import Ownership
from actors.run.state import Run
from actors.run.state import evolve as evolve_run
from actors.turn import Draft, Request, open_request
from events import tracing
from events.clock import Clock
from events.codec import chain, open_record
from events.defects import described
from events.envelope import Envelope, Reply, encode, moved_reply, reply_for
from events.errors import (
    ChainBrokenError,
    CommandIdReusedError,
    FencedError,
    IntegrityError,
    OverloadedError,
    PlatformError,
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
from events.sealing import WITHOUT_KEY, Cipher, open_bytes
from events.store import REPLY_SEAL, Append, Appended, CommandResult, EventStore, Known, Placement
from events.timers import FireTimers
from events.witness import loss

log = logging.getLogger(__name__)

# A store that is away for longer is reported to the callers instead of waited for.
STORE_PATIENCE_S = 15.0
_RETRY_FIRST_S, _RETRY_MAX_S = 0.05, 1.0
_REPLAYED_AT_ONCE = 64  # events

_UNTRACED = nullcontext()
_FIRE = msgspec.Raw(encode(FireTimers()))
Respond = Callable[[str, bytes], None]  # subject to reply to, encoded reply


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
        self._mailbox = Mailbox()
        self._command_took_s = 0.0  # of the last turn
        self._used_at = time.monotonic()
        self._running: asyncio.Task[None] | None = None
        self._ended = False
        self._memory = Memory()
        self._ownership = Ownership(store, tenant)
        self._snapshot_position = 0
        self._timer_us = -1  # unknown: the first append sets it
        self._alarm = Alarm(clock, self._fire)

    @property
    def state(self) -> State:
        return self._memory.state

    @property
    def position(self) -> int:
        return self._memory.position

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
        self._ownership.begin(head.epoch, asked_at)
        if head.status == "erased":
            raise TenantErasedError(f"tenant {self.tenant!r} is erased: nothing can be asked of it any more")
        if head.status != "active":
            raise TenantClosedError(f"tenant {self.tenant!r} is {head.status}: `tenantry doctor` says why")
        if rewound := await loss(self._store, self._keys.vault, self.tenant, head):
            log.critical("tenant.log_rewound tenant=%s: %s", self.tenant, rewound)
            await self._halt(rewound)
            raise rewound
        self._cipher = await self._keys.cipher(self.tenant, create=True)
        memory = self._memory
        await snapshots.load_snapshot(self._store, self.tenant, head, self._cipher, memory)
        self._snapshot_position = memory.position
        await self._catch_up()
        if memory.position < head.position or (memory.position == head.position and memory.head != head.hash):
            raise ChainBrokenError(self.tenant, memory.position + 1, f"the store says that {head.position} are there")
        self._effects.activated(self.tenant, memory.state, self._cipher)
        self._alarm.set(memory.state.next_timer_us)

    def _fire(self) -> None:
        """As the scan would ask, but from here; where both do, the second finds nothing due."""
        command_id = derived_id(self.tenant, "alarm", str(self._ownership.epoch), str(self._memory.position))
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

    async def save_snapshot(self) -> None:
        """A cache: losing it costs a longer replay, so a store that is away is no reason to fail."""
        if self._memory.position != self._snapshot_position:
            self._snapshot_position = self._memory.position
            await snapshots.save_snapshot(self._store, self.tenant, self._cipher, self._memory)

    def deliver(self, data: bytes, reply_to: str) -> None:
        """Put a command into the mailbox; a full mailbox answers at once, as long as it is surely the owner's."""
        if self._ended:
            self._send(reply_to, encode(moved_reply))
            return
        self._used_at = time.monotonic()
        if self._mailbox.is_full:
            if self._ownership.is_sure:
                wait_s = self._mailbox.wait_s(self._command_took_s)
                self._send(reply_to, encode(reply_for(OverloadedError(self.tenant, len(self._mailbox), wait_s))))
            return
        self._mailbox.put(data, reply_to)
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name=f"turns-{self.tenant}")

    async def drain(self) -> None:
        """Finish what is in the mailbox."""
        if self._running is not None:
            await asyncio.wait([self._running])

    def end(self) -> None:
        """Let the tenant go. What waits in the mailbox was not begun: whoever asked is told to ask again."""
        if not self._ended:
            self._ended = True
            self._alarm.cancel()
            self._send_away(reply_to for _, reply_to in self._mailbox.clear())
            self._on_end(self)

    def _send_away(self, reply_tos: Iterable[str]) -> None:
        moved = encode(moved_reply)
        for reply_to in reply_tos:
            self._send(reply_to, moved)

    def _take(self) -> list[Message]:
        """The commands of the next turn: this tenant's share of a round."""
        taken = self._mailbox.take(self._share.turn(self.tenant, time.monotonic()))
        self._share.took(len(taken))
        return taken

    async def _run(self) -> None:
        try:
            while self._mailbox and not self._ended:
                began, messages = time.monotonic(), self._take()
                await self._turn(messages)
                state = self._memory.state
                if state.is_erased:
                    self.end()
                    return
                self._command_took_s = (time.monotonic() - began) / len(messages)
                if self._memory.position - self._snapshot_position >= snapshots.SNAPSHOT_EVERY_EVENTS:
                    await self.save_snapshot()
                if state.exists and state.placement != self._serves:
                    self._on_misplaced(self)
                await asyncio.sleep(0)  # a turn that only read awaited nothing: now the others
        except FencedError as error:
            log.warning("tenant.fenced tenant=%s epoch=%s: %s", self.tenant, self._ownership.epoch, error)
            self.end()
        except StoreUnavailableError as error:
            # whether the last append happened is unknown; the next activation reads it from the log
            log.warning("tenant.store_away tenant=%s position=%s: %s", self.tenant, self._memory.position, error)
            self.end()
        except IntegrityError as error:
            log.exception("tenant.halted tenant=%s position=%s", self.tenant, self._memory.position)
            await self._halt(error)
            self.end()
        except Exception as error:
            # a defect: the state may be half a turn ahead of the log, so it is thrown away and replayed
            log.exception("tenant.crashed tenant=%s position=%s", self.tenant, self._memory.position)
            self.crash = described(error)
            self.end()
        finally:
            self._running = None

    async def _halt(self, error: IntegrityError) -> None:
        """So that the next activation doesn't fork the log either."""
        try:
            await self._store.halt(self.tenant, self._ownership.epoch, str(error))
        except PlatformError as failure:
            log.warning("tenant.halt_failed tenant=%s: %s", self.tenant, failure)

    async def _turn(self, messages: Sequence[Message]) -> None:
        waiting, answers = self._opened(messages)
        for at, request in enumerate(waiting):
            if isinstance(request.command, RetryRun) and request.command.run_id not in self._memory.state.runs.open:
                waiting[at] = await self._with_history(request, request.command.run_id)
        await self._serve(waiting)
        # last: who has an answer knows that what was sent before has its own (``Courier`` asks just for that)
        for reply_to, reply in answers:
            self._send(reply_to, encode(reply))

    def _opened(self, messages: Sequence[Message]) -> tuple[list[Request], list[tuple[str, Reply]]]:
        """What is to be decided, and answers to what can't be."""
        now_us, requests, answers = self._clock.now_us(), list[Request](), list[tuple[str, Reply]]()
        for data, reply_to in messages:
            failpoint("actor.before_decode")
            opened = open_request(self.tenant, data, reply_to, now_us)
            if isinstance(opened, Request):
                requests.append(opened)
            elif opened is not None:
                answers.append((reply_to, opened))
        return requests, answers

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
        self._memory.versions[stream] = version
        return msgspec.structs.replace(request, command=ReopenRun(run_id, encode(run)))

    async def _serve(self, waiting: Sequence[Request]) -> None:
        while waiting and not self._ended:
            draft = Draft(self.tenant, self._ownership.epoch, self._cipher, self._memory, self._clock.now_us())
            draft.decide_all(waiting)
            position = self._memory.position
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
                self._effects.appended(self.tenant, draft.state, draft.events, self._cipher)
                await self._answer_unfenced(draft.unfenced)
                return
            waiting = await self._answer_known(waiting, known)
            if self._memory.position != position:
                # an append of ours whose answer got lost: what follows from it is due
                self._effects.activated(self.tenant, self._memory.state, self._cipher)
                self._alarm.set(self._memory.state.next_timer_us)

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

    async def _commit(self, draft: Draft) -> Sequence[str] | None:
        """Write the draft and make it the state. A list: nothing was written, because these command ids were answered
        before (empty: the log has more than we knew).
        """
        if not draft.records:
            return None
        memory, timer_us = self._memory, draft.state.next_timer_us
        request = Append(
            tenant=self.tenant,
            epoch=self._ownership.epoch,
            expected_position=memory.position,
            previous_hash=memory.head,
            entries=chain(memory.head, draft.records),
            commands=draft.commands,
            placement=draft.state.placement,
            status="erased" if draft.state.is_erased else "active",
            next_timer_us=None if timer_us == self._timer_us else timer_us,
        )
        outcome = await self._append_until_known(request)
        if not isinstance(outcome, Appended):
            return outcome
        memory.written(draft.state, draft.versions, draft.events, outcome.last_position, request.entries[-1].hash)
        self._timer_us = timer_us
        self._alarm.set(timer_us)
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
                self._ownership.proven(asked_at)
                return list(outcome.replies) if isinstance(outcome, Known) else outcome
            await asyncio.sleep(delay_s)  # back-off: the only way to learn that the store is back is to ask it
            delay_s = min(delay_s * 2, _RETRY_MAX_S)

    async def _explain_position(self, error: WrongExpectedPositionError) -> Sequence[str]:
        """Ours alone is the epoch, so the log can only hold more than we know (an append of ours whose answer got lost).
        A log that holds less has lost what was acknowledged: stop, rather than fork it.
        """
        before = self._memory.position
        await self._catch_up()
        if self._memory.position == before:
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
            await self._ownership.prove()
            if any(isinstance(request.command, FireTimers) for request, _ in unfenced):
                # nothing was due after all: without this the tenant would be woken for it every second
                await self._store.set_timer(self.tenant, self._ownership.epoch, self._memory.state.next_timer_us)
        except StoreUnavailableError as error:
            log.warning("tenant.unanswered tenant=%s requests=%s: %s", self.tenant, len(unfenced), error)
            return  # who can't prove to be the owner says nothing; they ask again
        except FencedError:
            self._send_away(request.reply_to for request, _ in unfenced)
            raise
        for request, reply in unfenced:
            before = None if is_query(request.command) else stored.get(request.envelope.command_id)
            self._send(request.reply_to, encode(reply) if before is None else self._first_answer(before, request))

    def owned(self, epoch: int | None, asked_at: float) -> None:
        """The store's epoch, at a time (monotonic seconds) after it was asked: where it is another's, let go."""
        if epoch == self._ownership.epoch:
            self._ownership.proven(asked_at)
        elif not self._ended:
            log.warning(
                "tenant.fenced tenant=%s epoch=%s: epoch is %s, found while idle",
                self.tenant, self._ownership.epoch, epoch,
            )  # fmt: skip
            self.end()

    async def _catch_up(self) -> None:
        async for page in scan(self._store, self.tenant, self._memory.position):
            for first in range(0, len(page), _REPLAYED_AT_ONCE):
                self._memory.replay(self.tenant, page[first : first + _REPLAYED_AT_ONCE], self._cipher)
                self._timer_us = -1  # set by an append whose answer never came, or by another activation
                await asyncio.sleep(0)  # a long log is no reason for the shard's others to wait

    def _first_answer(self, before: CommandResult, request: Request) -> bytes:
        """The stored reply of a command, for its repeat; a refusal for another command under its id."""
        if before.body_hash != request.body_hash:
            return encode(reply_for(CommandIdReusedError(request.envelope.command_id)))
        reply = open_bytes(self._cipher, REPLY_SEAL, before.reply)
        assert reply is not None, "an activation has its tenant's key"
        return reply

    def _send(self, reply_to: str, data: bytes) -> None:
        if not reply_to:
            return
        try:
            self._respond(reply_to, data)
        except PlatformError as error:  # the log has it; who asked will ask again and be answered from there
            log.warning("tenant.reply_lost tenant=%s: %s", self.tenant, error)
