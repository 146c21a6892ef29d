"""Budgets of a tenant, its keys and its users."""

from typing import Annotated, Any

from fastapi import Response
from pydantic import BaseModel, Field
from pydantic.config import JsonDict

from events.money import money
from events.tenant import (
    TENANT_SCOPE,
    ListBudgets,
    RemoveBudget,
    SetBudget,
    Window,
    key_subject,
    user_subject,
)
from serve.admin.routes import IdempotencyKey, Svc, Usd, Who, amount, ask, commands, router, stamp
from serve.services import Services

_BUDGETIN_EXAMPLES: JsonDict = {"examples": [{"limit_usd": "25.00", "soft_limit_usd": "20", "window": "month"}]}


class BudgetIn(BaseModel, extra="forbid", json_schema_extra=_BUDGETIN_EXAMPLES):
    limit_usd: Annotated[Usd | None, Field(description="What might exceed it is refused (402)")] = None
    soft_limit_usd: Annotated[Usd | None, Field(description="Once it is spent, answers and the log warn")] = None
    window: Annotated[Window, Field(description="UTC; another window starts to count anew")]


class BudgetOut(BaseModel):
    """``spent_usd`` is of the current window, ``reserved_usd`` the maximum of calls still open."""

    subject: Annotated[str, Field(examples=["tenant", "key:3f9a…", "user:ada"])]
    limit_usd: str | None
    soft_limit_usd: str | None
    window: Window
    window_start_us: int
    spent_usd: str
    reserved_usd: str
    soft_reached: bool


class BudgetList(BaseModel):
    data: list[BudgetOut]


class BudgetGone(BaseModel):
    subject: str


def budget_out(row: dict[str, Any]) -> BudgetOut:
    """The budget as JSON, its money as decimal strings."""
    spent = {name: row[name] for name in ("subject", "window", "window_start_us", "soft_reached")}
    limits = {
        name: None if row[f"{name}_nano_usd"] is None else money(row[f"{name}_nano_usd"])
        for name in ("limit", "soft_limit")
    }
    return BudgetOut(
        limit_usd=limits["limit"],
        soft_limit_usd=limits["soft_limit"],
        spent_usd=money(row["spent_nano_usd"]),
        reserved_usd=money(row["reserved_nano_usd"]),
        **spent,
    )


async def listing(services: Services, who: Who) -> BudgetList:
    ok = await ask(services, who, ListBudgets(by_key=who.by_key))
    return BudgetList(data=[budget_out(row) for row in ok.result["budgets"]])


async def _set(
    services: Services, tenant: str, subject: str, body: BudgetIn, response: Response, idempotency_key: str | None
) -> BudgetOut:
    command = SetBudget(
        None if body.limit_usd is None else amount(body.limit_usd, "limit_usd"),
        body.window,
        None if body.soft_limit_usd is None else amount(body.soft_limit_usd, "soft_limit_usd"),
        subject,
    )
    ok = await ask(services, tenant, command, Who(tenant).command_id(services, idempotency_key))
    stamp(response, ok)
    return budget_out(ok.result["budget"])


async def _remove(
    services: Services, tenant: str, subject: str, response: Response, idempotency_key: str | None
) -> BudgetGone:
    ok = await ask(services, tenant, RemoveBudget(subject), Who(tenant).command_id(services, idempotency_key))
    stamp(response, ok)
    return BudgetGone(subject=subject)


@router.get("/tenants/{tenant}/budgets")
async def list_budgets(services: Svc, tenant: str) -> BudgetList:
    """All budgets: the tenant's, and those of its keys and users."""
    return await listing(services, Who(tenant))


@commands.put("/tenants/{tenant}/budget")
async def set_budget(
    services: Svc, tenant: str, body: BudgetIn, response: Response, idempotency_key: IdempotencyKey = None
) -> BudgetOut:
    """Set how much the tenant may spend per window (UTC). Another window starts to count anew."""
    return await _set(services, tenant, TENANT_SCOPE, body, response, idempotency_key)


@commands.delete("/tenants/{tenant}/budget")
async def remove_budget(
    services: Svc, tenant: str, response: Response, idempotency_key: IdempotencyKey = None
) -> BudgetGone:
    return await _remove(services, tenant, TENANT_SCOPE, response, idempotency_key)


@commands.put("/tenants/{tenant}/keys/{key_id}/budget")
async def set_key_budget(
    services: Svc, tenant: str, key_id: str, body: BudgetIn, response: Response, idempotency_key: IdempotencyKey = None
) -> BudgetOut:
    """Set how much one key may spend, within the budgets of its user and the tenant."""
    return await _set(services, tenant, key_subject(key_id), body, response, idempotency_key)


@commands.delete("/tenants/{tenant}/keys/{key_id}/budget")
async def remove_key_budget(
    services: Svc, tenant: str, key_id: str, response: Response, idempotency_key: IdempotencyKey = None
) -> BudgetGone:
    return await _remove(services, tenant, key_subject(key_id), response, idempotency_key)


@commands.put("/tenants/{tenant}/users/{user_id}/budget")
async def set_user_budget(
    services: Svc, tenant: str, user_id: str, body: BudgetIn, response: Response, idempotency_key: IdempotencyKey = None
) -> BudgetOut:
    """Set how much one user may spend with all keys together."""
    return await _set(services, tenant, user_subject(user_id), body, response, idempotency_key)


@commands.delete("/tenants/{tenant}/users/{user_id}/budget")
async def remove_user_budget(
    services: Svc, tenant: str, user_id: str, response: Response, idempotency_key: IdempotencyKey = None
) -> BudgetGone:
    return await _remove(services, tenant, user_subject(user_id), response, idempotency_key)
