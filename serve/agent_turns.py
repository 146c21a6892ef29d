"""An agent's turn as a request to its model, and the model's answer as the turn's result."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from pydantic import TypeAdapter

from actors.run import registry
from actors.run.agent import (
    SAGA_PREFIX,
    AgentProgram,
    AgentSpec,
    ToolCall,
    Turn,
    conversation,
    function_name,
    is_allowed,
)
from actors.run.functions import StepFailure
from actors.run.runner import ObjectArea
from actors.run.state import Run
from actors.tools.registry import Registry
from events.errors import NotFoundError
from events.objects import INLINE_BYTES_MAX
from events.run import Reference, pack, unpack
from events.work import WorkItem

ReadRun = Callable[[str, str], Awaitable[Run]]

_ANY_OBJECT = {"type": "object"}
_CALLS_MAX = 128
# above these, a part of an answer lies in the object area, so that the whole of it always fits into the log
_MESSAGE_BYTES_MAX, _ARGUMENTS_CHARS_MAX = INLINE_BYTES_MAX // 4, 256


class AgentTurns:
    """``read_run`` gives the run as its log has it."""

    def __init__(self, read_run: ReadRun, objects: ObjectArea, tools: Registry) -> None:
        self._read_run, self._objects, self._tools = read_run, objects, tools

    async def request(self, item: WorkItem, turn: int) -> tuple[dict[str, Any], int | None]:
        """The fields of a chat completion request but for the model; and what the turn may cost in nano-USD, None: any."""
        run = await self._read_run(item.tenant, item.run_id)
        spec = AgentProgram.spec(run.input)
        messages = [await self._whole(item.tenant, message) for message in conversation(run, turn)]
        request: dict[str, Any] = {"messages": messages, "max_tokens": _output_tokens(run, spec)}
        if spec.tools:
            request["tools"] = [self._described(tool, item.tenant) for tool in spec.tools]
        ceiling = spec.limits.cost_nano_usd
        return request, max(0, ceiling - run.used.cost_nano_usd) if ceiling else None

    async def is_allowed(self, item: WorkItem) -> bool:
        """Whether a person has allowed this very call. Only agents need that: a saga's author has chosen the tool."""
        run = await self._read_run(item.tenant, item.run_id)
        return is_allowed(run, item.order.step)

    async def _whole(self, tenant: str, message: dict[str, Any] | Reference) -> dict[str, Any]:
        """With what lies in the object area, and a tool's result as the text that models expect."""
        if isinstance(message, Reference):
            message = unpack(await self._objects.get(tenant, message))
        assert isinstance(message, dict)
        if message.get("role") != "tool":
            return message
        content = message["content"]
        if isinstance(content, Reference):
            content = unpack(await self._objects.get(tenant, content))
        return {**message, "content": content if isinstance(content, str) else msgspec.json.encode(content).decode()}

    def _described(self, tool: str, tenant: str) -> dict[str, Any]:
        try:
            if tool.startswith(SAGA_PREFIX):
                name = tool.removeprefix(SAGA_PREFIX)
                description, parameters = f"Runs the saga {name}.", registry.find(name).input_schema()
            else:
                adapter = self._tools.adapter(tool, tenant)
                description, kind = adapter.config.description, adapter.input_type
                parameters = TypeAdapter(kind).json_schema() if kind is not None else _ANY_OBJECT
        except NotFoundError as error:
            raise StepFailure("tool_not_found", str(error)) from error
        function = {"name": function_name(tool), "description": description, "parameters": parameters}
        return {"type": "function", "function": function}

    async def turn(self, tenant: str, message: dict[str, Any], finish_reason: str) -> Turn:
        """What the run's history keeps of the answer: large parts as references."""
        wanted = _tool_calls(message)
        kept: Any = {name: value for name, value in message.items() if name != "tool_calls"}
        if wanted:
            kept["tool_calls"] = [_as_asked(call) for call in wanted]
        if len(pack(kept)) > _MESSAGE_BYTES_MAX:
            kept = await self._objects.put(tenant, pack(kept))
        return Turn(kept, tuple([await self._call(tenant, call) for call in wanted]), finish_reason)

    async def _call(self, tenant: str, call: ToolCall) -> ToolCall:
        text = call.arguments
        if len(text) <= _ARGUMENTS_CHARS_MAX:
            return call
        try:
            arguments = await asyncio.to_thread(msgspec.json.decode, text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return msgspec.structs.replace(call, arguments=f"{text[:200]} …")  # as little JSON as before
        return msgspec.structs.replace(call, arguments=await self._objects.put(tenant, pack(arguments)))


def _output_tokens(run: Run, spec: AgentSpec) -> int:
    """A turn may write no more than its run has left of its ceiling."""
    if not spec.limits.tokens:
        return spec.max_output_tokens
    left = spec.limits.tokens - run.used.input_tokens - run.used.output_tokens
    return max(1, min(spec.max_output_tokens, left))


def _tool_calls(message: dict[str, Any]) -> list[ToolCall]:
    """What a model server sends is not trusted to be of any shape. More than ``_CALLS_MAX`` are as if never asked for."""
    found = message.get("tool_calls")
    calls = []
    for number, call in enumerate(found[:_CALLS_MAX] if isinstance(found, list) else ()):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            continue
        name, arguments = function.get("name"), function.get("arguments")
        text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments or {}).decode()
        calls.append(ToolCall(str(call.get("id") or f"call-{number}"), str(name), text))
    return calls


def _as_asked(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
