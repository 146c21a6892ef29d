"""Sagas as pure functions: what follows from what."""

from typing import Any

import msgspec
import pytest

from actors.run import (
    Parallel,
    Retry,
    Saga,
    Sequential,
    Signal,
    Step,
    Timer,
    Undo,
    machine,
    open_runs,
    register,
    registry,
)
from actors.run.consequences import backoff_us
from actors.run.definition import Node
from actors.run.open_runs import REQUEUE_AFTER_US, STEPS_OF_TARGET_MAX
from actors.run.state import describe
from events.errors import InvalidCommandError, NotFoundError
from events.run import (
    CapRuns,
    DescribeStep,
    FailStep,
    FinishStep,
    RetryRule,
    RunEnded,
    RunReopened,
    RunsCapped,
    StartRun,
    StepFailed,
    StepRequeued,
    StepScheduled,
    StepSucceeded,
    Used,
    pack,
)
from tests.kit.factories import NOW_US
from tests.kit.runs import Lab, order_saga, saga, started, undo


def test_steps_follow_each_other_and_groups_go_side_by_side() -> None:
    lab = started(Lab())
    assert lab.names() == ["reserve", "charge"]
    lab.finish("charge", "c1")
    assert lab.names() == ["reserve"]
    lab.finish("reserve", "r1")
    assert lab.names() == ["email"]
    lab.finish("email")
    assert msgspec.msgpack.decode(lab.work("ship").args) == ["r1", "c1"]
    lab.finish("ship", "parcel")
    assert (lab.run().status, lab.output()) == ("completed", {"shipped": "parcel"})
    assert not lab.runs.open
    assert lab.runs.under_way == {}


def test_a_failure_undoes_what_finished_in_reverse_order_and_side_by_side() -> None:
    lab = started(Lab())
    lab.finish("reserve", "r1")
    lab.finish("charge", "c1")
    lab.finish("email")
    lab.fail("ship")
    assert sorted(lab.names()) == ["undo:charge", "undo:reserve"]
    assert msgspec.msgpack.decode(lab.work("undo:charge").args) == {"undo": "charge", "id": "c1"}
    lab.finish("undo:charge")
    assert lab.run().status == "compensating"
    lab.finish("undo:reserve")
    run = lab.run()
    assert (run.status, run.code) == ("compensated", "broken")


def test_undoing_waits_for_what_is_still_running_and_undoes_that_too() -> None:
    lab = started(Lab())
    lab.fail("reserve")
    assert lab.names() == ["charge"], "nobody knows yet whether it will have taken effect"
    lab.finish("charge", "c1")
    assert lab.names() == ["undo:charge"]
    lab.finish("undo:charge")
    assert lab.run().status == "compensated"


def test_sequential_steps_are_undone_one_after_the_other() -> None:
    lab = Lab()
    lab.start(saga(Step("a", tool="t", undo=undo("a")), Step("b", tool="t", undo=undo("b")), Step("c", tool="t")))
    lab.finish("a")
    lab.finish("b")
    lab.fail("c")
    assert lab.names() == ["undo:b"]
    lab.finish("undo:b")
    assert lab.names() == ["undo:a"]
    lab.finish("undo:a")
    assert lab.run().status == "compensated"


def test_a_failed_run_with_nothing_to_undo_has_failed() -> None:
    lab = Lab()
    lab.start(saga(Step("a", tool="t")))
    lab.fail("a", "card_declined")
    assert (lab.run().status, lab.run().code) == ("failed", "card_declined")


def test_a_retry_waits_longer_each_time_and_keeps_its_dice() -> None:
    lab = Lab()
    lab.start(saga(Step("a", tool="t", retry=Retry(attempts=3, first_s=10, factor=3))))
    attempts = []
    for _ in range(2):
        attempts.append(lab.work("a").attempt)
        lab.fail("a", "busy", retryable=True)
        assert lab.names() == []
        lab.wait(31)
    assert attempts == [1, 2]
    assert lab.work("a").attempt == 3
    lab.fail("a", "busy", retryable=True)
    assert lab.run().status == "failed"


def test_backoff_is_bounded_and_the_same_for_the_same_history() -> None:
    rule = RetryRule(5, 1_000, 2.0, 3_000)
    delays = [[backoff_us(rule, n, f"r{i}", "s") for i in range(200)] for n in (1, 2, 3, 9)]
    for ceiling, seen in zip((1_000, 2_000, 3_000, 3_000), delays, strict=True):
        assert 0 < min(seen) < ceiling / 5
        assert ceiling * 0.8 < max(seen) <= ceiling + 1
    assert backoff_us(rule, 2, "r", "s") == backoff_us(rule, 2, "r", "s")


