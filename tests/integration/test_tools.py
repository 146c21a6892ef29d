"""Calling tools for a tenant: intent, policies, adapter, result, on a real store and a real bus."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from actors.policies.refusals import BreakerOpenError, BulkheadFullError, CallTimeoutError
from actors.supervision.clients import Resilience
from actors.supervision.shared import SharedSupervisors
from actors.tools.adapter import ToolAdapter, ToolCall, ToolContext
from actors.tools.errors import (
    ToolBrokenError,
    ToolInputError,
    ToolOutcomeUnknownError,
    ToolRefusedError,
    ToolUnavailableError,
)
from actors.tools.registry import Registry, shared_pipelines
from actors.tools.runner import ToolFailedBeforeError, Tools
from events.ask import Asker
from events.bus import Bus
from events.codec import decode_event, decode_record
from events.errors import CommandRefusedError, NotFoundError
from events.keys import Keys
from events.tenant import CreateTenant
from events.tools import AllowTools, DescribeTools, RecordToolCall, ToolPayloadKept
from events.valkey_store import ValkeyEventStore
from tests.kit.fakes import MockConfig, MockTool

QUICK: Any = {"retry": {"first_s": 0.001, "cap_s": 0.001}}


class World:
    def __init__(self, asker: Asker, store: ValkeyEventStore, tenant: str) -> None:
        self.asker, self.store, self.tenant = asker, store, tenant
        self.open: list[Tools] = []

    def tools(self, *adapters: ToolAdapter[Any]) -> Tools:
        tools = Tools(self.asker, Registry(adapters=adapters))
        self.open.append(tools)
        return tools

    async def call(self, tools: Tools, key: str = "k1", tenant: str = "", **more: Any) -> Any:
        given = {"input": {"n": 1}, **more}
        return await tools.call(
            tenant or self.tenant, "mock", given.pop("input"), idempotency_key=key, actor="test", **given
        )

    async def events(self) -> list[dict[str, Any]]:
        """What the tenant's log says about tools."""
        page = await self.store.read(self.tenant, 0, 500)
        plain = [msgspec.msgpack.decode(decode_record(stored.record).data) for stored in page]
        return [event for event in plain if event["type"].startswith("tool.")]


@pytest.fixture
async def world(asker: Asker, valkey_store: ValkeyEventStore, new_tenant: Callable[[], str]) -> AsyncIterator[World]:
    tenant = new_tenant()
    await asker.ask(tenant, CreateTenant("Acme"), actor="test")
    await asker.ask(tenant, AllowTools(("mock",)), actor="test")
    made = World(asker, valkey_store, tenant)
    yield made
    for tools in made.open:
        await tools.close()


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].split(".")[1] for event in events]


async def test_a_call_is_two_events_with_what_it_took(world: World) -> None:
    mock = MockTool(cost_usd="0.01", **QUICK)
    mock.answers += [ToolUnavailableError("mock", "busy", retry_after_s=0.0), {"paid": 3}]
    done = await world.call(world.tools(mock))
    called, succeeded = await world.events()
    assert done.output == {"paid": 3}
    assert (called["type"], succeeded["type"]) == ("tool.called.v1", "tool.succeeded.v1")
    assert called["call_id"] == succeeded["call_id"] == done.call_id
    assert (succeeded["attempts"], succeeded["cost_nano_usd"]) == (2, 10_000_000)
    assert succeeded["latency_us"] > 0
    assert [context.attempt for _, context in mock.calls] == [1, 2]


async def test_the_intent_is_durable_before_the_effect_begins(world: World) -> None:
    seen: list[list[str]] = []

    class Looking(MockTool):
        async def _execute_tool(self, call: ToolCall, context: ToolContext) -> Any:
            seen.append(types(await world.events()))
            return {}

    await world.call(world.tools(Looking()))
    assert seen == [["called"]]


async def test_a_repeat_under_the_same_key_takes_effect_once(world: World) -> None:
    mock = MockTool(**QUICK)
    mock.answers += [ToolOutcomeUnknownError("mock", "broke off"), {"paid": 1}, {"paid": 1}]
    tools = world.tools(mock)
    first, second = await world.call(tools), await world.call(tools)
    assert len(mock.done) == 1
    assert (first.output, second.output, second.repeated) == ({"paid": 1}, {"paid": 1}, True)
    assert [event["cost_nano_usd"] for event in await world.events() if "cost_nano_usd" in event] == [0, 0]


async def test_what_can_not_be_repeated_safely_is_not_repeated(world: World) -> None:
    mock = MockTool(**QUICK)
    mock.safe_to_repeat = False
    tools = world.tools(mock)
    assert not (await world.call(tools, "done")).repeated
    again = await world.call(tools, "done")
    assert (again.repeated, again.output) == (True, None)
    mock.answers.append(ToolOutcomeUnknownError("mock", "broke off"))
    with pytest.raises(ToolOutcomeUnknownError):
        await world.call(tools, "lost")
    with pytest.raises(ToolFailedBeforeError, match="broke off"):
        await world.call(tools, "lost")
    mock.answers.append(ToolUnavailableError("mock", "surely not done"))
    await world.call(tools, "busy")
    assert len(mock.calls) == 4
    assert len(mock.done) == 3


