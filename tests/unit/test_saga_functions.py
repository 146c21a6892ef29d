"""Sagas as plain async functions: replayed, and caught where they are not deterministic."""

import asyncio
import uuid
from typing import Any

import msgspec
import pytest

from actors.run import Retry, Undo, again, machine
from actors.run.function import Flow, SagaBody, StepFailedError, saga_function
from actors.run.state import describe
from events.errors import InvalidCommandError
from events.run import FinishStep, StepScheduled, pack
from tests.kit.runs import Lab

ONCE = Retry(1)


class Refund(msgspec.Struct):
    order: str


def saga(body: SagaBody, **more: Any) -> str:
    return saga_function(f"f-{uuid.uuid4().hex[:8]}", **more)(body).name


async def refund(flow: Flow, given: Refund) -> Any:
    charge = await flow.tool(
        "find", "payments", {"order": given.order}, undo=Undo(tool="t", args=lambda run: run["find"])
    )
    await flow.signal("approved")
    done, told = await flow.gather(
        flow.tool("refund", "payments", charge, retry=ONCE, undo=Undo(tool="t", args=lambda run: run["refund"])),
        flow.tool("tell", "email", {"to": "ann"}, retry=ONCE),
    )
    return [done, told]


def test_it_goes_on_from_what_it_has_done() -> None:
    lab = Lab()
    lab.start(saga(refund, input=Refund), {"order": "o1"})
    lab.finish("find", "c1")
    assert lab.names() == []
    lab.signal("approved")
    assert lab.names() == ["refund", "tell"]
    lab.finish("tell", "told")
    lab.finish("refund", "back")
    assert lab.output() == ["back", "told"]


def test_an_error_that_it_does_not_catch_undoes_what_it_did_newest_first() -> None:
    lab = Lab()
    lab.start(saga(refund, input=Refund), {"order": "o1"})
    lab.finish("find", "c1")
    lab.signal("approved")
    lab.finish("refund", "back")
    lab.fail("tell", "bounced")
    assert lab.run().code == "bounced"
    assert lab.names() == ["undo:refund"]
    lab.finish("undo:refund")
    lab.finish("undo:find")
    assert lab.run().status == "compensated"


def test_an_error_may_be_caught_and_another_way_taken() -> None:
    async def body(flow: Flow, _given: Any) -> Any:
        try:
            return await flow.tool("fast", "t", retry=ONCE)
        except StepFailedError as error:
            return [error.code, await flow.tool("slow", "t")]

    lab = Lab()
    lab.start(saga(body))
    lab.fail("fast", "down")
    lab.finish("slow", "done")
    assert (lab.run().status, lab.output()) == ("completed", ["down", "done"])


def test_it_is_tried_again_where_it_gave_up_and_not_where_it_took_another_way() -> None:
    async def body(flow: Flow, _given: Any) -> Any:
        try:
            await flow.tool("fast", "t", retry=ONCE)
        except StepFailedError:
            return await flow.tool("slow", "t", retry=ONCE)

    lab = Lab()
    lab.start(saga(body))
    lab.fail("fast")
    lab.fail("slow")
    assert lab.run().status == "failed"
    lab.take(again.reopen(lab.run(), lab.now_us, lab.runs))
    assert lab.names() == ["slow"]
    lab.finish("slow", "done")
    assert lab.output() == "done"


@pytest.mark.parametrize("flaw", ["its own error", "an output that is no data", "arguments that are no data"])
def test_what_it_did_is_undone_where_its_own_code_fails(flaw: str) -> None:
    async def body(flow: Flow, _given: Any) -> Any:
        found = await flow.tool("reserve", "t", undo=Undo(tool="t"))
        if flaw == "its own error":
            return found["id"]
        return object() if "output" in flaw else await flow.tool("ship", "t", object())

    lab = Lab()
    lab.start(saga(body))
    lab.finish("reserve", {"ID": 1})
    assert (lab.run().status, lab.run().code) == ("compensating", "saga_failed")
    assert "Error: " in lab.run().message
    lab.finish("undo:reserve")
    assert lab.run().status == "compensated"


@pytest.mark.parametrize("is_reordered", [True, False])
def test_code_that_changed_under_its_run_blocks_it_and_says_so(is_reordered: bool) -> None:
    names, argument = ["a", "b"], ["x"]

    async def body(flow: Flow, _given: Any) -> None:
        for name in names:
            await flow.tool(name, "t", list(argument))

    lab = Lab()
    lab.start(saga(body))
    if is_reordered:
        names[:] = ["c", "a"]
    else:
        argument[:] = ["y"]
    lab.finish("a")
    run = lab.run()
    assert run.status == "blocked"
    assert "now asks for 'c' where the run has done 'a'" in run.blocked or "other arguments" in run.blocked
    assert lab.names() == []


