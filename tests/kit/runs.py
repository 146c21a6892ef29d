"""A tenant's runs in a test: commands in, work out, time by hand. Every event passes through the wire."""

import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from actors.run import Parallel, Saga, Step, Undo, machine, open_runs, register
from actors.run.definition import Node
from actors.run.open_runs import Runs
from actors.run.state import Run, fold_stream
from events.run import (
    CancelRun,
    FailStep,
    FinishStep,
    RunCommand,
    RunEvents,
    SignalRun,
    StartRun,
    StepRequeued,
    StepScheduled,
    pack,
    unpack,
)
from tests.kit.factories import NOW_US

_decode = msgspec.msgpack.Decoder(RunEvents).decode


class Order(msgspec.Struct):
    sku: str
    amount: int


def saga(*steps: Node, **more: Any) -> str:
    """Registered under a name of its own."""
    return register(Saga(f"s-{uuid.uuid4().hex[:8]}", steps=steps, **more)).name


def undo(name: str) -> Undo:
    return Undo(tool="t", args=lambda run: {"undo": name, "id": run.get(name)})


def order_saga() -> str:
    return saga(
        Parallel(
            Step("reserve", tool="stock", args=lambda run: run.input.sku, undo=undo("reserve")),
            Step("charge", tool="payments", args=lambda run: run.input.amount, undo=undo("charge")),
        ),
        Step("email", tool="email"),
        Step("ship", tool="shipping", args=lambda run: [run["reserve"], run["charge"]]),
        input=Order,
        output=lambda run: {"shipped": run["ship"]},
    )


def started(lab: "Lab") -> "Lab":
    lab.start(order_saga(), {"sku": "robe", "amount": 3})
    return lab


class Lab:
    """``todo`` holds the work that runners have not answered yet."""

    def __init__(self) -> None:
        self.runs, self.now_us = Runs(), NOW_US
        self.history: list[RunEvents] = []
        self.todo: list[StepScheduled] = []

    def send(self, command: RunCommand) -> list[RunEvents]:
        return self.take(machine.decide(self.runs, command, self.now_us))

    def take(self, events: list[RunEvents]) -> list[RunEvents]:
        for event in events:
            seen: RunEvents = _decode(msgspec.msgpack.encode(event))
            self.runs = open_runs.fold(self.runs, seen)
            self.history.append(seen)
            if isinstance(seen, StepScheduled) and seen.order.kind in ("tool", "function", "model"):
                self.todo.append(seen)
        return events

    def start(self, saga: str, given: Any = None, run_id: str = "r", **more: Any) -> None:
        self.send(StartRun(run_id, saga, pack(given), **more))

    def work(self, step: str) -> StepScheduled:
        (found,) = (item for item in self.todo if item.order.step == step)
        return found

    def names(self) -> list[str]:
        return [item.order.step for item in self.todo]

    def finish(self, step: str, result: Any = None) -> None:
        item = self.work(step)
        self.todo.remove(item)
        self.send(FinishStep(item.run_id, step, item.attempt, pack(result), 1_000))

    def fail(self, step: str, code: str = "broken", *, retryable: bool = False, unknown: bool = False) -> None:
        item = self.work(step)
        self.todo.remove(item)
        text = f"{step} is {code}"
        self.send(FailStep(item.run_id, step, item.attempt, code, text, retryable, 1_000, may_have_happened=unknown))

    def signal(self, name: str, payload: Any = None, run_id: str = "r") -> None:
        self.send(SignalRun(run_id, name, pack(payload)))

    def cancel(self, run_id: str = "r") -> None:
        self.send(CancelRun(run_id, "no longer wanted"))

    def wait(self, seconds: float) -> None:
        """Let time pass, timer by timer."""
        ends = self.now_us + int(seconds * 1e6)
        while 0 < (due := self.runs.next_timer_us) <= ends:
            self.now_us = max(self.now_us, due)
            events = self.take(machine.fire_timers(self.runs, self.now_us, 500))
            assert events, "a timer was due and nothing followed"
        self.now_us = ends

    def run(self, run_id: str = "r") -> Run:
        """Open or ended, folded from its stream."""
        return fold_stream([event for event in self.history if event.run_id == run_id])

    def output(self, run_id: str = "r") -> Any:
        return unpack(self.run(run_id).output)

    def work_through(self, answer: Callable[[StepScheduled], Any]) -> None:
        """Answer all work; an exception's text is the code of a failure that is not worth a repeat."""
        while self.todo:
            item = self.todo[0]
            try:
                result = answer(item)
            except RuntimeError as error:
                self.fail(item.order.step, str(error))
            else:
                self.finish(item.order.step, result)


__all__ = ["Lab", "StepRequeued"]