async def test_a_call_whose_caller_died_is_finished_by_its_repeat(world: World) -> None:
    """kill -9 between effect and result: the intent is there, the result is not."""
    mock = MockTool()
    tools = world.tools(mock)
    mock.answers.append("hang")
    dying = asyncio.create_task(world.call(tools, timeout_s=0.5, input={"n": 1}))
    await asyncio.wait_for(mock.hanging.wait(), 10)
    other = world.tools(mock)
    with pytest.raises(CommandRefusedError) as refusal:
        await world.call(other)
    assert refusal.value.code == "in_progress"
    with pytest.raises(CallTimeoutError):
        await dying
    assert (await world.call(other)).output == {"ok": True}
    assert len(mock.done) == 1


async def test_a_tool_that_is_not_allowed_is_not_called(world: World) -> None:
    mock = MockTool()
    await world.asker.ask(world.tenant, AllowTools(()), actor="test")
    with pytest.raises(CommandRefusedError) as refusal:
        await world.call(world.tools(mock))
    assert refusal.value.code == "tool_not_allowed"
    with pytest.raises(NotFoundError):
        await world.tools(mock).call(world.tenant, "nothing", {}, idempotency_key="k", actor="test")
    assert mock.calls == []
    assert await world.events() == []


async def test_a_failure_for_good_is_recorded_and_stays(world: World) -> None:
    mock = MockTool()
    mock.answers.append(ToolRefusedError("mock", "card declined", "declined"))
    tools = world.tools(mock)
    for kind in (ToolRefusedError, ToolFailedBeforeError):
        with pytest.raises(kind, match="card declined"):
            await world.call(tools)
    _, failed = await world.events()
    assert (failed["code"], failed["retryable"], failed["may_have_happened"]) == ("declined", False, False)


async def test_the_policy_that_refused_a_call_is_named(world: World) -> None:
    mock = MockTool(bulkhead=1, retry=None, breaker={"calls_min": 1, "window_calls": 1})
    tools = world.tools(mock)
    mock.answers.append("hang")
    holding = asyncio.create_task(world.call(tools, "holds"))
    await asyncio.wait_for(mock.hanging.wait(), 10)
    with pytest.raises(BulkheadFullError):
        await world.call(tools, "full")
    holding.cancel()
    await asyncio.wait([holding])
    mock.answers.append(ToolUnavailableError("mock", "down"))
    with pytest.raises(ToolUnavailableError):
        await world.call(tools, "fails")
    with pytest.raises(BreakerOpenError):
        await world.call(tools, "refused")
    refused = [event for event in await world.events() if event.get("refused_by")]
    assert [(event["refused_by"], event["attempts"]) for event in refused] == [("bulkhead", 0), ("breaker", 0)]
    assert all(not event["may_have_happened"] and event["retryable"] for event in refused)


@pytest.mark.parametrize("may_have_happened", [True, False])
async def test_a_call_whose_first_attempt_may_have_taken_effect_is_recorded_so_whatever_the_last_one_says(
    world: World, may_have_happened: bool
) -> None:
    mock = MockTool(**QUICK)
    first = ToolOutcomeUnknownError if may_have_happened else ToolUnavailableError
    mock.answers += [first("mock", "broke off"), BulkheadFullError("mock", "busy", 1.0)]
    with pytest.raises(BulkheadFullError):
        await world.call(world.tools(mock))
    failed = (await world.events())[-1]
    assert (failed["attempts"], failed["refused_by"]) == (2, "bulkhead")
    assert failed["may_have_happened"] is may_have_happened


async def test_one_tenants_overrides_are_its_own(world: World) -> None:
    mock = MockTool(overrides={world.tenant: {"bulkhead": 1, "timeout_s": 5}}, bulkhead=7)
    registry = world.tools(mock).registry
    assert registry.config("mock", world.tenant).timeout_s == 5
    assert registry.config("mock", "other").timeout_s == 10
    assert registry.pipeline("mock", world.tenant) is not registry.pipeline("mock", "other")
    assert registry.pipeline("mock", "other") is registry.pipeline("mock", "third")
    mine = registry.pipeline("mock", world.tenant).bulkhead
    assert mine is not None
    assert mine.state.limit == 1


async def test_a_dead_webhook_of_one_tenant_opens_nothing_for_others_where_the_scope_says_so(world: World) -> None:
    registry = world.tools(MockTool(scope="tenant")).registry
    assert registry.pipeline("mock", "one") is not registry.pipeline("mock", "two")


