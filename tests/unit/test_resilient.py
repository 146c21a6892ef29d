"""``@resilient`` around plain functions, async and blocking."""

import asyncio
import threading

import pytest

from actors.policies.refusals import BreakerOpenError, BulkheadFullError, CallTimeoutError
from actors.tools.config import ToolConfigError
from actors.tools.resilient import pipeline_of, resilient
from events.errors import InvalidCommandError

QUICK = {"attempts_max": 3, "first_s": 0.001, "cap_s": 0.001}


async def test_an_async_function_stays_what_it_is() -> None:
    @resilient("plain", timeout_s=10, bulkhead=5)
    async def double(number: int, *, plus: int = 0) -> int:
        """Twice."""
        return 2 * number + plus

    assert await double(4, plus=1) == 9
    assert (double.__name__, double.__doc__) == ("double", "Twice.")


async def test_a_blocking_function_runs_in_a_thread_of_its_bulkhead_and_never_in_the_loops() -> None:
    started, go_on = threading.Semaphore(0), threading.Event()

    @resilient("blocking", bulkhead=2)
    def work() -> str:
        started.release()
        go_on.wait(10)
        return threading.current_thread().name

    calls = [asyncio.create_task(work()) for _ in range(2)]
    await asyncio.to_thread(lambda: [started.acquire(timeout=10) for _ in range(2)])
    with pytest.raises(BulkheadFullError):
        await work()
    go_on.set()
    assert threading.main_thread().name not in await asyncio.gather(*calls)


async def test_a_call_that_takes_too_long_is_cancelled() -> None:
    @resilient("slow", timeout_s=0.02)
    async def forever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(CallTimeoutError):
        await forever()


@pytest.mark.parametrize(("idempotent", "attempts"), [(True, 3), (False, 1)])
async def test_only_what_may_be_repeated_is_repeated(idempotent: bool, attempts: int) -> None:
    tried = []

    @resilient(f"repeat-{idempotent}", retry=QUICK, idempotent=idempotent)
    async def broken() -> None:
        tried.append(1)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await broken()
    assert len(tried) == attempts


async def test_functions_of_one_name_share_a_breaker() -> None:
    breaker = {"calls_min": 2, "window_calls": 2}

    @resilient("shared", breaker=breaker)
    async def fails() -> None:
        raise ConnectionResetError

    @resilient("shared", breaker=breaker)
    async def works() -> int:
        return 1

    for _ in range(2):
        with pytest.raises(ConnectionResetError):
            await fails()
    with pytest.raises(BreakerOpenError):
        await works()
    opened = pipeline_of("shared").breaker
    assert opened is not None
    assert opened.is_open


def test_one_dependency_has_one_set_of_policies() -> None:
    resilient("twice", bulkhead=1)(_nothing)
    with pytest.raises(ToolConfigError, match="other policies"):
        resilient("twice", bulkhead=2)(_nothing)


def test_a_policy_that_there_is_not_is_refused_with_a_hint() -> None:
    with pytest.raises(InvalidCommandError, match="did you mean 'bulkhead'"):
        resilient("hint", bulkhed=1)(_nothing)


async def _nothing() -> None:
    pass
