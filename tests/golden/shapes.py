"""Runs of every shape as golden histories: what today's code decided about them, turn by turn, is what later code must find
nothing to add to. The sagas here are never edited, only added to; a run that is recorded finishes on the code it began with.
"""

import json
from collections.abc import Callable
from typing import Any

from actors.run import Child, Parallel, Retry, Saga, Sequential, Signal, Step, Timer, Undo, again, register
from actors.run.agent import AGENT
from actors.run.function import Flow, StepFailedError, saga_function
from events.catalog import DomainEvent
from events.run import RunEvents, StartRun
from events.tenant import TenantCreated
from tests.kit.factories import NOW_US
from tests.kit.runs import Lab

TWICE = Retry(attempts=2, first_s=1.0)


def _undo(step: str, *, if_unknown: bool = False) -> Undo:
    return Undo(tool="t", args=lambda run: {"undo": step, "was": run.get(step)}, retry=TWICE, if_unknown=if_unknown)


def _step(name: str, *, undone: bool = True, if_unknown: bool = False, **more: Any) -> Step:
    undo = _undo(name, if_unknown=if_unknown) if undone else None
    return Step(name, tool="t", args=lambda run: [name, run.input], retry=TWICE, undo=undo, **more)


register(
    Saga(
        "golden-order",
        steps=(
            Parallel(_step("reserve"), _step("charge", if_unknown=True)),
            _step("email", undone=False, optional=True),
            _step("ship", undone=False),
        ),
        output=lambda run: run["ship"],
    )
)
register(
    Saga(
        "golden-waits",
        steps=(
            _step("book"),
            Timer("pause", seconds=3_600),
            Signal("approved", timeout_s=86_400),
            _step("review", undone=False, when=lambda run: run["approved"] == "look again"),
            _step("close", undone=False),
        ),
    )
)
register(
    Saga(
        "golden-groups",
        steps=(
            Parallel(
                Sequential(_step("a1"), Timer("a-pause", seconds=60), _step("a2")),
                Sequential(_step("b1"), _step("b2")),
            ),
            _step("last", undone=False),
        ),
    )
)
register(Saga("golden-parent", steps=(_step("book"), Child("kid", saga="golden-order", input=lambda run: run.input))))
register(Saga("golden-patched", version=1, steps=(_step("a"), _step("c"))))
register(Saga("golden-patched", version=2, patches=(1,), steps=(_step("a"), _step("b"), _step("c"))))


@saga_function("golden-function")
async def _function(flow: Flow, given: int) -> Any:
    found = await flow.tool("find", "t", {"given": given}, undo=_undo("find"))
    try:
        await flow.tool("cheap", "t", {"found": found}, retry=TWICE)
    except StepFailedError:
        await flow.tool("dear", "t", {"found": found}, undo=_undo("dear"))
    await flow.sleep("pause", 60)
    await flow.signal("approved")
    return await flow.gather(flow.tool("left", "t", 1), flow.tool("right", "t", 2, undo=_undo("right")))


