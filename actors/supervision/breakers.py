"""The BreakerSupervisor: one breaker per dependency (and tenant, where so configured) for the whole cluster.

Callers report outcomes in batches, some twenty a second at most; it tells all of them when something changes. What it
decides by is in ``circuit``, pure. It tells first and writes down right after: a dependency in trouble is not to wait for a
disk. Killed in between, its successor learns from the callers what the log doesn't know.
"""

import asyncio
import logging
import random
import time
from collections.abc import Coroutine
from typing import Any

import msgspec

from actors.policies.wrappers.timing import Chance, Monotonic
from actors.supervision import circuit as machine
from actors.supervision.circuit import Circuit
from actors.supervision.journal import Journal
from actors.supervision.messages import (
    BREAKERS_SHOW,
    FORCE,
    HELLO,
    REPORT,
    STATE,
    Force,
    Key,
    LocalChange,
    Report,
    ReportItem,
    State,
    decode,
    encode,
)
from events.ask import Asker
from events.bus import Bus, unsubscribe
from events.clock import Clock, SystemClock
from events.errors import PlatformError
from events.slices import SYSTEM_TENANT
from events.system import DescribeSystem, RecordBreaker

log = logging.getLogger(__name__)

_TICK_S = 0.1
_REPEAT_S = 1.0
_RETRY_S = 0.5
# After a start, callers that know nothing may be heard before those that know of an open breaker.
_SETTLED_S = 0.5


class Remembered(msgspec.Struct, frozen=True):
    """A breaker as the log has it, until a caller comes with its rules."""

    status: Any
    since_us: int
    version: int
    cause: str


