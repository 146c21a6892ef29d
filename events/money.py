"""Money is a whole number of nano-USD (1e-9 USD) inside, and a decimal string of USD outside; never a float."""

import re
from decimal import Decimal
from functools import cached_property

from pydantic import BaseModel, field_validator

_AMOUNT = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,9}))?")

_PRICE_MAX = 1_000_000


def money(nano_usd: int) -> str:
    """Nano-USD as a decimal string of USD, exact: '0.0000034'."""
    sign, (whole, rest) = "-" if nano_usd < 0 else "", divmod(abs(nano_usd), 1_000_000_000)
    return f"{sign}{whole}.{rest:09d}".rstrip("0").rstrip(".")


def nano_usd(text: str) -> int:
    """A decimal string of USD as nano-USD. Raises ValueError where it isn't one or is finer than a nano-USD."""
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise ValueError(f"expected an amount of USD such as '12.50', with at most nine decimals, got {text[:40]!r}")
    whole, decimals = match.groups()
    return int(whole + (decimals or "").ljust(9, "0"))


class Price(BaseModel, frozen=True, extra="forbid"):
    """USD per million tokens, as decimal strings with up to three decimals: then a token costs whole nano-USD."""

    input_usd_per_mtok: Decimal = Decimal(0)
    output_usd_per_mtok: Decimal = Decimal(0)

    @field_validator("input_usd_per_mtok", "output_usd_per_mtok", mode="before")
    @classmethod
    def _not_a_float(cls, value: object) -> object:
        if isinstance(value, float):
            raise ValueError(f"write the price as a string, '{value}': a YAML number is a float and not exact")
        return value

    @field_validator("input_usd_per_mtok", "output_usd_per_mtok")
    @classmethod
    def _whole_nano_usd(cls, value: Decimal) -> Decimal:
        if not value.is_finite() or not 0 <= value <= _PRICE_MAX or value * 1000 != int(value * 1000):
            raise ValueError(f"a price is 0 to {_PRICE_MAX} with at most three decimals, got {value}")
        return value

    @cached_property
    def nano_usd_per_token(self) -> tuple[int, int]:
        """Of an input and of an output token."""
        return int(self.input_usd_per_mtok * 1000), int(self.output_usd_per_mtok * 1000)

    def cost_nano_usd(self, input_tokens: int, output_tokens: int) -> int:
        input_price, output_price = self.nano_usd_per_token
        return input_price * input_tokens + output_price * output_tokens
