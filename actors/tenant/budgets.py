"""Budgets, exact under any concurrency because one writer owns them: a call's maximum cost is reserved before the call
and its real cost settled after it, and spent + reserved never exceeds a limit.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from msgspec.structs import replace

from actors.tenant.state import Account, Reservation, Tenant, UnknownCall
from events.errors import BudgetExceededError, InvalidCommandError, NotFoundError
from events.tenant import (
    TENANT_SCOPE,
    BudgetEvent,
    BudgetRemoved,
    BudgetSet,
    RemoveBudget,
    SetBudget,
    SoftBudgetReached,
    TenantEvent,
    Window,
    check_subject,
)

_DAY_US = 24 * 3600 * 1_000_000


def window_start_us(window: Window, now_us: int) -> int:
    """Start of the budget window that ``now_us`` lies in: UTC midnight, Monday, first of the month, or 0."""
    return 0 if window == "total" else _window_start_us(window, now_us // _DAY_US)


@lru_cache(maxsize=32)
def _window_start_us(window: Window, day_number: int) -> int:
    """Start of the window that a day lies in: asked at every reservation, and new once a day."""
    day = datetime.fromtimestamp(day_number * _DAY_US / 1e6, UTC)
    if window == "week":
        day -= timedelta(days=day.weekday())
    elif window == "month":
        day = day.replace(day=1)
    return int(day.timestamp()) * 1_000_000


def set_budget(state: Tenant, command: SetBudget, now_us: int) -> list[TenantEvent]:
    limit, soft = command.limit_nano_usd, command.soft_limit_nano_usd
    check_known_subject(state, command.subject)
    if min(limit or 0, soft or 0) < 0:
        raise InvalidCommandError(f"a budget can't be negative, got {limit if soft is None else soft}")
    if limit is None and soft is None:
        raise InvalidCommandError("a budget needs a limit, a soft limit or both")
    if limit is not None and soft is not None and soft > limit:
        raise InvalidCommandError("a soft limit above the limit would never be reached")
    return [BudgetSet(limit, command.window, soft, command.subject, state.now_us(now_us))]


def remove_budget(state: Tenant, command: RemoveBudget) -> list[TenantEvent]:
    check_known_subject(state, command.subject)
    account = state.account_of(command.subject)
    return [BudgetRemoved(command.subject)] if account and account.is_budget else []


def check_known_subject(state: Tenant, subject: str) -> None:
    check_subject(subject)
    kind, _, name = subject.partition(":")
    if (kind == "key" and name not in state.keys) or (kind == "user" and name not in state.users):
        raise NotFoundError(kind, name)


def check(state: Tenant, subjects: Iterable[str], cost_max_nano_usd: int, at_us: int) -> None:
    """Raises BudgetExceededError, of the first budget that can't cover the cost."""
    for subject in subjects:
        account = state.account_of(subject)
        if account is None or account.limit_nano_usd is None:
            continue
        now = _rolled(account, window_start_us(account.window, at_us))
        left = account.limit_nano_usd - now.spent_nano_usd - now.reserved_nano_usd
        if cost_max_nano_usd > left:
            raise BudgetExceededError(cost_max_nano_usd, max(left, 0), account.window, subject)


def _rolled(account: Account, start_us: int) -> Account:
    """The account in the window that starts then; the one it is in where that is later."""
    if start_us <= account.window_start_us:
        return account
    return replace(account, window_start_us=start_us, spent_nano_usd=0)


class OpenAccount:
    """An account while calls are entered, changed in place; its rules are those of the window it is in."""

    __slots__ = ("_account", "_reserved_nano_usd", "_spent_nano_usd", "_start_us", "_window")

    def __init__(self, account: Account) -> None:
        self._account, self._window, self._start_us = account, account.window, account.window_start_us
        self._spent_nano_usd, self._reserved_nano_usd = account.spent_nano_usd, account.reserved_nano_usd

    def reserve(self, cost_max_nano_usd: int, at_us: int) -> None:
        if self._window != "total" and (start_us := window_start_us(self._window, at_us)) > self._start_us:
            self._start_us, self._spent_nano_usd = start_us, 0
        self._reserved_nano_usd += cost_max_nano_usd

    def book(self, cost_nano_usd: int, freed_nano_usd: int, at_us: int) -> None:
        """A call of ``at_us`` has cost so much. One of a window that has ended was paid by that window."""
        self._reserved_nano_usd -= freed_nano_usd
        if self._is_in_window(at_us):
            self._spent_nano_usd += cost_nano_usd

    def credit(self, credit_nano_usd: int, call: UnknownCall) -> None:
        """Give back what it paid for the call; nothing where it began to count only after that."""
        if call.version > self._account.since_version and self._is_in_window(call.at_us):
            self._spent_nano_usd -= credit_nano_usd

    def _is_in_window(self, at_us: int) -> bool:
        return self._start_us == 0 or window_start_us(self._window, at_us) >= self._start_us

    def closed(self) -> Account:
        return replace(
            self._account,
            window_start_us=self._start_us,
            spent_nano_usd=self._spent_nano_usd,
            reserved_nano_usd=self._reserved_nano_usd,
        )


