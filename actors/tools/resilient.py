"""``@resilient``: policies around a plain function.

@resilient("payments", timeout_s=10, bulkhead=5)
async def charge(order: Order) -> Receipt: ...

@resilient("ledger", bulkhead=2, retry={"attempts_max": 5}, idempotent=True)
def book(entry: Entry) -> int: ...  # blocks: runs in one of two threads, and is awaited like the other
"""

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar, cast, overload

from actors.policies.config import PoliciesConfig
from actors.policies.wrappers.build import build_pipeline
from actors.policies.wrappers.pipeline import Pipeline
from actors.tools.config import ToolConfigError

P = ParamSpec("P")
R = TypeVar("R")
_THREADS = 10  # of a blocking function that names no bulkhead

# Functions of one name share one set of policies: it is the dependency that has a breaker, not the function.
_pipelines: dict[str, tuple[PoliciesConfig, Pipeline]] = {}


class _Decorator(Protocol):
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]: ...


def resilient(name: str, *, idempotent: bool = False, **policies: Any) -> _Decorator:
    """The function, within the policies of the dependency ``name``. What comes back is awaited, also for one that blocks.

    Args:
        idempotent: A second attempt does no harm. Otherwise only what surely had no effect is tried again.
        policies: ``timeout_s``, ``bulkhead``, ``breaker``, ``retry``, ``rate_limit``, ``health``: see PoliciesConfig.

    Raises:
        InvalidCommandError: When decorated: a policy that there isn't, or that makes no sense.
        ToolConfigError: When decorated: another function gave this name other policies.
        PolicyRefusal, CallTimeoutError: When called, beside what the function itself raises.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
        is_async = inspect.iscoroutinefunction(function)
        pipeline = _pipeline(name, policies, is_async=is_async)

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            bound = functools.partial(function, *args, **kwargs)
            if is_async:
                return await pipeline.call(bound, idempotent=idempotent)
            return await pipeline.call_blocking(bound, idempotent=idempotent)

        return call

    return cast(_Decorator, decorate)


def pipeline_of(name: str) -> Pipeline:
    """The policies that functions of this name share: for a look at them. Raises KeyError."""
    return _pipelines[name][1]


def _pipeline(name: str, policies: dict[str, Any], *, is_async: bool) -> Pipeline:
    config = PoliciesConfig.parse(policies, f"@resilient({name!r})")
    if not is_async:
        bulkhead = config.bulkhead.model_dump() if config.bulkhead else {"permits": _THREADS}
        config = PoliciesConfig.parse({**policies, "bulkhead": {**bulkhead, "strategy": "threads"}}, name)
    if name not in _pipelines:
        _pipelines[name] = (config, build_pipeline(name, config))
    known, pipeline = _pipelines[name]
    if known != config:
        raise ToolConfigError(f"@resilient({name!r}) stands elsewhere with other policies: one dependency has one set")
    return pipeline
