"""What the platform's own parts meet in a simulation: a broker, a store, a queue and dependencies with faults on a dice."""

import asyncio
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any, cast

import msgspec

from actors.run.functions import StepFailure
from actors.run.runner import Done
from events.bus import ACTIVATE, NoOneListensError
from events.errors import BusUnavailableError, PlatformError, StoreUnavailableError
from events.memory_store import MemoryEventStore
from events.store import Append, AppendOutcome, CommandResult, Head, Snapshot
from events.work import ACK_WAIT_S, Message, WorkItem
from tests.kit.checker import Violation
from tests.kit.run_checker import Attempt, Effect, amount_of
from tests.simulation.sagas import TIMEOUT_S

LAG_S = 0.002


class Odds(msgspec.Struct, frozen=True):
    """How often what goes wrong, as long as anything does."""

    message_lost: float = 0.02
    message_doubled: float = 0.03
    message_late: float = 0.03
    answer_of_store_lost: float = 0.02
    work_doubled: float = 0.05
    acknowledgement_lost: float = 0.05
    busy: float = 0.08
    effect_unanswered: float = 0.06
    too_slow: float = 0.02
    step_broken: float = 0.06
    undo_broken: float = 0.02
    # of the pure simulation only; with processes to kill, they are killed instead
    append_refused: float = 0.03
    tenant_died_before: float = 0.02
    tenant_died_after: float = 0.03
    runner_died_before: float = 0.04
    runner_died_after: float = 0.05


class Outcome(msgspec.Struct, frozen=True):
    """What came of a schedule. ``seen`` counts what happened: ends of runs, faults."""

    seed: int
    violations: Sequence[Violation]
    seen: Counter[str]
    options: str = ""  # of the command that runs it again

    def __str__(self) -> str:
        lines = [str(violation) for violation in self.violations]
        return "\n".join([*lines, f"again: uv run python -m tests.simulation {self.options}--seed {self.seed}"])


CALM = Odds(*[0.0] * len(msgspec.structs.fields(Odds)))


class Faults:
    """The dice. ``calm`` ends all that goes wrong by chance: then everything has to come to its end."""

    def __init__(self, seed: int, odds: Odds) -> None:
        self.dice, self.odds, self.seed = Random(seed), odds, seed
        self.store_is_away = self.queue_is_away = False
        self.happened: dict[str, int] = {}

    def calm(self) -> None:
        self.odds = msgspec.structs.replace(CALM, step_broken=self.odds.step_broken, undo_broken=self.odds.undo_broken)
        self.store_is_away = self.queue_is_away = False

    def happens(self, what: str) -> bool:
        if self.dice.random() >= getattr(self.odds, what):
            return False
        self.note(what)
        return True

    def note(self, what: str) -> None:
        self.happened[what] = self.happened.get(what, 0) + 1

    def lag_s(self) -> float:
        return self.dice.random() * LAG_S

    def is_broken(self, run: str, step: str) -> bool:
        """For good, for this step: the same answer at every attempt."""
        share = self.odds.undo_broken if step.startswith("undo:") else self.odds.step_broken
        return zlib.crc32(f"{self.seed}/{run}/{step}".encode()) % 10_000 < share * 10_000


class Store(MemoryEventStore):
    """May be away, and may lose the answer of an append that it has made."""

    def __init__(self, clock: Any, faults: Faults) -> None:
        super().__init__(clock)
        self._faults = faults

    def _check_there(self) -> None:
        if self._faults.store_is_away:
            raise StoreUnavailableError("the store is away")

    def next_timer_us(self) -> int:
        return min(self._timers.values(), default=0)

    def position(self, tenant: str) -> int:
        return self._heads[tenant].position

    async def append_many(self, requests: Sequence[Append]) -> list[AppendOutcome]:
        await asyncio.sleep(self._faults.lag_s())  # who is killed in here has not appended
        self._check_there()
        outcomes = await super().append_many(requests)
        await asyncio.sleep(self._faults.lag_s())  # and here, has
        if self._faults.happens("answer_of_store_lost"):
            raise StoreUnavailableError("the connection was cut")
        return outcomes

    async def claim(self, tenant: str) -> Head:
        self._check_there()
        return await super().claim(tenant)

    async def check(self, tenant: str, epoch: int) -> None:
        self._check_there()
        await super().check(tenant, epoch)

    async def replies(self, tenant: str, command_ids: Sequence[str]) -> dict[str, CommandResult]:
        self._check_there()
        return await super().replies(tenant, command_ids)

    async def save_snapshot(self, tenant: str, snapshot: Snapshot) -> None:
        self._check_there()
        await super().save_snapshot(tenant, snapshot)


