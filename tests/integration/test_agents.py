"""Agents over HTTP: a real gateway, broker and store, a runner in this process, and a model server that asks for tools."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from nats.js.errors import NotFoundError

from actors.run import Saga, Step, register
from actors.run.dispatcher import Dispatcher
from actors.run.runner import Done, Handler, Runner
from actors.run.runner_actor import RunnerConnections
from actors.shard import Shard
from actors.tools.usage_meter import Tokens
from events.ask import Asker
from events.bus import Bus, unsubscribe
from events.clock import SystemClock
from events.deltas import Delta, Deltas
from events.keys import Keys
from events.money import money
from events.run import ENDS, StartRun, pack
from events.valkey_store import ValkeyEventStore
from events.work import WorkItem, WorkQueue
from examples import research  # noqa: F401 - declares the sagas that two of the tests run
from serve.booking import NOTHING, UNKNOWN, Booking, Bookings
from serve.bootstrap.runner import open_runner
from serve.settings import Model
from tests.kit.cli import Cli
from tests.kit.gateway import TEXT, World
from tests.kit.upstream import asks

SAYS = {"content": "It is 21 degrees."}
register(
    Saga("it-model", steps=(Step("ask", model="m-ok", args=lambda run: run.input),), output=lambda run: run["ask"])
)


@pytest.fixture
async def shard(valkey_store: ValkeyEventStore, bus: Bus, keys: Keys) -> AsyncIterator[Shard]:
    """One that hands out work."""
    queue = WorkQueue(bus)
    await queue.prepare()
    dispatcher = Dispatcher(queue)
    hosting = Shard("agents", "pool", valkey_store, bus, SystemClock(), keys, effects=dispatcher)
    yield hosting
    await hosting.close()
    await dispatcher.close()


@pytest.fixture
async def connections(world: World) -> AsyncIterator[RunnerConnections]:
    """What a runner of the deployment works with. ``world`` has put its settings into the environment."""
    opened = await open_runner("test-runner")
    yield opened
    await opened.close()


@asynccontextmanager
async def running(connections: RunnerConnections, **handlers: Handler) -> AsyncIterator[None]:
    queue = WorkQueue(connections.bus)
    await queue.prepare()
    runner = Runner(
        queue, Asker(connections.bus), connections.keys, connections.objects, {**connections.handlers, **handlers}
    )
    task = asyncio.create_task(runner.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
async def tenant(world: World) -> AsyncIterator[httpx.AsyncClient]:
    await world.admin.put(f"/tenants/{world.tenant}/tools", json={"allowed": ["look", "wipe"]})
    headers = {"authorization": f"Bearer {world.key}"}
    async with httpx.AsyncClient(base_url=f"{world.base_url}/v1", headers=headers, timeout=60) as client:
        yield client


async def start(tenant: httpx.AsyncClient, model: str = "m-scripted", **agent: Any) -> str:
    body = {"agent": {"model": model, "tools": ["look"], **agent}, "input": "How warm is it?"}
    response = await tenant.post("/runs", json=body)
    assert response.status_code == 202, response.text
    run_id: str = response.json()["id"]
    return run_id


async def until(tenant: httpx.AsyncClient, run_id: str, *statuses: str, step: str = "") -> dict[str, Any]:
    """The run, once it has one of the statuses, or has begun the step."""
    async with asyncio.timeout(60):
        while True:
            run: dict[str, Any] = (await tenant.get(f"/runs/{run_id}")).json()
            if run["status"] in (statuses or ENDS) or any(found["name"] == step for found in run["steps"]):
                return run
            await asyncio.sleep(0.1)  # the log can only be asked


async def test_an_agent_calls_tools_until_its_model_answers_and_every_call_is_paid_and_in_the_log(
    world: World, tenant: httpx.AsyncClient, connections: RunnerConnections
) -> None:
    world.upstream.script += [asks("look", city="Rome"), SAYS]
    async with running(connections):
        run = await until(tenant, await start(tenant, instructions="Be brief."))
    assert (run["status"], run["output"]["message"]["content"]) == ("completed", "It is 21 degrees."), run
    assert [(step["name"], step["kind"], step["status"]) for step in run["steps"]] == [
        ("model-1", "model", "succeeded"),
        ("tool-1.1", "tool", "succeeded"),
        ("model-2", "model", "succeeded"),
    ]
    first, second = world.upstream.ledger.requests
    assert first["tools"][0]["function"] == {
        "name": "look",
        "description": "Looks things up.",
        "parameters": {"type": "object"},
    }
    assert [message["role"] for message in second["messages"]] == ["system", "user", "assistant", "tool"]
    assert json.loads(second["messages"][3]["content"]) == {"ok": True}
    assert second["messages"][2]["tool_calls"][0]["id"] == second["messages"][3]["tool_call_id"]
    types = await world.event_types()
    assert (types.count("call.reserved.v1"), types.count("call.settled.v1")) == (2, 2)
    ledger, usage = world.upstream.ledger, await world.usage()
    assert (run["input_tokens"], run["output_tokens"]) == (ledger.input_tokens, ledger.output_tokens)
    assert run["cost_nano_usd"] == ledger.input_tokens * 100 + ledger.output_tokens * 400
    assert usage["requests"] == 2
    assert usage["input_tokens"] == ledger.input_tokens


async def test_the_research_agent_searches_with_a_saga_and_answers(
    world: World, tenant: httpx.AsyncClient, connections: RunnerConnections
) -> None:
    """``examples/research.py`` with a model that calls tools."""
    world.upstream.script += [asks("saga__search", words="tides a day"), {"content": "The Moon pulls."}]
    async with running(connections):
        run_id = await start(tenant, tools=["saga:search"], limits={"turns": 5})
        run = await until(tenant, run_id)
        child = (await tenant.get(f"/runs/{run_id}/tool-1.1")).json()
    assert (run["status"], run["output"]["message"]["content"]) == ("completed", "The Moon pulls."), run
    assert (child["saga"], child["status"], child["output"][0]["title"]) == ("search", "completed", "tides")
    first, second = world.upstream.ledger.requests
    assert first["tools"][0]["function"]["name"] == "saga__search"
    assert "words" in json.dumps(first["tools"][0]["function"]["parameters"])
    assert "two tides a day" in second["messages"][-1]["content"]


async def test_the_research_saga_reads_and_answers_with_any_model(
    world: World, tenant: httpx.AsyncClient, connections: RunnerConnections
) -> None:
    given = {"question": "Why are there two tides a day?", "model": "m-ok", "passages": 1}
    async with running(connections):
        made = await tenant.post("/runs", json={"saga": "research", "input": given})
        run = await until(tenant, made.json()["id"])
    assert (run["status"], run["output"]) == ("completed", {"answer": TEXT, "sources": ["tides"]}), run
    assert [step["name"] for step in run["steps"]] == ["look", "read-tides", "answer"]
    assert "Moon" in world.upstream.ledger.requests[0]["messages"][0]["content"]


async def test_a_destructive_tool_waits_for_a_person_though_nobody_asked_for_that(
    world: World, tenant: httpx.AsyncClient, connections: RunnerConnections
) -> None:
    world.upstream.script += [asks("wipe", disk=1), SAYS]
    async with running(connections):
        run_id = await start(tenant, tools=["wipe"])
        run = await until(tenant, run_id, step="approve-1.1")
        assert "tool-1.1" not in [step["name"] for step in run["steps"]]
        approved = await tenant.post(f"/runs/{run_id}/signals/approve-1.1", json={"approved": True})
        assert approved.status_code == 202
        run = await until(tenant, run_id)
    assert run["status"] == "completed"
    assert [step["status"] for step in run["steps"]] == ["succeeded"] * 4


async def test_no_specification_gets_round_the_approval_of_a_destructive_tool(
    world: World, tenant: httpx.AsyncClient, connections: RunnerConnections
) -> None:
    """As a child that a model has specified, or a program with access to the bus, would."""
    world.upstream.script += [asks("wipe", disk=1), SAYS]
    spec = {"model": "m-scripted", "messages": [{"role": "user", "content": "wipe it"}], "tools": ["wipe"]}
    run_id = uuid.uuid4().hex
    async with running(connections):
        await world.asker.ask(world.tenant, StartRun(run_id, "agent", pack(spec)), actor="test")
        run = await until(tenant, run_id)
    steps = {step["name"]: step for step in run["steps"]}
    assert steps["tool-1.1"]["error"]["code"] == "approval_required"
    assert "approval" in world.upstream.ledger.requests[1]["messages"][-1]["content"]
    assert "tool.called.v1" not in await world.event_types()


async def test_a_watcher_that_comes_back_gets_the_rest_of_the_text_and_no_second_call_is_made(
    world: World, tenant: httpx.AsyncClient, connections: RunnerConnections
) -> None:
    async with running(connections):
        run_id = await start(tenant, "m-slow", tools=[])
        before = await read_events(tenant, run_id, lambda events: written(events) == "The answer")
        world.upstream.go_on.set()
        await until(tenant, run_id)
        after = await read_events(tenant, run_id, last_event_id=before[-1]["id"])
    assert before[-1]["event"] == "run.delta"
    assert written(before) + written(after) == TEXT
    offsets = [event["data"]["offset"] for event in [*before, *after] if event["event"] == "run.delta"]
    assert offsets == sorted(offsets)
    assert offsets[0] == 0
    kinds = [event["event"] for event in after]
    assert kinds.index("run.step_succeeded.v1") > max(at for at, kind in enumerate(kinds) if kind == "run.delta")
    assert after[kinds.index("run.step_succeeded.v1")]["data"]["result"]["message"]["content"] == TEXT
    ids = [tuple(map(int, event["id"].split(":"))) for event in [*before, *after]]
    assert ids == sorted(set(ids))
    assert len(world.upstream.ledger.requests) == 1
    ended = next(event["id"] for event in after if event["event"] == "run.step_succeeded.v1").partition(":")[0]
    late = await read_events(tenant, run_id, last_event_id=ended)
    assert [event["event"] for event in late] == ["run.ended.v1"], "who has the whole text is not sent it in pieces"


async def test_a_watcher_that_was_there_before_the_stream_of_texts_hears_of_them(bus: Bus, keys: Keys) -> None:
    """As after a restart of the broker, which forgets the stream."""
    deltas, heard = Deltas(bus), asyncio.Event()
    with contextlib.suppress(NotFoundError):
        await bus.jetstream().delete_stream("DELTAS")
    subscription = await deltas.watch("early", "run", lambda _data, _reply: heard.set())
    cipher = await keys.cipher("early", create=True)
    await deltas.put("early", "run", Delta("ask", 1, deltas.new_call(), 0, "hello"), cipher)
    await asyncio.wait_for(heard.wait(), 60)
    ((cursor, delta),) = await deltas.after("early", "run", 0, cipher)
    assert delta.text == "hello"
    assert await deltas.after("early", "run", cursor, cipher) == []
    await bus.jetstream().delete_stream("DELTAS")
    await deltas.put("early", "run", Delta("ask", 1, deltas.new_call(), 5, " again"), cipher)
    ((later, _),) = await deltas.after("early", "run", cursor, cipher)
    assert later > cursor, "a reader goes on with the number it has"
    await unsubscribe(subscription)


async def test_text_on_its_way_is_sealed_and_goes_with_its_tenant(
    world: World, tenant: httpx.AsyncClient, connections: RunnerConnections, bus: Bus
) -> None:
    async with running(connections):
        run_id = await start(tenant, "m-ok", tools=[])
        await until(tenant, run_id)
    deltas = Deltas(bus)
    count = await deltas.count(world.tenant)
    assert count > 0
    raw = await bus.jetstream().get_last_msg("DELTAS", f"delta.{world.tenant}.*")
    assert raw.data is not None
    assert b"answer" not in raw.data
    report = (await world.admin.post(f"/tenants/{world.tenant}/erase")).json()
    assert report["ok"], report
    assert await deltas.count(world.tenant) == 0


async def test_an_attempt_whose_runner_died_is_still_one_paid_call(
    world: World, tenant: httpx.AsyncClient, connections: RunnerConnections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first runner dies after the model has answered and been paid, and before it has told."""
    monkeypatch.setattr("events.work.ACK_WAIT_S", 1.0)
    world.upstream.script += [SAYS]
    answered = asyncio.Event()

    async def die_after(item: WorkItem, args: Any) -> Done:
        await connections.handlers["model"](item, args)
        answered.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with running(connections, model=die_after):
        run_id = await start(tenant)
        await asyncio.wait_for(answered.wait(), 60)
    async with running(connections):
        run = await until(tenant, run_id)
    assert (run["status"], run["steps"][0]["attempts"]) == ("completed", 1)
    requests = world.upstream.ledger.requests
    assert len(requests) >= 2, "it was asked again"
    assert len(world.upstream.ledger.by_key) == 1, "under the same key"
    types = await world.event_types()
    assert (types.count("call.reserved.v1"), types.count("call.settled.v1")) == (1, 1)
    assert (await world.usage())["output_tokens"] == world.upstream.ledger.output_tokens


