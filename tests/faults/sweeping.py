"""Schedules of a fault sweep one after the other, told as they end, and what they come to together."""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from tests.kit.checker import Violation
from tests.kit.servers import Servers, running_servers


class Planned(Protocol):
    """One fault: where, and what its dice are thrown with."""

    @property
    def point(self) -> str: ...

    @property
    def seed(self) -> int: ...

    @property
    def rule(self) -> str: ...


class Judged(Protocol):
    """``violations`` broke a promise; ``invalid`` says why the run proves nothing; ``seen`` counts what happened."""

    @property
    def violations(self) -> Sequence[Violation]: ...

    @property
    def invalid(self) -> str: ...

    @property
    def seen(self) -> Counter[str]: ...


P = TypeVar("P", bound=Planned)
J = TypeVar("J", bound=Judged)
RunOne = Callable[[P, Servers, Path], Awaitable[J]]


def sweep(run_one: RunOne[P, J], schedules: Sequence[P], name: str) -> int:
    """A program's exit status: 1 where a run broke a promise or proves nothing. Histories stay in a new directory."""
    directory = Path(tempfile.mkdtemp(prefix=f"tenantry-{name}-"))
    with running_servers(directory / "servers") as servers:
        verdicts = asyncio.run(_in_turn(run_one, schedules, servers, directory))
    seen = sum((verdict.seen for verdict in verdicts), Counter[str]())
    broken = sum(bool(verdict.violations) for verdict in verdicts)
    invalid = sum(bool(verdict.invalid) for verdict in verdicts)
    print(f"{len(verdicts)} runs, {broken} broke a promise, {invalid} prove nothing; {dict(seen)}; {directory}")
    return 1 if broken or invalid else 0


async def _in_turn(run_one: RunOne[P, J], schedules: Sequence[P], servers: Servers, directory: Path) -> list[J]:
    verdicts = []
    for number, schedule in enumerate(schedules, 1):
        began = time.monotonic()
        verdict = await run_one(schedule, servers, directory / f"{number:03d}-{schedule.point}-{schedule.seed}")
        verdicts.append(verdict)
        bad = f"\n{verdict}" if verdict.violations or verdict.invalid else ""
        print(f"{number}/{len(schedules)} {schedule.rule} {time.monotonic() - began:.1f} s{bad}", flush=True)
    return verdicts
