"""Budgets of tenants, keys and users, and the money in them at every moment."""

from typing import Any

import pytest
from hypothesis import given as given_values
from hypothesis import strategies as st

from actors.tenant import Tenant, answer, decide, evolve, fire_timers
from actors.tenant.budgets import window_start_us
from events.errors import BudgetExceededError, InvalidCommandError, NotFoundError, Refusal
from events.tenant import (
    BudgetRemoved,
    BudgetSet,
    CallCredited,
    CallReserved,
    CreditCall,
    KeyIssued,
    ListBudgets,
    ListUnknownCalls,
    RemoveBudget,
    ReservationExpired,
    ReserveCall,
    SetBudget,
    SettleCall,
    SoftBudgetReached,
    TenantEvent,
    UserAdded,
)
from tests.kit.factories import HOUR_US, NOW_US, created, key_issued, reserved, settled
from tests.kit.scenario import given, replay, replay_in_pages

DAY_US = 24 * HOUR_US
SUBJECTS = ("tenant", "key:k1", "key:k2", "user:ada")
TENANT: tuple[TenantEvent, ...] = (
    created(),
    UserAdded("ada", "Ada", "user", NOW_US),
    key_issued("k1"),
    KeyIssued("k2", "k2", b"2" * 32, NOW_US, user_id="ada"),
)


def reserve(call: str = "c1", cost: int = 100, key_id: str = "k2", ttl_us: int = HOUR_US) -> ReserveCall:
    return ReserveCall(call, key_id, "small", cost, ttl_us)


def settle(call: str = "c1", cost: int = 60) -> SettleCall:
    return SettleCall(call, 10, 5, cost, "ok", "measured")


@pytest.mark.parametrize("subject", ["tenant", "key:k2", "user:ada"])
def test_each_budget_over_a_call_has_to_cover_it(subject: str) -> None:
    scenario = given(*TENANT, BudgetSet(150, "total", None, subject))
    scenario.when(reserve("c1", 100))
    with pytest.raises(BudgetExceededError, match=subject) as refusal:
        scenario.when(reserve("c2", 51))
    assert (refusal.value.left_nano_usd, refusal.value.subject) == (50, subject)
    scenario.when(settle("c1", 60))
    assert len(scenario.when(reserve("c3", 90))) == 1


@pytest.mark.parametrize("subject", ["key:k2", "user:ada"])
def test_a_budget_of_one_binds_no_other(subject: str) -> None:
    assert len(given(*TENANT, BudgetSet(1, "total", None, subject)).when(reserve(key_id="k1"))) == 1


def test_a_new_budget_of_a_key_counts_its_calls_that_are_open() -> None:
    scenario = given(*TENANT)
    scenario.when(reserve("c1", 100))
    scenario.when(SetBudget(150, "total", subject="key:k2"))
    with pytest.raises(BudgetExceededError):
        scenario.when(reserve("c2", 51))
    scenario.when(settle("c1", 100))
    assert len(scenario.when(reserve("c3", 50))) == 1


def test_a_removed_budget_refuses_nothing_and_comes_back_empty() -> None:
    scenario = given(*TENANT, BudgetSet(100, "total", None, "user:ada"))
    scenario.when(reserve("c1", 100))
    assert scenario.when(RemoveBudget("user:ada")) == [BudgetRemoved("user:ada")]
    assert scenario.when(RemoveBudget("user:ada")) == []
    scenario.when(settle("c1", 100))
    scenario.when(SetBudget(100, "total", subject="user:ada"))
    assert len(scenario.when(reserve("c2", 100))) == 1


@pytest.mark.parametrize("subject", ["key:nobody", "user:nobody"])
def test_a_budget_for_nobody_is_refused(subject: str) -> None:
    with pytest.raises(NotFoundError):
        given(*TENANT).when(SetBudget(1, "day", subject=subject))


@pytest.mark.parametrize(
    "bad", [SetBudget(None, "day"), SetBudget(-1, "day"), SetBudget(5, "day", 6), SetBudget(1, "day", subject="x:y")]
)
def test_a_budget_that_makes_no_sense_is_refused(bad: SetBudget) -> None:
    with pytest.raises(InvalidCommandError):
        given(*TENANT).when(bad)


