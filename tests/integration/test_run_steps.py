"""Runs on a real broker and a real store: a shard and a runner in this process, and a ledger of effects outside of both."""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from actors.run import Parallel, Retry, Saga, Step, Undo, register
from actors.run.dispatcher import Dispatcher
from actors.run.functions import StepContext, StepFailure, step_function
from actors.run.runner import Handler, Runner, call_function
from actors.run.state import Run, fold_stream
from actors.shard import Shard
from actors.supervision.timers import TimerScan
from events.ask import Asker
from events.bus import Bus
from events.clock import SystemClock
from events.codec import decode_event, decode_record
from events.errors import CommandRefusedError
from events.keys import Keys
from events.objects import Objects
from events.run import ENDS, CancelRun, Reference, RetryRun, RunEvent, StartRun, pack, run_stream, unpack
from events.tenant import CreateTenant
from events.valkey_store import ValkeyEventStore
from events.work import WorkQueue
from tests.kit.activator import activating

LEDGER: Counter[str] = Counter()  # effects by idempotency key, as the dependency itself counts them
ATTEMPTS: Counter[str] = Counter()
FAILING: dict[str, list[Exception]] = {}  # by run and step: what the next attempts raise


@step_function("effect")
async def effect(given: Any, context: StepContext) -> Any:
    """A dependency that does each idempotency key once, and fails when told to."""
    ATTEMPTS[f"{context.run_id}/{context.step}"] += 1
    if planned := FAILING.get(f"{context.run_id}/{context.step}"):
        raise planned.pop(0)
    LEDGER[f"{context.run_id}/{context.step}/{context.idempotency_key}"] = 1
    return given


@step_function("big")
def big(given: int) -> str:
    return "x" * given


def effects(run_id: str) -> list[str]:
    return sorted(key.split("/")[1] for key in LEDGER if key.startswith(f"{run_id}/"))


NOW = Retry(attempts=3, first_s=0.01, max_s=0.05)
BACK = Undo(function="effect", retry=NOW)
register(
    Saga(
        "it-order",
        steps=(
            Parallel(
                Step("reserve", function="effect", args=lambda run: run.input, undo=BACK, retry=NOW),
                Step("charge", function="effect", args=lambda run: run.input, undo=BACK, retry=NOW),
            ),
            Step("email", function="effect", retry=NOW),
            Step("ship", function="effect", args=lambda run: [run["reserve"], run["charge"]], retry=NOW),
        ),
        output=lambda run: run["ship"],
    )
)
register(
    Saga(
        "it-big",
        steps=(
            Step("make", function="big", args=lambda run: run.input),
            Step("take", function="effect", args=lambda run: run["make"]),
        ),
        output=lambda run: run["make"],
    )
)


class World:
    """What a tenant's developer has: starts runs, reads their history."""

    def __init__(self, asker: Asker, store: ValkeyEventStore, keys: Keys, objects: Objects, tenant: str) -> None:
        self.asker, self.store, self.keys, self.objects, self.tenant = asker, store, keys, objects, tenant

    async def start(self, saga: str, given: Any = None) -> str:
        run_id = uuid.uuid4().hex
        await self.asker.ask(self.tenant, StartRun(run_id, saga, pack(given)), actor="test", command_id=run_id)
        return run_id

    async def run(self, run_id: str) -> Run:
        cipher = await self.keys.cipher(self.tenant)
        events: list[Any] = []
        while page := await self.store.read_stream(self.tenant, run_stream(run_id), len(events)):
            events += [decode_event(decode_record(stored.record).data, cipher) for stored in page]
        assert all(isinstance(event, RunEvent) for event in events)
        return fold_stream(events)

    async def ended(self, run_id: str) -> Run:
        async with asyncio.timeout(30):
            while True:
                run = await self.run(run_id)
                if run.status in ENDS:
                    return run
                await asyncio.sleep(0.02)  # the log can only be asked


@asynccontextmanager
async def runner(
    bus: Bus, keys: Keys, objects: Objects, handlers: dict[str, Handler] | None = None
) -> AsyncIterator[Runner]:
    queue = WorkQueue(bus)
    await queue.prepare()
    working = Runner(queue, Asker(bus), keys, objects, handlers or {"function": call_function})
    task = asyncio.create_task(working.run())
    try:
        yield working
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
async def objects(tmp_path: Path, keys: Keys) -> Objects:
    return Objects(str(tmp_path / "objects"), keys)