@pytest.mark.parametrize(("code", "never"), [("busy", ("busy",)), ("busy", ())])
def test_some_errors_are_never_retried(code: str, never: tuple[str, ...]) -> None:
    lab = Lab()
    lab.start(saga(Step("a", tool="t", retry=Retry(never=never))))
    lab.fail("a", code, retryable=not never or True)
    assert (lab.run().status == "failed") is bool(never)


def test_the_same_attempt_is_counted_once_and_a_late_answer_counts() -> None:
    lab = Lab()
    lab.start(saga(Step("a", tool="t"), Step("b", tool="t")))
    item = lab.work("a")
    lab.fail("a", "timeout", retryable=True)
    assert lab.send(FinishStep("r", "a", item.attempt, pack(1), 5)), "it was done after all"
    assert lab.send(FinishStep("r", "a", item.attempt, pack(2), 5)) == []
    assert sum(isinstance(event, StepSucceeded) for event in lab.history) == 1
    assert lab.run().result("a") == 1


def test_a_step_is_skipped_where_its_condition_does_not_hold() -> None:
    name = saga(
        Step("score", tool="t"),
        Step("review", tool="t", when=lambda run: run["score"] > 5),
        Step("end", tool="t", args=lambda run: run.get("review", "none")),
    )
    for score, seen in ((9, ["review"]), (1, ["end"])):
        lab = Lab()
        lab.start(name)
        lab.finish("score", score)
        assert lab.names() == seen


def test_branches_of_a_group_may_be_sequences() -> None:
    lab = Lab()
    lab.start(
        saga(
            Parallel(
                Sequential(Step("a1", tool="t", undo=undo("a1")), Step("a2", tool="t", undo=undo("a2"))),
                Sequential(Step("b1", tool="t", undo=undo("b1")), Step("b2", tool="t")),
            ),
            Step("c", tool="t"),
        )
    )
    lab.finish("a1")
    assert sorted(lab.names()) == ["a2", "b1"]
    lab.finish("a2")
    lab.finish("b1")
    lab.finish("b2")
    lab.fail("c")
    assert sorted(lab.names()) == ["undo:a2", "undo:b1"]
    lab.finish("undo:a2")
    assert sorted(lab.names()) == ["undo:a1", "undo:b1"]


def test_signals_are_kept_until_a_step_waits_for_them() -> None:
    lab = Lab()
    lab.start(saga(Step("a", tool="t"), Signal("approved"), Step("b", tool="t", args=lambda run: run["approved"])))
    lab.signal("approved", {"by": "ann"})
    lab.finish("a")
    assert msgspec.msgpack.decode(lab.work("b").args) == {"by": "ann"}
    assert lab.run().signals == ()


def test_a_signal_that_does_not_come_in_time_fails_the_run() -> None:
    lab = Lab()
    lab.start(saga(Signal("approved", timeout_s=3_600)))
    lab.wait(3_599)
    assert lab.run().status == "running"
    lab.wait(2)
    assert (lab.run().status, lab.run().code) == ("failed", "signal_timeout")


def test_a_timer_of_months_ends_to_the_second() -> None:
    lab = Lab()
    lab.start(saga(Timer("cool_off", seconds=90 * 24 * 3_600), Step("bill", tool="t")))
    lab.wait(90 * 24 * 3_600 - 1)
    assert lab.names() == []
    lab.wait(1)
    assert lab.names() == ["bill"]


def test_a_deadline_undoes_and_ends_as_timed_out() -> None:
    lab = Lab()
    lab.start(saga(Step("a", tool="t", undo=undo("a")), Signal("never")), deadline_us=NOW_US + 5_000_000)
    lab.finish("a")
    lab.wait(6)
    assert lab.names() == ["undo:a"]
    lab.finish("undo:a")
    assert lab.run().status == "timed_out"


def test_a_step_whose_effect_nobody_knows_needs_a_person_or_an_undo_that_says_it_can() -> None:
    for if_unknown, end in ((False, "failed"), (True, "compensated")):
        lab = Lab()
        lab.start(saga(Step("pay", tool="t", retry=Retry(1), undo=Undo(tool="t", if_unknown=if_unknown))))
        lab.fail("pay", "timeout", retryable=True, unknown=True)
        if if_unknown:
            lab.finish("undo:pay")
        assert lab.run().status == end