def test_a_soft_budget_warns_once_a_window_and_refuses_nothing() -> None:
    scenario = given(*TENANT, BudgetSet(None, "day", 100, "key:k2"))
    scenario.when(reserve("c1"))
    scenario.when(reserve("c2"))
    assert "soft_budgets" not in answer(scenario.state, "acme", reserve("c2"), NOW_US)
    events = scenario.when(settle("c1", 100))
    start = window_start_us("day", NOW_US)
    assert events[1:] == [SoftBudgetReached("key:k2", start, 100, 100)]
    assert len(scenario.when(settle("c2", 100))) == 1
    scenario.when(reserve("c3"))
    assert answer(scenario.state, "acme", reserve("c3"), NOW_US)["soft_budgets"] == ["key:k2"]
    tomorrow = NOW_US + DAY_US
    scenario.when(reserve("c4"), tomorrow)
    assert "soft_budgets" not in answer(scenario.state, "acme", reserve("c4"), tomorrow)
    assert isinstance(scenario.when(settle("c4", 100), tomorrow)[1], SoftBudgetReached)


def test_expired_reservations_warn_of_soft_budgets_too() -> None:
    scenario = given(*TENANT, BudgetSet(None, "total", 150))
    scenario.when(reserve("c1", 100, ttl_us=1))
    scenario.when(reserve("c2", 100, ttl_us=1))
    events = scenario.when_timers_fire(NOW_US + 1)
    assert [type(event) for event in events] == [ReservationExpired, ReservationExpired, SoftBudgetReached]


def test_a_changed_window_keeps_what_is_spent_from_then_on() -> None:
    """A call that settles between the change and the next reservation counts in the new window."""
    scenario = given(*TENANT)
    scenario.when(SetBudget(100, "day"))
    scenario.when(reserve("c1", 60))
    scenario.when(SetBudget(100, "month"))
    scenario.when(settle("c1", 60))
    with pytest.raises(BudgetExceededError):
        scenario.when(reserve("c2", 41))


def test_a_clock_that_was_set_back_reopens_no_window() -> None:
    scenario = given(*TENANT, BudgetSet(100, "day"))
    scenario.when(reserve("c1", 100), NOW_US + DAY_US)
    scenario.when(settle("c1", 100), NOW_US + DAY_US)
    with pytest.raises(BudgetExceededError):
        scenario.when(reserve("c2", 1), NOW_US)


def test_a_call_nobody_knows_about_is_credited_once_and_no_further_than_it_was_booked() -> None:
    scenario = given(*TENANT, BudgetSet(100, "total"), BudgetSet(100, "total", None, "user:ada"))
    scenario.when(reserve("c1", 100, ttl_us=1))
    scenario.when_timers_fire(NOW_US + 1)
    (shown,) = answer(scenario.state, "acme", ListUnknownCalls(), NOW_US)["calls"]
    assert (shown["call_id"], shown["cost_nano_usd"], shown["user_id"]) == ("c1", 100, "ada")
    with pytest.raises(BudgetExceededError):
        scenario.when(reserve("c2", 1))
    with pytest.raises(InvalidCommandError, match="can't raise"):
        scenario.when(CreditCall("c1", 101, "bill"))
    assert scenario.when(CreditCall("c1", 30, "bill", 7, 8)) == [
        CallCredited("c1", "k2", "small", 70, 7, 8, "bill", "ada", {})
    ]
    with pytest.raises(NotFoundError):
        scenario.when(CreditCall("c1", 30, "bill"))
    assert len(scenario.when(reserve("c2", 70))) == 1
    spent = {row["subject"]: row["spent_nano_usd"] for row in _budgets(scenario.state)}
    assert spent == {"tenant": 30, "user:ada": 30}


def test_a_settlement_that_comes_late_corrects_the_booking() -> None:
    scenario = given(*TENANT)
    scenario.when(reserve("c1", 100, ttl_us=1))
    scenario.when_timers_fire(NOW_US + 1)
    assert isinstance(scenario.when(settle("c1", 60))[0], CallCredited)
    assert scenario.state.account.spent_nano_usd == 60
    with pytest.raises(NotFoundError):
        scenario.when(settle("c1", 60))


def test_a_credit_gives_nothing_to_a_budget_that_never_paid() -> None:
    scenario = given(*TENANT)
    scenario.when(reserve("c1", 100, ttl_us=1))
    scenario.when_timers_fire(NOW_US + 1)
    scenario.when(SetBudget(500, "total", subject="key:k2"))
    scenario.when(reserve("c2", 50))
    scenario.when(settle("c2", 50))
    scenario.when(CreditCall("c1", 0, "bill"))
    (row,) = _budgets(scenario.state)
    assert row["spent_nano_usd"] == 50


