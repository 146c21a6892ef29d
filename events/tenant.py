"""What can be asked of a tenant, and what can have happened to it.

Money is a whole number of nano-USD (1e-9 USD). A price of 0.10 USD per million tokens is 100 nano-USD per token, so
no call's cost is ever rounded; micro-USD would round most of them.
"""

import re
from typing import Literal

from events.errors import InvalidCommandError
from events.messages import Command, Event, Query

Plan = Literal["free", "pro", "enterprise"]
Window = Literal["day", "week", "month", "total"]
Outcome = Literal["ok", "cancelled", "failed"]
# measured: the upstream said so; estimated: it broke off before it did; unknown: nobody can know, booked at the maximum
UsageSource = Literal["measured", "estimated", "unknown"]

_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f]{1,200}")


class CreateTenant(Command, frozen=True, tag="tenant.create"):
    name: str
    plan: Plan = "free"


class ChangePlan(Command, frozen=True, tag="plan.change"):
    """The plan decides where the tenant is served: the tenant moves there, live."""

    plan: Plan


class IssueKey(Command, frozen=True, tag="key.issue"):
    """``digest`` is the keyed hash of the secret; the secret itself never gets here."""

    key_id: str
    name: str
    digest: bytes


class RevokeKey(Command, frozen=True, tag="key.revoke"):
    key_id: str


class SetBudget(Command, frozen=True, tag="budget.set"):
    limit_nano_usd: int
    window: Window


class ReserveCall(Command, frozen=True, tag="call.reserve"):
    """Hold the most that a model call can cost before it starts."""

    reservation_id: str
    key_id: str
    model: str
    cost_max_nano_usd: int
    ttl_us: int


class SettleCall(Command, frozen=True, tag="call.settle"):
    """Book what the call really used, and free the rest of its reservation."""

    reservation_id: str
    input_tokens: int
    output_tokens: int
    cost_nano_usd: int
    outcome: Outcome
    usage_source: UsageSource


class DescribeTenant(Query, frozen=True, tag="tenant.describe"):
    pass


class ListKeys(Query, frozen=True, tag="key.list"):
    pass


class Authenticate(Query, frozen=True, tag="key.authenticate"):
    key_id: str
    digest: bytes


TenantQuery = DescribeTenant | ListKeys | Authenticate
TenantCommand = CreateTenant | ChangePlan | IssueKey | RevokeKey | SetBudget | ReserveCall | SettleCall | TenantQuery


class TenantCreated(Event, frozen=True, tag="tenant.created.v1"):
    name: str
    plan: Plan
    created_us: int


class PlanChanged(Event, frozen=True, tag="plan.changed.v1"):
    plan: Plan


class KeyIssued(Event, frozen=True, tag="key.issued.v1"):
    key_id: str
    name: str
    digest: bytes
    issued_us: int


class KeyRevoked(Event, frozen=True, tag="key.revoked.v1"):
    key_id: str


class BudgetSet(Event, frozen=True, tag="budget.set.v1"):
    limit_nano_usd: int
    window: Window


class CallReserved(Event, frozen=True, tag="call.reserved.v1"):
    """``window_start_us`` is the budget window that pays, also for a call that ends in the next one."""

    reservation_id: str
    key_id: str
    model: str
    cost_max_nano_usd: int
    expires_us: int
    window_start_us: int


class CallSettled(Event, frozen=True, tag="call.settled.v1"):
    reservation_id: str
    key_id: str
    model: str
    input_tokens: int
    output_tokens: int
    cost_nano_usd: int
    outcome: Outcome
    usage_source: UsageSource


class ReservationExpired(Event, frozen=True, tag="call.reservation_expired.v1"):
    """Its gateway died: the provider may have billed the call, so it is booked at its maximum."""

    reservation_id: str
    key_id: str
    model: str
    cost_nano_usd: int


TenantEvent = (
    TenantCreated | PlanChanged | KeyIssued | KeyRevoked | BudgetSet | CallReserved | CallSettled | ReservationExpired
)


def check_name(kind: str, text: str) -> None:
    if not _PRINTABLE.fullmatch(text):
        raise InvalidCommandError(f"a {kind}'s name has 1 to 200 printable characters, got {text[:40]!r}")
