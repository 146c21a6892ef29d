"""Retries stay within their bounds and their budget, whatever fails."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.policies import retry as machine
from actors.policies.refusals import BreakerOpenError, CallTimeoutError
from actors.policies.retry import RetryRules
from actors.policies.wrappers.retry import Retry
from actors.policies.wrappers.timeout import deadline
from events.errors import InvalidCommandError, TransientError
from tests.kit.clock import ManualMonotonic


class BusyError(TransientError):
    """As an HTTP adapter raises for 429 and 503 with Retry-After."""

    def __init__(self, retry_after_s: float | None = None) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


class Flaky:
    """Raises what it is told to, in this order, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def retry(chance: float = 0.5, **rules: float) -> tuple[Retry, ManualMonotonic]:
    clock = ManualMonotonic()
    return Retry(RetryRules(**rules), chance=lambda: chance, sleep=clock.sleep), clock  # type: ignore[arg-type]


@given(st.integers(1, 50), st.floats(0, 1, exclude_max=True), st.one_of(st.none(), st.floats(0, 100)))
def test_a_delay_is_jittered_capped_and_never_undercuts_retry_after(
    attempt: int, chance: float, retry_after_s: float | None
) -> None:
    rules = RetryRules(attempts_max=20, first_s=0.1, factor=2, cap_s=5, retry_after_max_s=60)
    wait_s = machine.delay_s(rules, attempt, chance, retry_after_s)
    if attempt >= 20 or (retry_after_s or 0) > 60:
        assert wait_s is None
        return
    assert wait_s is not None
    least = retry_after_s or 0.0
    assert least <= wait_s <= least + min(5.0, 0.1 * 2 ** (attempt - 1))


@given(st.lists(st.booleans(), max_size=400), st.integers(0, 5), st.sampled_from([0.05, 0.1, 0.5]))
def test_retries_are_never_more_than_the_budgets_share_of_the_calls(
    wants: list[bool], reserve: int, ratio: float
) -> None:
    """True: a call; False: somebody wants to retry. At every moment, not just at the end."""
    rules = RetryRules(budget_ratio=ratio, budget_reserve=reserve)
    budget, calls, retries = machine.opening_budget(rules), 0, 0
    for is_call in wants:
        if is_call:
            budget, calls = machine.deposited(rules, budget), calls + 1
        elif (left := machine.withdrawn(budget)) is not None:
            budget, retries = left, retries + 1
        assert retries <= max(reserve, ratio * calls) + 1e-6
        assert budget.balance + 1e-6 >= 0


async def test_it_tries_again_with_growing_jittered_waits_and_then_gives_up() -> None:
    trying, clock = retry(attempts_max=4, first_s=0.1, factor=2)
    flaky = Flaky(*(BusyError() for _ in range(3)))
    assert await trying.run(flaky) == "done"
    assert clock.slept == pytest.approx([0.05, 0.1, 0.2])
    flaky = Flaky(*(BusyError() for _ in range(9)))
    trying, _ = retry(attempts_max=3)
    with pytest.raises(BusyError):
        await trying.run(flaky)
    assert flaky.calls == 3


async def test_retry_after_is_honoured_and_one_that_is_too_long_ends_it() -> None:
    trying, clock = retry(first_s=0.1)
    assert await trying.run(Flaky(BusyError(7.0))) == "done"
    assert clock.slept == [pytest.approx(7.05)]
    with pytest.raises(BusyError):
        await trying.run(Flaky(BusyError(61.0)))


@pytest.mark.parametrize("error", [InvalidCommandError("no"), BreakerOpenError("x", "open"), KeyError("x")])
async def test_what_would_fail_again_is_not_repeated(error: Exception) -> None:
    trying, _ = retry()
    flaky = Flaky(error)
    with pytest.raises(type(error)):
        await trying.run(flaky)
    assert flaky.calls == 1


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (CallTimeoutError("pay", 1.0), 1),
        (ConnectionResetError(), 1),
        (BusyError(1.0), 2),
        (ConnectionRefusedError(), 2),
    ],
)
async def test_a_call_that_must_not_happen_twice_is_repeated_only_where_it_surely_did_not_happen(
    error: Exception, calls: int
) -> None:
    trying, _ = retry()
    flaky = Flaky(error)
    if calls == 1:
        with pytest.raises(type(error)):
            await trying.run(flaky, idempotent=False)
    else:
        assert await trying.run(flaky, idempotent=False) == "done"
    assert flaky.calls == calls


