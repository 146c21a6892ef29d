"""``/admin/v1``: what an operator does to tenants. Admin key only."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from actors.history import state_at
from actors.tenant import describe
from events.bus import live_subject, unsubscribe
from events.codec import StoredEvent, decode_record
from events.envelope import Ok
from events.errors import KeyRefusedError, NotFoundError
from events.ids import derived_id
from events.slices import SLICE_COUNT, SYSTEM_TENANT, TENANT_ID
from events.tenant import (
    CreateTenant,
    DescribeTenant,
    IssueKey,
    ListKeys,
    Plan,
    RevokeKey,
    SetBudget,
    TenantCommand,
    Window,
)
from events.verify import verify
from projections.directory import PROFILE_FIELD, DirectoryProjection, Profile
from serve.auth import bearer, push_revocation
from serve.command_route import CommandRoute
from serve.doctor import examine
from serve.http_errors import HttpError
from serve.keys import digest_of, make_key
from serve.services import Services
from serve.settings import money, nano_usd
from serve.usage import NotProjectedError, TenantUsage, usage_of, wait_for_projection

POSITION_MAX = 2**40 - 1  # what five bytes of a stream's index can hold
_FOLLOW_RECHECK_S = 1.0  # a live hint can get lost, the log can't


class NewTenant(BaseModel, extra="forbid"):
    id: Annotated[str, Field(pattern=f"^{TENANT_ID.pattern}$")]
    name: Annotated[str, Field(max_length=200, description="Shown to people; the id where left out")] = ""
    plan: Plan = "free"


class BudgetIn(BaseModel, extra="forbid"):
    limit_usd: Annotated[str, Field(max_length=40, examples=["25.00"])]
    window: Window


class BudgetOut(BudgetIn):
    pass


class TenantOut(BaseModel):
    id: str
    name: str
    plan: Plan
    created_us: int
    placement: Literal["pool", "silo"]
    keys_active: int
    budget: BudgetOut | None
    spent_usd: str
    reserved_usd: str
    calls_open: int
    position: int


class TenantRow(BaseModel):
    id: str
    name: str
    plan: Plan
    created_us: int


class TenantList(BaseModel):
    data: list[TenantRow]
    next: str | None = None


class NewKey(BaseModel, extra="forbid"):
    name: Annotated[str, Field(min_length=1, max_length=200)] = "default"


class KeyOut(BaseModel):
    """``key`` is shown this once; only its keyed hash is kept."""

    key_id: str
    key: str
    name: str
    position: int


class KeyRow(BaseModel):
    key_id: str
    name: str
    created_us: int
    revoked: bool


class KeyList(BaseModel):
    data: list[KeyRow]


class EventOut(BaseModel):
    position: int
    stream: str
    version: int
    type: str
    time_us: int
    command_id: str
    correlation_id: str
    actor: str
    epoch: int
    hash: str
    data: dict[str, Any]


class EventPage(BaseModel):
    data: list[EventOut]
    next_after: int | None = None


class VerifiedOut(BaseModel):
    tenant: str
    events: int
    head_hash: str


class Finding(BaseModel):
    name: str
    ok: bool
    detail: str


class Report(BaseModel):
    ok: bool
    findings: list[Finding]


async def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def admin_only(request: Request, authorization: Annotated[str | None, Header()] = None) -> None:
    if not request.app.state.services.authenticator.is_admin(bearer(authorization)):
        raise KeyRefusedError


IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]
Svc = Annotated[Services, Depends(services_of)]
router = APIRouter(prefix="/admin/v1", dependencies=[Depends(admin_only)], tags=["admin"])
commands = APIRouter(prefix="/admin/v1", dependencies=[Depends(admin_only)], tags=["admin"], route_class=CommandRoute)


def command_id_for(services: Services, tenant: str, idempotency_key: str | None) -> str:
    return derived_id(tenant, idempotency_key) if idempotency_key else services.asker.new_id()


async def _ask(services: Services, tenant: str, command: TenantCommand, command_id: str | None = None) -> Ok:
    """An id that can't be a tenant's gets the same answer as one that isn't."""
    if not TENANT_ID.fullmatch(tenant):
        raise NotFoundError("tenant", tenant[:80])
    if not isinstance(command, CreateTenant) and not await services.tenants.exists(tenant):
        raise NotFoundError("tenant", tenant)
    return await services.asker.ask(tenant, command, actor="admin", command_id=command_id)