class BreakerSupervisor:
    """``incarnation`` grows with every start, so that callers tell its word from its predecessor's."""

    def __init__(
        self,
        bus: Bus,
        asker: Asker,
        journal: Journal,
        incarnation: int,
        *,
        clock: Monotonic = time.monotonic,
        wall: Clock | None = None,
        chance: Chance = random.random,
    ) -> None:
        self._bus, self._asker, self._journal, self._incarnation = bus, asker, journal, incarnation
        self._clock, self._wall, self._chance = clock, wall or SystemClock(), chance
        self._circuits: dict[Key, Circuit] = {}
        self._remembered: dict[Key, Remembered] = {}
        self._local: dict[Key, dict[str, str]] = {}  # callers whose own breaker is not closed
        self._first_version = 0  # of a new circuit: above that of any forgotten one, which callers still know
        self._written = 0
        self._settled_s = clock() + _SETTLED_S
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscriptions: list[Any] = []

    async def start(self) -> None:
        """Listens on return. What the log remembers comes in as soon as it can be read."""
        for subject, handler in (
            (REPORT, self._on_report),
            (FORCE, self._on_force),
            (BREAKERS_SHOW, self._on_show),
        ):
            self._subscriptions.append(await self._bus.subscribe(subject, handler))
        self._spawn(self._remember())
        self._spawn(self._tick())

    async def close(self) -> None:
        for subscription in self._subscriptions:
            await unsubscribe(subscription)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _remember(self) -> None:
        """From the log first, then from the callers."""
        while True:
            try:
                ok = await self._asker.ask(SYSTEM_TENANT, DescribeSystem(), actor="supervisor")
                break
            except PlatformError as error:
                log.warning("breakers.log_unread: %s", error)
                await asyncio.sleep(_RETRY_S)  # back-off; only asking again tells
        for row in ok.result["breakers"]:
            key = (row["name"], row["tenant"])
            memory = Remembered(row["status"], row["since_us"], row["version"], row["cause"])
            known = self._circuits.get(key)
            if known is None:
                self._remembered[key] = memory
            elif known.version < memory.version:
                self._adopt(key, self._resumed(known, memory))
        self._publish(HELLO, b"")

    def _resumed(self, circuit: Circuit, memory: Remembered) -> Circuit:
        open_for_s = max(0.0, (self._wall.now_us() - memory.since_us) / 1e6)
        return machine.resumed(circuit, memory.status, memory.version, memory.cause, open_for_s, self._clock())

    def _adopt(self, key: Key, circuit: Circuit) -> None:
        """Known already, so nothing to write down; but tell."""
        self._circuits[key] = circuit
        self._tell(key, circuit)

    def _on_report(self, data: bytes, _reply_to: str) -> None:
        report: Report = decode(data, Report)
        for item in report.items:
            self._hear(report.caller, item)

    def _hear(self, caller: str, item: ReportItem) -> None:
        key, now_s = (item.name, item.tenant), self._clock()
        before = self._circuits.get(key)
        if before is None or (item.rules is not None and item.rules != before.rules):
            if item.rules is None:
                self._publish(HELLO, b"")
                return
            before = self._introduced(key, before, item)
        if item.incarnation != self._incarnation and item.version > before.version:
            before = machine.resumed(before, item.status, item.version, item.cause, item.age_s, now_s)
            self._write(key, "closed", before, f"as {caller} remembers: {before.cause}")
            self._adopt(key, before)
        for change in item.local:
            self._note(key, caller, change)
        after = machine.reported(
            before, caller, item.counts, probe_version=item.probe_version, now_s=now_s, chance=self._chance()
        )
        self._become(key, before, after)
        if (item.incarnation, item.version) != (self._incarnation, after.version) and now_s >= self._settled_s:
            self._tell(key, after)

    def _introduced(self, key: Key, before: Circuit | None, item: ReportItem) -> Circuit:
        """A dependency we see for the first time, or one whose rules have changed."""
        assert item.rules is not None
        if before is not None:
            circuit = msgspec.structs.replace(before, rules=item.rules)
        else:
            circuit = Circuit(item.rules, version=self._first_version, since_s=self._clock())
            if (memory := self._remembered.pop(key, None)) is not None:
                circuit = self._resumed(circuit, memory)
        self._circuits[key] = circuit
        return circuit

    def _note(self, key: Key, caller: str, change: LocalChange) -> None:
        """A process' own breaker: written down, shown, and nobody else's business."""
        own = self._local.setdefault(key, {})
        if change.after == "closed":
            own.pop(caller, None)
        else:
            own[caller] = change.after
        figures = change.figures
        self._journal.write(
            RecordBreaker(
                *key,
                change.before,
                change.after,
                change.cause,
                figures.calls,
                figures.failures,
                figures.slow,
                callers=1,
                callers_bad=1,
                caller=caller,
            ),
            self._command_id(),
        )

    def _command_id(self) -> str:
        self._written += 1
        return f"breaker-{self._incarnation}-{self._written}"

    def _become(self, key: Key, before: Circuit, after: Circuit) -> None:
        self._circuits[key] = after
        if after.version != before.version:
            self._tell(key, after)
        if after.status != before.status:
            self._write(key, before.status, after, after.cause)

    def _write(self, key: Key, before: Any, after: Circuit, cause: str) -> None:
        figures = after.figures
        self._journal.write(
            RecordBreaker(
                *key,
                before,
                after.status,
                cause[:500],
                figures.calls,
                figures.failures,
                figures.slow,
                callers=len(after.callers),
                callers_bad=after.callers_bad,
                version=after.version,
            ),
            self._command_id(),
        )

    def _tell(self, key: Key, circuit: Circuit) -> None:
        wait_s = max(0.0, circuit.until_s - self._clock())
        state = State(self._incarnation, *key, circuit.status, circuit.version, wait_s, circuit.cause, circuit.prober)
        self._publish(STATE, encode(state))

    def _publish(self, subject: str, data: bytes) -> None:
        try:
            self._bus.publish(subject, data)
        except PlatformError as error:  # repeated within a second
            log.warning("breakers.message_lost subject=%s: %s", subject, error)

    def _on_force(self, data: bytes, reply_to: str) -> None:
        force: Force = decode(data, Force)
        key = (force.name, force.tenant)
        known = self._circuits.get(key)
        if known is None:
            self._remembered[key] = Remembered(force.status, self._wall.now_us(), force.version, force.reason)
        elif known.version < force.version or known.status != force.status:
            self._adopt(key, machine.forced(known, force.status, force.reason, force.version, self._clock()))
        self._publish(reply_to, b"ok")

    async def _tick(self) -> None:
        repeated_s = 0.0
        while True:
            now_s = self._clock()
            repeat = now_s - repeated_s >= _REPEAT_S
            repeated_s = now_s if repeat else repeated_s
            self.advance(now_s, repeat=repeat)
            await asyncio.sleep(_TICK_S)  # the supervisor's own beat

    def advance(self, now_s: float, *, repeat: bool) -> None:
        """What time alone changes; with ``repeat``, what is not normal is told again and what nobody calls is forgotten."""
        for key, before in list(self._circuits.items()):
            if before.status == "closed" and not repeat:
                continue
            after = machine.advanced(before, now_s, self._chance())
            self._become(key, before, after)
            if repeat and after.status != "closed" and after.version == before.version:
                self._tell(key, after)
            if repeat and not after.callers:
                self._forget(key, after)

    def _forget(self, key: Key, circuit: Circuit) -> None:
        """Nobody calls it any more: dependencies come and go, memory must not only grow."""
        del self._circuits[key]
        self._local.pop(key, None)
        self._first_version = max(self._first_version, circuit.version + 1)
        if circuit.status != "closed":
            since_us = self._wall.now_us() - int((self._clock() - circuit.since_s) * 1e6)
            self._remembered[key] = Remembered(circuit.status, since_us, circuit.version, circuit.cause)

    def _on_show(self, _data: bytes, reply_to: str) -> None:
        self._publish(reply_to, encode(self.rows()))

    def rows(self) -> list[dict[str, Any]]:
        """What ``tenantry breakers`` shows, as plain data."""
        now_s, now_us = self._clock(), self._wall.now_us()
        rows = [self._row(key, circuit, now_s, now_us) for key, circuit in self._circuits.items()]
        rows += [
            {
                "name": key[0],
                "tenant": key[1],
                "state": memory.status,
                "since_us": memory.since_us,
                "cause": memory.cause,
                "version": memory.version,
                "calls": 0,
                "failures": 0,
                "slow": 0,
                "callers": 0,
                "callers_open": 0,
                "probes_in_s": None,
            }
            for key, memory in self._remembered.items()
        ]
        return sorted(rows, key=lambda row: (row["name"], row["tenant"]))

    def _row(self, key: Key, circuit: Circuit, now_s: float, now_us: int) -> dict[str, Any]:
        figures = machine.figures(circuit, now_s)
        return {
            "name": key[0],
            "tenant": key[1],
            "state": circuit.status,
            "since_us": now_us - int((now_s - circuit.since_s) * 1e6),
            "cause": circuit.cause,
            "version": circuit.version,
            "calls": figures.calls,
            "failures": figures.failures,
            "slow": figures.slow,
            "callers": len(circuit.callers),
            "callers_open": len(self._local.get(key, {})),
            "probes_in_s": max(0.0, circuit.until_s - now_s) if circuit.status == "open" else None,
        }
