"""Limits of a tenant, its keys and its users."""

from typing import Annotated, Any

from fastapi import Response
from pydantic import BaseModel, Field
from pydantic.config import JsonDict

from events.tenant import (
    TENANT_SCOPE,
    Limit,
    ListLimits,
    Resource,
    SetLimits,
    Strategy,
    key_subject,
    user_subject,
)
from serve.admin.routes import IdempotencyKey, Svc, Who, ask, commands, router, stamp
from serve.services import Services


class LimitIn(BaseModel, extra="forbid"):
    resource: Annotated[Resource, Field(description="tokens count at their maximum until a call is settled")]
    limit: Annotated[int, Field(gt=0, le=10**12)]
    window_s: Annotated[int, Field(gt=0, le=31 * 24 * 3600, description="Of no meaning for concurrency")] = 60
    strategy: Strategy = "token_bucket"
    burst: Annotated[int, Field(ge=0, le=10**12, description="What a token bucket holds; 0: the limit")] = 0


_LIMITSIN_EXAMPLES: JsonDict = {
    "examples": [
        {
            "limits": [
                {"resource": "requests", "limit": 600, "window_s": 60, "strategy": "sliding_window"},
                {"resource": "tokens", "limit": 1_000_000, "window_s": 60},
                {"resource": "concurrency", "limit": 20},
            ]
        }
    ]
}


class LimitsIn(BaseModel, extra="forbid", json_schema_extra=_LIMITSIN_EXAMPLES):
    limits: Annotated[tuple[LimitIn, ...], Field(max_length=10, description="All of them; none removes them")]


class LimitRow(LimitIn):
    """``left`` is what could be used right now."""

    left: int


class LimitsOut(BaseModel):
    subject: Annotated[str, Field(examples=["tenant", "key:3f9a…", "user:ada"])]
    limits: list[LimitRow]


class LimitsList(BaseModel):
    data: list[LimitsOut]


def _out(row: dict[str, Any]) -> LimitsOut:
    return LimitsOut(subject=row["subject"], limits=[LimitRow(**rule) for rule in row["limits"]])


async def listing(services: Services, who: Who) -> LimitsList:
    ok = await ask(services, who, ListLimits(by_key=who.by_key))
    return LimitsList(data=[_out(row) for row in ok.result["limits"]])


async def _set(
    services: Services, tenant: str, subject: str, body: LimitsIn, response: Response, idempotency_key: str | None
) -> LimitsOut:
    rules = tuple(Limit(**rule.model_dump()) for rule in body.limits)
    ok = await ask(services, tenant, SetLimits(rules, subject), Who(tenant).command_id(services, idempotency_key))
    stamp(response, ok)
    return _out(ok.result)


@router.get("/tenants/{tenant}/limits")
async def list_limits(services: Svc, tenant: str) -> LimitsList:
    """All limits: the tenant's, and those of its keys and users."""
    return await listing(services, Who(tenant))


@commands.put("/tenants/{tenant}/limits")
async def set_limits(
    services: Svc, tenant: str, body: LimitsIn, response: Response, idempotency_key: IdempotencyKey = None
) -> LimitsOut:
    """Limit requests, tokens or concurrent calls of the whole tenant. What is over a limit gets 429 with Retry-After."""
    return await _set(services, tenant, TENANT_SCOPE, body, response, idempotency_key)


@commands.put("/tenants/{tenant}/keys/{key_id}/limits")
async def set_key_limits(
    services: Svc, tenant: str, key_id: str, body: LimitsIn, response: Response, idempotency_key: IdempotencyKey = None
) -> LimitsOut:
    """Limit one key, within the limits of its user and the tenant."""
    return await _set(services, tenant, key_subject(key_id), body, response, idempotency_key)


@commands.put("/tenants/{tenant}/users/{user_id}/limits")
async def set_user_limits(
    services: Svc, tenant: str, user_id: str, body: LimitsIn, response: Response, idempotency_key: IdempotencyKey = None
) -> LimitsOut:
    """Limit all keys of one user together."""
    return await _set(services, tenant, user_subject(user_id), body, response, idempotency_key)
