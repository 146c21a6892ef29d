"""What the platform writes down about itself. The history passes through the codec and a snapshot."""

from functools import reduce
from typing import Any

import msgspec
import pytest

from actors.aggregate import State, answer, decide, evolve
from actors.persistent import decode_hook, encode_hook
from events.catalog import DomainCommand
from events.codec import decode_event, encode_data
from events.errors import InvalidCommandError, NotFoundError
from events.slices import SYSTEM_TENANT
from events.system import (
    DescribeSystem,
    ForceBreaker,
    QuarantineTenant,
    RecordBreaker,
    RecordBulkhead,
    RecordStart,
    ReleaseTenant,
    breaker_stream,
)
from events.tenant import CreateTenant, IssueKey
from tests.kit.factories import NOW_US


class Log:
    def __init__(self) -> None:
        self.state, self.events = State(), list[Any]()

    def do(self, command: DomainCommand, now_us: int = NOW_US) -> "Log":
        events = decide(self.state, SYSTEM_TENANT, command, now_us)
        self.events += events
        self.state = reduce(evolve, [decode_event(encode_data(event)) for event in events], self.state)
        snapshot = msgspec.msgpack.encode(self.state, enc_hook=encode_hook)
        self.state = msgspec.msgpack.decode(snapshot, type=State, dec_hook=decode_hook)
        return self

    @property
    def described(self) -> dict[str, Any]:
        return answer(self.state, SYSTEM_TENANT, DescribeSystem(), NOW_US)


def opened(version: int = 1, **changes: Any) -> RecordBreaker:
    fields: dict[str, Any] = {"calls": 60, "failures": 50, "callers": 3, "callers_bad": 3, **changes}
    return RecordBreaker("payments", "", "closed", "open", "50 of 60 calls failed", version=version, **fields)


def test_a_breakers_change_is_written_with_its_cause_and_figures_to_its_own_stream() -> None:
    log = Log().do(opened())
    event = log.events[-1]
    assert event.stream == breaker_stream("payments", "") == "breaker/payments"
    assert (event.cause, event.failures, event.calls, event.callers_bad) == ("50 of 60 calls failed", 50, 60, 3)
    assert log.described["breakers"] == [
        {
            "name": "payments",
            "tenant": "",
            "status": "open",
            "since_us": NOW_US,
            "version": 1,
            "cause": "50 of 60 calls failed",
        }
    ]


def test_one_process_own_breaker_is_written_down_and_is_not_the_clusters() -> None:
    log = Log().do(opened(caller="gateway-1"))
    assert log.events[-1].caller == "gateway-1"
    assert log.described["breakers"] == []


def test_versions_never_go_back() -> None:
    log = Log().do(opened(7)).do(ForceBreaker("payments", "", "close", "maintenance is over"))
    assert log.events[-1].version == 8
    assert log.do(opened(3)).described["breakers"][0]["version"] == 8


@pytest.mark.parametrize(
    ("action", "status"), [("open", "forced_open"), ("close", "forced_closed"), ("reset", "closed")]
)
def test_an_operator_forces_a_breaker_also_one_nobody_has_heard_of(action: Any, status: str) -> None:
    log = Log().do(ForceBreaker("mail", "acme", action, "told to"))
    assert (log.events[-1].after, log.events[-1].stream) == (status, "breaker/mail@acme")
    log.do(ForceBreaker("mail", "acme", action, "told to"))
    assert len(log.events) == (2 if action == "reset" else 1), "holding it twice is once"


@pytest.mark.parametrize("reason", ["", "x" * 501])
def test_a_reason_is_needed_and_bounded(reason: str) -> None:
    with pytest.raises(InvalidCommandError, match="1 to 500"):
        Log().do(ForceBreaker("mail", "", "open", reason))


def test_a_bulkhead_is_written_down_when_it_changes_only() -> None:
    full = RecordBulkhead("mail", "", "saturated", 10, 10, 14, 3, "14 wanted of 10")
    log = Log().do(full).do(full)
    assert [event.state for event in log.events] == ["saturated"]


def test_a_tenant_goes_into_quarantine_and_out_again() -> None:
    log = Log().do(QuarantineTenant("acme", "crashed 5 times in 60 s", 5, NOW_US + 1))
    assert log.described["quarantined"][0]["reason"] == "crashed 5 times in 60 s"
    assert log.do(ReleaseTenant("acme", "fixed")).described["quarantined"] == []
    with pytest.raises(NotFoundError):
        log.do(ReleaseTenant("acme", "again"))


def test_only_the_system_tenant_takes_these_commands_and_it_takes_no_others() -> None:
    with pytest.raises(InvalidCommandError, match="only tenant 'system'"):
        decide(State(), "acme", RecordStart("breakers", 1), NOW_US)
    for command in (CreateTenant("System"), IssueKey("k", "n", b"d" * 32)):
        with pytest.raises(InvalidCommandError, match="the platform itself"):
            decide(State(), SYSTEM_TENANT, command, NOW_US)
