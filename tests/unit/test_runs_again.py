"""Runs that have ended and go on: what is tried again in place, what a fork takes over."""

import pytest

from actors.aggregate import State, decide, evolve
from actors.run import (
    Child,
    Parallel,
    Retry,
    Signal,
    Step,
    Undo,
    again,
)
from events.errors import RunClosedError
from events.run import (
    ReopenRun,
    RetryRun,
    StartRun,
    pack,
)
from tests.kit.runs import Lab, saga, started, undo


def test_a_compensation_that_fails_for_good_is_stuck_until_a_person_has_it_tried_again() -> None:
    lab = Lab()
    forever = Undo(tool="t", retry=Retry(attempts=2))
    lab.start(saga(Step("a", tool="t", undo=undo("a")), Step("b", tool="t", undo=forever), Step("c", tool="t")))
    lab.finish("a")
    lab.finish("b")
    lab.fail("c")
    lab.fail("undo:b", retryable=True)
    lab.wait(120)
    lab.fail("undo:b", retryable=True)
    assert lab.names() == ["undo:a"], "the rest is undone all the same"
    lab.finish("undo:a")
    run = lab.run()
    assert run.status == "failed"
    assert "could not be undone: b" in run.message
    lab.take(again.reopen(run, lab.now_us))
    lab.finish("undo:b")
    assert lab.run().status == "compensated"


def test_a_failed_run_goes_on_where_it_failed() -> None:
    lab = Lab()
    lab.start(saga(Step("a", tool="t"), Step("b", tool="t"), output=lambda run: run["b"]))
    lab.finish("a")
    lab.fail("b")
    lab.take(again.reopen(lab.run(), lab.now_us))
    assert lab.work("b").attempt == 2
    lab.finish("b", "done")
    assert (lab.run().status, lab.output(), lab.run().code) == ("completed", "done", "")
    with pytest.raises(RunClosedError, match="completed"):
        again.reopen(lab.run(), lab.now_us)


def retry(lab: Lab, run_id: str = "r") -> None:
    lab.take(again.reopen(lab.run(run_id), lab.now_us, lab.runs))


def test_a_run_that_is_tried_again_twice_at_once_goes_on_once() -> None:
    lab = Lab()
    lab.start(saga(Step("a", tool="t")))
    lab.fail("a")
    ended = lab.run()
    state = State(runs=lab.runs)
    command = ReopenRun("r", pack(ended))
    for event in decide(state, "acme", command, lab.now_us):
        state = evolve(state, event)
    with pytest.raises(RunClosedError, match="under way"):
        decide(state, "acme", command, lab.now_us)


def test_a_run_whose_steps_were_undone_does_not_go_on_over_them() -> None:
    lab = Lab()
    lab.start(saga(Step("a", tool="t", undo=undo("a")), Step("b", tool="t", undo=undo("b")), Step("c", tool="t")))
    lab.finish("a")
    lab.fail("b", unknown=True)
    lab.finish("undo:a")
    assert lab.run().status == "failed"
    with pytest.raises(RunClosedError, match="fork it instead"):
        retry(lab)


def test_what_a_run_went_on_without_is_not_tried_again() -> None:
    lab = Lab()
    lab.start(saga(Step("mail", tool="t", optional=True), Step("b", tool="t")))
    lab.fail("mail")
    lab.fail("b")
    retry(lab)
    assert lab.names() == ["b"]


def test_a_run_that_is_tried_again_waits_anew_for_what_it_had_stopped_to_wait_for() -> None:
    """Else it would ship what nobody has approved."""
    lab = Lab()
    never = Step("never", tool="t", when=lambda _: False)
    slow = Step("slow", tool="t", retry=Retry(2))
    lab.start(saga(never, Parallel(Step("charge", tool="t"), Signal("approve"), slow), Step("ship", tool="t")))
    lab.fail("slow", retryable=True)
    lab.fail("charge")
    assert lab.run().status == "failed"
    retry(lab)
    assert lab.names() == ["charge", "slow"]
    assert lab.run().steps["never"].status == "skipped"
    assert lab.work("slow").attempt == 2
    lab.finish("charge")
    lab.finish("slow")
    assert lab.names() == []
    lab.signal("approve")
    assert lab.names() == ["ship"]


def test_a_child_that_is_tried_again_begins_anew_as_a_run_of_its_own() -> None:
    """Not under the same id: under the same keys its effects, that were undone, would not happen again."""
    lab = Lab()
    child = saga(Step("work", tool="t"), output=lambda run: run["work"])
    lab.start(saga(Child("sub", saga=child), output=lambda run: run["sub"]))
    for _ in range(2):
        lab.fail("work")
        assert lab.run().status == "failed"
        retry(lab)
    assert (lab.work("work").run_id, lab.run("r/sub:2").status) == ("r/sub:3", "failed")
    with pytest.raises(RunClosedError, match="no longer waits for it"):
        retry(lab, "r/sub")
    lab.finish("work", "done")
    assert (lab.run().status, lab.output()) == ("completed", "done")


def test_a_child_that_is_tried_again_is_cancelled_with_its_parent() -> None:
    lab = Lab()
    lab.start(saga(Child("sub", saga=saga(Step("work", tool="t"), Signal("go")))))
    lab.fail("work")
    retry(lab)
    lab.cancel()
    lab.finish("work")
    assert (lab.run("r/sub:2").status, lab.run().status) == ("cancelled", "cancelled")


def test_a_fork_takes_over_what_was_done() -> None:
    lab = started(Lab())
    lab.finish("reserve", "r1")
    lab.finish("charge", "c1")
    lab.finish("email")
    lab.finish("ship")
    fork(lab, "email")
    assert [item.order.step for item in lab.todo if item.run_id == "f"] == ["email"]


def fork(lab: Lab, step: str) -> None:
    run = lab.run()
    kept = again.kept_until(run, step)
    lab.send(StartRun("f", run.saga, run.input, run.version, forked_from="r", kept=kept))


def test_a_fork_takes_over_nothing_that_was_undone() -> None:
    """Else it would go on from a reservation that is gone, and undo it once more under a key of its own."""
    lab = Lab()
    lab.start(saga(Step("a", tool="t"), Step("b", tool="t", undo=undo("b")), Step("c", tool="t"), Step("d", tool="t")))
    for step in ("a", "b", "c"):
        lab.finish(step)
    lab.fail("d")
    lab.finish("undo:b")
    with pytest.raises(RunClosedError, match="step 'b' has been undone: fork it at that step"):
        again.kept_until(lab.run(), "d")
    fork(lab, "b")
    assert lab.names() == ["b"], "with a taken over"


def test_a_run_under_way_and_its_fork_never_own_one_effect() -> None:
    lab = Lab()
    lab.start(saga(Step("a", tool="t"), Step("b", tool="t", undo=undo("b")), Signal("c")))
    lab.finish("a")
    lab.finish("b")
    with pytest.raises(RunClosedError, match="may undo step 'b', which the fork would take over"):
        fork(lab, "c")
    fork(lab, "b")
    assert lab.names() == ["b"], "what it can't undo may be used by both"


def test_an_open_run_can_not_be_tried_again() -> None:
    lab = started(Lab())
    with pytest.raises(RunClosedError):
        lab.send(RetryRun("r"))
