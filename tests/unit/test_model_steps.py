"""What a model step's calls cost: in the tenant's books, and in what its run is told; whatever goes wrong in between."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import reduce
from typing import Any

import msgspec
import pytest

from actors.policies.refusals import BreakerOpenError
from actors.run.functions import StepFailure
from actors.run.runner import Done, Runner
from actors.tenant import Tenant, answer, decide, evolve
from actors.tools.errors import ToolOutcomeUnknownError, ToolUnavailableError
from events.envelope import Ok
from events.errors import CommandIdReusedError, CommandRefusedError, Refusal, StoreUnavailableError
from events.messages import Command
from events.run import FailStep, FinishStep, RetryRule, StepOrder, Used, pack
from events.sealing import WITHOUT_KEY
from events.tenant import CreateTenant, SetBudget
from events.work import WorkItem
from serve.booking import Bookings
from serve.chat_request import Call
from serve.model_steps import ModelSteps
from serve.routing import Hop, Plan
from serve.settings import Model

NOW_US = 10**15
MODEL = Model.model_validate(
    {
        "name": "m",
        "upstreams": [{"base_url": f"http://127.0.0.1:{n}/v1", "model": model} for n, model in ((1, "a"), (2, "b"))],
        "price": {"input_usd_per_mtok": "1", "output_usd_per_mtok": "4"},
    }
)
ANSWER = {
    "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 50},
}
COST = 10 * 1_000 + 50 * 4_000
Behaviour = Callable[[Any], AsyncIterator[dict[str, Any]]]


class Books:
    """A tenant that decides at once, and answers a command id as it did the first time."""

    def __init__(self) -> None:
        self.state, self.ids = Tenant(), 0
        self.granted: dict[str, tuple[bytes, Ok]] = {}

    def new_id(self) -> str:
        self.ids += 1
        return f"id-{self.ids}"

    async def ask(self, tenant: str, command: Command, *, actor: str, command_id: str = "", **_: Any) -> Ok:
        command_id = command_id or self.new_id()
        if command_id in self.granted:
            body, ok = self.granted[command_id]
            if body != msgspec.msgpack.encode(command):
                raise CommandRefusedError(CommandIdReusedError.code, "another body")
            return ok
        try:
            events = decide(self.state, tenant, command, NOW_US)  # type: ignore[arg-type]
        except Refusal as error:
            raise CommandRefusedError(error.code, str(error), getattr(error, "retry_after_s", None)) from error
        self.state = reduce(evolve, events, self.state)
        ok = Ok(answer(self.state, tenant, command, NOW_US), self.state.version)  # type: ignore[arg-type]
        if events:
            self.granted[command_id] = msgspec.msgpack.encode(command), ok
        return ok

    @property
    def spent(self) -> int:
        return self.state.account.spent_nano_usd

    @property
    def open(self) -> int:
        return len(self.state.reservations)


class Upstreams:
    """Both upstreams behave as told; ``full``: those in whose bulkhead one waits."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.calls: list[tuple[str, str, bytes]] = []  # upstream, Idempotency-Key, body
        self.refusing: dict[str, Exception] = {}
        self.full = asyncio.Event()
        self.is_full = False

    def plan(self, call: Call) -> Plan:
        return Plan(tuple(Hop(call.model, upstream, upstream.model) for upstream in call.model.upstreams))

    @asynccontextmanager
    async def attempt(self, hop: Hop, tenant: str) -> AsyncIterator[Callable[[], None]]:
        if error := self.refusing.get(hop.name):
            raise error
        if self.is_full:
            self.full.set()
            await asyncio.Event().wait()
        yield lambda: None

    async def stream(
        self, upstream: Any, body: dict[str, Any], *, idempotency_key: str = ""
    ) -> AsyncIterator[dict[str, Any]]:
        self.calls.append((upstream.model, idempotency_key, msgspec.json.encode(body)))
        async for chunk in self.behaviour(upstream):
            yield chunk


