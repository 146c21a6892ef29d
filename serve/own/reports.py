"""What a tenant reads about itself: its spend, and what bounds it."""

from serve.admin import budgets, limits
from serve.admin.budgets import BudgetList
from serve.admin.limits import LimitsList
from serve.admin.routes import Svc, Who
from serve.admin.spend import By, FirstDay, LastDay, MinPosition
from serve.own.routes import Admin, Reader, own_reads
from serve.spend import Spend, spend_of


@own_reads.get("/spend")
async def own_spend(
    services: Svc,
    caller: Reader,
    by: By = "key",
    first_day: FirstDay = None,
    last_day: LastDay = None,
    min_position: MinPosition = 0,
) -> Spend:
    """What the calling tenant has spent by key, user, model or tag, the dearest first."""
    return await spend_of(services, caller.tenant, by, first_day, last_day, min_position)


@own_reads.get("/budgets")
async def own_budgets(services: Svc, caller: Admin) -> BudgetList:
    """Budgets of the tenant, its keys and its users. An operator sets them."""
    return await budgets.listing(services, Who.caller(caller))


@own_reads.get("/limits")
async def own_limits(services: Svc, caller: Admin) -> LimitsList:
    """Limits of the tenant, its keys and its users. An operator sets them."""
    return await limits.listing(services, Who.caller(caller))
