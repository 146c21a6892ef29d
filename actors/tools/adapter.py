"""The port that every tool implements: ``_execute_tool``, and what it may say about itself."""

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
from pydantic import TypeAdapter, ValidationError

from actors.policies.config import problems
from actors.tools.config import Config
from actors.tools.errors import ToolBrokenError, ToolError, ToolInputError
from events.errors import PlatformError

log = logging.getLogger(__name__)

OUTPUT_BYTES_MAX = 1024 * 1024  # of one result; larger things belong into an object store
Input = TypeVar("Input")


class ToolCall(msgspec.Struct, frozen=True):
    """``input`` is plain data. ``idempotency_key`` is the same for every attempt and every repeat of the call."""

    tool: str
    input: dict[str, Any]
    idempotency_key: str


class ToolContext(msgspec.Struct, frozen=True):
    """For whom. ``call_id`` is one call's, however often it is tried; ``attempt`` counts from 1. ``on_delta`` gets the parts
    of a result that comes as a stream, as they come. The deadline is in force around the call (``policies.wrappers.timeout``).
    """

    tenant: str
    call_id: str
    attempt: int = 1
    on_delta: Callable[[dict[str, Any]], None] | None = None


class ToolResult(msgspec.Struct, frozen=True):
    """``output`` is plain data. Cost is what this call has cost beside the flat price of its configuration."""

    output: Any
    cost_nano_usd: int = 0


class ToolAdapter(ABC, Generic[Config]):
    """Subclass it, implement ``_execute_tool``, name it in the models file as ``adapter: module:Class``. Where it is a plain
    function, because it blocks, it runs in threads of the tool's bulkhead.

    An adapter is built once per configuration and shared by concurrent calls; it opens what it needs on first use and
    lets go of it in ``close``. Cancelling a call must let go of what the call holds.
    """

    config_type: ClassVar[Any]
    # Anything pydantic can check the input against; None: any object is fine.
    input_type: ClassVar[Any] = None

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def is_blocking(self) -> bool:
        return not inspect.iscoroutinefunction(self._execute_tool)

    async def execute(self, call: ToolCall, context: ToolContext) -> ToolResult:
        """One attempt. Knows nothing of policies: those stand around it.

        Raises:
            ToolError: What its subclasses say; whatever else an adapter raises becomes a ToolBrokenError.
        """
        self.check(call)
        with self._explained(call, context):
            return self._checked(call, await self._execute_tool(call, context))

    def execute_blocking(self, call: ToolCall, context: ToolContext) -> ToolResult:
        """As ``execute``, for an adapter that blocks: in a thread."""
        self.check(call)
        with self._explained(call, context):
            return self._checked(call, self._execute_tool(call, context))

    @abstractmethod
    def _execute_tool(self, call: ToolCall, context: ToolContext) -> Any:
        """Do it, and return a ToolResult, or its output alone: plain data. ``async def``, or ``def`` where it blocks."""

    @contextmanager
    def _explained(self, call: ToolCall, context: ToolContext) -> Iterator[None]:
        try:
            yield
        except ToolError as error:
            if error.may_have_happened and not self.repeats_safely(call):
                error.retryable = False
            raise
        except PlatformError:
            raise
        except Exception as error:
            log.exception("tool.defect tool=%s call=%s", call.tool, context.call_id)
            message = f"the adapter of {call.tool!r} failed with {type(error).__name__}"
            raise ToolBrokenError(call.tool, message) from error

    def check(self, call: ToolCall) -> None:
        """Before anything is recorded or sent. Raises ToolInputError."""
        if self.input_type is not None:
            self.parse(self.input_type, call)

    def repeats_safely(self, call: ToolCall) -> bool:
        """Whether a repeat under the same idempotency key has no second effect. Only then is a call repeated whose
        outcome is unknown.
        """
        return False

    async def close(self) -> None:
        """Let go of connections. Called once."""

    @staticmethod
    def parse(kind: type[Input], call: ToolCall) -> Input:
        """The input as ``kind``. Raises ToolInputError with all that is wrong with it, but none of its values."""
        try:
            return TypeAdapter(kind).validate_python(call.input)
        except ValidationError as error:
            raise ToolInputError(call.tool, f"input of {call.tool!r}: {problems(error)}") from error

    @staticmethod
    def _checked(call: ToolCall, returned: object) -> ToolResult:
        result = returned if isinstance(returned, ToolResult) else ToolResult(returned)
        try:
            size = len(msgspec.msgpack.encode(result.output))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ToolBrokenError(call.tool, f"the output of {call.tool!r} is not plain data") from error
        if size > OUTPUT_BYTES_MAX:
            message = f"the output of {call.tool!r} has {size} bytes, at most {OUTPUT_BYTES_MAX} are kept"
            raise ToolBrokenError(call.tool, message)
        return result