class Silent:
    """Deltas, ciphers and turns of no interest here. ``left``: what the turn may cost."""

    left: int | None = None
    error: Exception | None = None
    adds = ""

    def new_call(self) -> str:
        return "call"

    async def put(self, *_: Any) -> None:
        pass

    async def cipher(self, _tenant: str) -> Any:
        return WITHOUT_KEY

    async def request(self, _item: WorkItem, _turn: int) -> tuple[dict[str, Any], int | None]:
        return {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100}, self.left

    async def turn(self, _tenant: str, message: dict[str, Any], _reason: str) -> Any:
        if self.error is not None:
            raise self.error
        return {**message, "added": self.adds}


class Lab:
    def __init__(self, behaviour: Behaviour) -> None:
        self.books, self.upstreams, self.rest = Books(), Upstreams(behaviour), Silent()
        self.area: Any = None
        self.bookings = Bookings(self.books, [MODEL], 600)  # type: ignore[arg-type]
        rest: Any = self.rest
        upstreams: Any = self.upstreams
        self.steps = ModelSteps({"m": MODEL}, self.bookings, upstreams, upstreams, rest, rest, rest)

    async def open(self, budget: int = 10**9) -> "Lab":
        await self.books.ask("acme", CreateTenant("Acme", "free"), actor="test")
        await self.books.ask("acme", SetBudget(budget, "total"), actor="test")
        return self

    async def carried_out(self, work: WorkItem) -> FinishStep | FailStep:
        """What a runner tells of it."""
        told: list[Any] = []

        class Told(Books):
            async def ask(self, tenant: str, command: Command, **_: Any) -> Ok:
                told.append(command)
                return Ok({}, 1)

        none: Any = None
        asker: Any = Told()
        runner = Runner(none, asker, none, self.area, {"model": self.steps})
        await runner._carry_out(work, none)
        await self.bookings.drain()
        (command,) = told
        assert isinstance(command, FinishStep | FailStep)
        return command

    async def call(self, work: WorkItem) -> Done:
        try:
            return await self.steps(work, {"turn": 1})
        finally:
            await self.bookings.drain()


def item(attempt: int = 1, timeout_s: float = 60.0, *, again: bool = False) -> WorkItem:
    order = StepOrder("turn-1", "model", "m", int(timeout_s * 1e6), RetryRule(3))
    return WorkItem("acme", "run", "agent", 1, order, pack({"turn": 1}), attempt, "key", again=again)


async def answers(_upstream: Any) -> AsyncIterator[dict[str, Any]]:
    yield ANSWER


async def fail(error: Exception) -> None:
    raise error


async def is_down(_upstream: Any) -> AsyncIterator[dict[str, Any]]:
    await fail(ToolUnavailableError("m", "503", "upstream_overloaded", 1.0))
    yield {}


@pytest.mark.parametrize("left", [None, 10**9])
async def test_what_is_called_again_after_a_call_that_cost_nothing_is_booked(left: int | None) -> None:
    """Its runner died after it had freed the reservation, before it could tell; and the next one after it, too."""
    lab = await Lab(is_down).open()
    lab.rest.left = left
    for again in (False, True):
        with pytest.raises(ToolUnavailableError):
            await lab.call(item(again=again))
    assert (lab.books.spent, lab.books.open) == (0, 0)
    lab.upstreams.behaviour = answers
    done = await lab.call(item(again=True))
    assert (lab.books.spent, done.used.cost_nano_usd) == (COST, COST)
    await lab.call(item(again=True))
    assert lab.books.spent == COST, "this time it was paid for"
    assert lab.books.open == 0


async def test_what_is_called_again_after_a_call_that_cost_nothing_needs_a_budget() -> None:
    lab = await Lab(is_down).open()
    with pytest.raises(ToolUnavailableError):
        await lab.call(item())
    await lab.books.ask("acme", SetBudget(1, "total"), actor="test")
    lab.upstreams.behaviour, called = answers, len(lab.upstreams.calls)
    with pytest.raises(StepFailure, match="budget"):
        await lab.call(item(again=True))
    assert len(lab.upstreams.calls) == called


async def test_what_is_called_again_while_its_reservation_is_open_is_the_same_call() -> None:
    lab = await Lab(answers).open()
    work = item()
    call = lab.steps._parsed(work, (await lab.rest.request(work, 1))[0])
    await lab.steps._reserve(work, call, "0")
    await lab.call(item(again=True))
    assert (lab.books.spent, lab.books.open) == (COST, 0)