async def test_a_tenant_tells_whether_a_reservation_was_freed(world: World) -> None:
    """Which has forgotten the reservation itself by then."""
    model = Model.model_validate({"name": "m", "upstreams": [{"base_url": "http://127.0.0.1:1/v1", "model": "m"}]})
    bookings = Bookings(world.asker, [model], 60)

    def booking() -> Booking:
        return Booking(world.tenant, "", "test", uuid.uuid4().hex, "run", model, 10, 10)

    for tokens, was_freed in ((NOTHING, True), (UNKNOWN, False), (Tokens(1, 1, "measured"), False)):
        await bookings.reserve(reserved := booking())
        assert not await bookings.was_freed(reserved)
        await bookings.settle(reserved, tokens, "failed")
        assert await bookings.was_freed(reserved) is was_freed
    assert not await bookings.was_freed(booking()), "never made"
    assert (await world.event_types()).count("call.settled.v1") == 3


async def test_what_the_budget_does_not_hold_is_not_called(
    world: World, tenant: httpx.AsyncClient, connections: RunnerConnections
) -> None:
    put = await world.admin.put(f"/tenants/{world.tenant}/budget", json={"limit_usd": "0.000001", "window": "day"})
    assert put.status_code == 200, put.text
    async with running(connections):
        run = await until(tenant, await start(tenant, "m-ok", tools=[]))
    assert (run["status"], run["error"]["code"]) == ("failed", "budget_exceeded"), run["error"]
    assert world.upstream.ledger.requests == []


