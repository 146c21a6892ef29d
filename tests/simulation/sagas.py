"""Sagas of every shape, for the simulation and for the processes that the crash sweep kills. Registered at import."""

from actors.run import Child, Parallel, Retry, Saga, Sequential, Signal, Step, Timer, Undo, register
from actors.run.definition import Node
from actors.run.function import Flow, saga_function

RETRY = Retry(attempts=4, first_s=0.2, max_s=2.0)
UNDO_RETRY = Retry(attempts=8, first_s=0.2, max_s=4.0)
TIMEOUT_S = 5.0


def _undo(what: str, *, if_unknown: bool = False) -> Undo:
    return Undo(
        function="effect",
        args=lambda run: [what, run.get(what)],
        retry=UNDO_RETRY,
        timeout_s=TIMEOUT_S,
        if_unknown=if_unknown,
    )


def _step(name: str, *, undone: bool = True, if_unknown: bool = False, optional: bool = False) -> Step:
    return Step(
        name,
        function="effect",
        args=lambda run: [name, run.input],
        retry=RETRY,
        timeout_s=TIMEOUT_S,
        undo=_undo(name, if_unknown=if_unknown) if undone else None,
        optional=optional,
    )


SHAPES: dict[str, tuple[Node, ...]] = {
    "sim-order": (
        Parallel(_step("reserve_stock"), _step("charge", if_unknown=True)),
        _step("email", undone=False),
        _step("ship", undone=False),
    ),
    "sim-trip": (
        _step("flight"),
        _step("hotel"),
        Signal("approved", timeout_s=40.0),
        _step("charge", if_unknown=True),
        _step("tell", undone=False, optional=True),
    ),
    "sim-groups": (
        Parallel(
            Sequential(_step("a1"), Timer("pause", seconds=7.0), _step("a2")),
            Sequential(_step("b1"), _step("b2")),
            _step("charge", if_unknown=True),
        ),
        Step("maybe", function="effect", args=lambda run: ["maybe", run.input], when=lambda run: run.input % 2 == 0),
        _step("last", undone=False),
    ),
    "sim-parent": (
        _step("book"),
        Child("kid", saga="sim-order", input=lambda run: run.input),
        _step("charge", if_unknown=True),
    ),
}

for _name, _steps in SHAPES.items():
    register(Saga(_name, steps=_steps, output=lambda run: run.input))


@saga_function("sim-function")
async def _refund(flow: Flow, amount: int) -> int:
    await flow.function("find", "effect", ["find", amount], retry=RETRY, timeout_s=TIMEOUT_S, undo=_undo("find"))
    await flow.sleep("pause", 3.0)
    charge = flow.function("charge", "effect", ["charge", amount], retry=RETRY, undo=_undo("charge", if_unknown=True))
    tell = flow.function("tell", "effect", ["tell", amount], retry=RETRY, timeout_s=TIMEOUT_S, undo=_undo("tell"))
    await flow.gather(charge, tell)
    await flow.function("close", "effect", ["close", amount], retry=RETRY, timeout_s=TIMEOUT_S)
    return amount


NAMES = (*SHAPES, "sim-function")
WAITS_FOR = {"sim-trip": "approved"}
