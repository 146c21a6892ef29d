"""An agent's turn between its history and its model: what is too large for the log lies in the object area, both ways."""

import hashlib
import json
from typing import Any

import pytest

from actors.run.agent import AGENT
from actors.run.functions import StepFailure
from actors.run.state import Run
from actors.tools.registry import Registry
from events.objects import INLINE_BYTES_MAX
from events.run import FinishStep, Reference, Used, pack, unpack
from events.work import WorkItem
from serve.agent_turns import AgentTurns
from tests.kit.fakes import MockTool
from tests.kit.runs import Lab

LONG = "x" * 200_000


class Area:
    """An object area in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    async def put(self, tenant: str, payload: bytes) -> Reference:
        key = hashlib.sha256(payload).hexdigest()
        self.kept[key] = payload
        return Reference(key, key, len(payload))

    async def get(self, tenant: str, reference: Reference) -> bytes:
        return self.kept[reference.key]


def begun(area: Area, *tools: str, **limits: Any) -> tuple[Lab, AgentTurns]:
    lab = Lab()
    lab.start(AGENT, {"model": "m", "messages": [{"role": "user", "content": "?"}], "tools": tools, "limits": limits})

    async def read(tenant: str, run_id: str) -> Run:
        return lab.run(run_id)

    return lab, AgentTurns(read, area, Registry(adapters=[MockTool(description="mocks")]))


def item(lab: Lab, step: str) -> WorkItem:
    found = lab.work(step)
    return WorkItem("acme", "r", AGENT, 1, found.order, found.args, found.attempt, "key")


def calling(name: str, arguments: str, number: int = 0) -> dict[str, Any]:
    return {"index": number, "id": f"c{number}", "function": {"name": name, "arguments": arguments}}


async def test_a_turn_of_any_size_fits_into_the_log_and_comes_back_whole() -> None:
    area = Area()
    lab, turns = begun(area, "mock")
    wanted = [calling("mock", json.dumps({"text": LONG, "n": number}), number) for number in range(16)]
    turn = await turns.turn("acme", {"role": "assistant", "content": LONG, "tool_calls": wanted}, "tool_calls")
    assert len(pack(turn)) < INLINE_BYTES_MAX
    lab.send(FinishStep("r", "model-1", 1, pack(turn), 1, Used()))
    given = unpack(lab.work("tool-1.3").args)
    assert isinstance(given, Reference)
    assert unpack(area.kept[given.key]) == {"text": LONG, "n": 2}, "what the tool gets"
    for number in range(1, 17):
        lab.finish(f"tool-1.{number}", await area.put("acme", pack({"said": LONG})))
    request, _ = await turns.request(item(lab, "model-2"), 2)
    assert [message["role"] for message in request["messages"]] == ["user", "assistant", *["tool"] * 16]
    said = request["messages"][1]
    assert said["content"] == LONG
    assert json.loads(said["tool_calls"][4]["function"]["arguments"]) == {"text": LONG, "n": 4}
    assert json.loads(request["messages"][2]["content"]) == {"said": LONG}


async def test_a_model_server_may_send_nonsense_for_calls() -> None:
    _, turns = begun(Area(), "mock")
    broken = [None, {"function": 3}, {"function": {"name": None}}, calling("mock", "{" + LONG)]
    turn = await turns.turn("acme", {"role": "assistant", "tool_calls": broken}, "stop")
    assert [call.name for call in turn.calls] == ["None", "mock"]
    assert len(turn.calls[1].arguments) < 300, "what is no JSON is not kept whole"
    assert (await turns.turn("acme", {"content": "hi", "tool_calls": 7}, "stop")).calls == ()


async def test_a_turn_may_write_no_more_than_its_run_has_left() -> None:
    lab, turns = begun(Area(), "mock", tokens=100)
    assert (await turns.request(item(lab, "model-1"), 1))[0]["max_tokens"] == 100
    answer = await turns.turn("acme", {"tool_calls": [calling("mock", "{}")]}, "tool_calls")
    lab.send(FinishStep("r", "model-1", 1, pack(answer), 1, Used(0, 60, 30)))
    lab.finish("tool-1.1", {"ok": True})
    assert (await turns.request(item(lab, "model-2"), 2))[0]["max_tokens"] == 10


async def test_a_tool_that_is_gone_is_a_failure_of_the_step_that_names_it() -> None:
    lab, turns = begun(Area(), "gone")
    with pytest.raises(StepFailure, match="gone") as failure:
        await turns.request(item(lab, "model-1"), 1)
    assert failure.value.code == "tool_not_found"
