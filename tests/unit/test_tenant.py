import pytest
from hypothesis import given as given_values
from hypothesis import strategies as st

from actors.tenant import Tenant, answer, decide, evolve, fire_timers, window_start_us
from events.errors import (
    AlreadyExistsError,
    BudgetExceededError,
    InvalidCommandError,
    KeyRefusedError,
    NotFoundError,
    Refusal,
)
from events.tenant import (
    Authenticate,
    BudgetSet,
    CallReserved,
    ChangePlan,
    CreateTenant,
    DescribeTenant,
    IssueKey,
    KeyRevoked,
    ListKeys,
    PlanChanged,
    ReservationExpired,
    ReserveCall,
    RevokeKey,
    SetBudget,
    SettleCall,
    TenantEvent,
)
from tests.kit.factories import HOUR_US, NOW_US, created, key_issued, reserved, settled
from tests.kit.scenario import given, replay

DAY_US = 24 * HOUR_US


def reserve(call: str = "c1", cost: int = 100, ttl_us: int = HOUR_US) -> ReserveCall:
    return ReserveCall(call, "k1", "small", cost, ttl_us)


def settle(call: str = "c1", cost: int = 60) -> SettleCall:
    return SettleCall(call, 10, 5, cost, "ok", "measured")


def test_a_tenant_is_created_once() -> None:
    """The second creation is told that the first one won."""
    scenario = given()
    assert scenario.when(CreateTenant("Acme", "pro")) == [created("Acme", "pro")]
    with pytest.raises(AlreadyExistsError):
        scenario.when(CreateTenant("Acme", "pro"))


def test_a_plan_is_changed_once_and_says_where_the_tenant_is_served() -> None:
    scenario, places = given(created("Acme", "free")), []
    for events in ([PlanChanged("pro")], []):
        places.append(scenario.state.placement)
        assert scenario.when(ChangePlan("pro")) == events
    assert places == ["pool", "silo"]


@pytest.mark.parametrize("name", ["", "x" * 201, "line\nbreak", "nul\x00"])
def test_a_name_that_could_not_be_printed_is_refused(name: str) -> None:
    with pytest.raises(InvalidCommandError):
        given().when(CreateTenant(name))


@pytest.mark.parametrize("tenant", ["*", ">", "a.b", "", "A", "-a", "a" * 64, "ä"])
def test_a_tenant_id_that_could_be_a_subject_pattern_is_refused(tenant: str) -> None:
    with pytest.raises(InvalidCommandError):
        decide(Tenant(), tenant, CreateTenant("x"), NOW_US)


@pytest.mark.parametrize("command", [IssueKey("k", "n", b"d"), reserve(), DescribeTenant()])
def test_a_tenant_that_was_never_created_does_nothing(command: IssueKey | ReserveCall) -> None:
    with pytest.raises(NotFoundError):
        given().when(command)


def test_a_key_authenticates_until_it_is_revoked() -> None:
    scenario = given(created(), key_issued("k1", b"a" * 32))
    assert scenario.when(Authenticate("k1", b"a" * 32)) == []
    assert scenario.when(RevokeKey("k1")) == [KeyRevoked("k1")]
    assert scenario.when(RevokeKey("k1")) == []
    with pytest.raises(KeyRefusedError):
        scenario.when(Authenticate("k1", b"a" * 32))


@pytest.mark.parametrize(("key_id", "digest"), [("k1", b"b" * 32), ("k2", b"a" * 32), ("k1", b"")])
def test_a_wrong_key_is_refused_without_a_reason(key_id: str, digest: bytes) -> None:
    with pytest.raises(KeyRefusedError, match="not valid"):
        given(created(), key_issued("k1", b"a" * 32)).when(Authenticate(key_id, digest))


def test_issuing_the_same_key_again_changes_nothing_but_another_one_under_its_id_is_refused() -> None:
    scenario = given(created(), key_issued("k1", b"a" * 32))
    assert scenario.when(IssueKey("k1", "default", b"a" * 32)) == []
    with pytest.raises(AlreadyExistsError):
        scenario.when(IssueKey("k1", "default", b"b" * 32))


def test_a_revoked_key_reserves_nothing() -> None:
    """The gateway may remember a key for some seconds; the tenant itself never does."""
    with pytest.raises(KeyRefusedError):
        given(created(), key_issued(), KeyRevoked("k1")).when(reserve())


def test_a_reservation_beyond_the_budget_is_refused_and_says_what_is_left() -> None:
    scenario = given(created(), key_issued(), BudgetSet(150, "total"), reserved("c1", 100))
    with pytest.raises(BudgetExceededError) as refusal:
        scenario.when(reserve("c2", 51))
    assert refusal.value.left_nano_usd == 50
    assert len(scenario.when(reserve("c3", 50))) == 1


def test_settling_frees_what_the_call_did_not_use() -> None:
    scenario = given(created(), key_issued(), BudgetSet(150, "total"), reserved("c1", 100))
    scenario.when(settle("c1", 60))
    assert (scenario.state.account.spent_nano_usd, scenario.state.account.reserved_nano_usd) == (60, 0)
    assert len(scenario.when(reserve("c2", 90))) == 1
    with pytest.raises(BudgetExceededError):
        scenario.when(reserve("c3", 1))


