"""Calls that were booked at their maximum because nobody knew what they used."""

from typing import Annotated

from fastapi import Response
from pydantic import BaseModel, Field

from events.money import money
from events.tenant import CreditCall, ListUnknownCalls
from serve.admin.routes import IdempotencyKey, Svc, Usd, Who, amount, ask, commands, router, stamp


class UnknownCallRow(BaseModel):
    call_id: str
    key_id: str
    user_id: str | None
    model: str
    booked_usd: str
    reserved_us: int


class UnknownCalls(BaseModel):
    data: list[UnknownCallRow]


class Credit(BaseModel, extra="forbid"):
    """What the call really cost, as the provider's own bill says."""

    cost_usd: Annotated[Usd, Field(examples=["0.0004"])]
    reason: Annotated[str, Field(min_length=1, max_length=200, examples=["provider invoice 2026-11"])]
    input_tokens: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    output_tokens: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0


class Credited(BaseModel):
    call_id: str
    cost_usd: str
    position: int


@router.get("/tenants/{tenant}/calls/unknown")
async def list_unknown_calls(services: Svc, tenant: str) -> UnknownCalls:
    """Calls booked at their maximum: their gateway died, or their provider never said. At most the latest 1,000."""
    ok = await ask(services, tenant, ListUnknownCalls())
    rows = [UnknownCallRow(booked_usd=money(row.pop("cost_nano_usd")), **row) for row in ok.result["calls"]]
    return UnknownCalls(data=rows)


@commands.post("/tenants/{tenant}/calls/{call_id}/credit")
async def credit_call(
    services: Svc, tenant: str, call_id: str, body: Credit, response: Response, idempotency_key: IdempotencyKey = None
) -> Credited:
    """Correct such a call, once: the difference goes back to the budgets that paid it."""
    cost = amount(body.cost_usd, "cost_usd")
    command = CreditCall(call_id, cost, body.reason, body.input_tokens, body.output_tokens)
    ok = await ask(services, tenant, command, Who(tenant).command_id(services, idempotency_key))
    stamp(response, ok)
    return Credited(call_id=call_id, cost_usd=money(cost), position=ok.position)