def test_an_attempt_that_surely_failed_says_nothing_about_one_of_which_nobody_knows() -> None:
    """Paid and unanswered, then turned away: the money may be gone, so it is asked back."""
    lab = Lab()
    lab.start(saga(Step("pay", tool="t", retry=Retry(2), undo=Undo(tool="t", if_unknown=True))))
    lab.fail("pay", "timeout", retryable=True, unknown=True)
    lab.wait(2)
    lab.fail("pay", "busy", retryable=True)
    lab.finish("undo:pay")
    assert lab.run().status == "compensated"


def test_a_saga_whose_own_code_fails_is_that_runs_failure() -> None:
    lab = Lab()
    lab.start(saga(Step("a", tool="t", undo=undo("a")), Step("b", tool="t", args=lambda run: run["nobody"])))
    lab.finish("a")
    assert lab.run().code == "saga_failed"
    lab.finish("undo:a")
    assert lab.run().status == "compensated"


def test_a_missing_version_is_a_state_and_ends_when_it_is_back() -> None:
    lab = Lab()
    name = saga(Step("a", tool="t"), Step("b", tool="t"))
    lab.start(name)
    versions = registry._programs.pop(name)
    lab.finish("a")
    assert lab.run().status == "blocked"
    assert name in lab.run().blocked
    registry._programs[name] = versions
    lab.take(machine.resume(lab.runs, lab.now_us))
    assert (lab.run().status, lab.names()) == ("running", ["b"])


def test_runs_finish_on_the_version_they_began_with() -> None:
    lab = Lab()
    name = saga(Step("a", tool="t"), Step("old", tool="t"))
    lab.start(name)
    register(Saga(name, version=2, steps=(Step("a", tool="t"), Step("new", tool="t"))))
    lab.start(name, run_id="r2")
    lab.finish_all = [lab.send(FinishStep(run, "a", 1, pack(None), 1)) for run in ("r", "r2")]  # type: ignore[attr-defined]
    assert sorted(lab.names()) == ["a", "a", "new", "old"]
    with pytest.raises(NotFoundError, match="has no version 3 here; registered: 1, 2"):
        lab.start(name, run_id="r3", version=3)


def test_a_run_goes_on_under_a_version_that_takes_it_over() -> None:
    lab = Lab()
    name = saga(Step("a", tool="t", undo=undo("a")), Step("c", tool="t"))
    lab.start(name)
    register(
        Saga(
            name,
            version=2,
            patches=(1,),
            steps=(Step("a", tool="t", undo=undo("a")), Step("b", tool="t"), Step("c", tool="t")),
        )
    )
    lab.finish("a")
    assert (lab.run().version, lab.names()) == (2, ["b"])
    lab.finish("b")
    lab.fail("c")
    lab.finish("undo:a")
    assert lab.run().status == "compensated"


def test_a_patch_that_misses_what_the_run_has_done_blocks_it_instead_of_forgetting_to_undo_it() -> None:
    lab = Lab()
    name = saga(Step("a", tool="t", undo=undo("a")), Step("b", tool="t"))
    lab.start(name)
    lab.finish("a")
    register(Saga(name, version=2, patches=(1,), steps=(Step("b", tool="t"),)))
    lab.finish("b")
    assert lab.run().status == "blocked"
    assert "version 2 has no step 'a', which the run has begun" in lab.run().blocked
    register(Saga(name, version=3, patches=(1, 2), steps=(Step("a", tool="t", undo=undo("a")), Step("b", tool="t"))))
    lab.take(machine.resume(lab.runs, lab.now_us))
    assert (lab.run().status, lab.run().version) == ("completed", 3)


def test_a_version_takes_over_older_ones_only() -> None:
    with pytest.raises(ValueError, match="version 2 can take over runs of older versions only, not of 2"):
        Saga("s", version=2, patches=(2,), steps=(Step("a", tool="t"),))


def test_work_that_nobody_answers_is_handed_out_again() -> None:
    lab = Lab()
    lab.start(saga(Step("a", tool="t", timeout_s=30)))
    lab.wait(30 + REQUEUE_AFTER_US / 1e6 + 1)
    requeued = [event for event in lab.history if isinstance(event, StepRequeued)]
    assert [event.step for event in requeued] == ["a"]
    lab.finish("a")
    assert lab.run().status == "completed"


def test_steps_beyond_the_cap_wait_and_the_most_urgent_goes_first() -> None:
    lab = Lab()
    name = saga(Step("a", tool="t"))
    for number in range(STEPS_OF_TARGET_MAX + 3):
        lab.start(name, run_id=f"r{number}", priority=number)
    assert len(lab.todo) == STEPS_OF_TARGET_MAX
    assert lab.run(f"r{STEPS_OF_TARGET_MAX}").steps["a"].status == "queued"
    lab.send(FinishStep("r0", "a", 1, pack(None), 1))
    assert lab.todo[-1].run_id == f"r{STEPS_OF_TARGET_MAX + 2}"
    assert lab.runs.under_way == {"t": STEPS_OF_TARGET_MAX}