def test_a_call_is_settled_once() -> None:
    scenario = given(created(), key_issued(), reserved("c1"), settled("c1"))
    with pytest.raises(NotFoundError):
        scenario.when(settle("c1"))


def test_a_new_day_has_its_whole_budget_and_yesterdays_call_does_not_pay_from_it() -> None:
    scenario = given(created(), key_issued(), BudgetSet(100, "day"))
    scenario.when(reserve("c1", 60))
    scenario.when(settle("c1", 60))
    scenario.when(reserve("late", 40, DAY_US))
    with pytest.raises(BudgetExceededError):
        scenario.when(reserve("c2", 1))
    tomorrow = NOW_US + DAY_US
    assert len(scenario.when(reserve("c3", 60), tomorrow)) == 1
    scenario.when(settle("late", 40), tomorrow)
    assert scenario.state.account.spent_nano_usd == 0
    assert scenario.state.account.reserved_nano_usd == 60


@pytest.mark.parametrize(
    ("window", "start"),
    [("total", 0), ("day", 1_789_948_800), ("week", 1_789_948_800), ("month", 1_788_220_800)],
)
def test_windows_begin_at_midnight_monday_and_the_first_utc(window: str, start: int) -> None:
    assert window_start_us(window, NOW_US) == start * 1_000_000  # type: ignore[arg-type]


def test_reservations_expire_at_their_time_and_are_booked_at_their_maximum() -> None:
    scenario = given(
        created(),
        key_issued(),
        reserved("old", 100, expires_us=NOW_US),
        reserved("young", 70, expires_us=NOW_US + 1),
    )
    assert scenario.state.next_timer_us == NOW_US
    assert scenario.when_timers_fire() == [ReservationExpired("old", "k1", "small", 100)]
    assert scenario.when_timers_fire() == []
    assert (scenario.state.account.spent_nano_usd, scenario.state.account.reserved_nano_usd) == (100, 70)
    assert scenario.state.next_timer_us == NOW_US + 1


@pytest.mark.parametrize("bad", [reserve(cost=-1), reserve(ttl_us=0), reserve(ttl_us=2 * DAY_US)])
def test_a_reservation_that_makes_no_sense_is_refused(bad: ReserveCall) -> None:
    with pytest.raises(InvalidCommandError):
        given(created(), key_issued()).when(bad)


def test_negative_usage_is_refused() -> None:
    """A provider's broken answer must not give money back."""
    with pytest.raises(InvalidCommandError):
        given(created(), key_issued(), reserved("c1")).when(SettleCall("c1", -1, 5, 60, "ok", "measured"))


def test_answers_tell_an_operator_what_is_so() -> None:
    state = given(created(), key_issued("k1"), KeyRevoked("k1"), BudgetSet(150, "day"), reserved("c1", 100)).state
    shown = answer(state, "acme", DescribeTenant(), NOW_US)
    assert shown["id"] == "acme"
    assert shown["keys_active"] == 0
    assert shown["calls_open"] == 1
    assert shown["reserved_nano_usd"] == 100
    (key,) = answer(state, "acme", ListKeys(), NOW_US)["keys"]
    assert key["revoked"] is True
    assert "digest" not in key


commands = st.one_of(
    st.builds(reserve, st.sampled_from("abcdef"), st.integers(0, 120), st.integers(1, DAY_US)),
    st.builds(settle, st.sampled_from("abcdef"), st.integers(0, 120)),
    st.builds(SetBudget, st.integers(0, 300), st.sampled_from(["day", "total"])),
    st.none(),  # timers fire
)


@given_values(st.lists(st.tuples(commands, st.integers(0, HOUR_US)), max_size=60))
def test_money_adds_up_whatever_happens(steps: list[tuple[ReserveCall | None, int]]) -> None:
    """A reservation is granted only where settled + reserved stays within the budget; what is held is the sum of what
    is open; and replaying the log gives the same state."""
    history: list[TenantEvent] = [created(), key_issued()]
    state, now_us = replay(history), NOW_US
    for command, wait_us in steps:
        now_us += wait_us
        try:
            events = decide(state, "acme", command, now_us) if command else fire_timers(state, now_us)
        except Refusal:
            continue
        for event in events:
            state = evolve(state, event)
            history.append(event)
            limit = state.account.limit_nano_usd
            if isinstance(event, CallReserved) and limit is not None:
                assert state.account.spent_nano_usd + state.account.reserved_nano_usd <= limit
        assert state.account.reserved_nano_usd == sum(held.cost_max_nano_usd for held in state.reservations.values())
        assert state.account.spent_nano_usd >= 0
    assert replay(history) == state


def test_an_event_of_every_kind_survives_the_wire() -> None:
    history: list[TenantEvent] = [
        created(),
        key_issued(),
        BudgetSet(1, "day"),
        PlanChanged("pro"),
        reserved("a"),
        reserved("b"),
        settled("a"),
    ]
    state = replay([*history, ReservationExpired("b", "k1", "small", 7), KeyRevoked("k1")])
    assert state.version == 9


def test_thousands_that_expire_at_once_do_so_in_parts() -> None:
    """Each part fits into one append, and the timer stays due until the last."""
    scenario = given(created(), key_issued(), *(reserved(f"c{n}", 1, expires_us=NOW_US) for n in range(1_200)))
    assert [len(scenario.when_timers_fire()) for _ in range(4)] == [500, 500, 200, 0]
    assert scenario.state.next_timer_us == 0