async def hangs(_upstream: Any) -> AsyncIterator[dict[str, Any]]:
    await asyncio.Event().wait()
    yield {}


async def breaks_off(_upstream: Any) -> AsyncIterator[dict[str, Any]]:
    await fail(ToolOutcomeUnknownError("m", "broke off", "upstream_unavailable", 1.0))
    yield {}


async def begins(_upstream: Any) -> AsyncIterator[dict[str, Any]]:
    yield ANSWER
    await asyncio.Event().wait()


async def test_a_step_that_is_out_of_time_tells_its_run_what_it_cost() -> None:
    for behaviour in (hangs, begins):
        lab = await Lab(behaviour).open()
        told = await lab.carried_out(item(timeout_s=0.05))
        assert isinstance(told, FailStep)
        assert (told.code, told.used.cost_nano_usd) == ("timeout", lab.books.spent)
        assert told.used.cost_nano_usd >= COST
        assert told.used.output_tokens == (50 if behaviour is begins else 0)


async def test_a_step_tells_its_run_what_it_cost_whatever_came_after_the_try_that_cost_it() -> None:
    for error in (BreakerOpenError("b", "open", 1.0), StoreUnavailableError("away"), StepFailure("no", "no")):
        lab = await Lab(breaks_off).open()
        lab.upstreams.refusing["b"] = error
        told = await lab.carried_out(item())
        assert isinstance(told, FailStep)
        assert told.used.cost_nano_usd == lab.books.spent > COST
        assert lab.books.open == 0


@pytest.mark.parametrize("at", ["turn", "payload"])
async def test_a_step_whose_result_can_not_be_kept_now_tells_its_run_what_it_cost(at: str) -> None:
    class Away:
        async def put(self, _tenant: str, _payload: bytes) -> Any:
            raise StoreUnavailableError("away")

    lab = await Lab(answers).open()
    lab.area = Away()
    if at == "turn":
        lab.rest.error = StoreUnavailableError("away")
    else:
        lab.rest.adds = "x" * 1_000_000
    told = await lab.carried_out(item())
    assert isinstance(told, FailStep)
    assert (told.code, told.used) == (StoreUnavailableError.code, Used(COST, 10, 50))
    assert lab.books.spent == COST


async def test_a_step_that_only_waited_for_its_upstream_costs_nothing() -> None:
    lab = await Lab(answers).open()
    lab.upstreams.is_full = True
    told = await lab.carried_out(item(timeout_s=0.05))
    assert isinstance(told, FailStep)
    assert (told.code, told.used, lab.books.spent, lab.books.open) == ("timeout", Used(), 0, 0)


async def test_a_repeat_that_waits_for_its_upstream_is_booked_for_the_call_before_it() -> None:
    """Which may be with an upstream: only its runner is gone."""
    lab = await Lab(answers).open()
    lab.upstreams.is_full = True
    told = await lab.carried_out(item(timeout_s=0.05, again=True))
    assert told.used.cost_nano_usd == lab.books.spent > COST


async def test_an_upstream_never_sees_one_key_with_two_bodies_and_a_repeat_keeps_its_key() -> None:
    """Both upstreams are tried, with less left of the run's limit in the second attempt, whose runner dies and is followed."""
    lab = await Lab(is_down).open()
    for left, attempt, again in ((10**9, 1, False), (400_000, 2, False), (400_000, 2, True)):
        lab.rest.left = left
        with pytest.raises(ToolUnavailableError):
            await lab.call(item(attempt, again=again))
    first, second, third = lab.upstreams.calls[:2], lab.upstreams.calls[2:4], lab.upstreams.calls[4:]
    assert [[name for name, _, _ in calls] for calls in (first, second, third)] == [["a", "b"]] * 3
    assert second == third
    assert first[0][2] != second[0][2], "the answer has to be shorter"
    keys = {key for _, key, _ in lab.upstreams.calls}
    assert "" not in keys
    assert len(keys) == len({(name, body) for name, _, body in lab.upstreams.calls}) == 4
