"""Agent runs as a pure function of what models and tools said."""

import json
from typing import Any

import pytest

from actors.run.agent import AGENT, AgentProgram, conversation
from events.errors import InvalidCommandError
from events.run import FinishStep, Used, pack, unpack
from tests.kit.runs import Lab

SPEC: dict[str, Any] = {
    "model": "small",
    "messages": [{"role": "user", "content": "how warm is it in Rome?"}],
    "instructions": "be brief",
    "tools": ["weather", "pay"],
    "approve": ["pay"],
}


def begun(**changes: Any) -> Lab:
    lab = Lab()
    lab.start(AGENT, {**SPEC, **changes})
    return lab


def asks(*calls: tuple[str, Any]) -> dict[str, Any]:
    made = [
        {"id": f"c{n}", "name": name, "arguments": args if isinstance(args, str) else json.dumps(args)}
        for n, (name, args) in enumerate(calls)
    ]
    return {"message": {"role": "assistant", "content": None, "tool_calls": made}, "calls": made}


SAYS = {"message": {"role": "assistant", "content": "21 degrees"}}


def test_models_and_tools_take_turns_until_the_model_answers() -> None:
    lab = begun()
    assert lab.names() == ["model-1"]
    lab.finish("model-1", asks(("weather", {"city": "Rome"}), ("weather", {"city": "Ostia"})))
    assert lab.names() == ["tool-1.1", "tool-1.2"]
    assert unpack(lab.work("tool-1.2").args) == {"city": "Ostia"}
    lab.finish("tool-1.2", {"celsius": 22})
    assert lab.names() == ["tool-1.1"]
    lab.fail("tool-1.1", "not_found")
    assert lab.names() == ["model-2"], "what a tool could not do is told to the model"
    messages = conversation(lab.run(), 2)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "tool"]  # type: ignore[index]
    assert "not_found" in messages[3]["content"]  # type: ignore[index]
    assert messages[4]["content"] == {"celsius": 22}  # type: ignore[index]
    lab.finish("model-2", SAYS)
    assert lab.run().status == "completed"
    assert lab.output() == {"message": SAYS["message"], "turns": 2}


@pytest.mark.parametrize(
    ("payload", "follows"), [({"approved": True}, ["tool-1.1"]), ({"approved": False}, ["model-2"])]
)
def test_a_tool_that_a_person_must_allow_waits(payload: Any, follows: list[str]) -> None:
    lab = begun()
    lab.finish("model-1", asks(("pay", {"eur": 5})))
    assert lab.names() == []
    lab.signal("approve-1.1", payload)
    assert lab.names() == follows
    if not payload["approved"]:
        assert "a person has refused" in str(conversation(lab.run(), 2)[-1])


def test_calls_that_make_no_sense_are_answered_not_carried_out() -> None:
    lab = begun()
    lab.finish("model-1", asks(("nuke", {}), ("weather", "{not json")))
    assert lab.names() == ["model-2"]
    said = [message["content"] for message in conversation(lab.run(), 2)[-2:]]  # type: ignore[index]
    assert "no tool 'nuke'" in said[0]
    assert "not JSON" in said[1]


def test_the_same_calls_again_and_again_are_a_loop() -> None:
    lab = begun()
    for turn in (1, 2, 3):
        lab.finish(f"model-{turn}", asks(("weather", {"city": "Rome"})))
        lab.finish(f"tool-{turn}.1", {"celsius": 21})
    assert (lab.run().status, lab.run().code) == ("failed", "loop_detected")


@pytest.mark.parametrize(
    ("limits", "used", "code"),
    [
        ({"turns": 1}, Used(), "turn_limit"),
        ({"tokens": 100}, Used(0, 90, 10), "token_limit"),
        ({"cost_nano_usd": 5}, Used(5), "cost_limit"),
    ],
)
def test_ceilings_hold(limits: dict[str, Any], used: Used, code: str) -> None:
    lab = begun(limits=limits)
    lab.send(FinishStep("r", "model-1", 1, pack(asks(("weather", {}))), 1, used))
    lab.finish("tool-1.1")
    assert lab.run().code == code


def test_an_agent_of_an_agent_gets_no_more_than_its_parent_has_left() -> None:
    lab = begun(
        tools=["saga:agent", "pay"], approve=["pay"], limits={"tokens": 100, "seconds": 60, "turns": 5, "depth": 1}
    )
    greedy = {"model": "large", "messages": SPEC["messages"], "tools": ["pay", "nuke"], "limits": {"turns": 900}}
    made = asks(("saga__agent", greedy))
    lab.send(FinishStep("r", "model-1", 1, pack(made), 1, Used(0, 30, 10)))
    child = lab.runs.open["r/tool-1.1"]
    spec = AgentProgram.spec(child.input)
    assert (spec.model, spec.tools, spec.approve) == ("small", ("pay",), ("pay",))
    assert (spec.limits.tokens, spec.limits.turns, spec.limits.seconds) == (60, 5, 60)
    assert child.deadline_us == child.started_us + 60_000_000, "its time is limited, too"


def test_agents_side_by_side_share_what_their_parent_has_left_and_nothing_left_is_not_everything() -> None:
    kid = {"model": "m", "messages": SPEC["messages"]}
    made = asks(("saga__agent", kid), ("saga__agent", kid))
    for used, share in ((40, 30), (100, 1), (200, 1)):
        lab = begun(tools=["saga:agent"], approve=[], limits={"tokens": 100, "cost_nano_usd": 100, "depth": 1})
        lab.send(FinishStep("r", "model-1", 1, pack(made), 1, Used(used, used, 0)))
        for number in (1, 2):
            limits = AgentProgram.spec(lab.runs.open[f"r/tool-1.{number}"].input).limits
            assert (limits.tokens, limits.cost_nano_usd) == (share, share)


def test_an_agent_that_a_model_specifies_badly_is_told_so() -> None:
    lab = begun(tools=["saga:agent"], approve=[])
    lab.finish("model-1", asks(("saga__agent", {"model": "small", "messages": []})))
    assert lab.names() == ["model-2"]
    assert "at least one message" in str(conversation(lab.run(), 2)[-1])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"messages": []}, "at least one message"),
        ({"approve": ["nuke"]}, "does not have"),
        ({"limits": {"turns": 0}}, "1 to 1000"),
        ({"colour": 1}, "unknown field"),
    ],
)
def test_a_specification_that_makes_no_sense_is_refused(changes: Any, problem: str) -> None:
    with pytest.raises(InvalidCommandError, match=problem):
        begun(**changes)
