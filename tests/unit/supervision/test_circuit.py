"""The cluster's breaker: volume and quorum, and probes one at a time."""

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from actors.policies.breaker import BreakerRules
from actors.policies.window import Counts
from actors.supervision import circuit as machine
from actors.supervision.circuit import TURN_S, WINDOW_S, Circuit

RULES = BreakerRules(failure_rate=0.5, calls_min=50, open_s=10.0, open_jitter=0.0, probes=3, slow_after_s=1.0)


def report(circuit: Circuit, caller: str, good: int, bad: int, now_s: float = 0.0, probe: int = 0) -> Circuit:
    return machine.reported(circuit, caller, Counts(good + bad, bad), probe_version=probe, now_s=now_s, chance=0.0)


def opened() -> Circuit:
    circuit = Circuit(RULES)
    for caller in "abc":
        circuit = report(circuit, caller, 0, 20)
    assert circuit.status == "open"
    return circuit


def test_it_opens_on_the_fiftieth_failure_not_before() -> None:
    circuit = report(report(Circuit(RULES), "a", 0, 25), "b", 0, 24)
    assert circuit.status == "closed"
    circuit = report(circuit, "b", 0, 1)
    assert circuit.status == "open"
    assert circuit.cause == "50 of 50 calls failed, seen by 2 of 2 callers"


def test_one_bad_node_opens_nothing_however_much_it_calls() -> None:
    circuit = report(report(Circuit(RULES), "good-1", 50, 0), "good-2", 50, 0)
    for _ in range(100):
        circuit = report(circuit, "bad", 0, 1_000)
    assert circuit.status == "closed"
    circuit = report(circuit, "good-1", 0, 60)
    assert circuit.status == "open", "two of three see it now"


def test_a_lone_caller_is_its_own_quorum() -> None:
    assert report(Circuit(RULES), "a", 10, 40).status == "open"


def test_slow_calls_open_it_too() -> None:
    rules = msgspec.structs.replace(RULES, slow_rate=0.9)
    circuit = machine.reported(Circuit(rules), "a", Counts(60, 0, 60), probe_version=0, now_s=0.0, chance=0.0)
    assert circuit.status == "open"
    assert "took 1 s or longer" in circuit.cause


def test_old_failures_are_forgotten() -> None:
    circuit = report(Circuit(RULES), "a", 0, 49)
    assert report(circuit, "a", 0, 49, WINDOW_S * 1.2).status == "closed"


def test_callers_probe_one_after_another_and_all_must_pass() -> None:
    circuit = machine.advanced(opened(), 10.0, 0.0)
    assert circuit.status == "half_open"
    probers = []
    for number in range(3):
        probers.append(circuit.prober)
        bystander = next(name for name in "abc" if name != circuit.prober)
        assert report(circuit, bystander, 5, 0, 10.1, circuit.version).passed == number, "not its turn"
        assert report(circuit, circuit.prober, 1, 0, 10.1, circuit.version - 1).passed == number, "of an earlier turn"
        circuit = report(circuit, circuit.prober, 1, 0, 10.1, circuit.version)
    assert circuit.status == "closed"
    assert len(set(probers)) > 1


def test_one_failed_probe_opens_it_again() -> None:
    circuit = machine.advanced(opened(), 10.0, 0.0)
    circuit = report(circuit, circuit.prober, 0, 1, 10.1, circuit.version)
    assert (circuit.status, circuit.cause) == ("open", "a probe by a failed")
    assert machine.advanced(circuit, 15.0, 0.0).status == "open"


def test_a_prober_with_nothing_to_try_hands_on_and_one_that_is_at_it_keeps_its_turn() -> None:
    circuit = machine.advanced(opened(), 10.0, 0.0)
    first = circuit.prober
    assert machine.advanced(circuit, 10.0 + TURN_S, 0.0).prober != first
    circuit = report(circuit, first, 0, 0, 10.4, circuit.version)
    assert machine.advanced(circuit, 10.0 + TURN_S, 0.0).prober == first


def test_a_prober_that_stays_at_it_loses_its_turn_when_the_time_of_a_probe_is_over() -> None:
    circuit = machine.advanced(opened(), 10.0, 0.0)
    first, ends_s = circuit.prober, 10.0 + RULES.probe_timeout_s
    now_s = 10.0
    while now_s < ends_s - 0.5:
        now_s += 0.25
        circuit = machine.advanced(report(circuit, first, 0, 0, now_s, circuit.version), now_s, 0.0)
        circuit = report(circuit, "b" if first != "b" else "c", 0, 0, now_s)
        assert circuit.prober == first
    circuit = report(circuit, first, 0, 0, ends_s, circuit.version)
    assert machine.advanced(circuit, ends_s, 0.0).prober != first


