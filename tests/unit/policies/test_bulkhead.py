"""The bulkhead: random schedules against a model, and the wrappers at work."""

import asyncio
import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors.policies import bulkhead as machine
from actors.policies.bulkhead import Bulkhead
from actors.policies.refusals import BulkheadFullError
from actors.policies.wrappers.bulkhead import SemaphoreBulkhead
from actors.policies.wrappers.thread_pool import StuckThread, ThreadPoolBulkhead
from actors.policies.wrappers.timeout import deadline


class BulkheadMachine(RuleBasedStateMachine):
    """The model: a number inside, and a list of (priority, arrival, deadline, ticket) that is sorted when it is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s, self.limit, self.queue_max = 0.0, 3, 4
        self.bulkhead = Bulkhead(self.limit, self.queue_max)
        self.inside = 0
        self.waiting: list[tuple[int, int, float]] = []  # negative priority, ticket (arrival), deadline

    @rule(priority=st.integers(-2, 2), patience_s=st.sampled_from([0.5, 2.0, 100.0]))
    def enter(self, priority: int, patience_s: float) -> None:
        self.bulkhead, entry = machine.enter(self.bulkhead, priority, self.now_s + patience_s)
        if self.inside < self.limit and not self.waiting:
            assert entry == machine.INSIDE
            self.inside += 1
            return
        self.waiting.sort()
        if len(self.waiting) >= self.queue_max:
            if -priority >= self.waiting[-1][0]:
                assert entry == machine.REFUSED
                return
            assert entry.shed == self.waiting.pop()[1]
        else:
            assert entry.shed == 0
        assert entry.ticket > 0
        self.waiting.append((-priority, entry.ticket, self.now_s + patience_s))

    def expect_admissions(self, left: machine.Left) -> None:
        entered, expired = [], []
        self.waiting.sort()
        while self.waiting and self.inside < self.limit:
            _, ticket, ends = self.waiting.pop(0)
            if ends <= self.now_s:
                expired.append(ticket)
            else:
                entered.append(ticket)
                self.inside += 1
        assert (list(left.entered), list(left.expired)) == (entered, expired)

    @precondition(lambda self: self.inside > 0)
    @rule()
    def leave(self) -> None:
        self.bulkhead, left = machine.leave(self.bulkhead, self.now_s)
        self.inside -= 1
        self.expect_admissions(left)

    @rule(limit=st.integers(0, 5))
    def resize(self, limit: int) -> None:
        self.limit = limit
        self.bulkhead, left = machine.resize(self.bulkhead, limit, self.now_s)
        self.expect_admissions(left)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(sorted(self.waiting)))
        self.waiting.remove(gone)
        self.bulkhead = machine.abandon(self.bulkhead, gone[1])

    @rule(seconds=st.sampled_from([0.3, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.bulkhead.inside == self.inside
        assert [waiting.ticket for waiting in self.bulkhead.queue] == [ticket for _, ticket, _ in sorted(self.waiting)]
        assert len(self.bulkhead.queue) <= self.queue_max


TestBulkheadMachine = BulkheadMachine.TestCase
TestBulkheadMachine.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)


async def test_never_more_inside_than_permits_however_callers_come_wait_and_are_cancelled() -> None:
    bulkhead = SemaphoreBulkhead("mail", 3, queue_max=10, queue_wait_s=5)
    inside = most = served = 0

    async def call() -> None:
        nonlocal inside, most, served
        async with bulkhead.permit():
            inside += 1
            most = max(most, inside)
            try:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            finally:
                inside -= 1
            served += 1

    for turn in range(40):
        calls = [asyncio.create_task(call()) for _ in range(9)]
        await asyncio.sleep(0)
        for number in range(turn % 5):
            calls[number * 2].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    assert most == 3
    assert served > 200
    assert bulkhead.demand == 0, "every permit came back"


async def test_the_urgent_enter_first_and_a_full_queue_sheds_the_least_urgent() -> None:
    bulkhead = SemaphoreBulkhead("mail", 1, queue_max=2, queue_wait_s=5)
    await bulkhead.enter()
    order: list[str] = []

    async def call(name: str, priority: int) -> None:
        async with bulkhead.permit(priority):
            order.append(name)

    low = asyncio.create_task(call("low", 0))
    middle = asyncio.create_task(call("middle", 1))
    await asyncio.sleep(0)
    with pytest.raises(BulkheadFullError):
        await bulkhead.enter(0)
    high = asyncio.create_task(call("high", 2))
    await asyncio.sleep(0)
    bulkhead.leave()
    done = await asyncio.gather(low, middle, high, return_exceptions=True)
    assert order == ["high", "middle"]
    assert isinstance(done[0], BulkheadFullError)
    assert "more urgent" in str(done[0])


async def test_waiting_ends_at_the_deadline_of_the_caller() -> None:
    bulkhead = SemaphoreBulkhead("mail", 1, queue_max=2, queue_wait_s=60)
    await bulkhead.enter()
    with deadline(0.01), pytest.raises(BulkheadFullError, match="in time"):
        await bulkhead.enter()
    assert bulkhead.demand == 1


async def test_a_noisy_tenant_waits_for_itself() -> None:
    bulkhead = SemaphoreBulkhead("mail", 1, queue_max=100, queue_wait_s=60)
    await bulkhead.enter()
    order: list[str] = []

    async def call(tenant: str) -> None:
        async with bulkhead.permit(tenant=tenant):
            order.append(tenant)

    calls = [asyncio.create_task(call("noisy")) for _ in range(20)]
    await asyncio.sleep(0)
    calls += [asyncio.create_task(call("quiet")) for _ in range(3)]
    await asyncio.sleep(0)
    bulkhead.leave()
    await asyncio.gather(*calls)
    assert order[:6].count("quiet") == 3
    assert bulkhead._loads == {}


async def test_more_permits_let_those_in_who_wait() -> None:
    bulkhead = SemaphoreBulkhead("mail", 0, queue_max=2, queue_wait_s=5)
    waiting = asyncio.create_task(bulkhead.enter())
    await asyncio.sleep(0)
    bulkhead.resize(1)
    await waiting
    assert bulkhead.state.inside == 1


async def test_a_stuck_thread_is_reported_keeps_its_permit_and_blocks_nobody_else() -> None:
    reports: list[StuckThread] = []
    reported, let_go = asyncio.Event(), threading.Event()

    def on_stuck(found: StuckThread) -> None:
        reports.append(found)
        reported.set()

    def sits_and_waits() -> str:
        let_go.wait(60)
        return "done at last"

    pool = ThreadPoolBulkhead("legacy", 2, queue_max=2, queue_wait_s=60, stuck_after_s=0.05, on_stuck=on_stuck)
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await pool.run(sits_and_waits)
        await asyncio.wait_for(reported.wait(), 30)
        assert "sits_and_waits" in reports[0].function
        assert "let_go.wait" in reports[0].stack
        assert [stuck.pool for stuck in pool.stuck()] == ["legacy"]
        assert await pool.run(lambda: 42) == 42, "the other thread serves"
        busy = asyncio.create_task(pool.run(sits_and_waits))
        await asyncio.sleep(0)
        with deadline(0.01), pytest.raises(BulkheadFullError):
            await pool.run(lambda: 43)
        let_go.set()
        assert await busy == "done at last"
        both = threading.Barrier(2)
        await asyncio.gather(pool.run(lambda: both.wait(60)), pool.run(lambda: both.wait(60)))
        assert pool.stuck() == []
    finally:
        let_go.set()
        pool.close()


async def test_what_a_thread_raises_reaches_the_caller() -> None:
    def fails() -> None:
        raise ZeroDivisionError

    def stops() -> None:
        raise StopIteration

    pool = ThreadPoolBulkhead("legacy", 1)
    with pytest.raises(ZeroDivisionError):
        await pool.run(fails)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await pool.run(stops)
    assert pool.demand == 0
    pool.close()
