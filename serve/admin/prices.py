"""A tenant's own prices."""

from decimal import Decimal
from typing import Annotated, Any

from fastapi import Query, Response
from pydantic import BaseModel, Field

from actors.history import state_at
from actors.tenant.prices import table
from events.money import Price
from events.tenant import ListPrices, SetPrices, TokenPrice
from serve.admin.routes import POSITION_MAX, IdempotencyKey, Svc, Who, ask, commands, head_position, router, stamp

_MTOK_PER_NANO = Decimal("0.001")  # USD per million tokens, of one nano-USD per token


class ModelPrice(Price):
    model: Annotated[str, Field(min_length=1, max_length=128)]


class PricesIn(BaseModel, extra="forbid"):
    prices: Annotated[
        tuple[ModelPrice, ...], Field(max_length=500, description="The whole table; models not in it have list prices")
    ]


class PricesOut(BaseModel):
    """``version`` counts the tables that the tenant has had; 0: list prices only."""

    version: int
    prices: list[ModelPrice]


def _token_price(price: ModelPrice) -> TokenPrice:
    return TokenPrice(*price.nano_usd_per_token)


def _out(plain: dict[str, Any]) -> PricesOut:
    rows = [
        ModelPrice(
            model=row["model"],
            input_usd_per_mtok=row["input_nano_usd"] * _MTOK_PER_NANO,
            output_usd_per_mtok=row["output_nano_usd"] * _MTOK_PER_NANO,
        )
        for row in plain["prices"]
    ]
    return PricesOut(version=plain["version"], prices=rows)


@router.get("/tenants/{tenant}/prices")
async def show_prices(
    services: Svc,
    tenant: str,
    at: Annotated[int | None, Query(ge=1, le=POSITION_MAX, description="A past position of its log")] = None,
) -> PricesOut:
    """The tenant's own prices, now or at a past position of its log."""
    if at is None:
        return _out((await ask(services, tenant, ListPrices())).result)
    await head_position(services, tenant)
    state, _ = await state_at(services.store, await services.keys.cipher(tenant), tenant, at)
    return _out(table(state.tenant))


@commands.put("/tenants/{tenant}/prices")
async def set_prices(
    services: Svc, tenant: str, body: PricesIn, response: Response, idempotency_key: IdempotencyKey = None
) -> PricesOut:
    """Replace the tenant's price table: its next version. Calls that are reserved already keep the price they have."""
    prices = {price.model: _token_price(price) for price in body.prices}
    ok = await ask(services, tenant, SetPrices(prices), Who(tenant).command_id(services, idempotency_key))
    stamp(response, ok)
    return _out(ok.result)
