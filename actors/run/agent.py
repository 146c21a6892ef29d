"""Agent runs: model and tools in turn until the model answers. Each call is a step of the run, so a run that is resumed
never pays for a finished call again, and whoever reads its history sees every one.

Turn ``n`` is the step ``model-n``; the tools it asks for are ``tool-n.1`` …, side by side; those that need a person's
approval wait for the signal ``approve-n.1`` … first. What a tool could not do is told to the model, not the run's end.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from actors.run.definition import Begin, Plan, Retry
from actors.run.registry import register
from actors.run.state import Run, Step, failed_for_good
from events.errors import InvalidCommandError
from events.run import Reference, RetryRule, StepKind, StepOrder, pack, unpack, with_reference

AGENT = "agent"
SAGA_PREFIX, _SAGA_FUNCTION_PREFIX = "saga:", "saga__"
_SAME_CALLS_MAX = 3  # the same calls with the same arguments in so many turns: it goes in circles
_MODEL_TIMEOUT_US, _TOOL_TIMEOUT_US = 600_000_000, 120_000_000
N = TypeVar("N", int, float)


class AgentLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where an agent is stopped; 0: no ceiling, but ``turns`` always has one."""

    turns: int = 20
    calls_per_turn: int = 16
    tokens: int = 0
    cost_nano_usd: int = 0
    seconds: float = 0.0
    depth: int = 3


class AgentSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``tools``: names of tools, or ``saga:<name>`` for a run as a tool. ``approve``: those of them that a person must
    allow each time. ``messages`` begin the conversation, in OpenAI's shape.
    """

    model: str
    messages: tuple[dict[str, Any], ...]
    instructions: str = ""
    tools: tuple[str, ...] = ()
    approve: tuple[str, ...] = ()
    limits: AgentLimits = AgentLimits()
    max_output_tokens: int = 1024


class ToolCall(msgspec.Struct, frozen=True):
    """A call that a model asks for. ``arguments`` is JSON as the model wrote it, or a ``Reference`` to it, as plain data."""

    id: str
    name: str
    arguments: Any


class Turn(msgspec.Struct, frozen=True):
    """A model step's result. ``message`` goes back to the model as it came (or a ``Reference`` to it); ``calls`` is what is to be done about it."""

    message: Any
    calls: tuple[ToolCall, ...] = ()
    finish_reason: str = ""


def model_step(turn: int) -> str:
    return f"model-{turn}"


def tool_step(turn: int, number: int) -> str:
    return f"tool-{turn}.{number}"


def approval_signal(turn: int, number: int) -> str:
    return f"approve-{turn}.{number}"


def function_name(tool: str) -> str:
    """What the model calls the tool: names of functions have no colon."""
    return tool.replace(SAGA_PREFIX, _SAGA_FUNCTION_PREFIX, 1) if tool.startswith(SAGA_PREFIX) else tool


class AgentProgram:
    name, version = AGENT, 1
    patches: tuple[int, ...] = ()

    def input_schema(self) -> dict[str, Any]:
        return msgspec.json.schema(AgentSpec)

    def lasts_us(self, payload: bytes) -> int:
        return round(self.spec(payload).limits.seconds * 1e6)

    def check_input(self, payload: bytes) -> None:
        try:
            spec = self.spec(payload)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise InvalidCommandError(f"the agent: {error}") from error
        if not spec.messages:
            raise InvalidCommandError("the agent: it needs at least one message to begin with")
        if not 1 <= spec.limits.turns <= 1_000:
            raise InvalidCommandError(f"the agent: limits.turns is 1 to 1000, got {spec.limits.turns}")
        if unknown := set(spec.approve) - set(spec.tools):
            raise InvalidCommandError(f"the agent: approve names tools that it does not have: {sorted(unknown)}")

    @staticmethod
    def spec(payload: bytes) -> AgentSpec:
        plain = unpack(payload)
        return msgspec.convert(plain, AgentSpec)

    def has_undo(self, _run: Run, _step: str) -> bool:
        return False

    def gave_up_at(self, run: Run) -> tuple[str, ...]:
        return failed_for_good(run)

    def backward(self, _run: Run) -> Plan:
        return Plan()

    def forward(self, run: Run) -> Plan:
        spec = self.spec(run.input)
        turn = 1
        while (answer := _turn_of(run, turn)) is not None:
            if not answer.calls:
                return Plan(output=pack({"message": answer.message, "turns": turn}))
            plan = _calls_plan(run, spec, turn, answer)
            if plan is not None:
                return plan
            turn += 1
        if model_step(turn) in run.steps:
            return Plan()
        if problem := _ceiling(run, spec, turn):
            return Plan(failure=problem)
        order = StepOrder(model_step(turn), "model", spec.model, _MODEL_TIMEOUT_US, Retry().rule())
        return Plan((Begin(order, pack({"turn": turn})),))