@pytest.fixture
async def world(
    valkey_store: ValkeyEventStore, bus: Bus, keys: Keys, objects: Objects, new_tenant: Callable[[], str]
) -> AsyncIterator[World]:
    """A shard that hands out work; no runner yet."""
    queue = WorkQueue(bus)
    await queue.prepare()
    dispatcher = Dispatcher(queue)
    shard = Shard("runs", "pool", valkey_store, bus, SystemClock(), keys, effects=dispatcher)
    timers = TimerScan(valkey_store, Asker(bus), SystemClock())
    async with activating(bus, shard):
        firing = asyncio.create_task(timers.run())
        made = World(Asker(bus), valkey_store, keys, objects, new_tenant())
        await made.asker.ask(made.tenant, CreateTenant("Acme"), actor="test")
        yield made
        firing.cancel()
        await asyncio.wait([firing])
    await shard.close()
    await dispatcher.close()


async def test_a_saga_runs_to_its_end_and_each_effect_happens_once(
    world: World, bus: Bus, keys: Keys, objects: Objects
) -> None:
    async with runner(bus, keys, objects):
        run_ids = [await world.start("it-order", number) for number in range(20)]
        for number, run_id in enumerate(run_ids):
            run = await world.ended(run_id)
            assert (run.status, unpack(run.output)) == ("completed", [number, number])
            assert effects(run_id) == ["charge", "email", "reserve", "ship"]


async def test_a_failure_is_retried_and_then_undone(world: World, bus: Bus, keys: Keys, objects: Objects) -> None:
    run_id = uuid.uuid4().hex
    FAILING[f"{run_id}/charge"] = [StepFailure("busy", "later", retryable=True)]
    FAILING[f"{run_id}/ship"] = [StepFailure("no_such_street", "where is that?")]
    async with runner(bus, keys, objects):
        await world.asker.ask(world.tenant, StartRun(run_id, "it-order", pack(7)), actor="test")
        run = await world.ended(run_id)
    assert (run.status, run.code) == ("compensated", "no_such_street")
    assert ATTEMPTS[f"{run_id}/charge"] == 2
    assert effects(run_id) == ["charge", "email", "reserve", "undo:charge", "undo:reserve"]


