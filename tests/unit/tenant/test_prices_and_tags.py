"""Prices keep their version, tags stay few."""

import msgspec
import pytest

from actors.tenant import answer
from actors.tenant.calls import OTHER_TAG
from events.errors import InvalidCommandError, ModelNotAllowedError, TenantSuspendedError
from events.tenant import (
    Attempt,
    CallCredited,
    CallReserved,
    CallSettled,
    ListPrices,
    PricesSet,
    ReserveCall,
    Route,
    ServeCached,
    SetPrices,
    SettleCall,
    SuspendTenant,
    Target,
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


DEAR = Target("large", 10, 50, TokenPrice(1_000, 4_000, "list:1"))


def chain(call: str = "c1") -> ReserveCall:
    return msgspec.structs.replace(reserve(call), fallbacks=(DEAR,), route=Route(("a", "b"), "by weight, 1"))


def test_a_call_with_fallbacks_holds_the_dearest_and_is_booked_at_the_price_of_who_served_it() -> None:
    scenario = given(created(), key_issued())
    event = reserved(scenario, chain())
    assert event.cost_max_nano_usd == DEAR.cost_max_nano_usd == 10 * 1_000 + 50 * 4_000
    assert event.tokens_max == 60
    tried = (Attempt("a", "small", "upstream_error", 3), Attempt("b", "large", "ok", 90))
    (booked,) = scenario.when(SettleCall("c1", 4, 2, 0, "ok", "measured", "large", tried))
    assert isinstance(booked, CallSettled)
    assert (booked.model, booked.asked_model, booked.cost_nano_usd) == ("large", "small", 4 * 1_000 + 2 * 4_000)
    assert booked.attempts == tried
    assert scenario.state.account.reserved_nano_usd == 0


@pytest.mark.parametrize(("model", "most"), [("", 10 * 100 + 5 * 400), ("large", 10 * 1_000 + 50 * 4_000)])
def test_an_unknown_usage_costs_the_maximum_of_the_model_that_may_have_served_it(model: str, most: int) -> None:
    scenario = given(created(), key_issued())
    scenario.when(chain())
    (booked,) = scenario.when(SettleCall("c1", 0, 0, 0, "failed", "unknown", model))
    assert isinstance(booked, CallSettled)
    assert booked.cost_nano_usd == most
    assert booked.model == (model or "small")
    (credited,) = scenario.when(SettleCall("c1", 1, 1, 0, "ok", "measured", model))  # it is known after all
    assert isinstance(credited, CallCredited)
    price = DEAR.price if model else LIST
    assert credited.credited_nano_usd == most - price.cost_nano_usd(1, 1)


def test_a_call_is_booked_as_nothing_it_was_not_reserved_for() -> None:
    scenario = given(created(), key_issued())
    scenario.when(chain())
    with pytest.raises(InvalidCommandError, match="reserved for 'small'"):
        scenario.when(SettleCall("c1", 1, 1, 0, "ok", "measured", "huge"))


def test_a_fallback_that_the_key_may_not_call_is_neither_held_for_nor_served() -> None:
    scenario = given(created(), msgspec.structs.replace(key_issued(), models=("small",)))
    event = reserved(scenario, chain())
    assert event.targets == ()
    assert event.cost_max_nano_usd == 10 * 100 + 5 * 400
    with pytest.raises(InvalidCommandError):
        scenario.when(SettleCall("c1", 1, 1, 0, "ok", "measured", "large"))


def test_a_tenants_own_price_holds_for_a_fallback_too() -> None:
    scenario = given(created(), key_issued())
    scenario.when(SetPrices({"large": TokenPrice(7, 7)}))
    event = reserved(scenario, chain())
    assert [target.price.version for target in event.targets] == ["list:1", "tenant:1"]
    assert event.cost_max_nano_usd == 10 * 100 + 5 * 400


def test_a_call_from_the_cache_is_a_request_that_costs_nothing() -> None:
    scenario = given(created(), key_issued())
    held, booked = scenario.when(ServeCached("c1", "k1", "small", {"team": "a"}))
    assert isinstance(held, CallReserved)
    assert isinstance(booked, CallSettled)
    assert (booked.from_cache, booked.cost_nano_usd, booked.tags) == (True, 0, {"team": "a"})
    assert scenario.state.account.spent_nano_usd == scenario.state.account.reserved_nano_usd == 0
    assert len(scenario.state.reservations) == 0


def test_the_cache_serves_nobody_who_may_not_call() -> None:
    scenario = given(created(), msgspec.structs.replace(key_issued(), models=("large",)))
    with pytest.raises(ModelNotAllowedError):
        scenario.when(ServeCached("c1", "k1", "small"))
    scenario.when(SuspendTenant())
    with pytest.raises(TenantSuspendedError):
        scenario.when(ServeCached("c1", "k1", "large"))
