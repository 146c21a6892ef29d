"""What a run is started with: a saga's name and its input, or the specification of an agent."""

from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from actors.run.agent import AGENT, SAGA_PREFIX, AgentLimits, AgentSpec
from events.errors import InvalidCommandError
from events.money import nano_usd
from serve.admin.routes import Usd
from serve.http_errors import HttpError
from serve.services import Services
from serve.settings import Settings

DEADLINE_S_MAX = 10 * 366 * 86_400.0

Tag = Annotated[str, Field(max_length=128)]
ToolNames = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=128)]],
    Field(max_length=128, description="Tools of the models file, or `saga:NAME` for a run of a saga as a tool"),
]


class NewLimits(BaseModel, extra="forbid"):
    """Where an agent is stopped. What is left out is the deployment's ceiling (`TENANTRY_AGENT_*_MAX`)."""

    turns: Annotated[int, Field(ge=1, le=1_000, description="Calls of the model")] = 20
    calls_per_turn: Annotated[int, Field(ge=1, le=128, description="Calls of tools after one call of the model")] = 16
    tokens: Annotated[int, Field(ge=0, description="In and out, all turns together")] = 0
    cost_usd: Usd = "0"
    seconds: Annotated[float, Field(ge=0, le=DEADLINE_S_MAX)] = 0.0
    depth: Annotated[int, Field(ge=0, le=8, description="How deep runs nest that are its tools")] = 3


class NewAgent(BaseModel, extra="forbid"):
    """A model, and tools that it may call until it has an answer. `approve` names tools each call of which waits for a
    person (the signal `approve-TURN.CALL` with `{"approved": true}`); tools marked destructive always do.
    """

    model: Annotated[str, Field(min_length=1, max_length=128)]
    instructions: Annotated[str, Field(max_length=32_000)] = ""
    tools: ToolNames = Field(default_factory=list)
    approve: ToolNames = Field(default_factory=list)
    limits: NewLimits = NewLimits()
    max_output_tokens: Annotated[int, Field(ge=1, description="Of one turn")] = 1024


class NewRun(BaseModel, extra="forbid"):
    """A `saga` with its `input`, or an `agent` whose `input` is a text or a list of messages. ``version`` 0 is the newest; of
    two runs of a tenant that wait for a runner, the one of higher ``priority`` goes first.
    """

    saga: Annotated[str, Field(max_length=100, examples=["order"])] = ""
    agent: NewAgent | None = None
    input: Any = None
    version: Annotated[int, Field(ge=0, le=2**31)] = 0
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    deadline_s: Annotated[
        float | None, Field(gt=0, le=DEADLINE_S_MAX, description="After that it is undone, and ends as timed_out")
    ] = None
    tags: Annotated[dict[Tag, Tag], Field(max_length=16)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_one_of_both(self) -> "NewRun":
        if bool(self.saga) == (self.agent is not None):
            raise ValueError("a run has either a saga or an agent")
        if self.saga == AGENT:
            raise ValueError("an agent is started with `agent`, not as a saga")
        return self


def agent_spec(services: Services, agent: NewAgent, given: Any) -> AgentSpec:
    """The agent as its run's history keeps it.

    Raises:
        HttpError: Its model or a tool is not there, or it wants more than the deployment's ceilings.
        InvalidCommandError: The input is neither a text nor messages.
    """
    known = {model.name: model for model in services.settings.models.models}
    model = known.get(agent.model)
    if model is None:
        message = f"the model {agent.model!r} does not exist; there are: {', '.join(sorted(known)) or 'none'}"
        raise HttpError(404, "model_not_found", message, param="agent.model")
    if agent.max_output_tokens > model.max_output_tokens and "max_output_tokens" in agent.model_fields_set:
        message = f"max_output_tokens is {agent.max_output_tokens}, model {model.name!r} gives at most {model.max_output_tokens}"
        raise HttpError(400, "invalid_request", message, param="agent.max_output_tokens")
    own = [tool for tool in agent.tools if not tool.startswith(SAGA_PREFIX)]
    destructive = {tool for tool in own if services.tools.registry.config(tool).destructive}
    return AgentSpec(
        model=agent.model,
        messages=_messages(given),
        instructions=agent.instructions,
        tools=tuple(agent.tools),
        approve=tuple(tool for tool in agent.tools if tool in {*agent.approve, *destructive}),
        limits=_limits(services.settings, agent.limits),
        max_output_tokens=min(agent.max_output_tokens, model.max_output_tokens),
    )


def _messages(given: Any) -> tuple[dict[str, Any], ...]:
    if isinstance(given, str) and given:
        return ({"role": "user", "content": given},)
    if isinstance(given, list) and given and all(isinstance(message, dict) and "role" in message for message in given):
        return tuple(given)
    raise InvalidCommandError("an agent's input is a text, or a list of messages with role and content")


def _limits(settings: Settings, asked: NewLimits) -> AgentLimits:
    cost = _within("cost_usd", nano_usd(asked.cost_usd), nano_usd(settings.agent_cost_usd_max))
    return AgentLimits(
        turns=int(_within("turns", asked.turns, settings.agent_turns_max)),
        calls_per_turn=asked.calls_per_turn,
        tokens=int(_within("tokens", asked.tokens, settings.agent_tokens_max)),
        cost_nano_usd=int(cost),
        seconds=_within("seconds", asked.seconds, settings.agent_seconds_max),
        depth=asked.depth,
    )


def _within(name: str, asked: float, ceiling: float) -> float:
    """0 asked: as much as there may be. A ceiling of 0 is none."""
    if ceiling and asked > ceiling:
        message = f"limits.{name}: this deployment allows at most {ceiling:g} (nano-USD for cost)"
        raise HttpError(400, "invalid_request", message, param=f"agent.limits.{name}")
    return asked or ceiling
