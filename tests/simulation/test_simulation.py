"""No schedule breaks a promise, and each planted bug is found.

``TENANTRY_SCHEDULES`` says how many the pure simulation runs; the one with the platform's own shells a hundredth of that,
and a hundred at least.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.simulation import pure, whole
from tests.simulation.planted import BUGS
from tests.simulation.virtual import NothingWillHappenError, VirtualLoop
from tests.simulation.world import Odds, Outcome

SCHEDULES = int(os.environ.get("TENANTRY_SCHEDULES", "10000"))
ENDS = ("completed", "compensated", "cancelled", "timed_out", "failed")
_FOUND_WITHIN = 60  # schedules

Simulate = Callable[..., Iterator[Outcome]]
each_simulation = pytest.mark.parametrize("simulate", [pure.simulate, whole.simulate], ids=["pure", "whole"])


def sound(outcomes: Iterable[Outcome]) -> Counter[str]:
    """What was seen in all of them. Fails at the first broken promise, with how to run it again."""
    seen: Counter[str] = Counter()
    for outcome in outcomes:
        assert not outcome.violations, str(outcome)
        seen += outcome.seen
    return seen


@pytest.mark.timeout(600)
def test_no_schedule_of_the_pure_machine_breaks_a_promise() -> None:
    seen = sound(pure.simulate(range(SCHEDULES)))
    died = ("tenant_died_before", "tenant_died_after", "runner_died_before", "runner_died_after")
    for what in (*ENDS, *died, "append_refused", "message_lost", "message_doubled", "effect_unanswered"):
        assert seen[what] > SCHEDULES // 1_000, seen


@pytest.mark.timeout(600)
def test_no_schedule_of_the_whole_platform_breaks_a_promise() -> None:
    schedules = max(100, SCHEDULES // 100)
    seen = sound(whole.simulate(range(schedules)))
    faults = ("runner killed", "tenant killed", "tenant overtaken", "tenant passivated", "store away", "queue away")
    for what in (*ENDS, *faults, "answer_of_store_lost", "effect_unanswered", "alarms"):
        assert seen[what] > schedules // 100, seen


# what is to be found of each
BREAKS = {
    "key-per-attempt": "took effect 2 times",
    "result-applied-twice": "was finished 2 times",
    "undone-forwards": "was undone before",
    "handed-out-first": "its intent is not in the log",
    "unknown-forgotten": "cents were kept",
}


@each_simulation
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(simulate: Simulate, bug: str) -> None:
    odds = Odds(busy=0.4, effect_unanswered=0.4) if bug == "unknown-forgotten" else Odds()
    found = Counter[str]()
    for outcome in simulate(range(_FOUND_WITHIN), odds, bug):
        found.update(violation.message for violation in outcome.violations)
        if any(BREAKS[bug] in message for message in found):
            return
    pytest.fail(f"{bug} was not found; what was: {dict(found)}")


@each_simulation
def test_the_same_seed_is_the_same_schedule(simulate: Simulate) -> None:
    seeds = range(20, 25)
    assert [outcome.seen for outcome in simulate(seeds)] == [outcome.seen for outcome in simulate(seeds)]


def test_a_deadlock_is_an_error_and_not_a_wait() -> None:
    loop = VirtualLoop()
    with pytest.raises(NothingWillHappenError):
        loop.run_until_complete(loop.create_future())
    loop.close()