async def test_a_sagas_own_model_step_and_one_that_asks_for_too_much(
    world: World, tenant: httpx.AsyncClient, connections: RunnerConnections, cli: Cli
) -> None:
    async with running(connections):
        good = (await tenant.post("/runs", json={"saga": "it-model", "input": "Why?"})).json()["id"]
        bad = (await tenant.post("/runs", json={"saga": "it-model", "input": {"messages": [], "n_predict": 9}})).json()
        # started by an operator, it has no key: the tenant itself pays
        made = await world.admin.post(f"/tenants/{world.tenant}/runs", json={"saga": "it-model", "input": "Why?"})
        run = await until(tenant, good)
        assert run["output"]["message"]["content"] == TEXT
        assert (await until(tenant, bad["id"]))["error"]["code"] == "invalid_request"
        assert (await until(tenant, made.json()["id"]))["status"] == "completed"
        made_so = await cli("runs", "agent", world.tenant, "m-ok", "Why?", "--limits", '{"turns": 2}')
        assert (await until(tenant, made_so["id"]))["output"]["turns"] == 1
    assert (await world.usage())["requests"] == 3


async def test_an_agent_never_costs_more_than_its_limit(
    world: World, tenant: httpx.AsyncClient, connections: RunnerConnections
) -> None:
    """The last turn is made as short as what is left can pay for; where that is nothing, it is not begun. At a price of the
    tenant's own, too.
    """
    world.upstream.script += [asks("look", city=str(number)) for number in range(60)]
    mine = {"prices": [{"model": "m-scripted", "input_usd_per_mtok": "1", "output_usd_per_mtok": "4"}]}
    async with running(connections):
        first = await until(tenant, await start(tenant, limits={"cost_usd": "0.0002", "turns": 50}))
        assert (await world.admin.put(f"/tenants/{world.tenant}/prices", json=mine)).status_code == 200
        second = await until(tenant, await start(tenant, limits={"cost_usd": "0.001", "turns": 50}))
    for run, limit, price in ((first, 200_000, 100), (second, 1_000_000, 1_000)):
        assert (run["status"], run["error"]["code"]) == ("failed", "cost_limit"), run["error"]
        assert 0 < run["cost_nano_usd"] <= limit
        assert run["cost_nano_usd"] == run["input_tokens"] * price + run["output_tokens"] * 4 * price
    shortest = min(request["max_tokens"] for request in world.upstream.ledger.requests)
    assert shortest < 1024, "what a turn may write unless its run has less left"
    assert (await world.usage())["cost_usd"] == money(first["cost_nano_usd"] + second["cost_nano_usd"])


