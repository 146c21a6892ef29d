"""What the tenant says with a reservation, for the client: what is left of its limits, which budgets warn. Pure."""

import hashlib
from collections.abc import Iterable
from typing import Any

from events.tenant import TokenPrice
from serve.settings import Model

SOFT_BUDGET_HEADER = "x-tenantry-soft-budget"


def list_prices(models: Iterable[Model]) -> dict[str, TokenPrice]:
    """The models file's prices, in nano-USD per token; their version is a digest of the whole list."""
    prices = {model.name: model.price.nano_usd_per_token for model in models}
    digest = hashlib.sha256(repr(sorted(prices.items())).encode()).hexdigest()
    return {name: TokenPrice(*price, f"list:{digest[:8]}") for name, price in prices.items()}


def told_headers(reserved: dict[str, Any]) -> dict[str, str]:
    """``x-ratelimit-*`` as OpenAI has them, of the tightest limit of each resource, as of the reservation; and the
    budgets whose soft limit is reached.
    """
    headers = {}
    for resource, (limit, left, reset_s) in reserved.get("limits", {}).items():
        headers[f"x-ratelimit-limit-{resource}"] = str(limit)
        headers[f"x-ratelimit-remaining-{resource}"] = str(left)
        headers[f"x-ratelimit-reset-{resource}"] = f"{reset_s:g}s"
    if soft := reserved.get("soft_budgets"):
        headers[SOFT_BUDGET_HEADER] = ", ".join(soft)
    return headers
