"""Starting: how long until the platform answers, and how much memory it takes before anybody has asked for anything."""

from collections.abc import Sequence
from typing import Any

import msgspec

from tests.bench.programs import idle_mib, launched, platform, scratch
from tests.bench.results import Pairs, Say
from tests.kit.servers import running_servers

_REPEATS = 3


class Start(msgspec.Struct, frozen=True):
    seconds: float
    idle_mib: float


def measure(rows: Sequence[str], instance: str, say: Say) -> list[dict[str, Any]]:
    """Both rows from the same starts, each in a process of its own: ours with a fresh data directory and no local
    model, the ceiling with plain Ray and Serve. Both inherit the same environment.
    """
    pairs = {row: Pairs(row, say) for row in rows}
    weigh = "memory_idle" in rows
    for _ in range(_REPEATS):
        say("starting the platform, then plain Ray with Serve …")
        ours, ceiling = _platform(instance, weigh), _noop(instance, weigh)
        if "startup" in pairs:
            pairs["startup"].add(ours.seconds, ceiling.seconds)
        if weigh:
            pairs["memory_idle"].add(ours.idle_mib, ceiling.idle_mib)
    return [pairs[row].verdict() for row in rows]


def _platform(instance: str, weigh: bool) -> Start:
    with platform(instance) as (seconds, _):
        return Start(seconds, idle_mib(instance) if weigh else 0.0)


def _noop(instance: str, weigh: bool) -> Start:
    with scratch() as directory:
        ready = directory / "ready"
        options = ("--directory", str(directory), "--ready-file", str(ready))
        with launched(instance, "tests.bench.noop_serve", *options, ready=ready) as seconds:
            if not weigh:
                return Start(seconds, 0.0)
            with running_servers(directory):  # after the start: the ceiling of `startup` has no stores
                return Start(seconds, idle_mib(instance))