def _tenant_out(ok: Ok) -> TenantOut:
    plain = ok.result
    budget = plain["budget"]
    return TenantOut(
        **{key: plain[key] for key in ("id", "name", "plan", "created_us", "placement", "keys_active", "calls_open")},
        budget=budget and BudgetOut(limit_usd=money(budget["limit_nano_usd"]), window=budget["window"]),
        spent_usd=money(plain["spent_nano_usd"]),
        reserved_usd=money(plain["reserved_nano_usd"]),
        position=ok.position,
    )


def _stamp(response: Response, ok: Ok) -> None:
    response.headers["x-tenantry-position"] = str(ok.position)


@commands.post("/tenants", status_code=201)
async def create_tenant(
    services: Svc, body: NewTenant, response: Response, idempotency_key: IdempotencyKey = None
) -> TenantOut:
    """Create a tenant. Plan `free` shares an actor with others, `pro` and `enterprise` get their own."""
    if body.id == SYSTEM_TENANT:
        raise HttpError(422, "invalid_request", f"the id {SYSTEM_TENANT!r} is taken by the platform itself", param="id")
    command_id = command_id_for(services, body.id, idempotency_key)
    ok = await _ask(services, body.id, CreateTenant(body.name or body.id, body.plan), command_id)
    with contextlib.suppress(NotProjectedError):  # the wait is so that a list shows it; it is created in any case
        await wait_for_projection(services, DirectoryProjection(), body.id, ok.position)
    _stamp(response, ok)
    return _tenant_out(ok)


