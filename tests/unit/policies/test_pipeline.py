"""All policies around one call, and their configuration."""

import asyncio
import threading
import time

import pytest

from actors.policies.config import BulkheadConfig, PoliciesConfig
from actors.policies.refusals import (
    BreakerOpenError,
    BulkheadFullError,
    CallTimeoutError,
    DeadlineExceededError,
    RateLimitedError,
    UnhealthyError,
)
from actors.policies.wrappers.build import build_pipeline
from actors.policies.wrappers.pipeline import Pipeline
from actors.policies.wrappers.thread_pool import ThreadPoolBulkhead
from actors.policies.wrappers.timeout import deadline, remaining_s, within
from actors.policies.wrappers.timing import Monotonic
from events.errors import InvalidCommandError, PlatformError
from tests.kit.clock import ManualMonotonic


def pipeline(clock: Monotonic = time.monotonic, **config: object) -> Pipeline:
    return build_pipeline("payments", PoliciesConfig.parse(config, "test"), clock=clock)


async def fails() -> None:
    raise ConnectionResetError


async def works() -> int:
    return 42


BREAKER = {"calls_min": 2, "window_calls": 4}


async def test_a_call_goes_through_all_five() -> None:
    calls = pipeline(rate_limit={"limit": 10}, bulkhead=5, breaker={}, retry={}, timeout_s=5)
    assert await calls.call(works) == 42
    assert calls.bulkhead is not None
    assert calls.bulkhead.demand == 0


async def test_what_is_turned_away_outside_is_not_held_against_the_dependency() -> None:
    calls = pipeline(rate_limit={"limit": 1}, bulkhead=1, breaker=BREAKER)
    await calls.call(works)
    for _ in range(5):
        with pytest.raises(RateLimitedError):
            await calls.call(works)
    assert calls.breaker is not None
    assert calls.breaker.state.window.counts(0.0).calls == 1


async def test_a_full_bulkhead_refuses_before_the_breaker_is_asked() -> None:
    calls = pipeline(bulkhead=1, breaker=BREAKER)
    go_on = asyncio.Event()
    inside = asyncio.create_task(calls.call(go_on.wait))
    await asyncio.sleep(0)
    with pytest.raises(BulkheadFullError) as refusal:
        await calls.call(works)
    assert (refusal.value.policy, refusal.value.code) == ("bulkhead", "bulkhead_full")
    go_on.set()
    await inside


async def test_an_open_breaker_refuses_and_no_retry_is_spent_on_it() -> None:
    calls = pipeline(breaker=BREAKER, retry={"attempts_max": 2, "first_s": 0.001})
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            await calls.call(fails)
    called = False

    async def call() -> None:
        nonlocal called
        called = True

    with pytest.raises(BreakerOpenError):
        await calls.call(call)
    assert not called


async def test_a_callers_own_mistake_is_no_failure_of_the_dependency() -> None:
    async def refuses() -> None:
        raise InvalidCommandError("no such customer")

    calls = pipeline(breaker=BREAKER)
    for _ in range(10):
        with pytest.raises(InvalidCommandError):
            await calls.call(refuses)
    assert await calls.call(works) == 42


async def test_a_cancelled_call_leaves_no_permit_and_no_probe_behind() -> None:
    clock = ManualMonotonic()
    calls = pipeline(clock, bulkhead=1, breaker={**BREAKER, "probes": 1, "open_s": 5, "open_jitter": 0})
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            await calls.call(fails)
    clock.advance(5)
    probe = asyncio.create_task(calls.call(asyncio.Event().wait))
    await asyncio.sleep(0)
    assert calls.breaker is not None
    assert calls.breaker.state.status == "half_open"
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert await calls.call(works) == 42


async def test_every_attempt_has_its_time_out_and_the_next_one_may_succeed() -> None:
    calls, attempts = pipeline(timeout_s=0.02, retry={"first_s": 0.001}), 0

    async def slow_at_first() -> int:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            await asyncio.Event().wait()
        return attempts

    assert await calls.call(slow_at_first) == 2


