"""Fakes written by hand: they do as they are told, and remember what they were asked."""

import asyncio
from collections import deque
from typing import Any

from actors.tools.adapter import ToolAdapter, ToolCall, ToolContext, ToolResult
from actors.tools.config import ToolConfig, ToolConfigBuilder


class MockConfig(ToolConfig, frozen=True):
    adapter: str = "tests.kit.fakes:MockTool"


class MockTool(ToolAdapter[MockConfig]):
    """Gives ``answers`` one after the other, then {"ok": True} for ever: an error is raised, ``hang`` never answers.

    ``done`` is its ledger: by idempotency key, what took effect. ``calls`` are all attempts, repeats included.
    """

    config_type = MockConfig

    def __init__(self, config: MockConfig | None = None, **settings: Any) -> None:
        super().__init__(config or ToolConfigBuilder(MockConfig, "mock").set(**settings).build())
        self.answers: deque[Any] = deque()
        self.calls: list[tuple[ToolCall, ToolContext]] = []
        self.done: dict[str, Any] = {}
        self.hanging, self.was_left = asyncio.Event(), asyncio.Event()
        self.safe_to_repeat = True
        self.is_closed = False

    def repeats_safely(self, call: ToolCall) -> bool:
        return self.safe_to_repeat

    async def _execute_tool(self, call: ToolCall, context: ToolContext) -> ToolResult | dict[str, Any]:
        self.calls.append((call, context))
        answer = self.answers.popleft() if self.answers else {"ok": True}
        if isinstance(answer, Exception):
            if getattr(answer, "may_have_happened", False):
                self.done.setdefault(call.idempotency_key, call.input)
            raise answer
        self.done.setdefault(call.idempotency_key, call.input)
        if answer == "hang":
            self.hanging.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.was_left.set()
                raise
        return answer

    async def close(self) -> None:
        self.is_closed = True