class Bus:
    """Carries asks as NATS does: at most once, in any order; here also twice. ``find`` gives the handler of a tenant's
    activation, ``activate`` has one made.
    """

    def __init__(
        self,
        faults: Faults,
        find: Callable[[str], Callable[[bytes, str], None] | None],
        activate: Callable[[str], Any],
    ) -> None:
        self._faults, self._find, self._activate = faults, find, activate
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._count = 0

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        if subject == ACTIVATE:
            return await self._request_activation(data.decode(), timeout_s)
        tenant = subject.rsplit(".", 1)[1]
        if self._find(tenant) is None:
            await asyncio.sleep(self._faults.lag_s())
            raise NoOneListensError
        loop = asyncio.get_running_loop()
        self._count += 1
        reply_to, answered = str(self._count), loop.create_future()
        self._waiting[reply_to] = answered
        for delay_s in self._deliveries():
            loop.call_later(delay_s, self._arrive, tenant, data, reply_to)
        try:
            async with asyncio.timeout(timeout_s):
                return cast("bytes", await answered)
        finally:
            del self._waiting[reply_to]

    def _deliveries(self) -> list[float]:
        """After how long each copy of a message arrives."""
        faults = self._faults
        if faults.happens("message_lost"):
            return []
        delays = [faults.lag_s() + (faults.dice.random() * 4 if faults.happens("message_late") else 0.0)]
        if faults.happens("message_doubled"):
            delays.append(faults.dice.random() * 3)
        return delays

    def _arrive(self, tenant: str, data: bytes, reply_to: str) -> None:
        deliver = self._find(tenant)
        if deliver is not None:
            deliver(data, reply_to)

    async def _request_activation(self, tenant: str, timeout_s: float) -> bytes:
        async with asyncio.timeout(timeout_s):
            try:
                await self._activate(tenant)
            except PlatformError as error:
                return error.code.encode()
            return b""

    def respond(self, reply_to: str, data: bytes) -> None:
        if not self._faults.happens("message_lost"):
            asyncio.get_running_loop().call_later(self._faults.lag_s(), self._answer, reply_to, data)

    def _answer(self, reply_to: str, data: bytes) -> None:
        answered = self._waiting.get(reply_to)
        if answered is not None and not answered.done():
            answered.set_result(data)


class Entry(msgspec.Struct):
    message: Message
    visible_s: float = 0.0
    deliveries: int = 0


class Taken:
    """As ``events.work.Taken``."""

    def __init__(self, queue: "Queue", subject: str, entry: Entry) -> None:
        self._queue, self._subject, self._entry = queue, subject, entry
        self.message, self.is_redelivered = entry.message, entry.deliveries > 1

    def done(self) -> None:
        if not self._queue.faults.happens("acknowledgement_lost"):
            self._queue.remove(self._subject, self._entry)

    def hold(self) -> None:
        self._queue.hide(self._entry, ACK_WAIT_S)

    def give_back(self, delay_s: float) -> None:
        self._queue.hide(self._entry, delay_s)


class Queue:
    """As ``events.work.WorkQueue``, in any order."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.entries: dict[str, Entry] = {}
        self._changed = asyncio.Event()

    async def put(self, subject: str, message: Message) -> None:
        await asyncio.sleep(self.faults.lag_s())
        if self.faults.queue_is_away:
            raise BusUnavailableError("the broker is away")
        if subject not in self.entries:
            self.entries[subject] = Entry(message)
            self._changed.set()

    def remove(self, subject: str, entry: Entry) -> None:
        if self.entries.get(subject) is entry:
            del self.entries[subject]

    def hide(self, entry: Entry, seconds: float) -> None:
        entry.visible_s = asyncio.get_running_loop().time() + seconds
        self._changed.set()

    async def pull(self, take: Callable[[Taken], None], room: Callable[[], int]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            for subject in self._ready(loop.time())[: max(0, room())]:
                take(self._give(subject))
            self._changed.clear()
            hidden = [entry.visible_s for entry in self.entries.values() if entry.visible_s > loop.time()]
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(hidden, default=None)):
                    await self._changed.wait()

    def look(self) -> None:
        self._changed.set()

    def _ready(self, now_s: float) -> list[str]:
        ready = [subject for subject, entry in self.entries.items() if entry.visible_s <= now_s]
        if len(ready) > 1:
            self.faults.dice.shuffle(ready)
        return ready

    def _give(self, subject: str) -> Taken:
        entry = self.entries[subject]
        entry.deliveries += 1
        early = self.faults.happens("work_doubled")
        self.hide(entry, self.faults.dice.random() if early else ACK_WAIT_S)
        return Taken(self, subject, entry)


class Dependency:
    """Does each idempotency key once, as a payment provider does, and keeps the ledger that counts."""

    def __init__(self, faults: Faults, store: Store) -> None:
        self._faults, self._store = faults, store
        self._done: dict[str, int] = {}
        self.effects: dict[str, list[Effect]] = {}
        self.attempts: dict[str, list[Attempt]] = {}
        self.repaired: set[str] = set()

    async def carry_out(self, item: WorkItem, args: Any) -> Done:
        step, key = item.order.step, item.idempotency_key
        self.attempts.setdefault(item.tenant, []).append(Attempt(key, item.run_id, step, item.attempt))
        await asyncio.sleep(self._faults.lag_s())
        if item.run_id not in self.repaired and self._faults.is_broken(item.run_id, step):
            raise StepFailure("refused", "not this one, not ever")
        if self._faults.happens("busy"):
            raise StepFailure("busy", "later", retryable=True)
        if self._faults.happens("too_slow"):
            await asyncio.sleep(2 * TIMEOUT_S)
        if key not in self._done:
            self._do(item, args)
        if self._faults.happens("effect_unanswered"):
            if self._faults.dice.random() < 0.5:
                await asyncio.sleep(2 * TIMEOUT_S)
            raise ConnectionError("the answer got lost")
        await asyncio.sleep(self._faults.lag_s())  # who is killed in here has done it and not told
        return Done([step, self._done[key]])

    def _do(self, item: WorkItem, args: Any) -> None:
        step = item.order.step
        ledger = self.effects.setdefault(item.tenant, [])
        amount = amount_of(item.run_id, step, ledger)
        self._done[item.idempotency_key] = len(self._done)
        position = self._store.position(item.tenant)
        ledger.append(Effect(item.idempotency_key, item.run_id, step, amount, position))
        assert args[0] == (item.order.undoes or step), args
