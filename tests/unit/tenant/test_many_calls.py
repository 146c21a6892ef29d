"""A tenant with thousands of open calls decides as fast as one with ten, and its snapshot is its state."""

import time

import msgspec
import pytest

from actors.aggregate import State, fold
from actors.persistent import decode_hook, encode_hook
from actors.snapshots import Folded
from actors.tenant import Tenant
from events.tenant import (
    BudgetSet,
    Limit,
    LimitsSet,
    PricesSet,
    ReservationExpired,
    ReserveCall,
    SettleCall,
    TokenPrice,
    UserAdded,
)
from tests.kit.factories import HOUR_US, NOW_US, created, key_issued, reserved
from tests.kit.scenario import Scenario, given


def test_what_a_snapshot_can_not_hold_is_said_and_not_guessed() -> None:
    with pytest.raises(TypeError, match="can't hold complex"):
        msgspec.msgpack.encode({"figure": 1j}, enc_hook=encode_hook)
    with pytest.raises(msgspec.ValidationError, match="can't hold"):
        msgspec.msgpack.decode(b"\x01", type=complex, dec_hook=decode_hook)


def reserve(call: str) -> ReserveCall:
    return ReserveCall(call, "k1", "small", 1, HOUR_US)


def with_open(calls: int) -> Scenario:
    scenario = given(created(), key_issued())
    for number in range(calls):
        scenario.when(reserve(f"open-{number}"))
    return scenario


def pair_s(scenario: Scenario) -> float:
    """Seconds for a reservation and its settlement, the fastest of some."""
    times = []
    for number in range(200):
        began = time.perf_counter()
        scenario.when(reserve(f"c{number}"))
        scenario.when(SettleCall(f"c{number}", 1, 1, 1, "ok", "measured"))
        times.append(time.perf_counter() - began)
    return min(times)


def test_an_event_costs_the_same_with_ten_open_calls_as_with_thousands() -> None:
    """Copying five thousand reservations at each event would take some twenty times as long as all the rest."""
    assert pair_s(with_open(5_000)) < 5 * pair_s(with_open(10))


def test_a_snapshot_is_the_state_with_all_that_can_be_in_it() -> None:
    scenario = given(
        created(),
        UserAdded("ada", "Ada", "admin", NOW_US),
        key_issued(),
        BudgetSet(10_000, "day", 1, "key:k1", NOW_US),
        PricesSet({"small": TokenPrice(1, 2, "tenant:1")}, 1),
        reserved("lost"),
        ReservationExpired("lost", "k1", "small", 7),
        *(
            LimitsSet((Limit("requests", 9, 60, strategy), Limit("concurrency", 9)), subject, NOW_US)  # type: ignore[arg-type]
            for strategy, subject in (
                ("token_bucket", "tenant"),
                ("sliding_window", "key:k1"),
                ("fixed_window", "user:ada"),
            )
        ),
    )
    for number in range(3):
        scenario.when(ReserveCall(f"c{number}", "k1", "small", 1, HOUR_US, 3, 4, TokenPrice(5, 6), {"team": "a"}))
    assert snapshot_of(scenario.state) == scenario.state


def snapshot_of(state: Tenant) -> Tenant:
    written = msgspec.msgpack.Encoder(enc_hook=encode_hook).encode(Folded(State(state), {}))
    return msgspec.msgpack.Decoder(Folded, dec_hook=decode_hook).decode(written).state.tenant


def test_a_state_stays_as_it_was_when_pages_are_folded_onto_it() -> None:
    """Events of a page change what they are entered into in place, and the state before it must not notice."""
    before = with_open(5).state
    copy = msgspec.msgpack.encode(before, enc_hook=encode_hook)
    expired = [ReservationExpired(f"open-{number}", "k1", "small", 1) for number in range(5)]
    after = fold(State(before), [reserved("new"), *expired, BudgetSet(10, "day"), reserved("newer")])
    assert set(after.tenant.reservations) == {"new", "newer"}
    assert len(after.tenant.unknown_calls) == 5
    assert msgspec.msgpack.encode(before, enc_hook=encode_hook) == copy
