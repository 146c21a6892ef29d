"""Run schedules and say what they found. See the package's own text."""

import argparse
import sys
import time
from collections import Counter

from tests.simulation import pure, whole
from tests.simulation.planted import BUGS

_SHOWN_MAX = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.simulation")
    parser.add_argument("--schedules", type=int, default=10_000, help="how many seeds, from 0 on (default 10000)")
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--whole", action="store_true", help="with the platform's own shells around the machine")
    parser.add_argument("--bug", choices=list(BUGS), default="", help="with a known bug in it")
    asked = parser.parse_args()
    seeds = [asked.seed] if asked.seed is not None else range(asked.schedules)
    began, seen, broken = time.monotonic(), Counter[str](), 0
    simulate = whole.simulate if asked.whole else pure.simulate
    for count, outcome in enumerate(simulate(seeds, bug=asked.bug), 1):
        seen += outcome.seen
        if outcome.violations:
            broken += 1
            if broken <= _SHOWN_MAX:
                print(outcome)
        if count % 1_000 == 0:
            print(f"{count} schedules, {broken} broken, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{len(seeds)} schedules, {broken} broken, {time.monotonic() - began:.1f} s; {dict(seen.most_common())}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
