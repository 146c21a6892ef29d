"""Budgets: what a tenant, a user or a key may spend in a window (UTC)."""

from events.messages import Command, Event, Query
from events.tenant.words import TENANT_SCOPE, Window


class SetBudget(Command, frozen=True, tag="budget.set"):
    """``limit_nano_usd`` refuses what might exceed it (None: nothing is refused); ``soft_limit_nano_usd`` only warns."""

    limit_nano_usd: int | None
    window: Window
    soft_limit_nano_usd: int | None = None
    subject: str = TENANT_SCOPE


class RemoveBudget(Command, frozen=True, tag="budget.remove"):
    subject: str = TENANT_SCOPE


class ListBudgets(Query, frozen=True, tag="budget.list"):
    by_key: str = ""


class BudgetSet(Event, frozen=True, tag="budget.set.v1"):
    limit_nano_usd: int | None
    window: Window
    soft_limit_nano_usd: int | None = None
    subject: str = TENANT_SCOPE
    set_us: int = 0


class BudgetRemoved(Event, frozen=True, tag="budget.removed.v1"):
    subject: str


class SoftBudgetReached(Event, frozen=True, tag="budget.soft_reached.v1"):
    """What was spent in the window that starts at ``window_start_us`` has reached the soft limit; said once a window."""

    subject: str
    window_start_us: int
    spent_nano_usd: int
    soft_limit_nano_usd: int


BudgetCommand = SetBudget | RemoveBudget | ListBudgets
BudgetEvent = BudgetSet | BudgetRemoved | SoftBudgetReached