async def test_what_a_dead_runner_has_taken_is_done_by_the_next_one_and_once(
    world: World, bus: Bus, keys: Keys, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one dies after the effect and before it has told: the effect is there, its result is not."""
    monkeypatch.setattr("events.work.ACK_WAIT_S", 1.0)
    reached = asyncio.Event()

    async def die_after(item: Any, args: Any) -> Any:
        await call_function(item, args)
        reached.set()
        await asyncio.Event().wait()

    queue = WorkQueue(bus)
    await queue.prepare()
    async with runner(bus, keys, objects, {"function": die_after}):
        run_id = await world.start("it-order", 1)
        await asyncio.wait_for(reached.wait(), 10)
    async with runner(bus, keys, objects):
        run = await world.ended(run_id)
    assert run.status == "completed"
    assert effects(run_id) == ["charge", "email", "reserve", "ship"]
    assert ATTEMPTS[f"{run_id}/reserve"] + ATTEMPTS[f"{run_id}/charge"] > 2, "the fault did happen"


async def test_work_that_was_never_handed_out_is_handed_out_by_the_next_activation(
    valkey_store: ValkeyEventStore, bus: Bus, keys: Keys, objects: Objects, new_tenant: Callable[[], str]
) -> None:
    """As after a crash between the append and the broker."""
    tenant = new_tenant()
    silent = Shard("silent", "pool", valkey_store, bus, SystemClock(), keys)
    async with activating(bus, silent):
        world = World(Asker(bus), valkey_store, keys, objects, tenant)
        await world.asker.ask(tenant, CreateTenant("Acme"), actor="test")
        run_id = await world.start("it-order", 1)
    await silent.close()
    queue = WorkQueue(bus)
    await queue.prepare()
    dispatcher = Dispatcher(queue)
    shard = Shard("again", "pool", valkey_store, bus, SystemClock(), keys, effects=dispatcher)
    async with activating(bus, shard), runner(bus, keys, objects):
        await shard.host(tenant)
        assert (await world.ended(run_id)).status == "completed"
    await shard.close()
    await dispatcher.close()


async def test_large_results_lie_in_the_object_area_sealed(
    world: World, bus: Bus, keys: Keys, objects: Objects, tmp_path: Path
) -> None:
    async with runner(bus, keys, objects):
        run = await world.ended(await world.start("it-big", 200_000))
    reference = unpack(run.output)
    assert isinstance(reference, Reference)
    assert unpack(await objects.get(world.tenant, reference)) == "x" * 200_000
    files = [path for path in (tmp_path / "objects").rglob("*") if path.is_file()]
    assert files
    assert not any(b"xxxx" in path.read_bytes() for path in files)


async def test_a_failed_run_is_tried_again_from_its_history(
    world: World, bus: Bus, keys: Keys, objects: Objects
) -> None:
    run_id = uuid.uuid4().hex
    register(
        Saga(f"it-{run_id}", steps=(Step("only", function="effect", args=lambda _: 5),), output=lambda r: r["only"])
    )
    FAILING[f"{run_id}/only"] = [StepFailure("down", "not today")]
    async with runner(bus, keys, objects):
        await world.asker.ask(world.tenant, StartRun(run_id, f"it-{run_id}", pack(None)), actor="test")
        assert (await world.ended(run_id)).status == "failed"
        await world.asker.ask(world.tenant, RetryRun(run_id), actor="test")
        run = await world.ended(run_id)
        assert (run.status, unpack(run.output)) == ("completed", 5)
        with pytest.raises(CommandRefusedError, match="completed"):
            await world.asker.ask(world.tenant, RetryRun(run_id), actor="test")
        with pytest.raises(CommandRefusedError, match="does not exist"):
            await world.asker.ask(world.tenant, CancelRun("nobody"), actor="test")


async def test_nothing_of_a_runs_input_lies_about_in_clear(
    world: World, bus: Bus, keys: Keys, objects: Objects
) -> None:
    secret = "ann@example.org"
    async with runner(bus, keys, objects):
        run_id = await world.start("it-order", secret)
        assert unpack((await world.ended(run_id)).output) == [secret, secret]
    log = await world.store.read(world.tenant, 0)
    assert not any(secret.encode() in stored.record for stored in log)


UNUSABLE = {"set": {1}, "huge": 10**30, "half": "\ud800", "circle": object()}


@step_function("unusable")
def unusable(given: str, context: StepContext) -> Any:
    ATTEMPTS[f"{context.run_id}/{context.step}"] += 1
    if given == "raise":
        raise StepFailure("\ud800", "half \ud800", retryable=True, retry_after_s=float("inf"))
    return UNUSABLE[given]


async def test_a_result_that_can_not_be_kept_fails_its_step_once_and_nothing_is_told_for_ever(
    world: World, bus: Bus, keys: Keys, objects: Objects
) -> None:
    name = f"it-{uuid.uuid4().hex}"
    register(Saga(name, steps=(Step("only", function="unusable", args=lambda run: run.input, retry=NOW),)))
    async with runner(bus, keys, objects):
        for given in UNUSABLE:
            run = await world.ended(run_id := await world.start(name, given))
            kept = given == "set"  # a set is written as a list
            assert (run.status, run.code) == (("completed", "") if kept else ("failed", "result_unusable"))
            assert ATTEMPTS[f"{run_id}/only"] == 1, "its effect is not repeated for a result that stays what it is"
        run_id = await world.start(name, "raise")
        async with asyncio.timeout(30):
            while True:
                run = await world.run(run_id)
                if run.steps["only"].status == "retrying":
                    break
                await asyncio.sleep(0.02)  # the log can only be asked
        assert run.steps["only"].message == "half ?"
        await world.asker.ask(world.tenant, CancelRun(run_id), actor="test")


@step_function("stands-still")
async def stands_still() -> None:
    time.sleep(1.0)  # noqa: ASYNC251 - the fault: a process that is stopped
    raise StepFailure("refused", "surely not")


async def test_who_stood_still_for_longer_than_the_queue_waits_does_not_speak_for_who_came_after(
    world: World, bus: Bus, keys: Keys, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its refusal says that nothing was done by itself; whoever was given the step meanwhile may have done it."""
    monkeypatch.setattr("actors.run.runner.ACK_WAIT_S", 0.5)
    name = f"it-{uuid.uuid4().hex}"
    register(Saga(name, steps=(Step("only", function="stands-still", undo=BACK, retry=Retry(1)),)))
    async with runner(bus, keys, objects):
        run = await world.ended(await world.start(name))
    assert (run.status, run.code, run.steps["only"].may_have_happened) == ("failed", "refused", True)
    assert "nobody knows" in run.message
