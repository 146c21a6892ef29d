"""Paid calls: reserved at their maximum, settled at what they used, booked at the maximum where nobody knows, credited
when somebody does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from actors.tenant import books, budgets, limits
from actors.tenant.keys import scopes_of, usable_key
from actors.tenant.prices import price_of
from actors.tenant.state import Key, Reservation, Tenant, UnknownCall, subjects_of
from events.errors import (
    ForbiddenError,
    InvalidCommandError,
    ModelNotAllowedError,
    NotFoundError,
    TenantSuspendedError,
)
from events.tenant import (
    CallCredited,
    CallReserved,
    CallSettled,
    CreditCall,
    ReservationExpired,
    ReserveCall,
    Scope,
    ServeCached,
    SettleCall,
    Target,
    TenantEvent,
    TokenPrice,
    check_name,
)

_EXPIRED_AT_ONCE_MAX = 500
_RESERVATION_TTL_US_MAX = 24 * 3600 * 1_000_000
_EXPIRY_GRAIN_US = 1_000_000
_TAGS_MAX, _TAG_NAME_MAX, _TAG_VALUE_MAX = 16, 64, 128
_TAG_NAMES_KEPT, _TAG_VALUES_KEPT = 32, 200
OTHER_TAG = "(other)"
_CALLING: frozenset[Scope] = frozenset(("inference", "runs"))  # scopes of which a call needs one


def reserve(state: Tenant, command: ReserveCall, now_us: int) -> list[TenantEvent]:
    # without a key: a run that an operator has started
    key = usable_key(state, command.key_id, now_us) if command.key_id else None
    if command.reservation_id in state.reservations:
        return []
    if state.is_suspended:
        raise TenantSuspendedError
    if key is not None:
        _check_key(state, key, command.model)
    _check_maxima(command)
    at_us, tokens_max = state.now_us(now_us), command.input_tokens_max + command.output_tokens_max
    price = price_of(state, command.model, command.price)
    cost_max = command.cost_max_nano_usd
    targets: tuple[Target, ...] = ()
    if price is not None:
        cost_max = price.cost_nano_usd(command.input_tokens_max, command.output_tokens_max)
        if targets := _targets(state, key, command, price):
            cost_max = max(target.cost_max_nano_usd for target in targets)
            tokens_max = max(target.input_tokens_max + target.output_tokens_max for target in targets)
    user_id = key.user_id if key is not None else ""
    subjects = subjects_of(command.key_id, user_id)
    budgets.check(state, subjects, cost_max, at_us)
    if state.limits:
        limits.check(state, subjects, tokens_max, at_us)
    account = state.account
    return [
        CallReserved(
            command.reservation_id,
            command.key_id,
            command.model,
            cost_max,
            _expires_us(now_us, command.ttl_us),
            max(budgets.window_start_us(account.window, at_us), account.window_start_us),
            at_us,
            user_id,
            tokens_max,
            price,
            _known_tags(state, command.tags),
            targets,
            command.route,
        )
    ]


def _check_key(state: Tenant, key: Key, model: str) -> None:
    if _CALLING.isdisjoint(scopes_of(state, key)):
        raise ForbiddenError("this needs a key with the scope 'inference'")
    if key.models is not None and model not in key.models:
        raise ModelNotAllowedError(model, key.models)


def _targets(state: Tenant, key: Key | None, command: ReserveCall, price: TokenPrice) -> tuple[Target, ...]:
    """Whatever may serve the call, at the tenant's own prices; empty where only the model that was asked for may."""
    models = key.models if key is not None else None
    others = [
        replace(target, price=state.price_table.prices.get(target.model, target.price))
        for target in command.fallbacks
        if models is None or target.model in models
    ]
    if not others:
        return ()
    return (Target(command.model, command.input_tokens_max, command.output_tokens_max, price), *others)


