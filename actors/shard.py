"""A shard: the tenants that share one process, one store connection and one group commit. No Ray in here."""

import asyncio
import heapq
import logging
import time
from collections.abc import Coroutine, Sequence

import msgspec

from actors.activation import Activation, Respond
from actors.batches import Batches
from actors.commit import Committer
from actors.effects import Effects
from actors.fairness import Share
from actors.heartbeat import Heartbeat
from events.bus import (
    ACTIVATE,
    CRASHED,
    LOAD,
    PREPARE,
    VACANT,
    Bus,
    NoOneListensError,
    Subscription,
    ask_subject,
    unsubscribe,
)
from events.clock import Clock
from events.defects import described
from events.envelope import encode
from events.errors import BusUnavailableError, NotServedError, PlatformError, TenantCrashedError
from events.failpoints import failpoint
from events.keys import Keys
from events.slices import is_tenant_id
from events.store import EventStore, Placement
from events.unserved import decode_unserved
from events.witness import Witness

log = logging.getLogger(__name__)

_ACTIVATIONS_AT_ONCE = 64
_PASSIVATIONS_AT_ONCE = 16
_SWEEPS_PER_IDLE_TIME = 4
_SWEEP_PERIOD_S_MAX = 30.0
_PREPARE_TIMEOUT_S = 30.0  # a new actor on a busy machine
_MOVE_AGAIN_AFTER_S = 5.0
_USED_LATELY_S = 10.0  # who moves is activated there at once; others when they are asked for


class Limits(msgspec.Struct, frozen=True):
    """How many tenants a shard keeps in memory, and for how long without being asked."""

    idle_after_s: float = 600.0
    active_max: int = 20_000


class Load(msgspec.Struct, frozen=True, array_like=True):
    """What a shard has to do at a moment. ``waiting`` commands lie in all its mailboxes, ``deepest`` in one of them."""

    serves: Placement
    tenants: int
    waiting: int
    deepest: int


class Hosted(msgspec.Struct, frozen=True):
    activation: Activation
    subscription: Subscription


