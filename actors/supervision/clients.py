"""The callers' side of what the cluster shares: one ``Resilience`` per process, a ``Pipeline`` per dependency.

No call makes a hop. Permits are taken from a lease that this process holds; outcomes are counted here and reported some
twenty times a second; a breaker that the cluster has opened refuses here.

Where the supervisor is away, nothing changes for a while: the lease goes on as long as it is sure that nobody lends its
permits to others (the broker says that no supervisor listens; or reaches us and gets no answer from it), and each process has
a breaker of its own, which opens on what it sees itself. What is never risked is the limit: a lease that can't be proven to go
on ends after ``TTL_S``, and then nothing starts. What no lease can rule out is a process that is stopped for seconds between
taking a permit and sending its call; only the dependency itself could.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec

from actors.policies.breaker import Breaker, BreakerRules
from actors.policies.bulkhead import Bulkhead
from actors.policies.config import BulkheadConfig, PoliciesConfig
from actors.policies.window import Counts
from actors.policies.wrappers.breaker import CircuitBreaker, Transition
from actors.policies.wrappers.build import build_pipeline
from actors.policies.wrappers.bulkhead import SemaphoreBulkhead
from actors.policies.wrappers.pipeline import Counts as CountsError
from actors.policies.wrappers.pipeline import Pipeline, counts_as_failure
from actors.policies.wrappers.retry import Retryable, is_retryable
from actors.policies.wrappers.timing import Chance, Monotonic
from actors.supervision.messages import (
    HELLO,
    LEASE,
    REPORT,
    STATE,
    Key,
    LeaseAnswer,
    LeaseAsk,
    LeaseItem,
    LocalChange,
    Report,
    ReportItem,
    State,
    decode,
    encode,
)
from actors.supervision.permits import TTL_S
from events.bus import Bus, NoOneListensError, unsubscribe
from events.errors import BusUnavailableError, PlatformError

log = logging.getLogger(__name__)

FLUSH_S = 0.05  # outcomes wait at most so long: a part of how fast the cluster reacts
LEASE_WAIT_S = 1.0  # how long a call waits for the first permits, or for more of them
_RENEW_S = TTL_S / 3
_SHORT_S = 0.1  # between requests of who wants more than there is
_ASK_TIMEOUT_S = 0.8
_CHUNKS = 32  # a limit is lent in so many parts, so that demand that grows by one is not a message each
_DRAIN_DEFAULT_S = 30.0  # how long a call may outlive its lease where no time-out says so


class LeasedBulkhead(SemaphoreBulkhead):
    """Permits out of a lease. ``wake`` asks for more at once."""

    def __init__(
        self, name: str, config: BulkheadConfig, drain_s: float, wake: Callable[[], None], clock: Monotonic
    ) -> None:
        super().__init__(name, 0, queue_max=config.queue_max, queue_wait_s=config.queue_wait_s, clock=clock)
        self.cluster_limit, self.drain_s = config.permits, drain_s
        self._chunk = max(1, config.permits // _CHUNKS)
        self._ask_now, self._ends_s = wake, 0.0
        self._short_until_s = 0.0
        self._pending = self._peak = self._peak_before = self._wanted = 0
        self._asked = self._answered = 0
        self._answer: asyncio.Future[None] | None = None

    @property
    def is_live(self) -> bool:
        return self._clock() < self._ends_s

    @property
    def is_short(self) -> bool:
        """We were just told that there is no more for us: no use in asking for every call."""
        return self._clock() < self._short_until_s

    def try_enter(self, tenant: str = "") -> bool:
        if self._has_lapsed():
            return False
        entered = super().try_enter(tenant)
        if entered and self.state.inside > self._peak:
            self._peak = self.state.inside
        return entered

    def _has_lapsed(self) -> bool:
        """Looked at wherever somebody may be let in, not by a timer: the process may just have been stopped."""
        if self._clock() < self._ends_s:
            return False
        if self.state.limit:
            log.warning("bulkhead.lease_ended name=%s inside=%s", self.name, self.state.inside)
            self.resize(0)
        return True

    def _leave(self) -> None:
        if self.state.queue:  # whose first would enter
            self._has_lapsed()
        super()._leave()

    async def enter(self, priority: int = 0, tenant: str = "") -> None:
        """As ``SemaphoreBulkhead``, after asking for more where there may be more."""
        self._has_lapsed()
        if self.state.limit < self.cluster_limit and not self.is_short:
            await self._ask_for_more()
            if self.try_enter(tenant):
                return
        await super().enter(priority, tenant)

    async def _ask_for_more(self) -> None:
        """Returns when an answer has come to a request that knew of us, or has not come in time."""
        self._pending += 1
        self._ask_now()
        needed = self._asked + 1
        try:
            async with asyncio.timeout(LEASE_WAIT_S):
                while self._answered < needed:
                    if self._answer is None:
                        self._answer = asyncio.get_running_loop().create_future()
                    await asyncio.shield(self._answer)
        except TimeoutError:
            return
        finally:
            self._pending -= 1

    def item(self, key: Key) -> LeaseItem:
        """What to ask for now. ``held`` is a promise: neither a call under way nor a new one makes it more."""
        demand = self.demand + self._pending
        self._peak = max(self._peak, demand)
        wanted = max(self._peak, self._peak_before)
        wanted = min(self.cluster_limit, -(-wanted // self._chunk) * self._chunk)
        self._asked += 1
        self._has_lapsed()
        held = max(self.state.limit, self.state.inside)
        self._wanted = wanted
        return LeaseItem(*key, self.cluster_limit, self.drain_s, held, wanted)

    def grant(self, permits: int, ends_s: float) -> None:
        self._ends_s = ends_s
        self._short_until_s = self._clock() + _SHORT_S if permits < self._wanted else 0.0
        self.resize(permits if self.is_live else 0)  # an answer may be read after its lease has ended
        self._answered = self._asked
        if self._answer is not None:
            self._answer.set_result(None)
            self._answer = None

    def extend(self, ends_s: float) -> None:
        """The supervisor is away: what we have stays ours, unless it had ended already."""
        if self._clock() < self._ends_s:
            self._ends_s = max(self._ends_s, ends_s)

    def forget_peak(self) -> None:
        """Demand counts for two renewals, so that a lease doesn't follow every flicker."""
        self._peak_before, self._peak = self._peak, self.demand

    @property
    def is_idle(self) -> bool:
        """Nothing held and nothing wanted: nothing to ask."""
        return not (self.state.limit or self.demand or self._pending or self._peak or self._peak_before)