@router.get("/tenants")
async def list_tenants(services: Svc, after: str = "", limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> TenantList:
    """Tenants by id. `next` is the `after` of the following page."""
    names = [name for number in range(SLICE_COUNT) for name in await services.store.tenants(number)]
    page = sorted(name for name in names if name > after)[: limit + 1]
    rows = []
    for name in page[:limit]:
        profile = (await services.models.fields(DirectoryProjection(), name)).get(PROFILE_FIELD.encode())
        if profile is not None:
            rows.append(TenantRow(**msgspec.structs.asdict(msgspec.json.decode(profile, type=Profile))))
    return TenantList(data=rows, next=page[limit - 1] if len(page) > limit else None)


@router.get("/tenants/{tenant}")
async def show_tenant(
    services: Svc,
    tenant: str,
    at: Annotated[int | None, Query(ge=1, le=POSITION_MAX, description="A past position of its log")] = None,
) -> TenantOut:
    """The tenant as it is, or as it was right after the event at a position."""
    if at is None:
        return _tenant_out(await _ask(services, tenant, DescribeTenant()))
    await _head_position(services, tenant)
    state, time_us = await state_at(services.store, tenant, at)
    return _tenant_out(Ok(describe(state, tenant, time_us), at))


@commands.post("/tenants/{tenant}/keys", status_code=201)
async def issue_key(
    services: Svc, tenant: str, body: NewKey, response: Response, idempotency_key: IdempotencyKey = None
) -> KeyOut:
    """Issue an API key. It is shown in this answer only; a repeat with the same Idempotency-Key shows it again."""
    command_id = command_id_for(services, tenant, idempotency_key)
    key = make_key(services.settings.pepper, tenant, idempotency_key)
    command = IssueKey(key.key_id, body.name, digest_of(services.settings.pepper, key))
    ok = await _ask(services, tenant, command, command_id)
    _stamp(response, ok)
    return KeyOut(key_id=key.key_id, key=key.text, name=body.name, position=ok.position)


@router.get("/tenants/{tenant}/keys")
async def list_keys(services: Svc, tenant: str) -> KeyList:
    ok = await _ask(services, tenant, ListKeys())
    return KeyList(data=[KeyRow(**row) for row in ok.result["keys"]])


@commands.delete("/tenants/{tenant}/keys/{key_id}")
async def revoke_key(services: Svc, tenant: str, key_id: str, response: Response) -> KeyRow:
    """Revoke a key, at once and for good. Calls that run already are finished."""
    ok = await _ask(services, tenant, RevokeKey(key_id))
    await push_revocation(services.bus, tenant, key_id)
    _stamp(response, ok)
    listed = await _ask(services, tenant, ListKeys())
    return next(KeyRow(**row) for row in listed.result["keys"] if row["key_id"] == key_id)


@commands.put("/tenants/{tenant}/budget")
async def set_budget(
    services: Svc, tenant: str, body: BudgetIn, response: Response, idempotency_key: IdempotencyKey = None
) -> BudgetOut:
    """Set how much the tenant may spend per window (UTC). Another window starts to count anew."""
    try:
        limit = nano_usd(body.limit_usd)
    except ValueError as error:
        raise HttpError(400, "invalid_request", str(error), param="limit_usd") from error
    ok = await _ask(services, tenant, SetBudget(limit, body.window), command_id_for(services, tenant, idempotency_key))
    _stamp(response, ok)
    return BudgetOut(limit_usd=money(limit), window=body.window)


@router.get("/tenants/{tenant}/usage")
async def tenant_usage(
    services: Svc, tenant: str, min_position: Annotated[int, Query(ge=0, le=POSITION_MAX)] = 0
) -> TenantUsage:
    await _head_position(services, tenant)
    return await usage_of(services, tenant, min_position)


@router.get("/tenants/{tenant}/verify")
async def verify_tenant(services: Svc, tenant: str) -> VerifiedOut:
    """Walk the tenant's hash chain from its first event. 500 `chain_broken` names the first bad position."""
    if not TENANT_ID.fullmatch(tenant):
        raise NotFoundError("tenant", tenant[:80])
    return VerifiedOut(**msgspec.structs.asdict(await verify(services.store, tenant)))


@router.get("/tenants/{tenant}/events", response_model=EventPage)
async def tenant_events(
    services: Svc,
    tenant: str,
    after: Annotated[int, Query(ge=0, le=POSITION_MAX)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    follow: bool = False,
) -> Any:
    """Events after a position, as a page, or with `follow=true` as server-sent events without end (`id:` is the position)."""
    await _head_position(services, tenant)
    if follow:
        return StreamingResponse(_follow(services, tenant, after), media_type="text/event-stream")
    page = [_event_out(stored) for stored in await services.store.read(tenant, after, limit)]
    return EventPage(data=page, next_after=page[-1].position if len(page) == limit else None)


async def _head_position(services: Services, tenant: str) -> int:
    head = await services.store.head(tenant) if TENANT_ID.fullmatch(tenant) else None
    if head is None:
        raise NotFoundError("tenant", tenant[:80])
    return head.position


async def _follow(services: Services, tenant: str, after: int) -> AsyncIterator[bytes]:
    news = asyncio.Event()
    # the usage projection announces every position it reaches, so its hint says that there is something new
    subscription = await services.bus.subscribe(live_subject(tenant, "usage"), lambda _data, _reply: news.set())
    try:
        yield b": following\n\n"  # opens the stream, so that the caller sees it is accepted
        while True:
            news.clear()
            while page := await services.store.read(tenant, after):
                for stored in page:
                    after = stored.position
                    yield b"id: %d\ndata: %s\n\n" % (after, _event_out(stored).model_dump_json().encode())
            try:
                await asyncio.wait_for(news.wait(), _FOLLOW_RECHECK_S)
            except TimeoutError:
                yield b": still here\n\n"  # a reader that has left shows only when something is sent to it
    finally:
        await unsubscribe(subscription)


def _event_out(stored: StoredEvent) -> EventOut:
    record = decode_record(stored.record)
    data: dict[str, Any] = msgspec.to_builtins(msgspec.msgpack.decode(record.data))
    return EventOut(
        position=stored.position,
        type=data.pop("type"),
        hash=stored.hash.hex(),
        data=data,
        **{
            name: getattr(record, name)
            for name in ("stream", "version", "time_us", "command_id", "correlation_id", "actor", "epoch")
        },
    )


@router.post("/tenants/{tenant}/resume")
async def resume_tenant(services: Svc, tenant: str) -> VerifiedOut:
    """Open a halted tenant again. Its log is verified first; a broken one stays halted."""
    await _head_position(services, tenant)
    verified = await verify(services.store, tenant)
    await services.store.resume(tenant)
    return VerifiedOut(**msgspec.structs.asdict(verified))


@router.get("/doctor")
async def doctor(services: Svc) -> Report:
    """Examine the deployment: each finding is ok, or says what to do."""
    findings = [Finding(name=name, ok=ok, detail=detail) async for name, ok, detail in examine(services)]
    return Report(ok=all(finding.ok for finding in findings), findings=findings)