def test_a_log_from_before_budgets_of_keys_counts_as_it_did() -> None:
    """No ``reserved_us``, user or price in its events: the window in the event decides."""
    start = window_start_us("day", NOW_US)
    state = given(
        created(),
        key_issued(),
        BudgetSet(100, "day"),
        reserved("a", 40, window=start),
        reserved("b", 40, window=start),
        settled("a", 30),
    ).state
    assert (state.account.spent_nano_usd, state.account.reserved_nano_usd) == (30, 40)
    state = evolve(state, reserved("c", 10, window=start + DAY_US))
    assert (state.account.spent_nano_usd, state.account.reserved_nano_usd) == (0, 50)
    assert evolve(state, settled("b", 30)).account.spent_nano_usd == 0


def _budgets(state: Tenant, now_us: int = NOW_US) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = answer(state, "acme", ListBudgets(), now_us)["budgets"]
    return rows


calls = st.sampled_from("abcdefgh")
steps = st.one_of(
    st.builds(reserve, calls, st.integers(0, 120), st.sampled_from(["k1", "k2"]), st.integers(1, DAY_US)),
    st.builds(settle, calls, st.integers(0, 60)),
    st.builds(SettleCall, calls, st.just(0), st.just(0), st.integers(0, 60), st.just("failed"), st.just("unknown")),
    st.builds(CreditCall, calls, st.integers(0, 120), st.just("bill")),
    st.builds(RemoveBudget, st.sampled_from(SUBJECTS)),
    st.none(),  # timers fire
)


@given_values(
    st.dictionaries(
        st.sampled_from(SUBJECTS), st.tuples(st.integers(0, 300), st.sampled_from(["day", "week", "total"]))
    ),
    st.lists(st.tuples(steps, st.integers(-HOUR_US, DAY_US)), max_size=60),
)
def test_spent_and_reserved_never_exceed_a_budget_at_any_prefix_of_the_log(
    limits: dict[str, tuple[int, Any]], steps: list[tuple[Any, int]]
) -> None:
    """Whatever happens, in whichever order, with a clock that also runs back: after every single event each budget holds
    (settled costs are within their reservations here), what is reserved is the sum of what is open, and replaying the
    log gives the same state.
    """
    history: list[TenantEvent] = list(TENANT)
    history += [BudgetSet(limit, window, None, subject, NOW_US) for subject, (limit, window) in limits.items()]
    state, now_us = replay(history), NOW_US
    costs: dict[str, int] = {}
    for command, wait_us in steps:
        now_us += wait_us
        if isinstance(command, SettleCall) and command.reservation_id in state.reservations:
            costs[command.reservation_id] = state.reservations[command.reservation_id].cost_max_nano_usd
            if command.cost_nano_usd > costs[command.reservation_id]:
                continue
        try:
            events = decide(state, "acme", command, now_us) if command else fire_timers(state, now_us)
        except Refusal:
            continue
        for event in events:
            state = evolve(state, event)
            history.append(event)
            _check_money(state)
    assert replay(history) == state
    assert [replay_in_pages(history, size) for size in (1, 7, 500)] == [state] * 3


def _check_money(state: Tenant) -> None:
    for subject in SUBJECTS:
        account = state.account_of(subject)
        if account is None:
            continue
        held = sum(held.cost_max_nano_usd for held in state.reservations.values() if subject in held.subjects)
        assert account.reserved_nano_usd == held
        assert account.spent_nano_usd >= 0
        if account.limit_nano_usd is not None:
            assert account.spent_nano_usd + account.reserved_nano_usd <= account.limit_nano_usd


def test_five_hundred_reservations_against_a_budget_for_ten() -> None:
    scenario = given(*TENANT, BudgetSet(1_000, "total"))
    granted = 0
    for number in range(500):
        try:
            granted += sum(isinstance(event, CallReserved) for event in scenario.when(reserve(f"c{number}", 100)))
        except BudgetExceededError:
            continue
    assert granted == 10


def test_an_estimate_is_never_booked_beyond_what_was_reserved_and_a_measure_is() -> None:
    """A budget is overrun by what a provider says that it billed, and by nothing that we only reckon."""
    scenario = given(*TENANT, BudgetSet(150, "total"))
    scenario.when(reserve("c1", 100))
    scenario.when(SettleCall("c1", 10, 5, 130, "cancelled", "estimated"))
    assert (scenario.state.account.spent_nano_usd, scenario.state.account.reserved_nano_usd) == (100, 0)
    scenario.when(reserve("c2", 50))
    scenario.when(SettleCall("c2", 10, 5, 70, "ok", "measured"))
    assert scenario.state.account.spent_nano_usd == 170
