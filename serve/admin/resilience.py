"""Breakers and bulkheads that the cluster shares, and tenants in quarantine: seen live, forced by an operator, explained."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import Query, Response
from pydantic import BaseModel, Field

from actors.supervision.messages import BREAKERS_SHOW, BULKHEADS_SHOW, FORCE, Force, decode, encode
from events.bus import RELEASED, NoOneListensError
from events.codec import decode_event, decode_record
from events.errors import BusUnavailableError, NotFoundError
from events.slices import SYSTEM_TENANT
from events.system import (
    BreakerChanged,
    BreakerForced,
    DescribeSystem,
    ForceBreaker,
    ReleaseTenant,
    breaker_stream,
)
from serve.admin.routes import IdempotencyKey, Svc, command_id_for, commands, router, stamp
from serve.http_errors import HttpError
from serve.services import Services

_SHOW_TIMEOUT_S = 2.0
_PAGE = 500
_ID = re.compile(r"[a-z0-9][a-z0-9-]{1,62}|")


class BreakerOut(BaseModel, extra="allow"):
    """``live``: the supervisor's own word; otherwise, while it is away, what the log says. ``callers_open``: processes whose
    own breaker is open, whatever the cluster's is.
    """

    name: str
    tenant: str | None = Field(None, description="None: all tenants share it")
    state: Literal["closed", "open", "half_open", "forced_open", "forced_closed"]
    since: str
    cause: str
    live: bool


class BulkheadOut(BaseModel, extra="allow"):
    """``leased`` of ``limit`` permits are lent to processes, which would use ``wanted``."""

    name: str
    tenant: str | None = None
    state: Literal["free", "saturated"]
    limit: int
    live: bool


class Transition(BaseModel):
    at: str
    position: int
    before: str
    after: str
    cause: str
    by: str
    calls: int = 0
    failures: int = 0
    slow: int = 0
    callers: int = 0
    callers_bad: int = 0
    caller: str | None = Field(None, description="Set where it was that process' own breaker only")


class BreakerHistory(BaseModel):
    """``state`` as it was ``at``, decided by ``because``; ``history`` holds the latest transitions up to then."""

    name: str
    tenant: str | None
    at: str
    state: str
    because: Transition | None
    history: list[Transition]


class ForceIn(BaseModel, extra="forbid"):
    action: Literal["open", "close", "reset"]
    reason: Annotated[str, Field(min_length=1, max_length=500)]
    tenant: str | None = None


class ForceOut(BaseModel):
    """``applied``: the supervisor has it. Otherwise it is in the log, and takes effect when the supervisor is back."""

    name: str
    tenant: str | None
    state: str
    position: int
    applied: bool


class ReleaseIn(BaseModel, extra="forbid"):
    reason: Annotated[str, Field(min_length=1, max_length=500)]


class QuarantineRow(BaseModel):
    tenant: str
    reason: str
    crashes: int
    since: str
    until: str


def _time(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def _live(services: Services, subject: str) -> list[dict[str, Any]] | None:
    try:
        return decode(await services.bus.request(subject, b"", _SHOW_TIMEOUT_S), list[dict[str, Any]])  # type: ignore[no-any-return]
    except (NoOneListensError, TimeoutError, BusUnavailableError):
        return None


async def _remembered(services: Services) -> dict[str, Any]:
    result: dict[str, Any] = (await services.asker.ask(SYSTEM_TENANT, DescribeSystem(), actor="admin")).result
    return result


@router.get("/breakers")
async def breakers(services: Svc) -> list[BreakerOut]:
    """All breakers of the cluster that have callers, or that an operator holds."""
    rows = await _live(services, BREAKERS_SHOW)
    if rows is None:
        rows = [{**row, "state": row["status"]} for row in (await _remembered(services))["breakers"]]
        return [_breaker_out(row, live=False) for row in rows]
    return [_breaker_out(row, live=True) for row in rows]


def _breaker_out(row: dict[str, Any], *, live: bool) -> BreakerOut:
    rest = {name: value for name, value in row.items() if name not in ("since_us", "status", "tenant")}
    return BreakerOut(**rest, tenant=row["tenant"] or None, since=_time(row["since_us"]), live=live)


@router.get("/bulkheads")
async def bulkheads(services: Svc) -> list[BulkheadOut]:
    """All bulkheads that the cluster shares, and which process holds how many of their permits."""
    rows = await _live(services, BULKHEADS_SHOW)
    if rows is None:
        rows = (await _remembered(services))["bulkheads"]
        return [BulkheadOut(**{**row, "tenant": row["tenant"] or None}, live=False) for row in rows]
    return [BulkheadOut(**{**row, "tenant": row["tenant"] or None}, live=True) for row in rows]


@router.get("/breakers/{name:path}")
async def breaker_history(
    services: Svc,
    name: str,
    tenant: str = "",
    at: Annotated[datetime | None, Query(description="A moment, ISO 8601; now where left out")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> BreakerHistory:
    """What a breaker was at a moment, why, and what led there."""
    moment = at or datetime.now(UTC)
    at_us = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e6)
    found = [change async for change in _changes(services, name, tenant, at_us)]
    if not found and not any(row.name == name for row in await breakers(services)):
        raise NotFoundError("breaker", name[:120])
    clusters = [change for change in found if change.caller is None]
    return BreakerHistory(
        name=name,
        tenant=tenant or None,
        at=_time(at_us),
        state=clusters[-1].after if clusters else "closed",
        because=clusters[-1] if clusters else None,
        history=found[-limit:],
    )


async def _changes(services: Services, name: str, tenant: str, until_us: int) -> AsyncIterator[Transition]:
    after = 0
    while page := await services.store.read_stream(SYSTEM_TENANT, breaker_stream(name, tenant), after, _PAGE):
        for stored in page:
            record = decode_record(stored.record)
            after = record.version
            if record.time_us > until_us:
                return
            event = decode_event(record.data)
            if isinstance(event, BreakerChanged):
                figures = {
                    field: getattr(event, field) for field in ("calls", "failures", "slow", "callers", "callers_bad")
                }
                yield Transition(
                    at=_time(record.time_us),
                    position=stored.position,
                    before=event.before,
                    after=event.after,
                    cause=event.cause,
                    by=record.actor,
                    caller=event.caller or None,
                    **figures,
                )
            elif isinstance(event, BreakerForced):
                yield Transition(
                    at=_time(record.time_us),
                    position=stored.position,
                    before=event.before,
                    after=event.after,
                    cause=event.reason,
                    by=record.actor,
                )


@commands.post("/breakers/{name:path}")
async def force_breaker(
    services: Svc, name: str, body: ForceIn, response: Response, idempotency_key: IdempotencyKey = None
) -> ForceOut:
    """Hold a breaker open, hold it closed, or reset it. In the log first, with who did it and why; then with all callers."""
    tenant = body.tenant or ""
    if not _ID.fullmatch(tenant):
        raise HttpError(400, "invalid_request", f"{tenant[:80]!r} is not a tenant's id", param="tenant")
    ok = await services.asker.ask(
        SYSTEM_TENANT,
        ForceBreaker(name, tenant, body.action, body.reason),
        actor="admin",
        command_id=command_id_for(services, SYSTEM_TENANT, idempotency_key),
    )
    force = Force(name, tenant, ok.result["status"], body.reason, ok.result["version"])
    try:
        await services.bus.request(FORCE, encode(force), _SHOW_TIMEOUT_S)
        applied = True
    except (NoOneListensError, TimeoutError, BusUnavailableError):
        applied = False
    stamp(response, ok)
    return ForceOut(name=name, tenant=body.tenant, state=force.status, position=ok.position, applied=applied)


@router.get("/quarantine")
async def quarantine(services: Svc) -> list[QuarantineRow]:
    """Tenants that are not activated because their activations kept crashing."""
    rows = (await _remembered(services))["quarantined"]
    return [
        QuarantineRow(
            tenant=row["tenant"],
            reason=row["reason"],
            crashes=row["crashes"],
            since=_time(row["since_us"]),
            until=_time(row["until_us"]),
        )
        for row in rows
    ]


@commands.post("/tenants/{tenant}/release")
async def release_tenant(
    services: Svc, tenant: str, body: ReleaseIn, response: Response, idempotency_key: IdempotencyKey = None
) -> ReleaseIn:
    """Let a tenant out of quarantine: its next request activates it."""
    ok = await services.asker.ask(
        SYSTEM_TENANT,
        ReleaseTenant(tenant, body.reason),
        actor="admin",
        command_id=command_id_for(services, SYSTEM_TENANT, idempotency_key),
    )
    services.bus.publish(RELEASED, tenant.encode())
    stamp(response, ok)
    return body