class Recording(Lab):
    """``turns``: when, and what was decided then in one append."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: list[tuple[int, list[RunEvents]]] = []

    def take(self, events: list[RunEvents]) -> list[RunEvents]:
        if events:
            self.turns.append((self.now_us, events))
        return super().take(events)


def _completed(lab: Recording) -> None:
    lab.start("golden-order", {"sku": "robe"})
    for step in ("charge", "reserve"):
        lab.finish(step, f"{step}-1")
    lab.fail("email", "bounced")
    lab.finish("ship", "parcel")


def _retried(lab: Recording) -> None:
    lab.start("golden-order", 1)
    lab.fail("charge", "busy", retryable=True)
    lab.finish("reserve")
    lab.wait(10)
    lab.finish("charge")
    lab.finish("email")
    lab.wait(600)  # nobody answers: the work is handed out again
    lab.finish("ship")


def _compensated(lab: Recording) -> None:
    lab.start("golden-order", 1)
    for step in ("reserve", "charge", "email"):
        lab.finish(step, f"{step}-1")
    lab.fail("ship")
    lab.finish("undo:charge")
    lab.finish("undo:reserve")


def _unknown(lab: Recording) -> None:
    lab.start("golden-order", 1)
    lab.fail("charge", "timeout", retryable=True, unknown=True)
    lab.finish("reserve")
    lab.wait(10)
    lab.fail("charge", "busy", retryable=True)
    lab.finish("undo:charge")
    lab.finish("undo:reserve")


def _stuck(lab: Recording) -> None:
    lab.start("golden-order", 1)
    for step in ("reserve", "charge", "email"):
        lab.finish(step, f"{step}-1")
    lab.fail("ship")
    lab.fail("undo:charge", "gone")
    lab.finish("undo:reserve")
    lab.take(again.reopen(lab.run(), lab.now_us))
    lab.finish("undo:charge")


def _tried_again(lab: Recording) -> None:
    lab.start("golden-waits", 1)
    lab.fail("book", "closed")
    lab.take(again.reopen(lab.run(), lab.now_us))
    lab.finish("book")


def _waited(lab: Recording) -> None:
    lab.start("golden-waits", 1)
    lab.signal("approved", "look again")
    lab.finish("book")
    lab.wait(3_600)
    lab.finish("review")
    lab.finish("close")


def _not_approved(lab: Recording) -> None:
    lab.start("golden-waits", 1)
    lab.finish("book")
    lab.wait(3_600 + 86_400)
    lab.finish("undo:book")


def _timed_out(lab: Recording) -> None:
    lab.start("golden-groups", 1, deadline_us=lab.now_us + 30_000_000)
    lab.finish("a1")
    lab.finish("b1")
    lab.wait(31)
    lab.finish("b2")
    for step in ("undo:a1", "undo:b2", "undo:b1"):
        lab.finish(step)


def _groups(lab: Recording) -> None:
    lab.start("golden-groups", 1)
    for step in ("b1", "a1", "b2"):
        lab.finish(step)
    lab.wait(61)
    lab.finish("a2")
    lab.fail("last")
    for step in ("undo:b2", "undo:a2", "undo:b1", "undo:a1"):
        lab.finish(step)


def _cancelled_with_its_child(lab: Recording) -> None:
    lab.start("golden-parent", 1)
    lab.finish("book")
    lab.finish("charge")
    lab.cancel()
    lab.finish("reserve")
    for step in ("undo:reserve", "undo:charge", "undo:book"):
        lab.finish(step)


def _child(lab: Recording) -> None:
    lab.start("golden-parent", 1)
    for step in ("book", "charge", "reserve", "email", "ship"):
        lab.finish(step, step)


def _forked(lab: Recording) -> None:
    _completed(lab)
    run = lab.run()
    kept = again.kept_until(run, "ship")
    lab.send(StartRun("f", run.saga, run.input, run.version, forked_from="r", kept=kept))
    lab.finish("email")  # had failed, so it is not kept
    lab.finish("ship", "another parcel")


def _function_completed(lab: Recording) -> None:
    lab.start("golden-function", 7)
    lab.finish("find", "it")
    lab.finish("cheap")
    lab.wait(61)
    lab.signal("approved")
    lab.finish("right", "r")
    lab.finish("left", "l")


def _function_compensated(lab: Recording) -> None:
    lab.start("golden-function", 7)
    lab.finish("find", "it")
    lab.fail("cheap", "sold_out")
    lab.finish("dear")
    lab.signal("approved")
    lab.wait(61)
    lab.finish("right", "r")
    lab.fail("left")
    for step in ("undo:right", "undo:dear", "undo:find"):
        lab.finish(step)


def _function_cancelled(lab: Recording) -> None:
    lab.start("golden-function", 7)
    lab.finish("find", "it")
    lab.finish("cheap")
    lab.cancel()
    lab.finish("undo:find")


def _patched(lab: Recording) -> None:
    lab.start("golden-patched", 1, version=1)
    for step in ("a", "b", "c"):
        lab.finish(step)


def _agent(lab: Recording) -> None:
    spec = {
        "model": "small",
        "messages": [{"role": "user", "content": "how warm is it in Rome?"}],
        "tools": ["weather"],
    }
    call = {"id": "c0", "name": "weather", "arguments": json.dumps({"city": "Rome"})}
    lab.start(AGENT, spec)
    asks = {"role": "assistant", "content": None, "tool_calls": [call]}
    lab.finish("model-1", {"message": asks, "calls": [call]})
    lab.finish("tool-1.1", {"celsius": 21})
    lab.finish("model-2", {"message": {"role": "assistant", "content": "21 degrees"}})


_SHAPES: dict[str, Callable[[Recording], None]] = {
    "completed": _completed,
    "retried": _retried,
    "compensated": _compensated,
    "unknown": _unknown,
    "stuck": _stuck,
    "tried-again": _tried_again,
    "waited": _waited,
    "not-approved": _not_approved,
    "timed-out": _timed_out,
    "groups": _groups,
    "cancelled": _cancelled_with_its_child,
    "child": _child,
    "forked": _forked,
    "function-completed": _function_completed,
    "function-compensated": _function_compensated,
    "function-cancelled": _function_cancelled,
    "patched": _patched,
    "agent": _agent,
}


def shapes() -> dict[str, list[tuple[int, list[DomainEvent]]]]:
    """Turns by the family that they are recorded as."""
    found: dict[str, list[tuple[int, list[DomainEvent]]]] = {}
    for name, tell in _SHAPES.items():
        lab = Recording()
        tell(lab)
        turns: list[tuple[int, list[DomainEvent]]] = [(at_us, [*events]) for at_us, events in lab.turns]
        found[f"run-{name}"] = [(NOW_US, [TenantCreated("Runs Ltd", "pro", NOW_US)]), *turns]
    return found
