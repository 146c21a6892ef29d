"""The tenant aggregate: what it decides and what it remembers. Pure; time arrives as an argument.

The budget is exact under any concurrency because one writer owns it: a call's maximum cost is reserved before the call
and its real cost settled after it, and settled + reserved never exceeds the limit.
"""

import hmac
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, assert_never

import msgspec

from events.errors import (
    AlreadyExistsError,
    BudgetExceededError,
    InvalidCommandError,
    KeyRefusedError,
    NotFoundError,
)
from events.slices import is_tenant_id
from events.store import Placement
from events.tenant import (
    Authenticate,
    BudgetSet,
    CallReserved,
    CallSettled,
    ChangePlan,
    CreateTenant,
    DescribeTenant,
    IssueKey,
    KeyIssued,
    KeyRevoked,
    ListKeys,
    Plan,
    PlanChanged,
    ReservationExpired,
    ReserveCall,
    RevokeKey,
    SetBudget,
    SettleCall,
    TenantCommand,
    TenantCreated,
    TenantEvent,
    Window,
    check_name,
)

_DAY_US = 24 * 3600 * 1_000_000
_EXPIRED_AT_ONCE_MAX = 500
_RESERVATION_TTL_US_MAX = _DAY_US


class Key(msgspec.Struct, frozen=True):
    name: str
    digest: bytes
    issued_us: int
    revoked: bool = False


class Budget(msgspec.Struct, frozen=True):
    limit_nano_usd: int
    window: Window


class Reservation(msgspec.Struct, frozen=True):
    key_id: str
    model: str
    cost_max_nano_usd: int
    expires_us: int
    window_start_us: int


class Tenant(msgspec.Struct, frozen=True):
    """State folded from events; ``version`` counts them. ``spent_nano_usd`` belongs to the window of ``window_start_us``."""

    version: int = 0
    name: str = ""
    plan: Plan = "free"
    created_us: int = 0
    keys: Mapping[str, Key] = {}
    budget: Budget | None = None
    window_start_us: int = 0
    spent_nano_usd: int = 0
    reserved_nano_usd: int = 0
    reservations: Mapping[str, Reservation] = {}

    @property
    def exists(self) -> bool:
        return self.version > 0

    @property
    def placement(self) -> Placement:
        return "pool" if self.plan == "free" else "silo"

    @property
    def next_timer_us(self) -> int:
        """When the first open reservation expires; 0 where none is open."""
        return min((r.expires_us for r in self.reservations.values()), default=0)


