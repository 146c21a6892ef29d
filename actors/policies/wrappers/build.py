"""A pipeline from its configuration, for this process alone. ``supervision.clients`` makes those the cluster shares."""

import random
import time
from collections.abc import Awaitable, Callable

from actors.policies.config import BulkheadConfig, PoliciesConfig
from actors.policies.wrappers.breaker import CircuitBreaker
from actors.policies.wrappers.bulkhead import SemaphoreBulkhead
from actors.policies.wrappers.health import HealthChecker
from actors.policies.wrappers.pipeline import Counts as CountsError
from actors.policies.wrappers.pipeline import Pipeline, counts_as_failure
from actors.policies.wrappers.rate_limiter import RateLimiter
from actors.policies.wrappers.retry import Retry, Retryable, is_retryable
from actors.policies.wrappers.thread_pool import ThreadPoolBulkhead
from actors.policies.wrappers.timing import Chance, Monotonic


def build_pipeline(
    name: str,
    config: PoliciesConfig,
    *,
    counts: CountsError = counts_as_failure,
    retryable: Retryable = is_retryable,
    check: Callable[[], Awaitable[object]] | None = None,
    clock: Monotonic = time.monotonic,
    chance: Chance = random.random,
) -> Pipeline:
    """``counts``: which errors are failures to the breaker. ``retryable``: which are tried again. ``check`` asks the
    dependency whether it is well; with it, ``pipeline.health.run()`` is for the caller to keep running.
    """
    return Pipeline(
        name,
        limiter=_limiter(name, config, clock),
        bulkhead=build_bulkhead(name, config.bulkhead) if config.bulkhead else None,
        breaker=CircuitBreaker(name, config.breaker.rules(), clock=clock, chance=chance) if config.breaker else None,
        retry=Retry(config.retry.rules(), retryable=retryable, chance=chance) if config.retry else None,
        timeout_s=config.timeout_s,
        health=HealthChecker(name, config.health.rules(), check) if config.health and check else None,
        counts=counts,
        clock=clock,
    )


def build_bulkhead(name: str, config: BulkheadConfig) -> SemaphoreBulkhead:
    if config.strategy == "threads":
        return ThreadPoolBulkhead(
            name,
            config.permits,
            queue_max=config.queue_max,
            queue_wait_s=config.queue_wait_s,
            stuck_after_s=config.stuck_after_s,
        )
    return SemaphoreBulkhead(name, config.permits, queue_max=config.queue_max, queue_wait_s=config.queue_wait_s)


def _limiter(name: str, config: PoliciesConfig, clock: Monotonic) -> RateLimiter | None:
    limit = config.rate_limit
    if limit is None:
        return None
    return RateLimiter(name, limit.limiter(clock()), wait_max_s=limit.wait_max_s, clock=clock)
