"""What a tenant has spent, by key, user, model or tag, from the spend read model."""

from datetime import date
from typing import Annotated

from pydantic import BaseModel, Field

from events.money import money
from projections.spend import SpendBy, SpendProjection, read_spend
from projections.usage import Usage
from serve.services import Services
from serve.usage import wait_for_projection


class SpendRow(BaseModel):
    """``name`` is a key's or user's id, a model, or a tag as ``name=value``."""

    name: str
    requests: int
    failed: int
    unknown: int
    input_tokens: int
    output_tokens: int
    cost_usd: Annotated[str, Field(examples=["0.0000034"], description="USD, exact decimal")]


class Spend(BaseModel):
    """The dearest first. A call without a user or tags is in no row of that kind, one with two tags is in two.
    ``position`` is the log position up to which everything is in it.
    """

    by: SpendBy
    position: int
    data: list[SpendRow]


async def spend_of(
    services: Services, tenant: str, by: SpendBy, first_day: date | None, last_day: date | None, min_position: int
) -> Spend:
    """As of ``min_position`` at least (0: whatever was acknowledged before this call).

    Raises:
        NotProjectedError: The read model is not there within five seconds.
    """
    projection = SpendProjection()
    if min_position == 0:
        head = await services.store.head(tenant)
        min_position = head.position if head else 0
    position = await wait_for_projection(services, projection, tenant, min_position)
    fields = await services.models.fields(projection, tenant)
    days = (first_day.isoformat() if first_day else "", last_day.isoformat() if last_day else "9999")
    found = sorted(read_spend(fields, by, *days).items(), key=lambda row: (-row[1].cost_nano_usd, row[0]))
    return Spend(by=by, position=position, data=[_row(name, usage) for name, usage in found])


def _row(name: str, usage: Usage) -> SpendRow:
    return SpendRow(
        name=name,
        requests=usage.requests,
        failed=usage.failed,
        unknown=usage.unknown,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cost_usd=money(usage.cost_nano_usd),
    )
