"""A tenant comes to be, changes its plan, is suspended and resumed."""

from events.messages import Command, Event, Personal, Query
from events.tenant.words import Plan


class CreateTenant(Command, frozen=True, tag="tenant.create"):
    name: str
    plan: Plan = "free"


class ChangePlan(Command, frozen=True, tag="plan.change"):
    """The plan decides where the tenant is served: the tenant moves there, live."""

    plan: Plan


class SuspendTenant(Command, frozen=True, tag="tenant.suspend"):
    """Refuse its keys and every new call. Calls under way are finished and booked."""

    reason: str = ""


class ResumeTenant(Command, frozen=True, tag="tenant.resume"):
    pass


class DescribeTenant(Query, frozen=True, tag="tenant.describe"):
    pass


class TenantCreated(Event, frozen=True, tag="tenant.created.v1"):
    name: Personal
    plan: Plan
    created_us: int


class PlanChanged(Event, frozen=True, tag="plan.changed.v1"):
    plan: Plan


class TenantSuspended(Event, frozen=True, tag="tenant.suspended.v1"):
    reason: Personal
    suspended_us: int


class TenantResumed(Event, frozen=True, tag="tenant.resumed.v1"):
    pass


LifecycleCommand = CreateTenant | ChangePlan | SuspendTenant | ResumeTenant | DescribeTenant
LifecycleEvent = TenantCreated | PlanChanged | TenantSuspended | TenantResumed
