"""Which calls may begin, and that none takes effect twice."""

from functools import reduce
from typing import Any

import pytest
from hypothesis import given as given_values
from hypothesis import strategies as st

from actors.tool_calls import (
    REMEMBERED_MAX,
    ToolCallInProgressError,
    ToolCallLostError,
    ToolCalls,
    ToolNotAllowedError,
    answer,
    decide,
    evolve,
)
from events.codec import decode_event, encode_data
from events.errors import NotFoundError, Refusal
from events.tools import (
    AllowTools,
    RecordToolCall,
    RecordToolFailure,
    RecordToolSuccess,
    ToolCalled,
    ToolFailed,
    ToolPayloadKept,
    ToolsAllowed,
    ToolsEvent,
    ToolSucceeded,
)
from tests.kit.factories import NOW_US
from tests.kit.scenario import CIPHER

MINUTE_US = 60_000_000


def begin(call: str = "c1", *, repeats_safely: bool = True, tool: str = "payments", **changes: Any) -> RecordToolCall:
    return RecordToolCall(call, tool, "payment", MINUTE_US, repeats_safely, **changes)


def success(call: str = "c1", cost: int = 5, **changes: Any) -> RecordToolSuccess:
    return RecordToolSuccess(call, "payments", 1_000, 1, cost, **changes)


def failure(call: str = "c1", *, retryable: bool = False, **changes: Any) -> RecordToolFailure:
    return RecordToolFailure(call, "payments", 1_000, 1, 0, "declined", "no", retryable, False, **changes)


class Scenario:
    """Each event goes through the codec, so that every test checks the wire."""

    def __init__(self) -> None:
        self.state = ToolCalls()

    def when(self, command: Any, now_us: int = NOW_US) -> list[ToolsEvent]:
        events = decide(self.state, "acme", command, now_us)
        through_the_wire: list[Any] = [decode_event(encode_data(event, CIPHER), CIPHER) for event in events]
        self.state = reduce(evolve, through_the_wire, self.state)
        return events


@pytest.fixture
def scenario() -> Scenario:
    allowed = Scenario()
    allowed.when(AllowTools(("payments",)))
    return allowed


def test_a_tenant_may_call_what_it_was_allowed_and_nothing_else(scenario: Scenario) -> None:
    assert isinstance(scenario.when(begin())[0], ToolCalled)
    for refused in (begin("c2", tool="mail"), begin("c3", tool="payment")):
        with pytest.raises(ToolNotAllowedError, match="tenantry tool allow"):
            scenario.when(refused)
    with pytest.raises(ToolNotAllowedError):
        Scenario().when(begin())


def test_the_allow_list_is_replaced_as_a_whole(scenario: Scenario) -> None:
    assert scenario.when(AllowTools(("mail", "mail"))) == [ToolsAllowed(("mail",))]
    assert scenario.when(AllowTools(("mail",))) == []
    with pytest.raises(ToolNotAllowedError):
        scenario.when(begin())


def test_a_call_that_is_under_way_is_not_begun_again_until_its_caller_must_have_given_up(scenario: Scenario) -> None:
    scenario.when(begin())
    with pytest.raises(ToolCallInProgressError) as refusal:
        scenario.when(begin(), NOW_US + MINUTE_US - 1_000_000)
    assert refusal.value.retry_after_s == 1
    (again,) = scenario.when(begin(), NOW_US + MINUTE_US)
    assert isinstance(again, ToolCalled)
    assert again.repeat == 2


def test_a_lost_call_that_can_not_be_repeated_safely_is_for_a_person(scenario: Scenario) -> None:
    scenario.when(begin(repeats_safely=False))
    with pytest.raises(ToolCallLostError, match="new idempotency key"):
        scenario.when(begin(repeats_safely=False), NOW_US + MINUTE_US)