async def test_a_model_step_goes_to_the_next_upstream_as_chat_does_and_pays_for_what_was_used(
    world: World, tenant: httpx.AsyncClient, connections: RunnerConnections
) -> None:
    async with running(connections):
        away = await until(tenant, await start(tenant, "r-away", tools=[]))
        dear = await until(tenant, await start(tenant, "r-model", tools=[]))
    for run in (away, dear):
        assert (run["status"], run["steps"][0]["attempts"]) == ("completed", 1), run
    assert dear["cost_nano_usd"] >= (dear["input_tokens"] + dear["output_tokens"]) * 1_000, (
        "at the price of who served it"
    )
    by_model = (await world.usage())["by_model"]
    assert {row["model"] for row in by_model} >= {"r-away", "r-dear"}


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"agent": {"model": "nope"}, "input": "x"}, 404, "model_not_found"),
    ({"agent": {"model": "m-ok", "tools": ["nope"]}, "input": "x"}, 404, "not_found"),
    ({"agent": {"model": "m-ok"}, "input": 7}, 400, "invalid_request"),
    ({"agent": {"model": "m-ok", "limits": {"turns": 1000}}, "input": "x"}, 400, "invalid_request"),
    ({"agent": {"model": "m-ok"}, "saga": "it-model"}, 400, "invalid_request"),
    ({"saga": "agent", "input": {}}, 400, "invalid_request"),
    ({}, 400, "invalid_request"),
]


