"""Policies as they are configured: in the tools file, in ``@resilient(…)``. Validated here, values inside.

PoliciesConfig(timeout_s=10, bulkhead=5, breaker={"failure_rate": 0.5}, retry={"attempts_max": 3})
"""

from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from actors.policies.breaker import BreakerRules
from actors.policies.health import HealthRules
from actors.policies.rate_limiter import FixedWindow, Limiter, SlidingWindow, TokenBucket
from actors.policies.retry import RetryRules
from actors.policies.window import CountWindow, TimeWindow
from events.errors import InvalidCommandError

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]


class HintedConfig(BaseModel, frozen=True, extra="forbid"):
    """Frozen; a key it doesn't know is refused with the one that was probably meant."""

    @model_validator(mode="before")
    @classmethod
    def _knows_all_keys(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for key in given:
                if key not in cls.model_fields:
                    raise ValueError(unknown_key(str(key), list(cls.model_fields)))
        return given


def unknown_key(key: str, known: list[str]) -> str:
    close = get_close_matches(key, known, n=1, cutoff=0.5)
    guess = f", did you mean {close[0]!r}?" if close else f": there are {', '.join(known)}"
    return f"unknown setting {key!r}{guess}"


class RateLimitConfig(HintedConfig, frozen=True):
    """``limit`` per ``window_s``. ``burst`` is the token bucket's size, ``limit`` where it is not given.
    ``wait_max_s``: wait so long for a free place instead of refusing at once.
    """

    limit: Amount
    window_s: Seconds = 1.0
    strategy: Literal["token_bucket", "sliding_window", "fixed_window"] = "token_bucket"
    burst: Amount | None = None
    wait_max_s: Annotated[float, Field(ge=0, le=3_600)] = 0.0

    @model_validator(mode="after")
    def _burst_is_the_buckets(self) -> Self:
        if self.burst is not None and self.strategy != "token_bucket":
            raise ValueError(f"'burst' belongs to strategy 'token_bucket', this is {self.strategy!r}: leave it out")
        return self

    def limiter(self, now_s: float = 0.0) -> Limiter:
        match self.strategy:
            case "token_bucket":
                return TokenBucket.full(self.limit / self.window_s, self.burst or self.limit, now_s)
            case "sliding_window":
                return SlidingWindow(self.limit, self.window_s)
            case "fixed_window":
                return FixedWindow(self.limit, self.window_s)


class BulkheadConfig(HintedConfig, frozen=True):
    """``semaphore``: refuses when full. ``queue``: up to ``queue_max`` wait, ``queue_wait_s`` at most. ``threads``: for
    functions that block; ``permits`` is the number of threads. A bare number stands for ``permits``.

    Shared by the cluster, ``drain_s`` is how long the dependency may still be busy with a call of a process that died or was
    cut off (by default the call's time-out): so long its permits are not lent to others.
    """

    permits: Annotated[int, Field(gt=0, le=100_000)]
    strategy: Literal["semaphore", "queue", "threads"] = "semaphore"
    queue_max: NonNegativeInt = 0
    queue_wait_s: Seconds = 1.0
    stuck_after_s: Seconds = 30.0
    drain_s: Seconds | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_number_is_enough(cls, given: Any) -> Any:
        return {"permits": given} if isinstance(given, int) and not isinstance(given, bool) else given

    @model_validator(mode="after")
    def _the_queue_is_the_queues(self) -> Self:
        if self.queue_max and self.strategy == "semaphore":
            raise ValueError("'queue_max' with strategy 'semaphore': set strategy to 'queue', or leave it out")
        if not self.queue_max and self.strategy == "queue":
            raise ValueError("strategy 'queue' needs 'queue_max': how many may wait")
        return self


class BreakerConfig(HintedConfig, frozen=True):
    """Opens when the share of failures (or of calls of ``slow_after_s`` and longer) reaches its rate, among the last
    ``window_calls`` calls, or those of the last ``window_s`` seconds where that is given, and never on fewer than
    ``calls_min``. Stays open for ``open_s``, then lets ``probes`` calls through.
    """

    failure_rate: Share = 0.5
    slow_rate: Share = 1.0
    slow_after_s: Seconds | None = None
    calls_min: PositiveInt = 20
    window_calls: Annotated[int, Field(gt=0, le=10_000)] = 100
    window_s: Seconds | None = None
    open_s: Seconds = 10.0
    open_jitter: Annotated[float, Field(ge=0, le=1)] = 0.2
    probes: Annotated[int, Field(gt=0, le=1_000)] = 3
    probe_timeout_s: Seconds = 60.0

    @model_validator(mode="after")
    def _can_open(self) -> Self:
        if self.window_s is None and self.calls_min > self.window_calls:
            raise ValueError(
                f"'calls_min' {self.calls_min} is above 'window_calls' {self.window_calls}: it could never open"
            )
        return self

    def rules(self) -> BreakerRules:
        return BreakerRules(
            failure_rate=self.failure_rate,
            slow_rate=self.slow_rate,
            slow_after_s=self.slow_after_s or float("inf"),
            calls_min=self.calls_min,
            window=CountWindow(self.window_calls) if self.window_s is None else TimeWindow(self.window_s),
            open_s=self.open_s,
            open_jitter=self.open_jitter,
            probes=self.probes,
            probe_timeout_s=self.probe_timeout_s,
        )


class RetryConfig(HintedConfig, frozen=True):
    """``attempts_max`` counts the first. Waits are random up to ``first_s * factor ** n``, at most ``cap_s``. Retries are
    at most ``budget_ratio`` of the calls. ``hedge_after_s`` starts a second attempt of an idempotent call that is slow.
    """

    attempts_max: Annotated[int, Field(gt=0, le=100)] = 3
    first_s: Seconds = 0.1
    factor: Annotated[float, Field(ge=1, le=10)] = 2.0
    cap_s: Seconds = 10.0
    retry_after_max_s: Seconds = 60.0
    budget_ratio: Share = 0.1
    budget_reserve: Annotated[int, Field(ge=0, le=100)] = 3
    hedge_after_s: Seconds | None = None

    def rules(self) -> RetryRules:
        return RetryRules(**{**self.model_dump(), "hedge_after_s": self.hedge_after_s or 0.0})


class HealthConfig(HintedConfig, frozen=True):
    """Down after ``fall`` failures in a row, up again after ``rise`` good checks; one check per ``period_s``."""

    rise: PositiveInt = 2
    fall: PositiveInt = 3
    period_s: Seconds = 5.0
    timeout_s: Seconds = 2.0

    def rules(self) -> HealthRules:
        return HealthRules(**self.model_dump())


class PoliciesConfig(HintedConfig, frozen=True):
    """What stands around calls to one dependency. What is left out is not there.

    ``scope``: ``dependency``: all tenants share one breaker and one bulkhead; ``tenant``: each tenant has its own, so
    that its dead webhook opens nothing for the others.
    """

    timeout_s: Seconds | None = None
    rate_limit: RateLimitConfig | None = None
    bulkhead: BulkheadConfig | None = None
    breaker: BreakerConfig | None = None
    retry: RetryConfig | None = None
    health: HealthConfig | None = None
    scope: Literal["dependency", "tenant"] = "dependency"

    @classmethod
    def parse(cls, given: Any, where: str) -> Self:
        """Raises InvalidCommandError with every problem and its place."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise InvalidCommandError(f"{where}: {problems(error)}") from error


def problems(error: ValidationError) -> str:
    """All of them in one line: place and message."""
    found = (
        (".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")) for problem in error.errors()
    )
    return "; ".join(f"{place}: {message}" if place else message for place, message in found)