def window_start_us(window: Window, now_us: int) -> int:
    """Start of the budget window that ``now_us`` lies in: UTC midnight, Monday, first of the month, or 0."""
    return 0 if window == "total" else _window_start_us(window, now_us // _DAY_US)


@lru_cache(maxsize=8)
def _window_start_us(window: Window, day_number: int) -> int:
    """Start of the window that a day lies in: asked at every reservation, and new once a day."""
    day = datetime.fromtimestamp(day_number * _DAY_US / 1e6, UTC)
    if window == "week":
        day -= timedelta(days=day.weekday())
    elif window == "month":
        day = day.replace(day=1)
    return int(day.timestamp()) * 1_000_000


def decide(state: Tenant, tenant: str, command: TenantCommand, now_us: int) -> list[TenantEvent]:
    """What should happen. An empty list: what was asked for is so already.

    Raises:
        Refusal: The command can't be granted; nothing happens.
    """
    if isinstance(command, CreateTenant):
        return _create(state, tenant, command, now_us)
    if not state.exists:
        raise NotFoundError("tenant", tenant)
    match command:
        case ChangePlan(plan):
            return [] if state.plan == plan else [PlanChanged(plan)]
        case IssueKey():
            return _issue_key(state, command, now_us)
        case RevokeKey(key_id):
            if key_id not in state.keys:
                raise NotFoundError("key", key_id)
            return [] if state.keys[key_id].revoked else [KeyRevoked(key_id)]
        case SetBudget(limit, window):
            if limit < 0:
                raise InvalidCommandError(f"a budget can't be negative, got {limit}")
            return [] if state.budget == Budget(limit, window) else [BudgetSet(limit, window)]
        case ReserveCall():
            return _reserve(state, command, now_us)
        case SettleCall():
            return _settle(state, command)
        case Authenticate(key_id, digest):
            _check_key(state, key_id, digest)
            return []
        case DescribeTenant() | ListKeys():
            return []
    assert_never(command)


def _create(state: Tenant, tenant: str, command: CreateTenant, now_us: int) -> list[TenantEvent]:
    if state.exists:
        raise AlreadyExistsError("tenant", tenant)
    if not is_tenant_id(tenant):
        raise InvalidCommandError(f"a tenant id matches ^[a-z0-9][a-z0-9-]{{1,62}}$, got {tenant[:80]!r}")
    check_name("tenant", command.name)
    return [TenantCreated(command.name, command.plan, now_us)]


def _issue_key(state: Tenant, command: IssueKey, now_us: int) -> list[TenantEvent]:
    check_name("key", command.name)
    known = state.keys.get(command.key_id)
    if known is None:
        return [KeyIssued(command.key_id, command.name, command.digest, now_us)]
    if known.digest != command.digest:
        raise AlreadyExistsError("key", command.key_id)
    return []


def _check_key(state: Tenant, key_id: str, digest: bytes) -> None:
    key = state.keys.get(key_id)
    # compare in any case, so that an unknown id takes as long as a wrong secret
    matches = hmac.compare_digest(key.digest if key else bytes(32), digest)
    if key is None or key.revoked or not matches:
        raise KeyRefusedError


def _reserve(state: Tenant, command: ReserveCall, now_us: int) -> list[TenantEvent]:
    key = state.keys.get(command.key_id)
    if key is None or key.revoked:
        raise KeyRefusedError
    if command.reservation_id in state.reservations:
        return []
    if command.cost_max_nano_usd < 0 or not 0 < command.ttl_us <= _RESERVATION_TTL_US_MAX:
        raise InvalidCommandError("a reservation needs a cost of 0 or more and a TTL of up to 24 h")
    start_us = state.window_start_us
    if state.budget is not None:
        # never back into a window that is over, whatever the clock says
        start_us = max(window_start_us(state.budget.window, now_us), state.window_start_us)
        spent = state.spent_nano_usd if start_us == state.window_start_us else 0
        left = state.budget.limit_nano_usd - spent - state.reserved_nano_usd
        if command.cost_max_nano_usd > left:
            raise BudgetExceededError(command.cost_max_nano_usd, max(left, 0), state.budget.window)
    return [
        CallReserved(
            command.reservation_id,
            command.key_id,
            command.model,
            command.cost_max_nano_usd,
            now_us + command.ttl_us,
            start_us,
        )
    ]


def _settle(state: Tenant, command: SettleCall) -> list[TenantEvent]:
    held = state.reservations.get(command.reservation_id)
    if held is None:
        raise NotFoundError("reservation", command.reservation_id)
    if min(command.input_tokens, command.output_tokens, command.cost_nano_usd) < 0:
        raise InvalidCommandError("tokens and cost can't be negative")
    return [
        CallSettled(
            command.reservation_id,
            held.key_id,
            held.model,
            command.input_tokens,
            command.output_tokens,
            command.cost_nano_usd,
            command.outcome,
            command.usage_source,
        )
    ]


def fire_timers(state: Tenant, now_us: int) -> list[TenantEvent]:
    """Book reservations whose gateway never came back at their maximum: as many as fit into one append; the timer stays
    due for the rest.
    """
    expired: list[TenantEvent] = [
        ReservationExpired(reservation_id, held.key_id, held.model, held.cost_max_nano_usd)
        for reservation_id, held in state.reservations.items()
        if held.expires_us <= now_us
    ]
    return expired[:_EXPIRED_AT_ONCE_MAX]


def evolve(state: Tenant, event: TenantEvent) -> Tenant:
    """What is now true. History can't be refused, so no rule is checked here."""
    version = state.version + 1
    replace = msgspec.structs.replace
    match event:
        case TenantCreated(name, plan, created_us):
            return replace(state, version=version, name=name, plan=plan, created_us=created_us)
        case PlanChanged(plan):
            return replace(state, version=version, plan=plan)
        case KeyIssued(key_id, name, digest, issued_us):
            return replace(state, version=version, keys={**state.keys, key_id: Key(name, digest, issued_us)})
        case KeyRevoked(key_id):
            revoked = replace(state.keys[key_id], revoked=True)
            return replace(state, version=version, keys={**state.keys, key_id: revoked})
        case BudgetSet(limit, window):
            # another window starts to count anew; the same window keeps what was spent in it
            same = state.budget is not None and state.budget.window == window
            spent, start = (state.spent_nano_usd, state.window_start_us) if same else (0, 0)
            budget = Budget(limit, window)
            return replace(state, version=version, budget=budget, spent_nano_usd=spent, window_start_us=start)
        case CallReserved():
            return _evolve_reserved(state, event, version)
        case CallSettled(reservation_id=reservation_id, cost_nano_usd=cost):
            return _evolve_booked(state, reservation_id, cost, version)
        case ReservationExpired(reservation_id=reservation_id, cost_nano_usd=cost):
            return _evolve_booked(state, reservation_id, cost, version)
    assert_never(event)


def _evolve_reserved(state: Tenant, event: CallReserved, version: int) -> Tenant:
    held = Reservation(event.key_id, event.model, event.cost_max_nano_usd, event.expires_us, event.window_start_us)
    rolled = event.window_start_us > state.window_start_us
    return msgspec.structs.replace(
        state,
        version=version,
        window_start_us=max(event.window_start_us, state.window_start_us),
        spent_nano_usd=0 if rolled else state.spent_nano_usd,
        reserved_nano_usd=state.reserved_nano_usd + event.cost_max_nano_usd,
        reservations={**state.reservations, event.reservation_id: held},
    )


def _evolve_booked(state: Tenant, reservation_id: str, cost_nano_usd: int, version: int) -> Tenant:
    open_calls = dict(state.reservations)
    held = open_calls.pop(reservation_id)
    in_window = held.window_start_us >= state.window_start_us  # else a window that has ended pays
    return msgspec.structs.replace(
        state,
        version=version,
        spent_nano_usd=state.spent_nano_usd + (cost_nano_usd if in_window else 0),
        reserved_nano_usd=state.reserved_nano_usd - held.cost_max_nano_usd,
        reservations=open_calls,
    )


def answer(state: Tenant, tenant: str, command: TenantCommand, now_us: int) -> dict[str, Any]:
    """The result of a command that was granted, as plain data; ``state`` is the one after its events."""
    match command:
        case CreateTenant() | ChangePlan() | DescribeTenant():
            return describe(state, tenant, now_us)
        case ListKeys():
            return {
                "keys": [
                    {"key_id": key_id, "name": key.name, "created_us": key.issued_us, "revoked": key.revoked}
                    for key_id, key in state.keys.items()
                ]
            }
        case IssueKey(key_id) | RevokeKey(key_id) | Authenticate(key_id):
            return {"key_id": key_id, "name": state.keys[key_id].name}
        case SetBudget(limit, window):
            return {"limit_nano_usd": limit, "window": window}
        case ReserveCall(reservation_id) | SettleCall(reservation_id):
            return {"reservation_id": reservation_id}
    assert_never(command)


def describe(state: Tenant, tenant: str, now_us: int) -> dict[str, Any]:
    """What an operator sees; ``spent`` is that of the budget window which ``now_us`` lies in."""
    budget = state.budget
    is_over = budget is not None and window_start_us(budget.window, now_us) > state.window_start_us
    return {
        "id": tenant,
        "name": state.name,
        "plan": state.plan,
        "created_us": state.created_us,
        "placement": state.placement,
        "keys_active": sum(not key.revoked for key in state.keys.values()),
        "budget": budget and {"limit_nano_usd": budget.limit_nano_usd, "window": budget.window},
        "spent_nano_usd": 0 if is_over else state.spent_nano_usd,
        "reserved_nano_usd": state.reserved_nano_usd,
        "calls_open": len(state.reservations),
        "version": state.version,
    }
