"""A tenant's own prices, as versions of one table."""

from typing import Any

from msgspec.structs import replace

from actors.tenant.state import PriceTable, Tenant
from events.errors import InvalidCommandError
from events.tenant import PriceEvent, PricesSet, SetPrices, TenantEvent, TokenPrice

MODELS_MAX = 500


def set_prices(state: Tenant, command: SetPrices) -> list[TenantEvent]:
    version = state.price_table.version + 1
    if len(command.prices) > MODELS_MAX:
        raise InvalidCommandError(f"a price table has at most {MODELS_MAX} models, got {len(command.prices)}")
    prices = {}
    for model, price in command.prices.items():
        if min(price.input_nano_usd, price.output_nano_usd) < 0:
            raise InvalidCommandError(f"a price can't be negative: {model[:80]!r}")
        prices[model] = replace(price, version=f"tenant:{version}")
    return [PricesSet(prices, version)]


def price_of(state: Tenant, model: str, list_price: TokenPrice | None) -> TokenPrice | None:
    return None if list_price is None else state.price_table.prices.get(model, list_price)


def evolve(state: Tenant, event: PriceEvent, version: int) -> Tenant:
    return replace(state, version=version, price_table=PriceTable(event.version, event.prices))


def table(state: Tenant) -> dict[str, Any]:
    return {
        "version": state.price_table.version,
        "prices": [
            {"model": model, "input_nano_usd": price.input_nano_usd, "output_nano_usd": price.output_nano_usd}
            for model, price in sorted(state.price_table.prices.items())
        ],
    }
