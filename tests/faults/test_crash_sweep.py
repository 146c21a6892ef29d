"""Processes are killed, and stopped, at every failpoint, while clients go on; then the histories are checked.

One seed of each here; ``TENANTRY_SWEEP_SEEDS=20`` or ``uv run python -m tests.faults.sweep`` for all of it.
"""

from collections import Counter
from pathlib import Path

import pytest

from events.failpoints import POINTS
from tests.faults.conftest import SEEDS, Sweeper
from tests.faults.sweep import ELSEWHERE, PASSES, RARE, ROLES, Schedule, kind_of, swept

ROOT = Path(__file__).parents[2]
STOPPED_AT = ["claim.after_epoch_before_load", "actor.before_decode", "append.before_fcall", "actor.mid_replies"]


def test_every_failpoint_is_swept_here_or_by_the_test_that_is_named_for_it() -> None:
    """A new one has to be put into one of the tables of the sweep; the test that a table names has to be about it."""
    kinds = {kind_of(point) for point in POINTS}
    assert kinds == PASSES.keys() | ELSEWHERE.keys()
    assert not PASSES.keys() & ELSEWHERE.keys()
    assert set(swept()) == {point for point in POINTS if kind_of(point) not in ELSEWHERE}
    assert {kind_of(point) for point in RARE} | ROLES.keys() <= PASSES.keys()
    for kind, (path, why) in ELSEWHERE.items():
        assert f'"{kind}.' in (ROOT / path).read_text(), f"{path} is said to kill at {kind}.*"
        assert why


async def verdicts_of(schedules: list[Schedule], sweeper: Sweeper) -> Counter[str]:
    """What was seen in all runs together. Fails at the first broken promise, with how to run it again."""
    seen: Counter[str] = Counter()
    for schedule in schedules:
        verdict = await sweeper(schedule)
        assert not verdict.violations, str(verdict)
        assert not verdict.invalid, str(verdict)
        seen += verdict.seen
    return seen


@pytest.mark.timeout(300 + 300 * SEEDS)
async def test_no_promise_breaks_wherever_a_process_is_killed(sweeper: Sweeper, seeds: range) -> None:
    """I1 to I8, I11 and I18 hold, and in the sweep as a whole everything happened that could have broken them."""
    seen = await verdicts_of([Schedule(point, "crash", seed) for point in swept() for seed in seeds], sweeper)
    for what in (
        "in flight at the fault",
        "repeated",
        "other body refused",
        "budget refused",
        "unknown",
        "projected",
        "expired",
        "paid",
    ):
        assert seen[what] > 0, seen


@pytest.mark.timeout(300 + 300 * SEEDS)
async def test_no_promise_breaks_where_an_owner_is_stopped_overtaken_and_wakes_up(
    sweeper: Sweeper, seeds: range
) -> None:
    """It wakes up with commands in hand, and the store refuses what it would write."""
    seen = await verdicts_of([Schedule(point, "pause", seed) for point in STOPPED_AT for seed in seeds], sweeper)
    assert seen["fenced"] > 0, seen
