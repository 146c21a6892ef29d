"""Waits of months, in virtual time: the tenant leaves memory and comes back from snapshots and from its log again and again
meanwhile, and is woken when it is time, to the second, wherever it is then.
"""

import asyncio
from collections.abc import Awaitable, Callable

from actors.run import Retry, Saga, Signal, Step, Timer, Undo, register
from actors.run.state import Run, fold_stream
from actors.supervision.timers import TimerScan
from events.codec import open_record
from events.run import RunEvent, SignalRun, StartRun, pack
from events.tenant import CreateTenant
from tests.simulation.virtual import run_virtually
from tests.simulation.whole import Cluster, virtual_time
from tests.simulation.world import CALM

DAY_S = 86_400.0
TENANT, RUN = "patient", "r"

register(
    Saga(
        "months",
        steps=(
            Step(
                "sign",
                function="effect",
                args=lambda _: ["sign"],
                undo=Undo(function="effect", args=lambda _: ["sign"]),
            ),
            Timer("trial", seconds=90 * DAY_S),
            Signal("renew", timeout_s=60 * DAY_S),
            Step("bill", function="effect", args=lambda _: ["bill"], retry=Retry(first_s=DAY_S, max_s=DAY_S)),
        ),
        output=lambda run: run["renew"],
    )
)
register(Saga("seconds", steps=(Timer("pause", seconds=5),)))


class Calendar:
    """A cluster in which nothing goes wrong; its runners are there only while they are needed."""

    def __init__(self) -> None:
        self.cluster = Cluster(1, CALM)
        self.scan = TimerScan(self.cluster.store, self.cluster.asker, self.cluster.clock)
        self.cluster.kill()

    async def begin(self) -> None:
        for command in (CreateTenant("Patient"), StartRun(RUN, "months", pack(None))):
            await self.cluster.asker.ask(TENANT, command, actor="test")
        await self.work()

    async def work(self) -> None:
        """Until nothing is left to do."""
        runner = self.cluster.start_runner()
        await asyncio.sleep(0.5)
        while self.cluster.queue.entries:  # noqa: ASYNC110 - virtual time costs nothing
            await asyncio.sleep(0.5)
        runner.kill()

    async def pass_days(self, days: float) -> None:
        """One by one, and on each day something else happens to the tenant. Nobody else is woken before it is time."""
        cluster = self.cluster
        turns: list[Callable[[str], Awaitable[None]]] = [cluster.passivate, self._kill, cluster.overtake, cluster.host]
        for day in range(int(days)):
            await asyncio.sleep(DAY_S)
            assert await self.scan.tick() == [], f"woken on day {day + 1}"
            await turns[day % len(turns)](TENANT)
        await asyncio.sleep((days - int(days)) * DAY_S)

    async def _kill(self, tenant: str) -> None:
        self.cluster.kill_tenant(tenant)

    async def wake(self) -> list[str]:
        woken = await self.scan.tick()
        await asyncio.sleep(1)
        return list(woken)

    async def run(self, run_id: str = RUN) -> Run:
        cipher = await self.cluster.keys.cipher(TENANT)
        page = await self.cluster.store.read(TENANT, 0)
        events = [open_record(stored.record, cipher).event for stored in page]
        return fold_stream(event for event in events if isinstance(event, RunEvent) and event.run_id == run_id)


def in_virtual_time(test: Callable[[Calendar], Awaitable[None]]) -> Callable[[], None]:
    async def live() -> None:
        calendar = Calendar()
        await test(calendar)
        calendar.cluster.kill()

    def run() -> None:
        with virtual_time():
            run_virtually(live())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@in_virtual_time
async def test_a_timer_of_three_months_survives_a_hundred_departures(calendar: Calendar) -> None:
    await calendar.begin()
    await calendar.pass_days(90 - 10 / DAY_S)
    assert (await calendar.run()).steps["trial"].status == "scheduled"
    calendar.cluster.kill_tenant(TENANT)  # it is not even in memory when it is time
    assert await calendar.wake() == []
    await asyncio.sleep(10)
    assert await calendar.wake() == [TENANT]
    run = await calendar.run()
    assert (run.steps["trial"].status, run.steps["renew"].status) == ("succeeded", "scheduled")
    assert await calendar.cluster.store.load_snapshots(TENANT), "it has been back from a snapshot"


@in_virtual_time
async def test_a_signal_that_does_not_come_for_two_months_undoes_what_was_signed(calendar: Calendar) -> None:
    await calendar.begin()
    await calendar.pass_days(89.5)
    await asyncio.sleep(DAY_S / 2 + 10)
    assert await calendar.wake() == [TENANT]
    await calendar.pass_days(60 - 10 / DAY_S)
    assert (await calendar.run()).status == "running"
    await asyncio.sleep(20)
    assert await calendar.wake() == [TENANT]
    await calendar.work()
    assert ((await calendar.run()).status, (await calendar.run()).code) == ("compensated", "signal_timeout")


@in_virtual_time
async def test_a_signal_that_came_in_the_first_week_is_kept_for_the_fourth_month(calendar: Calendar) -> None:
    await calendar.begin()
    await calendar.cluster.asker.ask(TENANT, SignalRun(RUN, "renew", pack("yes")), actor="test")
    await calendar.pass_days(89.5)
    await asyncio.sleep(DAY_S / 2 + 10)
    assert await calendar.wake() == [TENANT]
    await calendar.work()
    run = await calendar.run()
    assert (run.status, run.result("renew")) == ("completed", "yes")
    effects = calendar.cluster.dependency.effects[TENANT]
    assert [effect.step for effect in effects] == ["sign", "bill"]


@in_virtual_time
async def test_a_timer_of_seconds_does_not_wait_for_the_scan(calendar: Calendar) -> None:
    """Nobody scans here at all: the activation that knows the timer fires it, and so does the next one where it dies first."""
    for dies in (False, True):
        run = f"short-{dies}"
        await calendar.cluster.asker.ask(TENANT, CreateTenant("Patient"), actor="test", command_id="create")
        await calendar.cluster.asker.ask(TENANT, StartRun(run, "seconds", pack(None)), actor="test")
        if dies:
            calendar.cluster.kill_tenant(TENANT)
            await calendar.cluster.host(TENANT)
        await asyncio.sleep(4.9)
        assert (await calendar.run(run)).status == "running"
        await asyncio.sleep(0.2)
        assert (await calendar.run(run)).status == "completed"