class Shard:
    """Hosts tenants. A tenant is subscribed to only after its replay, so nobody is answered from half a history; it
    leaves memory when nobody has asked it for a while, or when there are too many and it was asked least recently.
    """

    def __init__(
        self,
        name: str,
        serves: Placement,
        store: EventStore,
        bus: Bus,
        clock: Clock,
        keys: Keys,
        limits: Limits | None = None,
        effects: Effects | None = None,
    ) -> None:
        self.name, self._serves = name, serves
        self._store, self._bus, self._clock, self._keys = store, bus, clock, keys
        self._limits, self._effects = limits or Limits(), effects
        self._witness = Witness(keys.vault)
        self._committer, self._share = Committer(store, self._witness), Share()
        self._active: dict[str, Hosted] = {}
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._moving: dict[str, float] = {}  # when its move began, so that it is not begun at every turn
        self._activations = asyncio.Semaphore(_ACTIVATIONS_AT_ONCE)
        self._respond: Respond = bus.publish
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._sweeping = asyncio.create_task(self._sweep(), name=f"passivation-{name}")
        heartbeat = Heartbeat(store, lambda: [hosted.activation for hosted in self._active.values()])
        self._heartbeat = asyncio.create_task(heartbeat.run(), name=f"heartbeat-{name}")

    @property
    def tenants(self) -> list[str]:
        return sorted(self._active)

    @property
    def load(self) -> Load:
        depths = [hosted.activation.mailbox_depth for hosted in self._active.values()]
        return Load(self._serves, len(depths), sum(depths), max(depths, default=0))

    async def tell_load(self) -> None:
        """Answer whoever asks all shards for their load (``events.bus.LOAD``)."""
        await self._bus.subscribe(LOAD, lambda _data, reply_to: self._send_load(reply_to))

    def _send_load(self, reply_to: str) -> None:
        try:
            self._bus.publish(reply_to, encode(self.load))
        except PlatformError as error:  # a figure: the next question gets the next one
            log.debug("shard.load_untold shard=%s: %s", self.name, error)

    @property
    def is_vacant(self) -> bool:
        return not self._active and not self._starting

    async def host(self, tenant: str) -> None:
        """Serve the tenant from here. Calls for the same tenant share one activation.

        Raises:
            StoreUnavailableError, BusUnavailableError: Not now.
            IntegrityError: Its log can't be replayed.
            NotServedError: This shard has been closed.
        """
        assert is_tenant_id(tenant), tenant
        while tenant in self._leaving:
            await asyncio.shield(self._leaving[tenant])
        if self._closed:
            raise NotServedError(tenant, f"shard {self.name} is closed")
        if tenant in self._active:
            return
        if tenant not in self._starting:
            task = asyncio.create_task(self._activate(tenant), name=f"activate-{tenant}")
            self._starting[tenant] = task
            task.add_done_callback(lambda _: self._starting.pop(tenant, None))
        await asyncio.shield(self._starting[tenant])

    async def _activate(self, tenant: str) -> None:
        async with self._activations:
            await self._make_room()
            batches = Batches(self._respond)
            activation = Activation(
                tenant,
                self._store,
                self._committer,
                self._share,
                self._clock,
                batches.respond,
                self._ended,
                self._serves,
                self._misplaced,
                self._keys,
                self._effects,
            )
            await self._begin(activation)
            failpoint("activation.after_load_before_subscribe")
            subscription = await self._bus.subscribe(ask_subject(tenant), batches.unpack(activation.deliver))
            failpoint("activation.after_subscribe_before_register")
        if activation.has_ended:  # fenced before it was even registered
            await unsubscribe(subscription)
            raise NotServedError(tenant, "another activation took over")
        self._active[tenant] = Hosted(activation, subscription)
        log.debug("tenant.activated tenant=%s position=%s shard=%s", tenant, activation.position, self.name)

    async def _begin(self, activation: Activation) -> None:
        """A defect met while replaying is the tenant's alone, and its supervisor's to count."""
        try:
            await activation.start()
        except PlatformError:
            raise
        except Exception as error:
            log.exception("tenant.activation_crashed tenant=%s", activation.tenant)
            why = described(error)
            self._report_crash(activation.tenant, why)
            raise TenantCrashedError(f"tenant {activation.tenant!r} can't be activated: {why}") from error

    def _report_crash(self, tenant: str, why: str) -> None:
        try:
            self._bus.publish(CRASHED, encode((tenant, why[:300])))
        except PlatformError as error:
            log.warning("tenant.crash_unreported tenant=%s: %s", tenant, error)

    async def _make_room(self) -> None:
        """Passivate those that were asked least recently, if there are too many; some more than needed, so that not
        every activation has to look for them.
        """
        excess = len(self._active) - len(self._leaving) + len(self._starting) - self._limits.active_max
        if excess <= 0:
            return
        staying = [hosted.activation for name, hosted in self._active.items() if name not in self._leaving]
        spare = self._limits.active_max // 64
        oldest = heapq.nsmallest(excess + spare, staying, key=lambda activation: activation.used_at)
        await asyncio.gather(*(self.release(activation.tenant) for activation in oldest))

    async def _sweep(self) -> None:
        """Passivate who has not been asked for a while."""
        period_s = min(self._limits.idle_after_s / _SWEEPS_PER_IDLE_TIME, _SWEEP_PERIOD_S_MAX)
        while True:
            await asyncio.sleep(period_s)  # the sweep's own beat
            try:
                await self._passivate_idle()
            except Exception:
                log.exception("shard.sweep_failed shard=%s", self.name)
            self._say_if_vacant()

    async def _passivate_idle(self) -> None:
        before = time.monotonic() - self._limits.idle_after_s
        idle = [name for name, hosted in self._active.items() if hosted.activation.used_at < before]
        for first in range(0, len(idle), _PASSIVATIONS_AT_ONCE):
            await asyncio.gather(*(self.release(name) for name in idle[first : first + _PASSIVATIONS_AT_ONCE]))

    def _ended(self, activation: Activation) -> None:
        """Only its own registration: by now another activation may serve the tenant from here."""
        hosted = self._active.get(activation.tenant)
        if hosted is not None and hosted.activation is activation:
            del self._active[activation.tenant]
            self._moving.pop(activation.tenant, None)
            self._spawn(unsubscribe(hosted.subscription))
        if activation.crash:
            self._report_crash(activation.tenant, activation.crash)

    def _misplaced(self, activation: Activation) -> None:
        """Its plan wants another kind of shard."""
        tenant, now_s = activation.tenant, time.monotonic()
        if now_s - self._moving.get(tenant, float("-inf")) < _MOVE_AGAIN_AFTER_S:
            return
        self._moving[tenant] = now_s
        self._spawn(self._move_out(activation))

    async def _move_out(self, activation: Activation) -> None:
        """Have the actor it belongs to started while it is served here still, and let it go only then."""
        tenant = activation.tenant
        if problem := await self._request(PREPARE, tenant):
            log.warning("tenant.move_postponed tenant=%s: %s", tenant, problem)
            return
        await self._move(activation)

    async def move_out(self, tenants: Sequence[str]) -> None:
        """Let these tenants go to the actor they belong to, which runs. Returns when they have left."""
        hosted = [self._active[tenant] for tenant in tenants if tenant in self._active]
        await asyncio.gather(*(self._move(one.activation) for one in hosted))

    async def _move(self, activation: Activation) -> None:
        """What is left for the pause is: finish what was accepted, and read the few events behind the newest snapshot."""
        tenant, was_used = activation.tenant, time.monotonic() - activation.used_at < _USED_LATELY_S
        await activation.save_snapshot()
        await self.release(tenant)
        if not was_used:
            return
        if problem := await self._request(ACTIVATE, tenant):  # the next who asks for it tries again
            log.warning("tenant.move_unfinished tenant=%s: %s", tenant, problem)

    async def _request(self, subject: str, tenant: str) -> str:
        """What the supervisor says is the problem; "" where it did what was asked."""
        try:
            problem = decode_unserved(await self._bus.request(subject, tenant.encode(), _PREPARE_TIMEOUT_S))
            return "" if problem is None else problem.message
        except NoOneListensError:
            return "the supervisor is away"
        except (TimeoutError, BusUnavailableError) as error:
            return f"{type(error).__name__}: {error}"

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # asyncio itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    async def release(self, tenant: str) -> None:
        """Stop serving the tenant after what it has accepted is done. Calls for the same tenant share one departure."""
        if tenant not in self._leaving:
            hosted = self._active.get(tenant)
            if hosted is None:
                return
            task = asyncio.create_task(self._leave(hosted), name=f"passivate-{tenant}")
            self._leaving[tenant] = task
        await asyncio.shield(self._leaving[tenant])

    async def _leave(self, hosted: Hosted) -> None:
        """From the first line's end on, nothing new arrives here: who asks finds nobody, and has it activated anew."""
        activation = hosted.activation
        try:
            await unsubscribe(hosted.subscription)
            failpoint("drain.mid")
            await activation.drain()
            await activation.save_snapshot()
            failpoint("drain.before_end")
            activation.end()
        finally:
            # not in a callback of the task: until that has run, ``host`` would wait for a task that is done, which is
            # not to wait at all, and nothing else in this process would ever run again
            del self._leaving[activation.tenant]
        log.debug("tenant.passivated tenant=%s position=%s shard=%s", activation.tenant, activation.position, self.name)
        self._say_if_vacant()

    def _say_if_vacant(self) -> None:
        """A silo's process is worth nothing without its tenant: the supervisor ends it."""
        if self._serves == "silo" and self.is_vacant and not self._closed:
            try:
                self._bus.publish(VACANT, self.name.encode())
            except BusUnavailableError as error:  # said again at the next sweep
                log.debug("shard.vacancy_unsaid shard=%s: %s", self.name, error)

    async def close(self) -> None:
        """Host nobody any more; returns when what was accepted is done."""
        self._closed = True
        self._sweeping.cancel()
        self._heartbeat.cancel()
        starting = list(self._starting.values())
        await asyncio.gather(*starting, return_exceptions=True)
        await asyncio.gather(*(self.release(tenant) for tenant in self.tenants))
        await self._witness.close()