@pytest.mark.parametrize("end", ["cancel", "deadline"])
def test_what_changed_code_no_longer_knows_is_not_forgotten_at_the_end(end: str) -> None:
    """The run stays blocked until the code is back that can undo it."""
    names = ["reserve"]

    async def body(flow: Flow, _given: Any) -> None:
        await flow.tool(names[0], "t", undo=Undo(tool="t"))
        await flow.signal("approved")

    lab, program = Lab(), saga_function(f"f-{uuid.uuid4().hex[:8]}")(body)
    lab.start(program.name, deadline_us=lab.now_us + 60_000_000)
    lab.finish("reserve")
    names[:] = ["hold"]
    program._replays.clear()  # as in a process that has the new code only
    lab.cancel() if end == "cancel" else lab.wait(61)
    assert lab.run().status == "blocked"
    assert "does not come to step 'reserve'" in lab.run().blocked
    names[:] = ["reserve"]
    program._replays.clear()
    lab.take(machine.resume(lab.runs, lab.now_us))
    lab.finish("undo:reserve")
    assert lab.run().status == ("cancelled" if end == "cancel" else "timed_out")


def test_what_may_have_happened_is_undone_in_its_turn() -> None:
    async def body(flow: Flow, _given: Any) -> None:
        await flow.tool("reserve", "t", undo=Undo(tool="t"))
        await flow.tool("pay", "t", retry=ONCE, undo=Undo(tool="t", if_unknown=True))

    lab = Lab()
    lab.start(saga(body))
    lab.finish("reserve")
    lab.fail("pay", unknown=True)
    assert lab.names() == ["undo:pay"]
    lab.finish("undo:pay")
    assert lab.names() == ["undo:reserve"]


def test_it_may_await_nothing_but_its_flow() -> None:
    async def body(_flow: Flow, _given: Any) -> None:
        await asyncio.sleep(0)

    lab = Lab()
    lab.start(saga(body))
    assert lab.run().status == "blocked"
    assert "may await only its flow" in lab.run().blocked


def test_its_input_has_a_type() -> None:
    with pytest.raises(InvalidCommandError, match="Expected `str`"):
        Lab().start(saga(refund, input=Refund), {"order": 1})


def test_step_names_are_unique() -> None:
    async def body(flow: Flow, _given: Any) -> None:
        await flow.tool("a", "t")
        await flow.tool("a", "t")

    lab = Lab()
    lab.start(saga(body))
    lab.finish("a")
    assert "'a' twice" in lab.run().blocked


@pytest.mark.parametrize("wait", ["signal", "sleep"])
def test_what_was_done_before_it_waited_is_undone_when_it_is_cancelled(wait: str) -> None:
    async def waiting(flow: Flow, _given: None) -> None:
        await flow.tool("pay", "payments", undo=Undo(tool="t", args=lambda run: run["pay"]))
        await (flow.signal("approved") if wait == "signal" else flow.sleep("pause", 60))
        await flow.tool("never", "t")

    lab = Lab()
    lab.start(saga(waiting))
    lab.finish("pay", "p1")
    lab.cancel()
    assert lab.names() == ["undo:pay"]
    lab.finish("undo:pay")
    assert lab.run().status == "cancelled"


def counting(steps: int) -> tuple[SagaBody, list[int]]:
    """A function of so many steps, and how often it has come to one."""
    came = [0]

    async def body(flow: Flow, _given: Any) -> int:
        total = 0
        for number in range(steps):
            came[0] += 1
            total += await flow.tool(f"s{number}", "t")
        return total

    return body, came


def test_a_long_run_costs_its_function_a_few_times_its_steps_and_not_their_square() -> None:
    steps = 2_000
    body, came = counting(steps)
    lab = Lab()
    lab.start(saga(body))
    for number in range(steps):
        lab.finish(f"s{number}", 1)
    assert (lab.run().status, lab.output()) == ("completed", steps)
    assert steps < came[0] <= 4 * steps


def test_a_function_that_is_held_goes_on_only_for_the_history_that_it_was_given() -> None:
    """What was decided and then not written is as if it had never been: the log may go another way."""

    async def body(flow: Flow, _given: Any) -> Any:
        first = await flow.tool("a", "t")
        return [first, await flow.tool("b", "t", {"of": first})]

    lab, name = Lab(), saga(body)
    lab.start(name)
    lost = machine.decide(lab.runs, FinishStep("r", "a", 1, pack("lost"), 1), lab.now_us)
    assert any(isinstance(event, StepScheduled) for event in lost)
    lab.finish("a", "kept")
    lab.finish("b", "done")
    assert lab.output() == ["kept", "done"]


def test_two_runs_of_one_id_are_told_apart_by_what_they_were_given() -> None:
    async def body(flow: Flow, given: str) -> Any:
        return [given, await flow.tool("a", "t", given)]

    name = saga(body)
    labs = {given: Lab() for given in ("one", "other")}  # two tenants of one process
    for given, lab in labs.items():
        lab.start(name, given)
    for given, lab in labs.items():
        lab.finish("a", given)
        assert lab.output() == [given, given]


def test_why_a_run_is_blocked_is_said_by_its_code() -> None:
    names = ["a"]

    async def body(flow: Flow, _given: Any) -> None:
        for name in names:
            await flow.tool(name, "t")

    lab = Lab()
    lab.start(saga(body))
    names[:] = ["c"]
    lab.finish("a")
    assert describe(lab.run())["error"]["code"] == "nondeterministic"