def _turn_of(run: Run, turn: int) -> Turn | None:
    step = run.steps.get(model_step(turn))
    if step is None or step.status != "succeeded":
        return None
    return msgspec.convert(unpack(step.result), Turn)


def _ceiling(run: Run, spec: AgentSpec, turn: int) -> tuple[str, str] | None:
    limits, used = spec.limits, run.used
    tokens = used.input_tokens + used.output_tokens
    if turn > limits.turns:
        return "turn_limit", f"no answer after {limits.turns} turns"
    if limits.tokens and tokens >= limits.tokens:
        return "token_limit", f"{tokens} tokens are used, the limit is {limits.tokens}"
    if limits.cost_nano_usd and used.cost_nano_usd >= limits.cost_nano_usd:
        return "cost_limit", f"{used.cost_nano_usd} nano-USD are spent, the limit is {limits.cost_nano_usd}"
    if _goes_in_circles(run, turn):
        return "loop_detected", f"the same calls with the same arguments in {_SAME_CALLS_MAX} turns one after the other"
    return None


def _goes_in_circles(run: Run, turn: int) -> bool:
    """Whether the turns before this one all asked for the same."""
    if turn <= _SAME_CALLS_MAX:
        return False
    turns = [_turn_of(run, number) for number in range(turn - _SAME_CALLS_MAX, turn)]
    wanted = [tuple(sorted((call.name, str(call.arguments)) for call in one.calls)) for one in turns if one]
    return len(set(wanted)) == 1


def _calls_plan(run: Run, spec: AgentSpec, turn: int, answer: Turn) -> Plan | None:
    """What the turn's calls still need; None once all of them have an answer."""
    orders: list[Begin] = []
    is_waiting = False
    for number, call in enumerate(answer.calls[: spec.limits.calls_per_turn], 1):
        order, waits = _call_plan(run, spec, turn, number, call, answer)
        orders += [order] if order is not None else []
        is_waiting |= waits
    return Plan(tuple(orders)) if orders or is_waiting else None


def _call_plan(
    run: Run, spec: AgentSpec, turn: int, number: int, call: ToolCall, answer: Turn
) -> tuple[Begin | None, bool]:
    """The call's next step, and whether it is still without an answer."""
    if refusal_of(run, spec, turn, number, call):
        return None, False
    tool = _tool_of(spec, call)
    assert tool is not None
    if tool in spec.approve:
        signal = run.steps.get(approval_signal(turn, number))
        if signal is None:
            name = approval_signal(turn, number)
            return Begin(StepOrder(name, "signal", name, 0, RetryRule(1))), True
        if not signal.is_done:
            return None, True
    step = run.steps.get(tool_step(turn, number))
    if step is not None:
        return None, not step.is_done
    kind: StepKind
    kind, target = ("child", tool.removeprefix(SAGA_PREFIX)) if tool.startswith(SAGA_PREFIX) else ("tool", tool)
    args = pack(call.arguments if _is_reference(call) else _parsed(call.arguments))
    if (kind, target) == ("child", AGENT):
        sharing = _agents_without_answer(run, spec, turn, answer)
        args = pack(_narrowed(AgentProgram.spec(args), spec, run, sharing))
    order = StepOrder(
        tool_step(turn, number), kind, target, _TOOL_TIMEOUT_US, Retry(attempts=2).rule(), is_optional=True
    )
    return Begin(order, args), True


def _agents_without_answer(run: Run, spec: AgentSpec, turn: int, answer: Turn) -> int:
    """How many of a turn's calls are agents that have used, or may yet use, of what the run has left."""
    calls = answer.calls[: spec.limits.calls_per_turn]
    steps = (
        run.steps.get(tool_step(turn, number))
        for number, call in enumerate(calls, 1)
        if _tool_of(spec, call) == SAGA_PREFIX + AGENT
    )
    return sum(step is None or step.is_under_way for step in steps)


