"""Runs within runs, and many steps at once: what children's ends lead to, and what fits into one append."""

from typing import Any

import pytest

from actors.run import (
    Child,
    Parallel,
    Retry,
    Signal,
    Step,
    Timer,
    Undo,
    consequences,
    machine,
)
from events.run import (
    RunEnded,
    RunStarted,
)
from tests.kit.runs import Lab, saga, undo


def test_cancelling_undoes_and_reaches_children() -> None:
    child = saga(Step("c1", tool="t", undo=undo("c1")), Signal("never"))
    lab = Lab()
    lab.start(saga(Step("a", tool="t", undo=undo("a")), Child("kid", saga=child), Step("z", tool="t")))
    lab.finish("a")
    lab.finish("c1")
    assert set(lab.runs.open) == {"r", "r/kid"}
    lab.cancel()
    lab.finish("undo:c1")
    assert lab.run("r/kid").status == "cancelled"
    lab.finish("undo:a")
    assert lab.run().status == "cancelled"
    assert not lab.runs.open


def kids(children: int) -> Parallel:
    kid = saga(Signal("go"))
    return Parallel(*(Child(f"c{number}", saga=kid) for number in range(children)))


def family(children: int) -> str:
    return saga(Step("pay", tool="t", undo=undo("pay")), kids(children))


@pytest.mark.parametrize("why", ["cancelled", "timed_out"])
def test_what_follows_from_one_event_fits_into_an_append(why: str) -> None:
    """Else it is refused for ever, and with it all timers of the tenant."""
    lab, sizes = Lab(), []
    lab.start(family(consequences.STARTED_TOGETHER_MAX), deadline_us=lab.now_us + 60_000_000)
    lab.finish("pay")
    if why == "cancelled":
        lab.cancel()
    else:
        lab.now_us += 60_000_000
    while 0 < lab.runs.next_timer_us <= lab.now_us:
        sizes.append(len(lab.take(machine.fire_timers(lab.runs, lab.now_us))))
    assert 0 < max(sizes) <= 1_000
    assert list(lab.runs.open) == ["r"], "its children have ended"
    lab.finish("undo:pay")
    assert lab.run().status == why


def test_steps_that_are_too_many_to_begin_together_fail_their_run() -> None:
    lab = Lab()
    lab.start(family(consequences.STARTED_TOGETHER_MAX + 1))
    lab.finish("pay")
    assert lab.run().code == "too_many_steps"
    assert lab.names() == ["undo:pay"]


def test_children_of_children_that_are_too_many_to_begin_together_fail_their_run() -> None:
    lab = Lab()
    sub = saga(kids(20))
    lab.start(saga(Parallel(*(Child(f"c{number}", saga=sub) for number in range(100)))))
    assert len(lab.history) < 2_048
    while 0 < lab.runs.next_timer_us <= lab.now_us:
        assert len(lab.take(machine.fire_timers(lab.runs, lab.now_us))) < 2_048
    assert (lab.run().status, lab.run().code) == ("failed", "child_refused")


def test_a_run_of_which_too_much_is_due_does_not_hold_up_the_others() -> None:
    lab = Lab()
    lab.start(saga(kids(50)), deadline_us=lab.now_us + 1_000_000)
    lab.start(saga(Timer("t", seconds=2)), run_id="other")
    lab.now_us += 3_000_000
    lab.take(machine.fire_timers(lab.runs, lab.now_us, room=40))
    assert (lab.run("other").status, lab.run().status) == ("completed", "running")


def test_a_childs_output_is_its_steps_result_and_its_failure_the_steps() -> None:
    child = saga(Step("work", tool="t", args=lambda run: run.input), output=lambda run: run["work"] * 2)
    parent = saga(Child("kid", saga=child, input=lambda _run: 21), output=lambda run: run["kid"])
    lab = Lab()
    lab.start(parent)
    lab.finish("work", 21)
    assert lab.output() == 42
    lab = Lab()
    lab.start(parent)
    lab.fail("work")
    assert (lab.run().status, lab.run().code) == ("failed", "child_failed")


@pytest.mark.parametrize("left", ["stuck", "unknown", "broken"])
def test_a_child_that_left_something_behind_is_a_step_that_may_have_happened(left: str) -> None:
    """Else nobody would undo the step, though its parent knows how to."""

    def args(run: Any) -> Any:
        return run["nobody"] if left == "broken" else None

    lab = Lab()
    keeps = Step("keep", tool="t", undo=Undo(tool="t", args=args, retry=Retry(1)))
    child = saga(keeps, Step("work", tool="t", undo=undo("work")))
    lab.start(saga(Child("sub", saga=child, undo=Undo(tool="t", if_unknown=True))))
    lab.finish("keep")
    lab.fail("work", unknown=left == "unknown")
    if left == "stuck":
        lab.fail("undo:keep")
    elif left == "unknown":
        lab.finish("undo:keep")
    assert lab.run("r/sub").status == "failed"
    assert lab.names() == ["undo:sub"]


def test_a_child_that_ends_as_it_begins_leaves_its_parent_in_order() -> None:
    """What its end leads to is decided on all steps that begin with it: none is begun twice, none for an ended run."""
    empty = saga(Step("x", tool="t", when=lambda run: False))
    lab = Lab()
    lab.start(
        saga(Parallel(Child("kid", saga=empty), Step("b", tool="t"), Child("kid2", saga=saga(Step("x", tool="t")))))
    )
    assert lab.names() == ["b", "x"]
    assert [event.run_id for event in lab.history if isinstance(event, RunStarted)] == ["r", "r/kid", "r/kid2"]
    lab.finish("x")
    lab.finish("b")
    assert [event.run_id for event in lab.history if isinstance(event, RunEnded)] == ["r/kid", "r/kid2", "r"]
    assert not lab.runs.open
    assert not lab.runs.under_way


def test_a_child_that_fails_as_it_begins_fails_its_parent_and_nothing_comes_after_that() -> None:
    def broken(_run: Any) -> Any:
        raise LookupError("no such thing")

    lab = Lab()
    bad = saga(Step("x", tool="t", args=broken))
    lab.start(saga(Parallel(Child("kid", saga=bad), Step("b", tool="t"), Child("never", saga=bad))))
    assert lab.runs.open["r"].failing is not None
    assert [event.run_id for event in lab.history if isinstance(event, RunStarted)] == ["r", "r/kid"]
    lab.finish("b")  # it was begun in the same breath, and is waited for
    last = lab.history[-1]
    assert isinstance(last, RunEnded)
    assert (last.run_id, last.status) == ("r", "failed")
    assert not lab.runs.open
    assert not lab.runs.under_way
