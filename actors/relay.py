"""The inbox relay: takes told commands off the queue, in order per tenant, and has the tenants decide them. No Ray in here.

A message is acknowledged after its command's outcome is durable: the reply in the tenant's log, or a refusal on record, or
a dead letter. Whatever dies in between, the message comes again under the same command id, and the log answers for what
has happened. Tenants go on in parallel; one that can't be served has its messages given back, with a delay, and holds up
nobody else.

Two relays for the same slices may be alive for a while (Ray can't rule it out). Each makes a consumer of its own, and the
broker allows only one per message: who comes later takes over, and who finds its consumer replaced retires. Both go
through the same messages in the same order, so whichever is ahead, the order in the log is the queue's.
"""

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Callable, Sequence

import msgspec
from aiorwlock import RWLock
from nats.errors import Error as NatsError

from actors.lanes import Lane
from events import inbox as inboxes
from events.catalog import decode_command
from events.clock import Clock
from events.courier import Courier, LostError
from events.dead_letters import Cause, DeadLetter, DeadLetters
from events.envelope import DEFECT, Envelope, Failed, Ok, Refused, Reply, decode_envelope
from events.errors import (
    BusUnavailableError,
    CommandIdReusedError,
    InvalidCommandError,
    OverloadedError,
    PlatformError,
    TransientError,
)
from events.failpoints import failpoint
from events.inbox import COMMAND_ID, TELL_STREAM, ConsumerLostError, Inbox, tenant_of
from events.outcomes import Outcomes
from events.pull import BrokenPullError, Delivery, Puller
from events.slices import is_tenant_id
from events.store import EventStore
from events.tasks import end_tasks

log = logging.getLogger(__name__)

IN_HAND_MAX = 4_096  # messages held by one relay
BATCH_MAX = 256  # as many as a tenant decides in one turn
BATCH_BYTES_MAX = 512 * 1024  # a message on the bus has 1 MiB at most
ATTEMPTS_MAX = 3  # of a command alone, after which it is not tried a fourth time
STALL_CHECK_S = 10.0
_REST_FIRST_S, _REST_MAX_S = 0.1, 30.0
_PARK_FROM_S = 1.0  # shorter rests are not worth a round trip
_RETRY_S = 0.5
_TAKE_OVER_S = 1.0
_LOOK_EVERY_S, _HELD_S = 0.5, 2.0


class Told(msgspec.Struct):
    """A message in hand. ``problem``: why it can't even be put to its tenant."""

    delivery: Delivery
    envelope: Envelope | None
    cause: Cause | None = None
    problem: str = ""

    @property
    def sequence(self) -> int:
        return self.delivery.sequence

    @property
    def data(self) -> bytes:
        return self.delivery.data

    @property
    def command_id(self) -> str:
        return self.envelope.command_id if self.envelope else ""


