"""The root supervisor's part that keeps crash-looping tenants from being activated, and remembers it across its own death."""

import asyncio
import contextlib
import logging
import time

import msgspec

from actors.supervision import quarantine
from actors.supervision.journal import Journal
from actors.supervision.quarantine import Ward
from events.ask import Asker
from events.bus import CRASHED, RELEASED, Bus, Subscription
from events.clock import Clock
from events.errors import PlatformError, TenantCrashedError
from events.slices import SYSTEM_TENANT
from events.system import DescribeSystem, QuarantineTenant
from events.unserved import Unserved

log = logging.getLogger(__name__)

_RETRY_S = 0.5
_RETRY_AFTER_MAX_S = 60.0  # an operator may end a quarantine at any time, and clients take no longer wait for an answer


class Crash(msgspec.Struct, frozen=True, array_like=True):
    """What a shard says when a tenant's activation ended by a defect."""

    tenant: str
    why: str


class Warden:
    def __init__(self, bus: Bus, asker: Asker, clock: Clock) -> None:
        self._bus, self._asker, self._clock = bus, asker, clock
        self._journal = Journal(asker, "supervisor")
        self._ward = Ward()
        self._remembering: asyncio.Task[None] | None = None

    async def start(self) -> list[Subscription]:
        """What the log remembers comes in as soon as it can be read: it is this supervisor that has the log activated."""
        self._remembering = asyncio.create_task(self._remember(), name="quarantine")
        return [
            await self._bus.subscribe(CRASHED, self._on_crashed),
            await self._bus.subscribe(RELEASED, self._on_released),
        ]

    def close(self) -> None:
        self._journal.close()
        if self._remembering is not None:
            self._remembering.cancel()

    async def admit(self, tenant: str, patience_s: float) -> Unserved | None:
        """Returns None when the tenant may be activated, after its back-off; or why it may not be within ``patience_s``."""
        now_s = time.monotonic()
        wait_s = self._ward.wait_s(tenant, now_s)
        if self._ward.reason(tenant, now_s):
            message = (
                "it is in quarantine, its activation crashed again and again: `tenantry tenant quarantine` says why, "
                f"`tenantry tenant release {tenant}` ends it"
            )
            return Unserved(
                TenantCrashedError.code, message, is_final=True, retry_after_s=min(wait_s, _RETRY_AFTER_MAX_S)
            )
        if wait_s > patience_s:
            message = f"its activation crashed: tried again in {wait_s:.1f} s"
            return Unserved(TenantCrashedError.code, message, retry_after_s=wait_s)
        await asyncio.sleep(wait_s)  # the back-off itself
        return None

    def is_suspect(self, tenant: str) -> bool:
        """Its next activation is one to be watched: see ``Ward.is_suspect``."""
        return self._ward.is_suspect(tenant, time.monotonic())

    def crashed(self, tenant: str, why: str) -> None:
        now_s = time.monotonic()
        was_barred = bool(self._ward.reason(tenant, now_s))
        if tenant == SYSTEM_TENANT:  # without it, nothing could be written down or released
            return
        self._ward = quarantine.crashed(self._ward, tenant, why, now_s)
        reason = self._ward.reason(tenant, now_s)
        log.error("tenant.crash_counted tenant=%s quarantined=%s: %s", tenant, bool(reason), why)
        if reason and not was_barred:
            record = self._ward.records[tenant]
            now_us = self._clock.now_us()
            until_us = now_us + int(quarantine.QUARANTINE_S * 1e6)
            command = QuarantineTenant(tenant, reason[:500], len(record.crashed_s), until_us)
            self._journal.write(command, f"quarantine-{tenant}-{now_us}")

    def _on_crashed(self, data: bytes, _reply_to: str) -> None:
        crash = msgspec.msgpack.decode(data, type=Crash)
        self.crashed(crash.tenant, crash.why)

    def _on_released(self, data: bytes, reply_to: str) -> None:
        self._ward = quarantine.released(self._ward, data.decode(errors="replace"))
        if reply_to:
            with contextlib.suppress(PlatformError):
                self._bus.publish(reply_to, b"ok")

    async def _remember(self) -> None:
        while True:
            try:
                ok = await self._asker.ask(SYSTEM_TENANT, DescribeSystem(), actor="supervisor")
                break
            except PlatformError as error:
                log.warning("supervisor.quarantine_unread: %s", error)
                await asyncio.sleep(_RETRY_S)  # back-off; only asking again tells
        now_us, now_s = self._clock.now_us(), time.monotonic()
        for row in ok.result["quarantined"]:
            if row["until_us"] > now_us:
                until_s = now_s + (row["until_us"] - now_us) / 1e6
                self._ward = quarantine.quarantined(self._ward, row["tenant"], row["reason"], until_s)
