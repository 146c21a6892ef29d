"""Prices keep their version, tags stay few."""

import pytest

from actors.tenant import answer
from actors.tenant.calls import OTHER_TAG
from events.errors import InvalidCommandError
from events.tenant import (
    CallReserved,
    CallSettled,
    ListPrices,
    PricesSet,
    ReserveCall,
    SetPrices,
    SettleCall,
    TokenPrice,
)
from tests.kit.factories import HOUR_US, NOW_US, created, key_issued
from tests.kit.scenario import Scenario, given

LIST = TokenPrice(100, 400, "list:1")


def reserve(call: str = "c1", tags: dict[str, str] | None = None) -> ReserveCall:
    return ReserveCall(call, "k1", "small", 0, HOUR_US, 10, 5, LIST, tags or {})


def reserved(scenario: Scenario, command: ReserveCall) -> CallReserved:
    (event,) = scenario.when(command)
    assert isinstance(event, CallReserved)
    return event


def settled(scenario: Scenario, call: str, source: str = "measured") -> CallSettled:
    (event,) = scenario.when(SettleCall(call, 4, 2, 7, "ok", source))  # type: ignore[arg-type]
    assert isinstance(event, CallSettled)
    return event


def test_a_call_costs_tokens_times_the_price_it_was_reserved_at() -> None:
    scenario = given(created(), key_issued())
    event = reserved(scenario, reserve())
    assert (event.cost_max_nano_usd, event.price) == (10 * 100 + 5 * 400, LIST)
    scenario.when(SetPrices({"small": TokenPrice(1, 1)}))
    assert settled(scenario, "c1").cost_nano_usd == 4 * 100 + 2 * 400


def test_a_tenants_own_price_is_used_and_named_by_version() -> None:
    scenario = given(created(), key_issued())
    scenario.when(SetPrices({"small": TokenPrice(9, 9)}))
    scenario.when(SetPrices({"small": TokenPrice(1, 2)}))
    event = reserved(scenario, reserve())
    assert (event.cost_max_nano_usd, event.price) == (10 * 1 + 5 * 2, TokenPrice(1, 2, "tenant:2"))
    assert answer(scenario.state, "acme", reserve(), NOW_US)["price"] == [1, 2, "tenant:2"]
    assert settled(scenario, "c1").cost_nano_usd == 4 * 1 + 2 * 2
    assert answer(scenario.state, "acme", ListPrices(), NOW_US)["version"] == 2


def test_an_unknown_usage_costs_the_maximum() -> None:
    scenario = given(created(), key_issued())
    event = reserved(scenario, reserve())
    assert settled(scenario, "c1", "unknown").cost_nano_usd == event.cost_max_nano_usd


def test_a_call_that_is_not_priced_by_tokens_costs_what_it_says() -> None:
    scenario = given(created(), key_issued(), PricesSet({"mail": TokenPrice(1, 1)}, 1))
    scenario.when(ReserveCall("c1", "k1", "mail", 50, HOUR_US))
    assert settled(scenario, "c1").cost_nano_usd == 7


def test_negative_prices_are_refused() -> None:
    with pytest.raises(InvalidCommandError, match="negative"):
        given(created()).when(SetPrices({"small": TokenPrice(-1, 0)}))


def test_tags_go_from_the_request_to_its_bookings() -> None:
    scenario = given(created(), key_issued())
    scenario.when(reserve(tags={"team": "search"}))
    assert settled(scenario, "c1").tags == {"team": "search"}


def test_a_client_that_tags_each_call_anew_does_not_grow_the_report_without_end() -> None:
    scenario = given(created(), key_issued())
    for number in range(250):
        event = reserved(scenario, reserve(f"c{number}", {"request": str(number)}))
        assert event.tags == {"request": str(number) if number < 200 else OTHER_TAG}
    assert reserved(scenario, reserve("again", {"request": "7"})).tags == {"request": "7"}
    for number in range(50):
        reserved(scenario, reserve(f"n{number}", {f"name{number}": "x"}))
    assert len(scenario.state.tag_values) == 32


@pytest.mark.parametrize("tags", [{"n" * 65: "v"}, {"n": "v" * 129}, {str(n): "v" for n in range(17)}])
def test_tags_beyond_their_size_are_refused(tags: dict[str, str]) -> None:
    with pytest.raises(InvalidCommandError, match="tags"):
        given(created(), key_issued()).when(reserve(tags=tags))