class TenantLane:
    """A tenant's messages in hand, and how it fared with them."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.messages: Lane[Told] = Lane()
        self.task: asyncio.Task[None] | None = None
        self.concluding: asyncio.Task[None] | None = None
        self.failures = 0
        self.rests_until = 0.0  # monotonic
        self.settled = 0  # since the last look at the hand
        self.suspect_through = 0  # up to here, one of them may have ended who was to decide it
        self.alone = 0  # how many were put to it one by one since this relay began
        self.lost_in_company = False  # since the last one that was answered or counted
        self.attempts: dict[int, int] = {}


class ReplacedError(Exception):
    """Another relay has taken over these slices."""


class Relay:
    """One per range of slices. ``run`` until it is replaced."""

    def __init__(
        self,
        slices: range,
        inbox: Inbox,
        store: EventStore,
        outcomes: Outcomes,
        dead_letters: DeadLetters,
        courier: Courier,
        clock: Clock,
    ) -> None:
        self._slices, self._inbox, self._store = slices, inbox, store
        self._outcomes, self._dead_letters = outcomes, dead_letters
        self._courier, self._clock = courier, clock
        self._lanes: dict[str, TenantLane] = {}
        self._in_hand: dict[int, Told] = {}
        self._suspect_through = 0
        self._suspects = RWLock()  # readers: they are tried at the same time; a writer: it is tried while no other is
        self._puller: Puller | None = None
        self.consumer = ""

    @property
    def in_hand(self) -> int:
        return len(self._in_hand)

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Raises ReplacedError when another relay serves these slices. ``on_ready``: messages come from now on."""
        while True:
            try:
                await self._take_over()
                on_ready()
                await self._relay()
            except BrokenPullError as error:
                log.warning("relay.broken consumer=%s: %s", self.consumer, error)
                await self._reset()
                await self._check_replaced()
            except (PlatformError, NatsError, OSError) as error:
                log.warning("relay.interrupted consumer=%s: %r", self.consumer, error)
                await self._reset()
                await asyncio.sleep(_RETRY_S)  # back-off; only asking the broker tells that it is back

    async def close(self) -> None:
        """Stop at once: what is in hand comes again."""
        await self._reset()

    # --- the consumer

    async def _take_over(self) -> None:
        """A consumer of our own in the place of whoever served these slices. It begins with the first message that was not
        acknowledged; those that a predecessor had in hand are suspects, because it may have died of one of them.
        """
        await self._inbox.prepare()
        while True:
            for info in await self._inbox.consumers_of(self._slices):
                if info.delivered is not None and info.name != self.consumer:
                    self._suspect_through = max(self._suspect_through, info.delivered.stream_seq)
                await self._inbox.delete_consumer(info.name)
            name = f"relay-{self._slices.start:03d}-{self._slices[-1]:03d}-{uuid.uuid4().hex[:8]}"
            if await self._inbox.create_consumer(name, self._slices):
                self.consumer = name
                log.info("relay.took_over consumer=%s", name)
                return

    async def _check_replaced(self) -> None:
        """Gone is gone; but gone and another in its place is an answer. Who takes over deletes first and creates then."""
        await asyncio.sleep(_TAKE_OVER_S)
        try:
            others = [info.name for info in await self._inbox.consumers_of(self._slices) if info.name != self.consumer]
        except PlatformError:
            return  # the broker is away: find out when taking over
        if others:
            raise ReplacedError(f"{self.consumer} was replaced by {others}")

    async def _relay(self) -> None:
        self._puller = Puller(
            self._inbox.bus, TELL_STREAM, self.consumer, self._on_delivery, lambda: IN_HAND_MAX - self.in_hand
        )
        keeping = asyncio.create_task(self._keep_in_hand(), name="relay-keep")
        checking = asyncio.create_task(self._find_stalls(), name="relay-stalls")
        sharing = asyncio.create_task(self._make_room(), name="relay-room")
        pulling = asyncio.create_task(self._puller.run(), name="relay-pull")
        tasks = (keeping, checking, sharing, pulling)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await end_tasks(*tasks)

    async def _reset(self) -> None:
        """Forget all that is in hand: the next consumer brings it again, from the first on."""
        lanes, self._lanes = list(self._lanes.values()), {}
        self._in_hand.clear()
        await end_tasks(*(task for lane in lanes for task in (lane.task, lane.concluding) if task is not None))

    async def _keep_in_hand(self) -> None:
        """The broker would give what takes longer than its patience to somebody else."""
        while True:
            await asyncio.sleep(inboxes.ACK_WAIT_S / 3)
            for told in list(self._in_hand.values()):
                told.delivery.keep()

    async def _find_stalls(self) -> None:
        """Messages wait, we have room, and none comes: whatever the reason, another consumer starts from what is true."""
        waits_since: float | None = None
        while True:
            await asyncio.sleep(STALL_CHECK_S)
            assert self._puller is not None
            if not await self._leaves_waiting():
                waits_since = None
                continue
            waits_since = waits_since or time.monotonic()
            silent_s = time.monotonic() - max(waits_since, self._puller.delivered_at)
            if silent_s > 2 * inboxes.ACK_WAIT_S:
                log.error("relay.stalled consumer=%s silent_s=%.0f", self.consumer, silent_s)
                await self._inbox.delete_consumer(self.consumer)
                raise BrokenPullError(f"nothing came for {silent_s:.0f} s though messages wait")

    async def _leaves_waiting(self) -> bool:
        """Does the broker keep messages that we have room for, or count some as ours that we don't have?"""
        if self.in_hand >= IN_HAND_MAX:
            return False
        try:
            info = await self._inbox.consumer(self.consumer)
        except ConsumerLostError as error:
            raise BrokenPullError("the consumer was deleted") from error
        ours = self.in_hand + sum(lane.messages.parked for lane in self._lanes.values())
        return (info.num_pending or 0) > 0 or (info.num_ack_pending or 0) > ours

    # --- what comes

    def _on_delivery(self, delivery: Delivery) -> None:
        told = _read(delivery)
        tenant = tenant_of(delivery.subject)
        lane = self._lanes.get(tenant)
        if lane is None:
            lane = self._lanes[tenant] = TenantLane(tenant)
        self._in_hand[delivery.sequence] = told
        lane.messages.arrive(delivery.sequence, told)
        if (rest_s := lane.rests_until - time.monotonic()) > 0:
            self._park(lane, 0, rest_s)
        elif lane.task is None:
            lane.task = asyncio.create_task(self._serve(lane), name=f"lane-{tenant}")

    async def _make_room(self) -> None:
        """One tenant's backlog must not keep the others' messages out: it holds no more than it gets done in a while."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            for lane in self._lanes.values():
                keep = max(BATCH_MAX, round(lane.settled * _HELD_S / _LOOK_EVERY_S))
                lane.settled = 0
                if self.in_hand > IN_HAND_MAX // 2 and lane.messages.held > keep:
                    self._park(lane, keep, _HELD_S)

    def _park(self, lane: TenantLane, keep: int, delay_s: float) -> None:
        for told in lane.messages.park(keep):
            self._in_hand.pop(told.sequence, None)
            told.delivery.give_back(delay_s)

    async def _serve(self, lane: TenantLane) -> None:
        """Put what the lane holds to its tenant, in order, until nothing is left or it has to wait for a while."""
        try:
            while run := lane.messages.ready(BATCH_MAX):
                await self._serve_some(lane, [told for _, told in run])
                if self._puller is not None:
                    self._puller.look()
        except Exception:
            log.exception("relay.lane_failed tenant=%s", lane.tenant)
            await self._rest(lane, "a defect of ours")
        finally:
            lane.task = None
            if self._lanes.get(lane.tenant) is lane:
                if lane.messages.ready(1):  # came while we were ending
                    lane.task = asyncio.create_task(self._serve(lane), name=f"lane-{lane.tenant}")
                elif lane.messages.is_empty and lane.concluding is None:
                    del self._lanes[lane.tenant]

    async def _serve_some(self, lane: TenantLane, run: Sequence[Told]) -> None:
        first = run[0]
        try:
            if self._mark_unservable(first):
                await self._bury(lane, first)
            elif self._is_suspect(lane, first):
                await self._serve_alone(lane, first)
            else:
                await self._serve_batch(lane, _batch(_prefix(run, self._mark_unservable)))
        except TransientError as error:
            await self._rest(lane, str(error))
        else:
            lane.failures = 0

    def _mark_unservable(self, told: Told) -> bool:
        """Whether no tenant is to be asked about it; notes it down of what has become too old by now."""
        if told.cause is None and told.envelope is not None and told.envelope.deadline_us < self._clock.now_us():
            told.cause, told.problem = "stale", "it waited longer than 24 h, so a repeat might not be known for one"
        return told.cause is not None

    def _is_suspect(self, lane: TenantLane, told: Told) -> bool:
        if told.sequence <= lane.suspect_through:
            return True
        return told.sequence <= self._suspect_through and lane.alone < BATCH_MAX

    async def _serve_batch(self, lane: TenantLane, batch: Sequence[Told]) -> None:
        if any(told.delivery.delivered > 1 for told in batch):
            batch = await self._acknowledge_concluded(lane, batch)
            if not batch:
                return
        failpoint("relay.before_ask")
        try:
            replies = await self._courier.deliver(lane.tenant, [told.data for told in batch])
        except LostError as error:
            lane.suspect_through = max(lane.suspect_through, batch[-1].sequence)
            log.warning("relay.unanswered tenant=%s commands=%s: %s", lane.tenant, len(batch), error)
            return
        await self._settle(lane, batch, replies)

    async def _serve_alone(self, lane: TenantLane, told: Told) -> None:
        """One of several that may have ended its tenant's process. Its attempts are counted, on disk and beforehand.

        Tenants share a process, so the one that ends it takes innocent commands of others along. The first lost attempt
        is therefore not held against anybody: from the second on no other suspect is tried at the same time.
        """
        if not await self._acknowledge_concluded(lane, [told]):
            return
        lane.alone += 1
        before = lane.attempts.get(told.sequence)
        if before is None:
            before = await self._outcomes.attempts(lane.tenant, told.command_id)
        if before >= ATTEMPTS_MAX:
            told.cause = "unanswered"
            told.problem = f"whoever was to decide it ended, or never answered, {before} times"
            lane.attempts[told.sequence] = before
            return
        is_alone = lane.lost_in_company
        async with self._suspects.writer if is_alone else self._suspects.reader:
            await self._outcomes.mark_attempt(lane.tenant, told.command_id, before + 1)
            # not counted yet: it may come to nothing for a reason that is not its own
            lane.attempts[told.sequence] = before
            try:
                replies = await self._courier.deliver(lane.tenant, [told.data])
            except LostError as error:
                await self._store.head(lane.tenant)  # raises where the store is away, which explains all
                if is_alone:
                    lane.attempts[told.sequence] = before + 1
                else:
                    await self._outcomes.mark_attempt(lane.tenant, told.command_id, before)
                lane.lost_in_company = not is_alone or lane.attempts[told.sequence] < ATTEMPTS_MAX
                log.warning(
                    "relay.attempt_lost tenant=%s command=%s counted=%s: %s",
                    lane.tenant, told.command_id, is_alone, error,
                )  # fmt: skip
                return
        lane.lost_in_company = False
        await self._outcomes.clear_attempts(lane.tenant, [told.command_id])
        await self._settle(lane, [told], replies)

    async def _acknowledge_concluded(self, lane: TenantLane, batch: Sequence[Told]) -> Sequence[Told]:
        """Redelivered, perhaps because an acknowledgement got lost: a refusal is not decided a second time. Returns the
        others.
        """
        known = await self._outcomes.find(lane.tenant, [told.command_id for told in batch])
        concluded = [told for told in batch if told.command_id in known]
        self._acknowledge(lane, concluded)
        return [told for told in batch if told.command_id not in known]

    async def _settle(self, lane: TenantLane, batch: Sequence[Told], replies: Sequence[Reply]) -> None:
        """Conclude what was answered for good. The rest stays where it is, in order."""
        final: list[tuple[Told, Reply]] = []
        refusal = ""
        for told, reply in zip(batch, replies, strict=True):
            if (isinstance(reply, Refused) and reply.code == OverloadedError.code) or (
                isinstance(reply, Failed) and reply.code != DEFECT
            ):
                refusal = reply.message
            elif isinstance(reply, Failed):
                told.cause, told.problem = "defect", f"{reply.code}: {reply.message}"
            elif isinstance(reply, Refused) and reply.code == CommandIdReusedError.code:
                told.cause, told.problem = "reused", reply.message
            else:
                final.append((told, reply))
        lane.messages.settle([told.sequence for told, _ in final])
        lane.settled += len(final)
        if lane.concluding is not None:
            await asyncio.wait([lane.concluding])
        lane.concluding = asyncio.create_task(self._conclude(lane, final), name=f"conclude-{lane.tenant}")
        if refusal:
            raise TransientError(refusal)

    async def _conclude(self, lane: TenantLane, final: Sequence[tuple[Told, Reply]]) -> None:
        """Put on record what the log does not say, then acknowledge; meanwhile the lane goes on."""
        delay_s = _REST_FIRST_S
        try:
            failpoint("relay.after_reply_before_record")
            while True:
                try:
                    await self._record(lane.tenant, {told.command_id: reply for told, reply in final})
                    break
                except TransientError as error:
                    log.warning("relay.outcomes_delayed tenant=%s: %s", lane.tenant, error)
                await asyncio.sleep(delay_s)  # back-off; only asking again tells
                delay_s = min(delay_s * 2, _REST_MAX_S)
            failpoint("relay.after_record_before_ack")
            self._acknowledge(lane, [told for told, _ in final])
        except Exception:
            log.exception("relay.conclusion_failed tenant=%s commands=%s", lane.tenant, len(final))
            for told, _ in final:
                self._in_hand.pop(told.sequence, None)  # so it comes again
        finally:
            lane.concluding = None
            if lane.task is None and lane.messages.is_empty and self._lanes.get(lane.tenant) is lane:
                del self._lanes[lane.tenant]

    async def _record(self, tenant: str, outcomes: dict[str, Reply]) -> None:
        """Replies that came with events are in the log."""
        granted = [name for name, reply in outcomes.items() if isinstance(reply, Ok)]
        logged = await self._store.replies(tenant, granted) if granted else {}
        if missing := {name: reply for name, reply in outcomes.items() if name not in logged}:
            await self._outcomes.record(tenant, missing)

    def _acknowledge(self, lane: TenantLane, concluded: Sequence[Told]) -> None:
        lane.messages.settle([told.sequence for told in concluded])
        for told in concluded:
            # first: one whose acknowledgement gets lost is not kept in hand, so it comes again, and is known then
            self._in_hand.pop(told.sequence, None)
            lane.attempts.pop(told.sequence, None)
            try:
                told.delivery.acknowledge()
            except BusUnavailableError as error:
                log.warning("relay.acknowledgement_lost tenant=%s command=%s: %s", lane.tenant, told.command_id, error)
            failpoint("relay.mid_acks")

    async def _bury(self, lane: TenantLane, told: Told) -> None:
        assert told.cause is not None
        if told.cause in ("stale", "unanswered") and await self._was_decided(lane.tenant, told.command_id):
            self._acknowledge(lane, [told])  # only its answer, or its acknowledgement, got lost
            return
        letter = DeadLetter(
            id=_letter_id(told),
            tenant=lane.tenant,
            command_id=told.command_id,
            cause=told.cause,
            message=told.problem,
            attempts=max(1, lane.attempts.get(told.sequence, 0)),
            told_us=told.delivery.told_us,
            died_us=self._clock.now_us(),
            sequence=told.sequence,
            data=told.data,
            headers=told.delivery.headers,
        )
        await self._dead_letters.bury(letter)
        failpoint("relay.after_burial_before_ack")
        self._acknowledge(lane, [told])
        log.error("relay.buried tenant=%s letter=%s cause=%s: %s", lane.tenant, letter.id, told.cause, told.problem)

    async def _was_decided(self, tenant: str, command_id: str) -> bool:
        """The log or the outcomes on record know it; a letter would have somebody replay what has happened."""
        return bool(await self._store.replies(tenant, [command_id]) or await self._outcomes.find(tenant, [command_id]))

    async def _rest(self, lane: TenantLane, why: str) -> None:
        """Give the tenant a while. Its messages go back to the broker for that time, so that others have room here."""
        lane.failures += 1
        rest_s = min(_REST_FIRST_S * 2 ** min(lane.failures, 20), _REST_MAX_S) * random.uniform(0.75, 1.25)  # noqa: S311
        log.warning("relay.rests tenant=%s s=%.1f: %s", lane.tenant, rest_s, why)
        if rest_s < _PARK_FROM_S:
            await asyncio.sleep(rest_s)
        else:
            lane.rests_until = time.monotonic() + rest_s
            self._park(lane, 0, rest_s)


def _read(delivery: Delivery) -> Told:
    """What can be seen at once of a message that no tenant should be asked about."""
    tenant = tenant_of(delivery.subject)
    try:
        envelope = decode_envelope(delivery.data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Told(delivery, None, "undecodable", f"not an envelope: {error}")
    if envelope.tenant != tenant or not is_tenant_id(tenant) or not COMMAND_ID.fullmatch(envelope.command_id):
        return Told(
            delivery, None, "undecodable", f"a command of {envelope.tenant[:80]!r} in the queue of {tenant[:80]!r}"
        )
    try:
        decode_command(envelope.body)
    except InvalidCommandError as error:
        return Told(delivery, envelope, "undecodable", str(error))
    return Told(delivery, envelope)


def _letter_id(told: Told) -> str:
    """The command's own id; of those that have none, or one that is another's, their place in the queue."""
    if not told.command_id or told.cause == "reused":
        return f"{told.command_id or 'message'}-at-{told.sequence}"
    return told.command_id


def _prefix(run: Sequence[Told], is_unservable: Callable[[Told], bool]) -> list[Told]:
    found: list[Told] = []
    for told in run:
        if is_unservable(told):
            break
        found.append(told)
    return found


def _batch(run: Sequence[Told]) -> Sequence[Told]:
    size, count = 0, 0
    for told in run:
        size += len(told.data)
        if count and size > BATCH_BYTES_MAX:
            break
        count += 1
    return run[:count]