class BreakerLink:
    """A local breaker, and its tie to the cluster's. Observes every call; reports in batches."""

    def __init__(
        self, key: Key, rules: BreakerRules, wake: Callable[[], None], clock: Monotonic, chance: Chance
    ) -> None:
        self.key, self.rules, self._wake, self._clock, self._chance = key, rules, wake, clock, chance
        self.breaker = CircuitBreaker(
            key[0], rules, clock=clock, chance=chance, on_transition=self._on_transition, observer=self
        )
        self.calls = self.failures = self.slow = self.refused = 0
        self.introduced = False
        self.incarnation = 0
        self.version = 0
        self.status: Any = "closed"
        self._cause, self._since_s = "", clock()
        self._probing = self._adopting = False
        self._probe_version = 0
        self._local: list[LocalChange] = []

    def on_outcome(self, *, failed: bool, slow: bool) -> None:
        self.calls += 1
        self.failures += failed
        self.slow += slow
        self._wake()

    def on_refused(self) -> None:
        self.refused += 1
        self._wake()

    def on_probe(self, under_way: int) -> None:
        self._probing = under_way > 0
        self._wake()

    def _on_transition(self, transition: Transition) -> None:
        """By itself, not by what the cluster said."""
        if not self._adopting:
            self._local.append(LocalChange(transition.before, transition.after, transition.cause, transition.figures))
            self._wake()

    def report(self) -> ReportItem | None:
        """What happened since the last one; None: nothing."""
        has_news = self.calls or self.refused or self._local or not self.introduced or self._probing
        if not has_news:
            return None
        item = ReportItem(
            *self.key,
            Counts(self.calls, self.failures, self.slow),
            self.refused,
            self._probe_version if (self.calls or self._probing) else 0,
            self.incarnation,
            self.status,
            self.version,
            self._clock() - self._since_s,
            self._cause,
            None if self.introduced else self.rules,
            self._local,
        )
        self.calls = self.failures = self.slow = self.refused = 0
        self.introduced, self._local = True, []
        return item

    @property
    def is_probing(self) -> bool:
        return self._probing

    def hear(self, state: State, caller: str) -> None:
        """The cluster's word. An older one, or one that is known, changes nothing."""
        if (state.incarnation, state.version) <= (self.incarnation, self.version):
            return
        changed = state.status != self.status
        self.incarnation, self.version, self._cause = state.incarnation, state.version, state.cause
        self._probe_version = 0
        if changed:
            self.status, self._since_s = state.status, self._clock()
        if state.status == "half_open" and state.prober == caller:
            self._probe_version = state.version
        if state.status in ("open", "half_open") or changed:
            self._adopt(state, caller)

    def _adopt(self, state: State, caller: str) -> None:
        """Where the supervisor then falls silent, the local breaker goes on by itself: it probes, a while later than it was
        told, and not at the same moment as others.
        """
        now_s, rules, before = self._clock(), self.rules, self.breaker.state
        silence_s = 1.0 + rules.open_s * max(rules.open_jitter, 0.1) * self._chance()
        generation, empty = before.generation + 1, rules.window.empty()
        match state.status:
            case "half_open" if state.prober == caller:
                until_s = now_s + rules.probe_timeout_s
                after = Breaker(
                    "half_open", empty, now_s, until_s, generation, state.cause, probes_started=rules.probes - 1
                )
            case "open" | "half_open":
                wait_s = state.wait_s if state.status == "open" else rules.open_s
                after = Breaker("open", empty, now_s, now_s + wait_s + silence_s, generation, state.cause)
            case status:
                after = Breaker(status, empty, now_s, 0.0, generation, state.cause)
        self._adopting = True
        self.breaker.adopt(after)
        self._adopting = False