def _narrowed(child: AgentSpec, parent: AgentSpec, run: Run, sharing: int) -> AgentSpec:
    """An agent's own agent, which a model has specified: it gets no more than its share of what its parent has left (``sharing``
    agents use that side by side), and none of the parent's approvals is lost on the way.
    """
    left_tokens = _share(parent.limits.tokens, run.used.input_tokens + run.used.output_tokens, sharing)
    left_cost = _share(parent.limits.cost_nano_usd, run.used.cost_nano_usd, sharing)
    limits = AgentLimits(
        turns=min(child.limits.turns, parent.limits.turns),
        calls_per_turn=min(child.limits.calls_per_turn, parent.limits.calls_per_turn),
        tokens=_lower(child.limits.tokens, left_tokens),
        cost_nano_usd=_lower(child.limits.cost_nano_usd, left_cost),
        seconds=_lower(child.limits.seconds, parent.limits.seconds),
        depth=min(child.limits.depth, parent.limits.depth),
    )
    tools = tuple(tool for tool in child.tools if tool in parent.tools)
    return msgspec.structs.replace(
        child,
        model=parent.model,
        tools=tools,
        approve=tuple(tool for tool in tools if tool in {*parent.approve, *child.approve}),
        limits=limits,
        max_output_tokens=min(child.max_output_tokens, parent.max_output_tokens),
    )


def _share(ceiling: int, used: int, sharing: int) -> int:
    """Of what is left below a ceiling, 0 being none. Never 0 where there is one: the least share is too little for any call."""
    return max(1, (ceiling - used) // sharing) if ceiling else 0


def _lower(asked: N, ceiling: N) -> N:
    """Of two ceilings, where 0 is none."""
    return min(asked, ceiling) if asked and ceiling else asked or ceiling


def _tool_of(spec: AgentSpec, call: ToolCall) -> str | None:
    return next((tool for tool in spec.tools if function_name(tool) == call.name), None)


def _is_reference(call: ToolCall) -> bool:
    return isinstance(with_reference(call.arguments), Reference)


def _parsed(arguments: str) -> Any:
    return msgspec.json.decode(arguments or "{}")


def refusal_of(run: Run, spec: AgentSpec, turn: int, number: int, call: ToolCall) -> str:
    """Why a call is not carried out, in words for the model; "" where it is."""
    if number > spec.limits.calls_per_turn:
        return f"only {spec.limits.calls_per_turn} calls per turn are carried out"
    tool = _tool_of(spec, call)
    if tool is None:
        return f"there is no tool {call.name!r}; there are: {', '.join(map(function_name, spec.tools)) or 'none'}"
    if not _is_reference(call):
        try:
            _parsed(call.arguments)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return f"the arguments are not JSON: {error}"
    if tool == SAGA_PREFIX + AGENT and (problem := _agent_problem(call)):
        return problem
    if tool.startswith(SAGA_PREFIX) and run.id.count("/") >= spec.limits.depth:
        return f"runs nest at most {spec.limits.depth} deep"
    approval = run.steps.get(approval_signal(turn, number))
    if approval is not None and approval.status == "succeeded" and not _is_approved(approval):
        return "a person has refused this call"
    return ""


def _agent_problem(call: ToolCall) -> str:
    if _is_reference(call):
        return "a specification of an agent that is too large"
    try:
        agent.check_input(pack(_parsed(call.arguments)))
    except InvalidCommandError as error:
        return str(error)
    return ""


def is_allowed(run: Run, tool_step: str) -> bool:
    """Whether a person has allowed the call that is the step ``tool-n.m``."""
    approval = run.steps.get(tool_step.replace("tool-", "approve-", 1))
    return approval is not None and approval.status == "succeeded" and _is_approved(approval)


def _is_approved(step: Step) -> bool:
    payload = unpack(step.result)
    return isinstance(payload, dict) and payload.get("approved") is True


def conversation(run: Run, turn: int) -> list[dict[str, Any] | Reference]:
    """All messages before a turn's model call, as the model gets them. References are for the runner to fetch."""
    spec = AgentProgram.spec(run.input)
    messages: list[dict[str, Any] | Reference] = list(spec.messages)
    if spec.instructions:
        messages.insert(0, {"role": "system", "content": spec.instructions})
    for number in range(1, turn):
        answer = _turn_of(run, number)
        assert answer is not None
        messages.append(with_reference(answer.message))
        messages += _tool_messages(run, spec, number, answer.calls)
    return messages


def _tool_messages(run: Run, spec: AgentSpec, turn: int, calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    messages = []
    for number, call in enumerate(calls, 1):
        content: Any = refusal_of(run, spec, turn, number, call)
        step = run.steps.get(tool_step(turn, number))
        if not content and step is not None:
            content = f"error {step.code}: {step.message}" if step.status == "failed" else unpack(step.result)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
    return messages


agent = register(AgentProgram())
