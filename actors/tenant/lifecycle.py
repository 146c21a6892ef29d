"""A tenant's life: created, moved between plans, suspended, resumed. A suspension refuses keys and new calls, and lets
calls under way finish: their money is held already, and the provider bills them in any case.
"""

from msgspec.structs import replace

from actors.tenant.state import Tenant
from events.errors import AlreadyExistsError, InvalidCommandError
from events.slices import is_tenant_id
from events.tenant import (
    CommandNoted,
    CreateTenant,
    LifecycleEvent,
    PlanChanged,
    SuspendTenant,
    TenantCreated,
    TenantErased,
    TenantEvent,
    TenantResumed,
    TenantSuspended,
    check_name,
)


def create(state: Tenant, tenant: str, command: CreateTenant, now_us: int) -> list[TenantEvent]:
    if state.exists:
        raise AlreadyExistsError("tenant", tenant)
    if not is_tenant_id(tenant):
        raise InvalidCommandError(f"a tenant id matches ^[a-z0-9][a-z0-9-]{{1,62}}$, got {tenant[:80]!r}")
    check_name("tenant", command.name)
    return [TenantCreated(command.name, command.plan, now_us)]


def suspend(state: Tenant, command: SuspendTenant, now_us: int) -> list[TenantEvent]:
    if command.reason:
        check_name("suspension", command.reason)
    return [] if state.is_suspended else [TenantSuspended(command.reason, now_us)]


def resume(state: Tenant) -> list[TenantEvent]:
    return [TenantResumed()] if state.is_suspended else []


def evolve(state: Tenant, event: LifecycleEvent, version: int) -> Tenant:
    match event:
        case TenantCreated(name, plan, created_us):
            return replace(state, version=version, name=name, plan=plan, created_us=created_us)
        case PlanChanged(plan):
            return replace(state, version=version, plan=plan)
        case TenantSuspended(reason):
            return replace(state, version=version, is_suspended=True, suspended_reason=reason)
        case CommandNoted():
            return replace(state, version=version)
        case TenantErased(erased_us):
            return replace(state, version=version, erased_us=erased_us)
        case TenantResumed():
            return replace(state, version=version, is_suspended=False, suspended_reason="")
