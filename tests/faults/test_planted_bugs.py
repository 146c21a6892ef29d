"""The checker is checked: each known bug, planted in the processes under test, must be found in their histories."""

import pytest

from tests.faults.conftest import Sweeper
from tests.faults.sweep import Schedule

_SEEDS_MAX = 6  # a bug needs its moment; most show at the first seed


@pytest.mark.parametrize(
    ("bug", "point", "action", "breaks"),
    [
        ("ack-before-append", "append.after_fcall_before_reply", "crash", {"I1", "I6", "I8"}),
        ("no-dedupe", "append.after_fcall_before_reply", "crash", {"I1", "I18"}),
        ("no-epoch-check", "append.before_fcall", "pause", {"I3"}),
        ("check-then-increment", "actor.before_decode", "crash", {"I11"}),
        ("checkpoint-apart", "proj.after_txn", "crash", {"I7"}),
    ],
)
async def test_a_planted_bug_is_found(sweeper: Sweeper, bug: str, point: str, action: str, breaks: set[str]) -> None:
    found: set[str] = set()
    for seed in range(_SEEDS_MAX):
        verdict = await sweeper(Schedule(point, action, seed, bug))  # type: ignore[arg-type]
        found |= {violation.invariant for violation in verdict.violations}
        if found & breaks:
            return
    pytest.fail(f"{bug} was not found in {_SEEDS_MAX} runs; they broke {sorted(found) or 'nothing'}")
