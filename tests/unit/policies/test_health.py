"""Up and down with thresholds, against a model that looks at the whole history."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.policies.health import Health, HealthRules, observed
from actors.policies.refusals import UnhealthyError
from actors.policies.wrappers.health import HealthChecker
from tests.kit.clock import ManualMonotonic


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 4), st.integers(1, 4))
def test_it_turns_only_after_so_many_in_a_row(checks: list[bool], rise: int, fall: int) -> None:
    rules, health, is_up = HealthRules(rise=rise, fall=fall), Health(), True
    for number, ok in enumerate(checks, 1):
        health = observed(rules, health, ok=ok, now_s=float(number))
        seen = checks[:number]
        if is_up and len(seen) >= fall and not any(seen[-fall:]):
            is_up = False
        elif not is_up and len(seen) >= rise and all(seen[-rise:]):
            is_up = True
        assert health.is_up == is_up


async def test_active_checks_take_it_out_and_bring_it_back() -> None:
    well, changes, clock = True, list[Health](), ManualMonotonic()

    async def check() -> None:
        if not well:
            raise ConnectionError("nobody there")

    checker = HealthChecker("mail", HealthRules(rise=2, fall=2), check, clock=clock, on_change=changes.append)
    well = False
    await checker.check_once()
    checker.require()
    await checker.check_once()
    with pytest.raises(UnhealthyError, match="nobody there"):
        checker.require()
    well = True
    await checker.check_once()
    await checker.check_once()
    checker.require()
    assert [change.is_up for change in changes] == [False, True]


async def test_a_check_that_hangs_is_a_failed_one() -> None:
    checker = HealthChecker("mail", HealthRules(fall=1, timeout_s=0.01), asyncio.Event().wait)
    await checker.check_once()
    assert not checker.health.is_up


async def test_real_calls_count_too_and_it_checks_until_it_is_cancelled() -> None:
    checked = asyncio.Event()

    async def check() -> None:
        checked.set()

    checker = HealthChecker("mail", HealthRules(rise=1, fall=3, period_s=0.001), check)
    for _ in range(3):
        checker.observe(ok=False)
    assert not checker.health.is_up
    running = asyncio.create_task(checker.run())
    await asyncio.wait_for(checked.wait(), 30)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert checker.health.is_up