async def test_inner_calls_have_no_more_time_than_the_outer_one() -> None:
    async def look() -> float:
        return remaining_s()

    assert await within("inner", 60, look) > 50
    with deadline(5):
        assert await within("inner", 60, look) <= 5
        assert await within("inner", 1, look) <= 1
        with deadline(60):
            assert remaining_s() <= 5
    assert remaining_s() == float("inf")


async def test_a_call_whose_time_is_over_is_not_begun() -> None:
    with deadline(-1), pytest.raises(DeadlineExceededError):
        await pipeline(timeout_s=5).call(works)


async def test_only_our_own_time_out_is_reported_as_one() -> None:
    async def its_own() -> None:
        raise TimeoutError("of the adapter itself")

    with pytest.raises(TimeoutError, match="adapter") as failure:
        await within("x", 5, its_own)
    assert not isinstance(failure.value, PlatformError)
    with pytest.raises(CallTimeoutError):
        await within("x", 0.001, asyncio.Event().wait)


async def test_a_dependency_that_is_down_is_not_called() -> None:
    async def check() -> None:
        raise ConnectionError

    config = PoliciesConfig.parse({"health": {"fall": 2}}, "test")
    calls = build_pipeline("payments", config, check=check)
    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            await calls.call(fails)
    with pytest.raises(UnhealthyError):
        await calls.call(works)


async def test_blocking_functions_run_in_threads_and_a_late_one_keeps_its_permit() -> None:
    threads = {"permits": 1, "strategy": "threads", "queue_max": 1, "queue_wait_s": 60}
    calls = pipeline(bulkhead=threads, timeout_s=0.05, breaker=BREAKER)
    assert await calls.call_blocking(threading.get_ident) != threading.get_ident()
    let_go = threading.Event()
    with pytest.raises(CallTimeoutError):
        await calls.call_blocking(lambda: let_go.wait(60))
    pool = calls.bulkhead
    assert isinstance(pool, ThreadPoolBulkhead)
    with deadline(0.01), pytest.raises(BulkheadFullError):
        await calls.call_blocking(time.monotonic)
    let_go.set()
    assert await pool.run(lambda: 7) == 7
    pool.close()


async def test_the_deadline_reaches_the_thread() -> None:
    calls = pipeline(bulkhead={"permits": 1, "strategy": "threads"}, timeout_s=5)
    assert await calls.call_blocking(remaining_s) <= 5
    assert isinstance(calls.bulkhead, ThreadPoolBulkhead)
    calls.bulkhead.close()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"timout_s": 3}, "unknown setting 'timout_s', did you mean 'timeout_s'?"),
        ({"breaker": {"failure_rates": 0.5}}, "breaker: unknown setting 'failure_rates', did you mean 'failure_rate'?"),
        ({"breaker": {"failure_rate": 50}}, "breaker.failure_rate: Input should be less than or equal to 1"),
        ({"breaker": {"calls_min": 200}}, "'calls_min' 200 is above 'window_calls' 100: it could never open"),
        ({"bulkhead": {"permits": 3, "queue_max": 5}}, "set strategy to 'queue'"),
        ({"bulkhead": {"permits": 3, "strategy": "queue"}}, "needs 'queue_max'"),
        ({"bulkhead": 0}, "bulkhead.permits: Input should be greater than 0"),
        (
            {"rate_limit": {"limit": 3, "burst": 5, "strategy": "fixed_window"}},
            "'burst' belongs to strategy 'token_bucket'",
        ),
        ({"retry": {"attempts_max": 0}}, "retry.attempts_max"),
        ({"timeout_s": float("nan")}, "timeout_s"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_place_and_the_way_out(given: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidCommandError) as refusal:
        PoliciesConfig.parse(given, "tools.yaml")
    assert says in str(refusal.value)
    assert str(refusal.value).startswith("tools.yaml: ")


def test_a_number_is_a_bulkhead_and_defaults_are_usable() -> None:
    config = PoliciesConfig.parse({"bulkhead": 5, "breaker": {}, "retry": {}, "rate_limit": {"limit": 1}}, "test")
    assert config.bulkhead == BulkheadConfig(permits=5)
    assert config.breaker is not None
    assert config.breaker.rules().calls_min <= config.breaker.window_calls