def test_attempts_after_an_outage_hold_the_caps_too() -> None:
    lab = Lab()
    lab.runs = open_runs.capped(lab.runs, RunsCapped(0, 2, {}))
    name = saga(Step("a", tool="t", retry=Retry(3)))
    for number in range(4):
        lab.start(name, run_id=f"r{number}")
    for _ in range(4):  # the first two wait for their next attempt while the others have their first
        item = lab.todo.pop(0)
        lab.send(FailStep(item.run_id, "a", item.attempt, "down", "down", True, 1, may_have_happened=True))
    lab.wait(3)
    assert lab.runs.under_way == {"t": 2}
    assert len(lab.runs.queued) == 2
    _, waiting, _ = lab.runs.queued[0]
    lab.cancel(waiting)
    assert lab.run(waiting).status == "compensating", "it may have happened, so it is asked again all the same"
    _, late, _ = lab.runs.queued[1]
    lab.send(FinishStep(late, "a", 1, pack(None), 1))
    assert [item[1] for item in lab.runs.queued] == [waiting], "a late answer is as good as any"
    while lab.todo:
        item = lab.todo.pop(0)
        lab.send(FinishStep(item.run_id, "a", item.attempt, pack(None), 1))
    assert {lab.run(f"r{number}").steps["a"].attempt for number in range(4)} == {1, 2}
    assert (len(lab.runs.under_way), len(lab.runs.queued), len(lab.runs.open)) == (0, 0, 0)


def test_a_way_back_that_is_broken_is_gone_to_its_end_and_gives_its_room_back() -> None:
    def broken(run: Any) -> Any:
        raise KeyError(run.id)

    lab = Lab()
    one = Sequential(
        Step("a", tool="t", undo=Undo(tool="t", args=broken)),
        Step("b", tool="t", undo=undo("b")),
    )
    lab.start(saga(Parallel(one, Step("c", tool="t", undo=undo("c"))), Step("d", tool="t")))
    for step in ("a", "b", "c"):
        lab.finish(step)
    lab.fail("d")
    lab.finish("undo:b")
    assert lab.run().status == "compensating", "undo:c is under way"
    lab.finish("undo:c")
    assert lab.run().status == "failed"
    assert "then KeyError" in lab.run().message
    assert lab.runs.under_way == {}


def test_a_run_that_ends_gives_back_what_it_has_with_runners_and_takes_it_again_where_it_goes_on() -> None:
    """As older logs have it."""
    lab = Lab()
    lab.start(saga(Parallel(Step("a", tool="t"), Step("b", tool="t"), Step("c", tool="t"))))
    lab.take([StepFailed("r", "a", 1, "broken", "", 0, 0, Used()), RunEnded("r", "failed", lab.now_us)])
    assert lab.runs.under_way == {}
    lab.take([RunReopened("r", ("a",), True, pack(lab.run()))])
    assert lab.runs.under_way == {"t": 2}


def test_caps_of_a_tenants_own_hold_and_what_waited_begins_when_they_are_raised() -> None:
    lab = Lab()
    lab.runs = open_runs.capped(lab.runs, RunsCapped(3, 0, {"t": 1}))
    for tool in ("t", "u"):
        for number in range(3):
            lab.start(saga(Step("a", tool=tool)), run_id=f"{tool}{number}")
    assert [item.run_id for item in lab.todo] == ["t0", "u0", "u1"], "one of t, and three in all"
    event, *begun = machine.cap(lab.runs, CapRuns(5, 0, {"t": 2}), lab.now_us)
    assert event == RunsCapped(5, 0, {"t": 2})
    lab.runs = open_runs.capped(lab.runs, event)
    lab.take([each for each in begun if isinstance(each, StepScheduled)])
    assert [item.run_id for item in lab.todo] == ["t0", "u0", "u1", "t1", "u2"]
    assert open_runs.describe_caps(lab.runs)["queued"] == 1
    assert machine.cap(lab.runs, CapRuns(5, 0, {"t": 2}), lab.now_us) == [], "as it is already"
    with pytest.raises(InvalidCommandError, match="without runners nothing would run"):
        machine.cap(lab.runs, CapRuns(5, 0, {"t": 0}), lab.now_us)


