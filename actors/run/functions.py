"""Functions that steps of kind ``function`` call: plain Python, async or blocking, registered by name.

    @step_function("price")
    async def price(given: Basket, context: StepContext) -> dict[str, int]: ...

They run on runners, outside of the tenant's actor, and may do what they like. A step is attempted again after a crash, so
an effect that must happen once uses ``context.idempotency_key``.
"""

import asyncio
import inspect
import typing
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, TypeVar

import msgspec

from events.errors import InvalidCommandError, NotFoundError

F = TypeVar("F", bound=Callable[..., Any])

_functions: dict[str, "StepFunction"] = {}


class StepContext(msgspec.Struct, frozen=True):
    """For whom, and which attempt. ``idempotency_key`` is the same for all attempts of the step."""

    tenant: str
    run_id: str
    step: str
    attempt: int
    idempotency_key: str


class StepFailure(Exception):
    """``code`` is what the saga sees. Not retryable: a repeat would fail again."""

    def __init__(self, code: str, message: str, *, retryable: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(code, message)
        self.code, self.message, self.retryable, self.retry_after_s = code, message, retryable, retry_after_s


class StepFunction:
    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self._function = name, function
        names = list(inspect.signature(function).parameters)
        hints = typing.get_type_hints(function)
        self._takes_context = len(names) > 1
        self._input_type = hints.get(names[0]) if names else None
        self._is_async = inspect.iscoroutinefunction(function)
        self._takes_input = bool(names)

    async def __call__(self, given: Any, context: StepContext) -> Any:
        """Raises InvalidCommandError where the input is not of the function's type, and whatever the function raises."""
        arguments: list[Any] = []
        if self._takes_input:
            arguments.append(self._converted(given))
        if self._takes_context:
            arguments.append(context)
        if self._is_async:
            return await self._function(*arguments)
        return await asyncio.to_thread(self._function, *arguments)

    def _converted(self, given: Any) -> Any:
        if self._input_type is None or self._input_type is Any:
            return given
        try:
            return msgspec.convert(given, self._input_type)
        except msgspec.ValidationError as error:
            raise InvalidCommandError(f"the input of function {self.name!r}: {error}") from error


def step_function(name: str) -> Callable[[F], F]:
    """Register ``function(input, context)``; both parameters may be left out. Raises ValueError where the name is taken."""

    def wrap(function: F) -> F:
        if name in _functions:
            raise ValueError(f"step function {name!r} is registered already")
        _functions[name] = StepFunction(name, function)
        return function

    return wrap


def find_function(name: str) -> StepFunction:
    """Raises NotFoundError."""
    found = _functions.get(name)
    if found is None:
        close = get_close_matches(name, _functions, n=1)
        raise NotFoundError("step function", name + (f" (did you mean {close[0]!r}?)" if close else ""))
    return found