def soft_reached(state: Tenant, subjects: Iterable[str]) -> list[str]:
    """Subjects whose soft limit is reached in the current window."""
    return [subject for subject in subjects if (account := state.account_of(subject)) and _is_soft_reached(account)]


def _is_soft_reached(account: Account) -> bool:
    soft = account.soft_limit_nano_usd
    return soft is not None and account.spent_nano_usd >= soft


def warnings(after: Tenant, subjects: Iterable[str]) -> list[TenantEvent]:
    """What to report of the state that a booking leads to: once per budget and window."""
    found: list[TenantEvent] = []
    for subject in soft_reached(after, subjects):
        account = after.account_of(subject)
        assert account is not None
        assert account.soft_limit_nano_usd is not None
        if account.warned_window_us != account.window_start_us:
            found.append(
                SoftBudgetReached(subject, account.window_start_us, account.spent_nano_usd, account.soft_limit_nano_usd)
            )
    return found


def has_soft(state: Tenant, subjects: Iterable[str]) -> bool:
    """Whether one of the budgets has a soft limit; nearly always none has, and that is found out at once."""
    if not state.accounts:
        return state.account.soft_limit_nano_usd is not None
    return any(
        (account := state.account_of(subject)) and account.soft_limit_nano_usd is not None for subject in subjects
    )


def evolve(state: Tenant, event: BudgetEvent, version: int) -> Tenant:
    account = state.account_of(event.subject)
    match event:
        case BudgetSet(limit, window, soft, subject, set_us):
            if account is None:
                account = Account(reserved_nano_usd=_open_nano_usd(state.reservations.values(), subject))
            if not (account.is_budget and account.window == window):
                # another window starts to count anew; the same window keeps what was spent in it
                start_us = window_start_us(window, set_us) if set_us else 0
                account = replace(
                    account, window=window, window_start_us=start_us, spent_nano_usd=0, since_version=version
                )
            changed = replace(account, limit_nano_usd=limit, soft_limit_nano_usd=soft, warned_window_us=-1)
        case BudgetRemoved(subject):
            if subject != TENANT_SCOPE:
                return replace(state, version=version, accounts=state.accounts.delete(subject))
            changed = Account(reserved_nano_usd=state.account.reserved_nano_usd, since_version=version)
        case SoftBudgetReached(subject, window_us):
            assert account is not None
            changed = replace(account, warned_window_us=window_us)
    if event.subject == TENANT_SCOPE:
        return replace(state, version=version, account=changed)
    return replace(state, version=version, accounts=state.accounts.set(event.subject, changed))


def _open_nano_usd(reservations: Iterable[Reservation], subject: str) -> int:
    return sum(held.cost_max_nano_usd for held in reservations if subject in held.subjects)


def row(state: Tenant, subject: str, now_us: int) -> dict[str, Any] | None:
    """A budget as an operator sees it, in the window that ``now_us`` lies in; None where there is none."""
    account = state.account_of(subject)
    if account is None or not account.is_budget:
        return None
    now = _rolled(account, window_start_us(account.window, now_us))
    return {
        "subject": subject,
        "limit_nano_usd": account.limit_nano_usd,
        "soft_limit_nano_usd": account.soft_limit_nano_usd,
        "window": account.window,
        "window_start_us": now.window_start_us,
        "spent_nano_usd": now.spent_nano_usd,
        "reserved_nano_usd": now.reserved_nano_usd,
        "soft_reached": _is_soft_reached(now),
    }