@pytest.mark.parametrize(
    ("given", "problem"), [({"sku": 3, "amount": 1}, "Expected `str`"), ({"sku": "a"}, "missing required field")]
)
def test_input_is_checked_before_anything_happens(given: Any, problem: str) -> None:
    lab = Lab()
    with pytest.raises(InvalidCommandError, match=problem):
        lab.start(order_saga(), given)
    assert lab.history == []


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ((), "no steps"),
        ((Step("a", tool="t"), Step("a", tool="t")), "unique"),
        ((Step("undo:a", tool="t"),), "no colon"),
    ],
)
def test_a_saga_that_makes_no_sense_is_refused_where_it_is_declared(steps: tuple[Node, ...], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Saga("s", steps=steps)


def test_a_step_calls_exactly_one_thing() -> None:
    with pytest.raises(ValueError, match="exactly one of tool, function, model; got none"):
        Step("a")
    with pytest.raises(ValueError, match="got tool, model"):
        Step("a", tool="t", model="m")


def test_finished_runs_cost_no_memory() -> None:
    lab = Lab()
    name = saga(Step("a", tool="t"))
    for number in range(100):
        lab.start(name, run_id=f"r{number}")
        lab.finish("a")
    assert lab.runs == open_runs.Runs()


def test_what_is_asked_of_one_step_of_a_long_run_is_answered_in_a_few_bytes() -> None:
    """A runner asks that before it does a step again: an answer that no message can carry would stop the run for good."""
    lab = Lab()
    lab.start(saga(*(Step(f"s{number}", tool="t") for number in range(30))))
    for number in range(29):
        lab.finish(f"s{number}", "x" * 60_000)
    command = DescribeStep("r", "s29")
    assert machine.answer(lab.runs, command) == {"status": "scheduled", "attempt": 1}
    last = FinishStep("r", "s29", 1, pack("y"), 1)
    assert machine.answer(lab.runs, last) == {"id": "r", "status": "running"}, "kept for days, and limited to 64 KiB"
    assert machine.answer(lab.runs, DescribeStep("r", "s99")) == {}


@pytest.mark.parametrize("what", ["args", "all_args", "output"])
def test_what_no_event_can_hold_fails_the_run_and_undoes_it(what: str) -> None:
    """Refused by the log, the result that leads to it would be told again and again, and its step done again and again."""
    big = "x" * (200_000 if what != "all_args" else 150_000)
    width = 30 if what == "all_args" else 1
    given = big if what != "output" else ""
    steps = Parallel(*(Step(f"b{number}", tool="t", args=lambda _: given) for number in range(width)))
    lab = Lab()
    lab.start(saga(Step("a", tool="t", undo=undo("a")), steps, output=lambda _: big))
    lab.finish("a")
    if what == "output":
        lab.finish("b0")
    assert (lab.run().status, lab.run().code) == ("compensating", f"{what.removeprefix('all_')}_too_large")
    lab.finish("undo:a")
    assert lab.run().status == "compensated"


@pytest.mark.parametrize("seconds", [1e30, float("inf"), float("nan")])
def test_a_time_that_no_clock_has_fails_the_run_and_not_its_tenant(seconds: float) -> None:
    lab = Lab()
    lab.start(saga(Timer("pause", seconds=lambda _: seconds)))
    assert (lab.run().status, lab.run().code) == ("failed", "saga_failed")


def test_backoff_goes_on_for_ever() -> None:
    rule = RetryRule(10**6, 1_000_000, 2.0, 60_000_000)
    assert 0 < backoff_us(rule, 100_000, "r", "s") <= 60_000_000


def test_what_looks_like_a_reference_and_is_none_is_data() -> None:
    lab = Lab()
    lab.start(saga(Signal("go"), output=lambda run: run["go"]))
    lab.signal("go", {"$object": "v1", "other": 1})
    assert lab.output() == {"$object": "v1", "other": 1}
    assert describe(lab.run())["output"] == {"$object": "v1", "other": 1}


def test_what_is_decided_on_is_what_its_events_make_of_the_runs() -> None:
    """The state after a command is taken from its decision, and not folded a second time: it must be the same."""
    name = order_saga()
    lab = Lab()
    start = StartRun("r", name, pack({"sku": "s", "amount": 1}))
    failed = FailStep("r", "charge", 1, "broken", "", False, 1)
    for command in (
        start,
        FinishStep("r", "reserve", 1, pack(1), 1),
        failed,
        FinishStep("r", "undo:reserve", 1, pack(1), 1),
    ):
        events, after = machine.act(lab.runs, command, lab.now_us)
        assert events
        lab.take(events)
        assert lab.runs == after
    assert not lab.runs.open
