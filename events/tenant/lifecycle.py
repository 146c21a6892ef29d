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


class EraseTenant(Command, frozen=True, tag="tenant.erase"):
    """The last thing that is ever asked of a tenant: its log closes with the fact."""


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


class CommandNoted(Event, frozen=True, tag="tenant.command_noted.v1"):
    """A command with an Idempotency-Key asked for what was so already. It is in the log so that its repeat gets the same
    answer, whatever has changed by then.
    """


class TenantErased(Event, frozen=True, tag="tenant.erased.v1"):
    """The tenant's key is destroyed from here on: what was personal in its events reads as placeholders."""

    erased_us: int


LifecycleCommand = CreateTenant | ChangePlan | SuspendTenant | ResumeTenant | EraseTenant | DescribeTenant
LifecycleEvent = TenantCreated | PlanChanged | TenantSuspended | TenantResumed | CommandNoted | TenantErased