def test_a_success_is_final_where_asking_again_would_do_it_again(scenario: Scenario) -> None:
    scenario.when(begin(repeats_safely=False))
    scenario.when(success())
    assert scenario.when(begin(repeats_safely=False)) == []
    assert answer(scenario.state, begin())["status"] == "succeeded"


def test_the_repeat_of_a_success_costs_nothing(scenario: Scenario) -> None:
    scenario.when(begin())
    (first,) = scenario.when(success(cost=5))
    scenario.when(begin())
    (second,) = scenario.when(success(cost=5))
    assert isinstance(first, ToolSucceeded)
    assert isinstance(second, ToolSucceeded)
    assert (first.cost_nano_usd, second.cost_nano_usd) == (5, 0)


def test_a_failure_is_final_unless_trying_again_may_help(scenario: Scenario) -> None:
    scenario.when(begin("c1"))
    scenario.when(failure("c1"))
    assert scenario.when(begin("c1")) == []
    shown = answer(scenario.state, begin("c1"))
    assert (shown["status"], shown["code"], shown["message"]) == ("failed", "declined", "no")
    scenario.when(begin("c2"))
    scenario.when(failure("c2", retryable=True))
    assert len(scenario.when(begin("c2"))) == 1


def test_a_result_is_recorded_once_and_only_of_a_call_that_was_begun(scenario: Scenario) -> None:
    with pytest.raises(NotFoundError):
        scenario.when(success("never"))
    scenario.when(begin())
    (failed,) = scenario.when(failure(refused_by="breaker"))
    assert isinstance(failed, ToolFailed)
    assert failed.refused_by == "breaker"
    assert scenario.when(success()) == []


def test_payloads_are_kept_where_they_are_given_once(scenario: Scenario) -> None:
    kept = scenario.when(begin(input={"amount": 1}))[1:]
    assert kept == [ToolPayloadKept("payments", "c1", "input", {"amount": 1})]
    kept = scenario.when(success(output={"output": 2}))[1:]
    assert kept == [ToolPayloadKept("payments", "c1", "output", {"output": 2})]
    assert len(scenario.when(begin(input={"amount": 1}))) == 1


def test_a_tools_events_have_a_stream_of_their_own(scenario: Scenario) -> None:
    assert [event.stream for event in scenario.when(begin())] == ["tool/payments"]
    assert [event.stream for event in scenario.when(AllowTools(()))] == ["tools"]


def test_memory_is_bounded_and_what_is_under_way_is_never_forgotten(scenario: Scenario) -> None:
    scenario.when(begin("open"))
    for number in range(REMEMBERED_MAX + 50):
        scenario.when(begin(f"c{number}"))
        scenario.when(success(f"c{number}"))
    assert len(scenario.state.calls) == REMEMBERED_MAX
    assert "open" in scenario.state.calls
    assert "c0" not in scenario.state.calls


steps = st.lists(
    st.tuples(
        st.sampled_from(["begin", "succeed", "fail", "fail for now"]), st.sampled_from("abc"), st.integers(0, MINUTE_US)
    ),
    max_size=50,
)


@given_values(steps)
def test_a_call_that_can_not_be_repeated_is_begun_again_only_after_it_surely_did_not_happen(
    schedule: list[tuple[str, str, int]],
) -> None:
    """Whatever the order: between two beginnings there is a failure that says that nothing happened."""
    scenario, now_us = Scenario(), NOW_US
    scenario.when(AllowTools(("payments",)))
    may_begin = dict.fromkeys("abc", True)
    for what, call, wait_us in schedule:
        now_us += wait_us
        command = {
            "begin": begin(call, repeats_safely=False),
            "succeed": success(call),
            "fail": failure(call),
            "fail for now": failure(call, retryable=True),
        }[what]
        try:
            events = scenario.when(command, now_us)
        except Refusal:
            continue
        for event in events:
            if isinstance(event, ToolCalled):
                assert may_begin[call]
                may_begin[call] = False
            if isinstance(event, ToolFailed):
                may_begin[call] = event.retryable