async def test_processes_share_a_tools_bulkhead(world: World, bus: Bus) -> None:
    supervisors = SharedSupervisors(bus, is_first=True)
    await supervisors.start()
    processes = [Resilience(bus, f"caller-{number}") for number in range(2)]
    for process in processes:
        await process.start()
    mock = MockTool(bulkhead=1, retry=None, breaker={"calls_min": 1, "window_calls": 1})
    registries = [Registry(adapters=[mock], build=shared_pipelines(process)) for process in processes]
    here, there = (Tools(world.asker, registry) for registry in registries)
    mock.answers.append("hang")
    holding = asyncio.create_task(world.call(here, "holds"))
    await asyncio.wait_for(mock.hanging.wait(), 10)
    with pytest.raises(BulkheadFullError):
        await world.call(there, "full")
    holding.cancel()
    await asyncio.wait([holding])
    assert len(mock.calls) == 1
    for tools in (here, there):
        await tools.close()
    for process in processes:
        await process.close()
    await supervisors.close()


async def test_a_cancelled_call_is_recorded_and_lets_go(world: World) -> None:
    mock = MockTool()
    mock.answers.append("hang")
    tools = world.tools(mock)
    call = asyncio.create_task(world.call(tools))
    await asyncio.wait_for(mock.hanging.wait(), 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await tools.close()
    assert mock.was_left.is_set()
    assert mock.is_closed
    _, failed = await world.events()
    assert (failed["code"], failed["may_have_happened"], failed["retryable"]) == ("cancelled", True, True)


@pytest.mark.parametrize("answer", [object(), {"x": float}, ZeroDivisionError("canary"), {"x": "y" * 2_000_000}])
async def test_a_broken_adapter_is_a_failed_call_and_no_more(world: World, answer: Any) -> None:
    mock = MockTool(retry=None)
    mock.answers.append(answer)
    with pytest.raises(ToolBrokenError):
        await world.call(world.tools(mock))
    _, failed = await world.events()
    assert failed["may_have_happened"] is True
    assert "canary" not in failed["message"]


async def test_a_time_out_is_an_unknown_outcome(world: World) -> None:
    mock = MockTool(timeout_s=0.05, retry=None)
    mock.answers.append("hang")
    with pytest.raises(CallTimeoutError):
        await world.call(world.tools(mock))
    _, failed = await world.events()
    assert (failed["code"], failed["may_have_happened"], failed["refused_by"]) == ("dependency_timeout", True, "")
    assert mock.was_left.is_set()


async def test_a_blocking_adapter_runs_in_threads(world: World) -> None:
    class Blocking(ToolAdapter[MockConfig]):
        config_type = MockConfig

        def _execute_tool(self, call: ToolCall, context: ToolContext) -> Any:
            return {"thread": threading.current_thread().name}

    tool = Blocking(MockConfig(name="mock"))
    assert (await world.call(world.tools(tool))).output["thread"] != threading.main_thread().name


@pytest.mark.parametrize(("policy", "kept"), [("none", False), ("hash", True)])
async def test_payloads_are_kept_as_the_policy_says(world: World, policy: str, kept: bool) -> None:
    await world.call(world.tools(MockTool(payloads=policy)), input={"card": "canary"})
    called, succeeded = await world.events()
    assert (len(called["input_sha256"]), len(succeeded["output_sha256"])) == ((32, 32) if kept else (0, 0))
    page = await world.store.read(world.tenant, 0, 500)
    assert not any(b"canary" in stored.record for stored in page)


async def test_payloads_that_are_kept_are_sealed_under_the_tenants_key(world: World, keys: Keys) -> None:
    mock = MockTool(payloads="encrypted")
    mock.answers.append({"receipt": "canary"})
    await world.call(world.tools(mock), input={"card": "canary"})
    events = await world.events()
    assert types(events) == ["called", "payload_kept", "succeeded", "payload_kept"]
    assert (events[0]["input_sha256"], events[2]["output_sha256"]) == (b"", b"")  # a hash would outlive the key
    page = await world.store.read(world.tenant, 0, 500)
    assert not any(b"canary" in stored.record for stored in page)
    cipher = await keys.cipher(world.tenant)
    opened = [decode_event(decode_record(stored.record).data, cipher) for stored in page]
    kept = [event.data for event in opened if isinstance(event, ToolPayloadKept)]
    assert kept == [{"card": "canary"}, {"output": {"receipt": "canary"}}]


async def test_an_input_that_is_no_plain_data_or_too_much_of_it_is_refused(world: World) -> None:
    tools = world.tools(MockTool())
    for bad in ({"x": object()}, {"x": "y" * 600_000}):
        with pytest.raises(ToolInputError):
            await world.call(tools, input=bad)
    assert await world.events() == []


async def test_open_calls_are_shown(world: World) -> None:
    command = RecordToolCall("c1", "mock", "mock", 1_000_000, repeats_safely=True)
    await world.asker.ask(world.tenant, command, actor="test")
    shown = await world.asker.ask(world.tenant, DescribeTools(), actor="test")
    assert shown.result == {"allowed": ["mock"], "calls_open": ["c1"]}
