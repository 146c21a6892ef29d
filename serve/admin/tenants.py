"""Tenants: create, list, show, and what they may spend."""

import contextlib
from typing import Annotated, Literal

import msgspec
from fastapi import Query, Response
from pydantic import BaseModel, Field

from actors.history import state_at
from actors.tenant import describe
from events.envelope import Ok
from events.money import money
from events.slices import SLICE_COUNT, SYSTEM_TENANT, TENANT_ID
from events.tenant import ChangePlan, CreateTenant, DescribeTenant, Plan, ResumeTenant, SuspendTenant
from events.verify import verify
from projections.directory import DirectoryProjection, read_profile
from serve.admin.budgets import BudgetOut, budget_out
from serve.admin.routes import (
    POSITION_MAX,
    IdempotencyKey,
    Svc,
    ask,
    command_id_for,
    commands,
    head_of,
    head_position,
    router,
    stamp,
)
from serve.auth import push_revocation
from serve.http_errors import HttpError
from serve.usage import NotProjectedError, TenantUsage, usage_of, wait_for_projection


class NewTenant(BaseModel, extra="forbid"):
    id: Annotated[str, Field(pattern=f"^{TENANT_ID.pattern}$")]
    name: Annotated[str, Field(max_length=200, description="Shown to people; the id where left out")] = ""
    plan: Plan = "free"


class PlanIn(BaseModel, extra="forbid"):
    plan: Plan


class Suspension(BaseModel, extra="forbid"):
    reason: Annotated[str, Field(max_length=200, examples=["invoice overdue"])] = ""


class TenantOut(BaseModel):
    id: str
    name: str
    plan: Plan
    created_us: int
    status: Literal["active", "suspended"]
    suspended_reason: str | None
    placement: Literal["pool", "silo"]
    keys_active: int
    users: int
    budget: BudgetOut | None
    spent_usd: str
    reserved_usd: str
    calls_open: int
    calls_unknown: int
    position: int


class TenantRow(BaseModel):
    id: str
    name: str
    plan: Plan
    created_us: int


class TenantList(BaseModel):
    data: list[TenantRow]
    next: str | None = None


_AS_THEY_ARE = (
    "id",
    "name",
    "plan",
    "created_us",
    "status",
    "suspended_reason",
    "placement",
    "keys_active",
    "users",
    "calls_open",
    "calls_unknown",
)


def _tenant_out(ok: Ok) -> TenantOut:
    plain = ok.result
    budget = plain["budget"]
    return TenantOut(
        **{name: plain[name] for name in _AS_THEY_ARE},
        budget=budget and budget_out(budget),
        spent_usd=money(plain["spent_nano_usd"]),
        reserved_usd=money(plain["reserved_nano_usd"]),
        position=ok.position,
    )


@commands.post("/tenants", status_code=201)
async def create_tenant(
    services: Svc, body: NewTenant, response: Response, idempotency_key: IdempotencyKey = None
) -> TenantOut:
    """Create a tenant. Plan `free` shares an actor with others, `pro` and `enterprise` get their own."""
    if body.id == SYSTEM_TENANT:
        raise HttpError(422, "invalid_request", f"the id {SYSTEM_TENANT!r} is taken by the platform itself", param="id")
    command_id = command_id_for(services, body.id, idempotency_key)
    ok = await ask(services, body.id, CreateTenant(body.name or body.id, body.plan), command_id)
    await _listed(services, body.id, ok)
    stamp(response, ok)
    return _tenant_out(ok)


async def _listed(services: Svc, tenant: str, ok: Ok) -> None:
    """The wait is so that a list shows it; it is done in any case."""
    with contextlib.suppress(NotProjectedError):
        await wait_for_projection(services, DirectoryProjection(), tenant, ok.position)


@router.get("/tenants")
async def list_tenants(services: Svc, after: str = "", limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> TenantList:
    """Tenants by id. `next` is the `after` of the following page."""
    names = [name for number in range(SLICE_COUNT) for name in await services.store.tenants(number)]
    page = sorted(name for name in names if name > after)[: limit + 1]
    rows = []
    for name in page[:limit]:
        profile = read_profile(await services.models.fields(DirectoryProjection(), name))
        if profile is not None:
            rows.append(TenantRow(**msgspec.structs.asdict(profile)))
    return TenantList(data=rows, next=page[limit - 1] if len(page) > limit else None)


@router.get("/tenants/{tenant}")
async def show_tenant(
    services: Svc,
    tenant: str,
    at: Annotated[int | None, Query(ge=1, le=POSITION_MAX, description="A past position of its log")] = None,
) -> TenantOut:
    """The tenant as it is, or as it was right after the event at a position."""
    if at is None:
        return _tenant_out(await ask(services, tenant, DescribeTenant()))
    await head_position(services, tenant)
    state, time_us = await state_at(services.store, await services.keys.cipher(tenant), tenant, at)
    return _tenant_out(Ok(describe(state.tenant, tenant, time_us), at))


@commands.put("/tenants/{tenant}/plan")
async def change_plan(
    services: Svc, tenant: str, body: PlanIn, response: Response, idempotency_key: IdempotencyKey = None
) -> TenantOut:
    """Change the plan, and with it where the tenant is served. It moves there while it is used: no command is lost."""
    ok = await ask(services, tenant, ChangePlan(body.plan), command_id_for(services, tenant, idempotency_key))
    await _listed(services, tenant, ok)
    stamp(response, ok)
    return _tenant_out(ok)


@commands.post("/tenants/{tenant}/suspend")
async def suspend_tenant(
    services: Svc, tenant: str, body: Suspension, response: Response, idempotency_key: IdempotencyKey = None
) -> TenantOut:
    """Refuse all keys of the tenant and every new call (403 `tenant_suspended`), everywhere within a second. Calls under
    way are finished and booked: their money is held, and their provider bills them in any case.
    """
    command_id = command_id_for(services, tenant, idempotency_key)
    ok = await ask(services, tenant, SuspendTenant(body.reason), command_id)
    push_revocation(services.bus, tenant)
    stamp(response, ok)
    return _tenant_out(ok)


@commands.post("/tenants/{tenant}/resume")
async def resume_tenant(
    services: Svc, tenant: str, response: Response, idempotency_key: IdempotencyKey = None
) -> TenantOut:
    """Resume a suspended tenant; or open one again that was halted because its log was not what it should be. Then the
    log is verified first, a broken one stays halted, and a suspension stays for a second call to end.
    """
    head = await head_of(services, tenant)
    if head.status == "halted":
        await verify(services.store, tenant, services.vault)
        await services.store.resume(tenant)
        ok = await ask(services, tenant, DescribeTenant())
    else:
        ok = await ask(services, tenant, ResumeTenant(), command_id_for(services, tenant, idempotency_key))
    push_revocation(services.bus, tenant)
    stamp(response, ok)
    return _tenant_out(ok)


@router.get("/tenants/{tenant}/usage")
async def tenant_usage(
    services: Svc, tenant: str, min_position: Annotated[int, Query(ge=0, le=POSITION_MAX)] = 0
) -> TenantUsage:
    await head_position(services, tenant)
    return await usage_of(services, tenant, min_position)