def test_a_lone_prober_that_is_at_it_for_long_is_not_taken_for_gone() -> None:
    circuit = machine.advanced(report(Circuit(RULES), "a", 0, 50), 10.0, 0.0)
    for now_s in range(11, 60):
        circuit = machine.advanced(report(circuit, "a", 0, 0, now_s - 0.6, circuit.version), now_s - 0.5, 0.0)
    assert list(circuit.callers) == ["a"]


def test_it_is_not_half_open_while_nobody_calls() -> None:
    circuit = opened()
    assert machine.advanced(circuit, 1_000.0, 0.0).status == "open"
    assert machine.advanced(report(circuit, "a", 0, 0, 1_000.0), 1_000.0, 0.0).status == "half_open"


@pytest.mark.parametrize(("ago_s", "left_s"), [(4.0, 6.0), (100.0, 0.0)])
def test_it_goes_on_where_the_log_says_it_was(ago_s: float, left_s: float) -> None:
    circuit = machine.resumed(Circuit(RULES), "open", 7, "as it was", ago_s, 50.0)
    assert (circuit.status, circuit.version, circuit.until_s) == ("open", 7, 50.0 + left_s)
    assert machine.resumed(Circuit(RULES), "half_open", 8, "", 0.0, 50.0).status == "open"
    assert machine.resumed(Circuit(RULES), "forced_open", 9, "by hand", 9.0, 50.0).status == "forced_open"


class CircuitMachine(RuleBasedStateMachine):
    """Any order of reports, time and commands, against what was reported, added up anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s, self.circuit = 1_000.0, Circuit(RULES)
        self.seen: list[tuple[int, str, int, int]] = []  # slot of a second, caller, good, bad
        self.passed = 0

    def become(self, after: Circuit) -> None:
        before, self.circuit = self.circuit, after
        assert after.version >= before.version
        if after.status == before.status:
            return
        assert after.version > before.version
        allowed = {("closed", "open"), ("open", "half_open"), ("half_open", "open"), ("half_open", "closed")}
        assert (before.status, after.status) in allowed or "forced" in before.status + after.status
        if after.status == "closed" and before.status == "half_open":
            assert self.passed == RULES.probes
        self.seen, self.passed = [], 0

    @rule(caller=st.sampled_from("abcd"), good=st.integers(0, 40), bad=st.integers(0, 40), as_prober=st.booleans())
    def report(self, caller: str, good: int, bad: int, as_prober: bool) -> None:
        circuit = self.circuit
        is_probe = as_prober and caller == circuit.prober and circuit.status == "half_open"
        if is_probe:
            good, bad = (1, 0) if bad < 20 else (0, 1)
            self.passed += good
        probe = circuit.version if as_prober else 0
        if circuit.status == "closed":
            self.seen.append((int(self.now_s), caller, good, bad))
        expected = circuit.status == "closed" and good + bad > 0 and self.should_open()
        after = report(circuit, caller, good, bad, self.now_s, probe)
        if circuit.status == "closed":
            assert (after.status == "open") == expected
        self.become(after)

    def should_open(self) -> bool:
        recent = [seen for seen in self.seen if seen[0] > int(self.now_s) - WINDOW_S]
        calls = {
            name: (sum(g for _, c, g, _ in recent if c == name), sum(b for _, c, _, b in recent if c == name))
            for name in "abcd"
        }
        calling = [(good, bad) for good, bad in calls.values() if good + bad]
        total, failures = sum(g + b for g, b in calling), sum(b for _, b in calling)
        seeing = [1 for good, bad in calling if bad >= 0.5 * (good + bad)]
        return total >= 50 and failures >= 0.5 * total and len(seeing) * 2 > len(calling)

    @rule(seconds=st.sampled_from([0.1, 0.6, 3.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        before = self.circuit
        self.become(machine.advanced(before, self.now_s, 0.5))
        if before.status == "open" and self.circuit.status == "half_open":
            assert self.now_s >= before.until_s

    @rule(status=st.sampled_from(["forced_open", "forced_closed", "closed"]))
    def command(self, status: str) -> None:
        after = machine.forced(self.circuit, status, "told to", 0, self.now_s)  # type: ignore[arg-type]
        self.circuit, self.seen, self.passed = after, [], 0

    @invariant()
    def at_most_one_prober(self) -> None:
        if self.circuit.status != "half_open":
            assert self.circuit.prober == ""
        assert self.circuit.passed == self.passed


TestCircuitMachine = CircuitMachine.TestCase
TestCircuitMachine.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