class Resilience:
    """One per process that calls dependencies. ``caller`` names the process; it must be one of its kind in the cluster.

    ``start`` before the first call, ``close`` when done: it gives the leases back.
    """

    def __init__(
        self, bus: Bus, caller: str, *, clock: Monotonic = time.monotonic, chance: Chance = random.random
    ) -> None:
        self._bus, self.caller, self._clock, self._chance = bus, caller, clock, chance
        self._pipelines: dict[Key, tuple[PoliciesConfig, Pipeline]] = {}
        self._bulkheads: dict[Key, LeasedBulkhead] = {}
        self._links: dict[Key, BreakerLink] = {}
        self._outcomes, self._demand = asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._subscriptions: list[Any] = []

    async def start(self) -> None:
        self._subscriptions = [
            await self._bus.subscribe(STATE, self._on_state),
            await self._bus.subscribe(HELLO, self._on_hello),
        ]
        self._tasks = [asyncio.create_task(self._report_for_ever()), asyncio.create_task(self._lease_for_ever())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for subscription in self._subscriptions:
            await unsubscribe(subscription)
        with contextlib.suppress(PlatformError, TimeoutError, NoOneListensError):
            self._flush()
            await self._give_back()

    def pipeline(
        self,
        name: str,
        config: PoliciesConfig,
        *,
        tenant: str = "",
        counts: CountsError = counts_as_failure,
        retryable: Retryable = is_retryable,
        check: Callable[[], Awaitable[object]] | None = None,
    ) -> Pipeline:
        """The policies around calls to ``name``, for ``tenant`` where the configuration's scope is ``tenant``. The same
        arguments give the same pipeline; another configuration replaces it.

        Breaker and bulkhead are the cluster's; rate limiter, retries and threads (``strategy: threads``) are this process'.
        """
        key = (name, tenant if config.scope == "tenant" else "")
        known = self._pipelines.get(key)
        if known is not None and known[0] == config:
            return known[1]
        pipeline = build_pipeline(
            name, config, counts=counts, retryable=retryable, check=check, clock=self._clock, chance=self._chance
        )
        if config.breaker is not None:
            link = BreakerLink(key, config.breaker.rules(), self._outcomes_came, self._clock, self._chance)
            self._links[key], pipeline.breaker = link, link.breaker
            self._outcomes.set()
        if config.bulkhead is not None and config.bulkhead.strategy != "threads":
            bulkhead = LeasedBulkhead(name, config.bulkhead, self._drain_s(config), self._demand.set, self._clock)
            self._bulkheads[key] = bulkhead
            pipeline.share(bulkhead)
        self._pipelines[key] = (config, pipeline)
        return pipeline

    @staticmethod
    def _drain_s(config: PoliciesConfig) -> float:
        assert config.bulkhead is not None
        return config.bulkhead.drain_s or config.timeout_s or _DRAIN_DEFAULT_S

    def _outcomes_came(self) -> None:
        self._outcomes.set()

    def breaker_states(self) -> Iterator[tuple[str, str]]:
        """Name and state of each breaker as this process sees it; tenants' own have the name of their dependency."""
        return ((name, link.breaker.state.status) for (name, _), link in self._links.items())

    def bulkhead_states(self) -> Iterator[tuple[str, Bulkhead]]:
        """The same for bulkheads: the permits are those of this process."""
        return ((name, bulkhead.state) for (name, _), bulkhead in self._bulkheads.items())

    def _on_state(self, data: bytes, _reply_to: str) -> None:
        state: State = decode(data, State)
        link = self._links.get((state.name, state.tenant))
        if link is not None:
            link.hear(state, self.caller)

    def _on_hello(self, _data: bytes, _reply_to: str) -> None:
        """A supervisor that has just begun wants to know everything."""
        for link in self._links.values():
            link.introduced = False
        self._outcomes.set()
        self._demand.set()

    async def _report_for_ever(self) -> None:
        while True:
            await self._outcomes.wait()
            await asyncio.sleep(FLUSH_S)  # what comes meanwhile goes along
            self._outcomes.clear()
            try:
                self._flush()
            except PlatformError as error:
                log.warning("resilience.report_lost: %s", error)
            if any(link.is_probing for link in self._links.values()):
                self._outcomes.set()  # to say that the probe is still under way

    def _flush(self) -> None:
        items = [item for link in self._links.values() if (item := link.report()) is not None]
        if items:
            self._bus.publish(REPORT, encode(Report(self.caller, items)))

    async def _lease_for_ever(self) -> None:
        renewed_s = 0.0
        while True:
            try:
                await self._renew()
            except Exception:
                log.exception("resilience.lease_failed")
            now_s = self._clock()
            if now_s - renewed_s >= _RENEW_S:
                renewed_s = now_s
                for bulkhead in self._bulkheads.values():
                    bulkhead.forget_peak()
            if all(bulkhead.is_idle for bulkhead in self._bulkheads.values()):
                await self._demand.wait()
            else:
                with contextlib.suppress(TimeoutError):
                    is_short = any(bulkhead.is_short for bulkhead in self._bulkheads.values())
                    await asyncio.wait_for(self._demand.wait(), _SHORT_S if is_short else _RENEW_S)
            self._demand.clear()

    async def _renew(self) -> None:
        """One request for all bulkheads. Leases begin when it is sent, which is before the supervisor can hear it."""
        wanting = [(key, bulkhead) for key, bulkhead in self._bulkheads.items() if not bulkhead.is_idle]
        if not wanting:
            return
        sent_s = self._clock()
        ask = LeaseAsk(self.caller, [bulkhead.item(key) for key, bulkhead in wanting])
        try:
            data = await self._bus.request(LEASE, encode(ask), _ASK_TIMEOUT_S)
        except NoOneListensError:
            lends_nothing = True
        except TimeoutError:
            lends_nothing = await self._bus.reaches_server(_ASK_TIMEOUT_S)
        except BusUnavailableError:
            lends_nothing = False
        else:
            answer: LeaseAnswer = decode(data, LeaseAnswer)
            for (_, bulkhead), granted in zip(wanting, answer.granted, strict=True):
                bulkhead.grant(granted, sent_s + TTL_S)
            return
        if lends_nothing:
            for _, bulkhead in wanting:
                bulkhead.extend(sent_s + TTL_S)

    async def _give_back(self) -> None:
        """What is still in use counts until its calls have surely ended."""
        items = []
        for key, bulkhead in self._bulkheads.items():
            if bulkhead.state.limit or bulkhead.state.inside:
                bulkhead.grant(0, 0.0)
                items.append(msgspec.structs.replace(bulkhead.item(key), held=bulkhead.state.inside, wanted=0))
        if items:
            await self._bus.request(LEASE, encode(LeaseAsk(self.caller, items)), _ASK_TIMEOUT_S)
