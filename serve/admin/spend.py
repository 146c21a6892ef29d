"""The spend report."""

from datetime import date
from typing import Annotated

from fastapi import Query

from projections.spend import SpendBy
from serve.admin.routes import POSITION_MAX, Svc, head_position, router
from serve.spend import Spend, spend_of

By = Annotated[SpendBy, Query(description="What a row stands for")]
FirstDay = Annotated[date | None, Query(alias="from", description="First day (UTC), included", examples=["2026-11-01"])]
LastDay = Annotated[date | None, Query(alias="to", description="Last day (UTC), included", examples=["2026-11-30"])]
MinPosition = Annotated[int, Query(ge=0, le=POSITION_MAX, description="Wait until this log position is in it")]


@router.get("/tenants/{tenant}/spend")
async def tenant_spend(
    services: Svc,
    tenant: str,
    by: By = "key",
    first_day: FirstDay = None,
    last_day: LastDay = None,
    min_position: MinPosition = 0,
) -> Spend:
    """What the tenant has spent by key, user, model or tag (the `metadata` of its requests), the dearest first."""
    await head_position(services, tenant)
    return await spend_of(services, tenant, by, first_day, last_day, min_position)
