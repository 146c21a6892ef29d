"""What events about calls do to a tenant. Most of every log is calls, so this is what a replay costs: the books are
opened once for a page of events, changed in place, and closed into the next state. A single event is a page of one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from msgspec.structs import replace

from actors.tenant import limits
from actors.tenant.budgets import OpenAccount
from actors.tenant.state import Reservation, Tenant, UnknownCall
from events.tenant import CallCredited, CallEvent, CallReserved, CallSettled, ReservationExpired

_UNKNOWN_MAX = 1_000  # the latest; an older one can be credited no more


def fold(state: Tenant, events: Iterable[CallEvent]) -> Tenant:
    """What is now true, after all of them in this order. ``state`` stays as it was."""
    books = Books(state)
    books.enter(events)
    return books.closed()


class Books:
    """A tenant while events are entered; it shares nothing that changes with the tenant it was opened from."""

    __slots__ = (
        "_account", "_accounts", "_before", "_clock_us", "_expiries", "_limits", "_others", "_reservations", "_tag_values",
        "_unknown_calls", "_version",
    )  # fmt: skip

    def __init__(self, tenant: Tenant) -> None:
        self._before = tenant
        self._version, self._clock_us = tenant.version, tenant.clock_us
        self._account = OpenAccount(tenant.account)
        self._accounts = tenant.accounts
        self._others: dict[str, OpenAccount] = {}
        self._limits = tenant.limits
        self._reservations = tenant.reservations.mutate()
        self._expiries = dict(tenant.expiries)
        self._unknown_calls, self._tag_values = (
            tenant.unknown_calls,
            tenant.tag_values,
        )  # replaced, as they change rarely

    def enter(self, events: Iterable[CallEvent]) -> None:
        for event in events:
            self._version += 1
            _ENTRIES[type(event)](self, event)

    def closed(self) -> Tenant:
        """The tenant with all that was entered."""
        accounts = self._accounts
        for subject, account in self._others.items():
            accounts = accounts.set(subject, account.closed())
        return replace(
            self._before,
            version=self._version,
            clock_us=self._clock_us,
            account=self._account.closed(),
            accounts=accounts,
            limits=self._limits,
            reservations=self._reservations.finish(),
            expiries=self._expiries,
            unknown_calls=self._unknown_calls,
            tag_values=self._tag_values,
        )

    def _accounts_of(self, subjects: tuple[str, ...]) -> Iterator[OpenAccount]:
        """Those of key and user: the tenant's own is there always."""
        for subject in subjects:
            account = self._others.get(subject)
            if account is None and (found := self._accounts.get(subject)) is not None:
                account = self._others[subject] = OpenAccount(found)
            if account is not None:
                yield account

    def reserve(self, event: CallReserved) -> None:
        at_us, cost_max = event.reserved_us or event.window_start_us, event.cost_max_nano_usd
        held = Reservation(
            event.key_id,
            event.model,
            cost_max,
            event.expires_us,
            at_us,
            self._version,
            event.user_id,
            event.tokens_max,
            event.price,
            event.tags,
            event.targets,
        )
        self._account.reserve(cost_max, at_us)
        if self._accounts:
            for account in self._accounts_of(held.subjects):
                account.reserve(cost_max, at_us)
        if self._limits:
            self._limits = limits.reserved(self._limits, held)
        self._clock_us = max(self._clock_us, at_us)
        self._reservations[event.reservation_id] = held
        self._expiries[event.expires_us] = self._expiries.get(event.expires_us, 0) + 1
        if event.tags:
            self._tag_values = _with_tags(self._tag_values, event.tags)

    def settle(self, event: CallSettled) -> None:
        is_unknown = event.usage_source == "unknown"
        tokens = None if is_unknown else event.input_tokens + event.output_tokens
        held = self._book(event.reservation_id, event.cost_nano_usd, tokens)
        if is_unknown:
            self._remember(event.reservation_id, held, event.cost_nano_usd, event.model)

    def expire(self, event: ReservationExpired) -> None:
        held = self._book(event.reservation_id, event.cost_nano_usd, None)
        self._remember(event.reservation_id, held, event.cost_nano_usd)

    def _book(self, reservation_id: str, cost_nano_usd: int, tokens: int | None) -> Reservation:
        """``tokens``: those used, None where nobody knows."""
        held = self._reservations[reservation_id]
        del self._reservations[reservation_id]
        freed, at_us = held.cost_max_nano_usd, held.at_us
        self._account.book(cost_nano_usd, freed, at_us)
        if self._accounts:
            for account in self._accounts_of(held.subjects):
                account.book(cost_nano_usd, freed, at_us)
        if self._limits:
            self._limits = limits.booked(self._limits, held, 0 if tokens is None else held.tokens_max - tokens)
        left = self._expiries[held.expires_us] - 1
        if left:
            self._expiries[held.expires_us] = left
        else:
            del self._expiries[held.expires_us]
        return held

    def _remember(self, reservation_id: str, held: Reservation, cost_nano_usd: int, model: str = "") -> None:
        unknown = dict(self._unknown_calls)
        unknown[reservation_id] = UnknownCall(
            held.key_id,
            model or held.model,
            cost_nano_usd,
            held.at_us,
            self._version,
            held.user_id,
            held.price,
            held.tags,
            held.targets,
        )
        if len(unknown) > _UNKNOWN_MAX:
            del unknown[next(iter(unknown))]
        self._unknown_calls = unknown

    def credit(self, event: CallCredited) -> None:
        unknown = dict(self._unknown_calls)
        call = unknown.pop(event.reservation_id, None)
        if call is None:
            return
        self._unknown_calls = unknown
        self._account.credit(event.credited_nano_usd, call)
        for account in self._accounts_of(call.subjects):
            account.credit(event.credited_nano_usd, call)


# by kind, found at once: that a struct is none of another kind takes Python longer to say than most events to enter
_ENTRIES: dict[type[CallEvent], Callable[[Books, Any], None]] = {
    CallReserved: Books.reserve,
    CallSettled: Books.settle,
    ReservationExpired: Books.expire,
    CallCredited: Books.credit,
}


def _with_tags(known: Mapping[str, frozenset[str]], tags: Mapping[str, str]) -> Mapping[str, frozenset[str]]:
    new = {
        name: known.get(name, frozenset()) | {value} for name, value in tags.items() if value not in known.get(name, ())
    }
    return {**known, **new} if new else known
