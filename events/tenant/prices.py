"""Prices of a tenant's own. A model that is not in its table costs what the models file says."""

import msgspec

from events.messages import Command, Event, Query


class TokenPrice(msgspec.Struct, frozen=True, array_like=True):
    """Nano-USD per token. ``version`` says which price list it stands in; each call keeps the price it was reserved at."""

    input_nano_usd: int
    output_nano_usd: int
    version: str = ""

    def cost_nano_usd(self, input_tokens: int, output_tokens: int) -> int:
        return self.input_nano_usd * input_tokens + self.output_nano_usd * output_tokens


class SetPrices(Command, frozen=True, tag="prices.set"):
    """The whole table, by model; it is the next version, and an empty one means list prices."""

    prices: dict[str, TokenPrice]


class ListPrices(Query, frozen=True, tag="prices.list"):
    pass


class PricesSet(Event, frozen=True, tag="prices.set.v1"):
    prices: dict[str, TokenPrice]
    version: int


PriceCommand = SetPrices | ListPrices
PriceEvent = PricesSet
