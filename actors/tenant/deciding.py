"""The tenant aggregate: each command and event finds the module of its noun. Pure; time arrives as an argument."""

from collections.abc import Callable
from typing import Any, assert_never, get_args

from actors.tenant import books, budgets, calls, keys, lifecycle, limits, prices, users
from actors.tenant.state import Tenant
from events.errors import NotFoundError
from events.tenant import (
    TENANT_SCOPE,
    AddUser,
    Authenticate,
    BudgetEvent,
    CallEvent,
    ChangePlan,
    ChangeUser,
    CreateTenant,
    CreditCall,
    DescribeTenant,
    EraseTenant,
    IssueKey,
    KeyEvent,
    LifecycleEvent,
    LimitEvent,
    ListBudgets,
    ListKeys,
    ListLimits,
    ListPrices,
    ListUnknownCalls,
    ListUsers,
    PlanChanged,
    PriceEvent,
    RemoveBudget,
    RemoveUser,
    ReserveCall,
    ResumeTenant,
    RevokeKey,
    RotateKey,
    ServeCached,
    SetBudget,
    SetLimits,
    SetPrices,
    SettleCall,
    SuspendTenant,
    TenantCommand,
    TenantErased,
    TenantEvent,
    UserEvent,
)


def decide(state: Tenant, tenant: str, command: TenantCommand, now_us: int) -> list[TenantEvent]:
    """What should happen. An empty list: what was asked for is so already.

    Raises:
        Refusal: The command can't be granted; nothing happens.
    """
    if state.exists:
        # most of what is asked, told apart at once: that a struct is none of a kind takes ``isinstance`` its time to say
        if type(command) is ReserveCall:
            return calls.reserve(state, command, now_us)
        if type(command) is SettleCall:
            return calls.settle(state, command)
    elif not isinstance(command, CreateTenant):
        raise NotFoundError("tenant", tenant)
    match command:
        case ReserveCall():
            return calls.reserve(state, command, now_us)
        case SettleCall():
            return calls.settle(state, command)
        case ServeCached():
            return calls.serve_cached(state, command, now_us)
        case CreditCall():
            return calls.credit(state, command)
        case CreateTenant():
            return lifecycle.create(state, tenant, command, now_us)
        case Authenticate():
            keys.authenticate(state, command, now_us)
            return []
        case IssueKey():
            return keys.issue(state, command, now_us)
        case RotateKey():
            return keys.rotate(state, command, now_us)
        case RevokeKey():
            return keys.revoke(state, command, now_us)
        case AddUser():
            return users.add(state, command, now_us)
        case ChangeUser():
            return users.change(state, command, now_us)
        case RemoveUser():
            return users.remove(state, command, now_us)
        case SetBudget():
            return budgets.set_budget(state, command, now_us)
        case RemoveBudget():
            return budgets.remove_budget(state, command)
        case SetLimits():
            return limits.set_limits(state, command, now_us)
        case SetPrices():
            return prices.set_prices(state, command)
        case ChangePlan(plan):
            return [] if state.plan == plan else [PlanChanged(plan)]
        case SuspendTenant():
            return lifecycle.suspend(state, command, now_us)
        case ResumeTenant():
            return lifecycle.resume(state)
        case EraseTenant():
            return [TenantErased(now_us)]
        case ListKeys(by_key) | ListUsers(by_key) | ListBudgets(by_key) | ListLimits(by_key):
            keys.authorize(state, by_key, now_us)
            return []
        case DescribeTenant() | ListPrices() | ListUnknownCalls():
            return []
    assert_never(command)


def fire_timers(state: Tenant, now_us: int) -> list[TenantEvent]:
    """Reservations whose gateway never came back."""
    return calls.expire(state, now_us)


def evolve(state: Tenant, event: TenantEvent) -> Tenant:
    """What is now true. History can't be refused, so no rule is checked here."""
    return _EVOLVE[type(event)](state, event, state.version + 1)


def _evolve_call(state: Tenant, event: CallEvent, _version: int) -> Tenant:
    return books.fold(state, (event,))


# by kind, found at once: asking one family after the other takes longer than most events
_EVOLVE: dict[type[TenantEvent], Callable[[Tenant, Any, int], Tenant]] = {
    kind: evolve_family
    for family, evolve_family in (
        (CallEvent, _evolve_call),
        (LifecycleEvent, lifecycle.evolve),
        (KeyEvent, keys.evolve),
        (UserEvent, users.evolve),
        (BudgetEvent, budgets.evolve),
        (LimitEvent, limits.evolve),
        (PriceEvent, prices.evolve),
    )
    for kind in (get_args(family) or (family,))
}


def answer(state: Tenant, tenant: str, command: TenantCommand, now_us: int) -> dict[str, Any]:
    """The result of a command that was granted, as plain data; ``state`` is the one after its events."""
    if type(command) is SettleCall:  # at once, as in ``decide``
        return {"reservation_id": command.reservation_id}
    match command:
        case ReserveCall(reservation_id):
            return calls.reserved_row(state, reservation_id, now_us)
        case SettleCall(reservation_id) | ServeCached(reservation_id) | CreditCall(reservation_id):
            return {"reservation_id": reservation_id}
        case Authenticate():
            return keys.identity(state, command)
        case CreateTenant() | ChangePlan() | SuspendTenant() | ResumeTenant() | DescribeTenant():
            return describe(state, tenant, now_us)
        case EraseTenant():
            return {"id": tenant}
        case ListKeys():
            return {"keys": [keys.row(state, key_id) for key_id in state.keys]}
        case IssueKey(key_id) | RevokeKey(key_id) | RotateKey(key_id):
            return keys.row(state, key_id)
        case ListUsers():
            return {"users": [users.row(state, user_id) for user_id in state.users]}
        case AddUser(user_id) | ChangeUser(user_id):
            return users.row(state, user_id)
        case RemoveUser(user_id):
            return {"user_id": user_id}
        case SetBudget(subject=subject) | RemoveBudget(subject=subject):
            return {"budget": budgets.row(state, subject, now_us)}
        case ListBudgets():
            subjects = [TENANT_SCOPE, *sorted(state.accounts)]
            return {"budgets": [row for subject in subjects if (row := budgets.row(state, subject, now_us))]}
        case SetLimits(subject=subject):
            return limits.row(state, subject, now_us) or {"subject": subject, "limits": []}
        case ListLimits():
            return {"limits": [limits.row(state, subject, now_us) for subject in sorted(state.limits)]}
        case SetPrices() | ListPrices():
            return prices.table(state)
        case ListUnknownCalls():
            return {"calls": calls.unknown_rows(state)}
    assert_never(command)


def describe(state: Tenant, tenant: str, now_us: int) -> dict[str, Any]:
    """What an operator sees; ``spent`` is that of the budget window which ``now_us`` lies in."""
    budget = budgets.row(state, TENANT_SCOPE, now_us)
    return {
        "id": tenant,
        "name": state.name,
        "plan": state.plan,
        "created_us": state.created_us,
        "status": "erased" if state.erased_us else "suspended" if state.is_suspended else "active",
        "suspended_reason": state.suspended_reason or None,
        "placement": state.placement,
        "keys_active": sum(not key.revoked and not 0 < key.expires_us <= now_us for key in state.keys.values()),
        "users": len(state.users),
        "budget": budget,
        "spent_nano_usd": budget["spent_nano_usd"] if budget else state.account.spent_nano_usd,
        "reserved_nano_usd": state.account.reserved_nano_usd,
        "calls_open": len(state.reservations),
        "calls_unknown": len(state.unknown_calls),
        "version": state.version,
    }
