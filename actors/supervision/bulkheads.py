"""The BulkheadSupervisor: lends the permits of every shared bulkhead to the processes that call.

It is asked once a second by each caller that uses a bulkhead, and whenever a caller's demand changes; no call waits for it
as long as its caller holds permits. The accounts are in ``permits``, pure.
"""

import asyncio
import contextlib
import logging
import time
from typing import Any

import msgspec

from actors.policies.wrappers.timing import Monotonic
from actors.supervision import permits
from actors.supervision.journal import Journal
from actors.supervision.messages import BULKHEADS_SHOW, LEASE, Key, LeaseAnswer, LeaseAsk, decode, encode
from actors.supervision.permits import MARGIN_S, TTL_S, Pool
from events.bus import Bus, unsubscribe
from events.errors import PlatformError
from events.system import BulkheadState, RecordBulkhead

log = logging.getLogger(__name__)

_TICK_S = 0.5
_PAUSE_S = TTL_S / 2  # unseen for so long, and leases may have ended without our knowing
_CALM_TICKS = 4  # wanting less than there is for so many ticks, before it counts as free again
_IDLE_DROPPED_S = 300.0


class _Watched(msgspec.Struct):
    """A pool and what was last written about it. ``configured``: each caller's limit and drain."""

    pool: Pool
    configured: dict[str, tuple[int, float]]
    state: BulkheadState = "free"
    since_s: float = 0.0
    calm: int = 0
    used_s: float = 0.0


class BulkheadSupervisor:
    """``is_first``: nothing can be lent yet, so nothing has to be waited out. Give a restarted one ``False``."""

    def __init__(
        self, bus: Bus, journal: Journal, incarnation: int, *, is_first: bool, clock: Monotonic = time.monotonic
    ) -> None:
        self._bus, self._journal, self._incarnation, self._clock = bus, journal, incarnation, clock
        self._blind_from_s = float("-inf") if is_first else clock()
        self._pools: dict[Key, _Watched] = {}
        self._seen_s = clock()
        self._written = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscriptions: list[Any] = []

    async def start(self) -> None:
        self._subscriptions = [
            await self._bus.subscribe(LEASE, self._on_ask),
            await self._bus.subscribe(BULKHEADS_SHOW, self._on_show),
        ]
        self._spawn(self._watch())

    async def close(self) -> None:
        for subscription in self._subscriptions:
            await unsubscribe(subscription)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _look_at_clock(self) -> float:
        """The time. Where some of it went by unseen (a paused process, a blocked loop), what is lent is waited out."""
        now_s = self._clock()
        if now_s - self._seen_s > _PAUSE_S:
            log.warning("bulkheads.time_lost seconds=%.1f: what is lent is waited out", now_s - self._seen_s)
            self._blind_from_s = now_s
            for watched in self._pools.values():
                watched.pool = permits.lost_time(watched.pool, now_s)
        self._seen_s = now_s
        return now_s

    def _on_ask(self, data: bytes, reply_to: str) -> None:
        ask: LeaseAsk = decode(data, LeaseAsk)
        now_s = self._look_at_clock()
        granted = []
        for item in ask.items:
            watched = self._pool((item.name, item.tenant), ask.caller, item.limit, item.drain_s)
            watched.used_s = now_s
            watched.pool, may_use = permits.ask(watched.pool, ask.caller, item.held, item.wanted, now_s)
            granted.append(may_use)
        self._reply(reply_to, encode(LeaseAnswer(granted)))

    def _pool(self, key: Key, caller: str, limit: int, drain_s: float) -> _Watched:
        """Callers that are configured differently (a deployment under way) get the lowest limit and the longest drain."""
        watched = self._pools.get(key)
        if watched is None:
            watched = self._pools[key] = _Watched(Pool(limit, drain_s), {}, since_s=self._clock())
        if watched.configured.get(caller) != (limit, drain_s) or watched.pool.blind_until_s == 0.0:
            watched.configured[caller] = (limit, drain_s)
            self._configure(watched)
        return watched

    def _configure(self, watched: _Watched) -> None:
        limit = min(limit for limit, _ in watched.configured.values())
        drain_s = max(drain_s for _, drain_s in watched.configured.values())
        blind_until_s = self._blind_from_s + TTL_S + drain_s + MARGIN_S
        watched.pool = Pool(limit, drain_s, blind_until_s, watched.pool.holders)

    def _reply(self, reply_to: str, data: bytes) -> None:
        with contextlib.suppress(PlatformError):  # the caller asks again
            self._bus.publish(reply_to, data)

    def _on_show(self, _data: bytes, reply_to: str) -> None:
        now_s = self._look_at_clock()
        rows = [self._row(key, watched, now_s) for key, watched in sorted(self._pools.items())]
        self._reply(reply_to, encode(rows))

    def _row(self, key: Key, watched: _Watched, now_s: float) -> dict[str, Any]:
        pool = watched.pool = permits.expire(watched.pool, now_s)
        return {
            "name": key[0],
            "tenant": key[1],
            "state": watched.state,
            "since_s": now_s - watched.since_s,
            "limit": pool.limit,
            "leased": pool.leased,
            "wanted": pool.wanted,
            "callers": [
                {"caller": name, "leased": holder.held, "wanted": holder.wanted}
                for name, holder in sorted(pool.holders.items())
            ],
        }

    async def _watch(self) -> None:
        while True:
            now_s = self._look_at_clock()
            for key, watched in list(self._pools.items()):
                watched.pool = permits.expire(watched.pool, now_s)
                self._judge(key, watched, now_s)
                if not watched.pool.holders and now_s - watched.used_s > _IDLE_DROPPED_S:
                    del self._pools[key]
            await asyncio.sleep(_TICK_S)  # the watch's own beat

    def _judge(self, key: Key, watched: _Watched, now_s: float) -> None:
        """Saturated at once, free again only after a while: not an event per flicker."""
        pool = watched.pool
        gone = watched.configured.keys() - pool.holders.keys()
        if gone and pool.holders:
            for caller in gone:
                del watched.configured[caller]
            self._configure(watched)
        is_short = pool.wanted > pool.limit
        watched.calm = 0 if is_short else watched.calm + 1
        if watched.state == "free" and is_short:
            self._change(key, watched, "saturated", now_s)
        elif watched.state == "saturated" and watched.calm >= _CALM_TICKS:
            self._change(key, watched, "free", now_s)

    def _change(self, key: Key, watched: _Watched, state: BulkheadState, now_s: float) -> None:
        watched.state, watched.since_s = state, now_s
        pool = watched.pool
        cause = f"{pool.wanted} permits wanted of {pool.limit}, by {len(pool.holders)} callers"
        self._written += 1
        self._journal.write(
            RecordBulkhead(*key, state, pool.limit, pool.leased, pool.wanted, len(pool.holders), cause),
            f"bulkhead-{self._incarnation}-{self._written}",
        )