async def test_what_can_not_be_started_is_told(tenant: httpx.AsyncClient) -> None:
    for body, status, code in REFUSED:
        response = await tenant.post("/runs", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text


async def read_events(
    tenant: httpx.AsyncClient, run_id: str, is_enough: Any = None, last_event_id: str = ""
) -> list[dict[str, Any]]:
    """Until it is enough, or the stream ends."""
    events: list[dict[str, Any]] = []
    headers = {"last-event-id": last_event_id} if last_event_id else {}
    async with asyncio.timeout(60), tenant.stream("GET", f"/runs/{run_id}/events", headers=headers) as stream:
        assert stream.status_code == 200
        event: dict[str, Any] = {}
        async for line in stream.aiter_lines():
            name, _, value = line.partition(": ")
            if name in ("id", "event"):
                event[name] = value
            elif name == "data":
                events.append({**event, "data": json.loads(value)})
                if is_enough is not None and is_enough(events):
                    break
    return events


def written(events: list[dict[str, Any]]) -> str:
    return "".join(event["data"]["text"] for event in events if event["event"] == "run.delta")


@pytest.mark.parametrize(
    "odd", ["NaN", "1e999", "123456789012345678901234567890", '"\\ud800"', "[" * 5_000 + "]" * 5_000]
)
async def test_input_that_no_log_can_keep_is_refused(tenant: httpx.AsyncClient, odd: str) -> None:
    for path, body in (("/runs", f'{{"saga": "it-model", "input": {odd}}}'), ("/runs/r/signals/go", odd)):
        response = await tenant.post(path, content=body, headers={"content-type": "application/json"})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request"), response.text