def serve_cached(state: Tenant, command: ServeCached, now_us: int) -> list[TenantEvent]:
    """Reserved and settled in one step, at nothing: it counts as a request, and is refused like any other."""
    reserve_free = ReserveCall(command.reservation_id, command.key_id, command.model, 0, 1, tags=command.tags)
    events = reserve(state, reserve_free, now_us)
    for reserved in events:
        assert isinstance(reserved, CallReserved)
        settled = CallSettled(
            reserved.reservation_id,
            reserved.key_id,
            reserved.model,
            0,
            0,
            0,
            "ok",
            "measured",
            reserved.user_id,
            reserved.tags,
            from_cache=True,
        )
        return [reserved, settled]
    return events


def _expires_us(now_us: int, ttl_us: int) -> int:
    """Rounded up where it makes a difference of little: then few times are kept, however many reservations are open."""
    expires_us = now_us + ttl_us
    return expires_us if ttl_us < 10 * _EXPIRY_GRAIN_US else -(-expires_us // _EXPIRY_GRAIN_US) * _EXPIRY_GRAIN_US


def _check_maxima(command: ReserveCall) -> None:
    if command.cost_max_nano_usd < 0 or not 0 < command.ttl_us <= _RESERVATION_TTL_US_MAX:
        raise InvalidCommandError("a reservation needs a cost of 0 or more and a TTL of up to 24 h")
    if min(command.input_tokens_max, command.output_tokens_max) < 0:
        raise InvalidCommandError("tokens can't be negative")
    for target in command.fallbacks:
        if min(target.input_tokens_max, target.output_tokens_max, target.cost_max_nano_usd) < 0:
            raise InvalidCommandError("tokens and prices can't be negative")
    if not (tags := command.tags):
        return
    if len(tags) > _TAGS_MAX or any(len(k) > _TAG_NAME_MAX or len(v) > _TAG_VALUE_MAX for k, v in tags.items()):
        raise InvalidCommandError(
            f"at most {_TAGS_MAX} tags, with names of up to {_TAG_NAME_MAX} and values of up to {_TAG_VALUE_MAX} characters"
        )


def _known_tags(state: Tenant, tags: Mapping[str, str]) -> dict[str, str]:
    """Only so many names and values are told apart: a client that tags each call with an id of its own must not grow
    the spend report without end.
    """
    kept = {}
    for name, value in tags.items():
        values = state.tag_values.get(name)
        if values is None and len(state.tag_values) >= _TAG_NAMES_KEPT:
            continue
        is_known = values is None or value in values or len(values) < _TAG_VALUES_KEPT
        kept[name] = value if is_known else OTHER_TAG
    return kept


def settle(state: Tenant, command: SettleCall) -> list[TenantEvent]:
    if min(command.input_tokens, command.output_tokens, command.cost_nano_usd) < 0:
        raise InvalidCommandError("tokens and cost can't be negative")
    held = state.reservations.get(command.reservation_id)
    if held is None:
        return _settle_late(state, command)
    served_by = _served_by(command, held)
    settled = CallSettled(
        command.reservation_id,
        held.key_id,
        served_by,
        command.input_tokens,
        command.output_tokens,
        _cost_nano_usd(command, held),
        command.outcome,
        command.usage_source,
        held.user_id,
        held.tags,
        held.model if served_by != held.model else "",
        command.attempts,
    )
    return _with_warnings(state, [settled], held.subjects)


def _served_by(command: SettleCall, held: Reservation | UnknownCall) -> str:
    """The model at whose price the call is booked. Raises InvalidCommandError where it was not reserved for."""
    if command.model in ("", held.model):
        return held.model
    if not any(target.model == command.model for target in held.targets):
        raise InvalidCommandError(f"the call was reserved for {held.model!r}, it can't be booked as {command.model!r}")
    return command.model


def _cost_nano_usd(command: SettleCall, held: Reservation | UnknownCall) -> int:
    """What an upstream measured is booked as it is, beyond the reservation too; an estimate is never more than that."""
    cost = _reported_cost_nano_usd(command, held)
    if command.usage_source == "estimated" and isinstance(held, Reservation):
        return min(cost, held.cost_max_nano_usd)
    return cost


def _reported_cost_nano_usd(command: SettleCall, held: Reservation | UnknownCall) -> int:
    if held.price is None:
        return command.cost_nano_usd
    served_by, price = _served_by(command, held), held.price
    target = next((target for target in held.targets if target.model == served_by), None)
    if command.usage_source == "unknown" and isinstance(held, Reservation):
        return target.cost_max_nano_usd if target else held.cost_max_nano_usd
    price = target.price if target else price
    return price.cost_nano_usd(command.input_tokens, command.output_tokens)


def _settle_late(state: Tenant, command: SettleCall) -> list[TenantEvent]:
    """A gateway that was thought dead knows what the call used after all."""
    call = state.unknown_calls.get(command.reservation_id)
    if call is None or command.usage_source == "unknown":
        raise NotFoundError("reservation", command.reservation_id)
    cost = min(_cost_nano_usd(command, call), call.cost_nano_usd)
    reported = CreditCall(command.reservation_id, cost, "settled late", command.input_tokens, command.output_tokens)
    return [_credited(call, reported)]


def credit(state: Tenant, command: CreditCall) -> list[TenantEvent]:
    check_name("credit's reason", command.reason)
    call = state.unknown_calls.get(command.reservation_id)
    if call is None:
        raise NotFoundError("call of unknown usage", command.reservation_id)
    if min(command.input_tokens, command.output_tokens, command.cost_nano_usd) < 0:
        raise InvalidCommandError("tokens and cost can't be negative")
    if command.cost_nano_usd > call.cost_nano_usd:
        raise InvalidCommandError(
            f"the call was booked at {call.cost_nano_usd} nano-USD, a credit can't raise that to {command.cost_nano_usd}"
        )
    return [_credited(call, command)]


def _credited(call: UnknownCall, command: CreditCall) -> CallCredited:
    return CallCredited(
        command.reservation_id,
        call.key_id,
        call.model,
        call.cost_nano_usd - command.cost_nano_usd,
        command.input_tokens,
        command.output_tokens,
        command.reason,
        call.user_id,
        call.tags,
    )


def expire(state: Tenant, now_us: int) -> list[TenantEvent]:
    """As many as fit into one append; the timer stays due for the rest."""
    if not 0 < state.next_timer_us <= now_us:
        return []
    due = [(held.expires_us, name, held) for name, held in state.reservations.items() if held.expires_us <= now_us]
    due.sort(key=lambda row: row[:2])
    expired: list[ReservationExpired] = []
    subjects: dict[str, None] = {}
    for _, reservation_id, held in due[:_EXPIRED_AT_ONCE_MAX]:
        expired.append(
            ReservationExpired(reservation_id, held.key_id, held.model, held.cost_max_nano_usd, held.user_id, held.tags)
        )
        subjects.update(dict.fromkeys(held.subjects))
    return _with_warnings(state, expired, tuple(subjects))


def _with_warnings(
    state: Tenant, events: Sequence[CallSettled | ReservationExpired], subjects: tuple[str, ...]
) -> list[TenantEvent]:
    if not budgets.has_soft(state, subjects):
        return [*events]
    return [*events, *budgets.warnings(books.fold(state, events), subjects)]


def reserved_row(state: Tenant, reservation_id: str, now_us: int) -> dict[str, Any]:
    """The answer to a reservation: what the caller has to tell its client."""
    result: dict[str, Any] = {"reservation_id": reservation_id}
    held = state.reservations.get(reservation_id)
    if held is None:
        return result
    if held.price is not None:
        result["price"] = [held.price.input_nano_usd, held.price.output_nano_usd, held.price.version]
    if held.targets:
        result["targets"] = {
            target.model: [target.price.input_nano_usd, target.price.output_nano_usd, target.cost_max_nano_usd]
            for target in held.targets
        }
    subjects = held.subjects
    if budgets.has_soft(state, subjects) and (soft := budgets.soft_reached(state, subjects)):
        result["soft_budgets"] = soft
    if state.limits and (left := limits.left(state, subjects, now_us)):
        result["limits"] = left
    return result


def unknown_rows(state: Tenant) -> list[dict[str, Any]]:
    return [
        {
            "call_id": call_id,
            "key_id": call.key_id,
            "user_id": call.user_id or None,
            "model": call.model,
            "cost_nano_usd": call.cost_nano_usd,
            "reserved_us": call.at_us,
        }
        for call_id, call in state.unknown_calls.items()
    ]