async def test_a_storm_stays_within_the_budget_and_the_error_says_so() -> None:
    trying, _ = retry(attempts_max=4, budget_ratio=0.1, budget_reserve=3)
    attempts, notes = 0, 0
    for _ in range(500):
        flaky = Flaky(*(BusyError() for _ in range(9)))
        with pytest.raises(BusyError) as failure:
            await trying.run(flaky)
        attempts += flaky.calls
        notes += "retry budget" in "".join(getattr(failure.value, "__notes__", []))
    assert 500 < attempts <= 550
    assert notes > 400


async def test_no_retry_is_begun_that_the_deadline_would_cut_off() -> None:
    trying, clock = retry(first_s=60)
    with deadline(5), pytest.raises(BusyError):
        await trying.run(Flaky(BusyError()))
    assert clock.slept == []


async def test_no_retry_once_whoever_is_asked_says_no() -> None:
    trying, _ = retry()
    with pytest.raises(BusyError):
        await trying.run(Flaky(BusyError()), may_go_on=lambda: False)


async def test_no_retry_once_whoever_is_asked_says_no_during_the_wait() -> None:
    """A breaker that has opened, a lease that has ended: the call is not made, and what is told is why it was to be repeated."""
    for goes_on_for in (1, 3):
        trying, clock = retry(attempts_max=4)
        answers = iter([True] * goes_on_for + [False] * 9)
        flaky = Flaky(*(BusyError() for _ in range(9)))
        with pytest.raises(BusyError) as failure:
            await trying.run(flaky, may_go_on=lambda answers=answers: next(answers))  # type: ignore[misc]
        assert flaky.calls == len(clock.slept) == (goes_on_for + 1) // 2
        assert "while it waited" in failure.value.__notes__[-1]


SURELY_NOT = [ConnectionRefusedError, lambda: BusyError(0.0), lambda: BreakerOpenError("pay", "open")]


@pytest.mark.parametrize("last", SURELY_NOT)
async def test_what_is_raised_says_that_an_attempt_before_it_may_have_taken_effect(
    last: Callable[[], Exception],
) -> None:
    for first, may_have_happened in (
        ([CallTimeoutError("pay", 1.0)], True),
        ([ConnectionResetError(), BusyError(0.0)], True),
        ([BusyError(0.0), ConnectionRefusedError()], False),
    ):
        trying, _ = retry(attempts_max=len(first) + 1)
        with pytest.raises(Exception) as failure:  # noqa: PT011 - the last one, whichever that is
            await trying.run(Flaky(*first, error := last()))
        assert failure.value is error
        assert getattr(error, "may_have_happened", False) is may_have_happened


async def test_of_two_attempts_at_once_what_is_raised_speaks_for_both() -> None:
    for first in (CallTimeoutError("pay", 1.0), ConnectionRefusedError()):
        trying, _ = retry(hedge_after_s=0.001, attempts_max=1)
        started, second_began = 0, asyncio.Event()

        async def attempt(first: Exception = first, second_began: asyncio.Event = second_began) -> str:
            nonlocal started
            started += 1
            if started == 1:
                await second_began.wait()
                raise first
            second_began.set()
            await asyncio.sleep(0.01)
            raise BreakerOpenError("pay", "open")

        with pytest.raises(BreakerOpenError) as failure:
            await trying.run(attempt)
        is_unknown = isinstance(first, CallTimeoutError)
        assert getattr(failure.value, "may_have_happened", False) is is_unknown


async def test_a_hedge_wins_over_an_attempt_that_hangs_which_is_then_cancelled() -> None:
    trying, _ = retry(hedge_after_s=0.01)
    started, cancelled = 0, asyncio.Event()

    async def first_one_hangs() -> str:
        nonlocal started
        started += 1
        if started > 1:
            return "second"
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "first"

    assert await trying.run(first_one_hangs) == "second"
    assert cancelled.is_set()


async def test_hedges_draw_on_the_budget_and_calls_with_effects_are_never_hedged() -> None:
    trying, _ = retry(hedge_after_s=0.001, budget_reserve=0)
    started = 0

    async def slow() -> str:
        nonlocal started
        started += 1
        await asyncio.sleep(0.02)
        return "done"

    assert await trying.run(slow) == "done"
    assert started == 1, "no budget"
    trying, _ = retry(hedge_after_s=0.001)
    assert await trying.run(slow, idempotent=False) == "done"
    assert started == 2, "not idempotent"


async def test_where_both_attempts_fail_the_call_fails() -> None:
    trying, _ = retry(hedge_after_s=0.001, attempts_max=1)

    async def slow_failure() -> str:
        await asyncio.sleep(0.01)
        raise BusyError

    with pytest.raises(BusyError):
        await trying.run(slow_failure)
