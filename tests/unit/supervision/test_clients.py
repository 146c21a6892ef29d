"""The callers' side, with a clock in hand: what a lease allows, and what the cluster's word does to a local breaker."""

import asyncio
import itertools

import pytest

from actors.policies.breaker import BreakerRules
from actors.policies.config import BulkheadConfig
from actors.policies.refusals import BreakerOpenError, BulkheadFullError
from actors.policies.wrappers.bulkhead import SemaphoreBulkhead
from actors.supervision.clients import BreakerLink, LeasedBulkhead
from actors.supervision.messages import State
from tests.kit.clock import ManualMonotonic

KEY = ("mail", "")
RULES = BreakerRules(calls_min=2, open_s=10.0, open_jitter=0.2, probes=3)


def leased(permits: int = 5, for_s: float = 3.0) -> tuple[LeasedBulkhead, ManualMonotonic]:
    clock = ManualMonotonic()
    bulkhead = LeasedBulkhead("mail", BulkheadConfig(permits=10), 1.0, lambda: None, clock)
    bulkhead.item(KEY)
    bulkhead.grant(permits, clock() + for_s)
    return bulkhead, clock


def test_a_lease_that_is_over_lets_nobody_in_even_before_any_timer_ran() -> None:
    """As for a process that was stopped for a while: its next step may be to start a call."""
    bulkhead, clock = leased()
    assert bulkhead.try_enter()
    clock.advance(3.0)
    assert not bulkhead.try_enter()
    assert not bulkhead.is_live
    assert bulkhead.item(KEY).held == 1, "the call under way is still on the account"


def test_a_lease_goes_on_while_the_supervisor_is_surely_away_but_none_comes_back_to_life() -> None:
    bulkhead, clock = leased()
    clock.advance(2.0)
    bulkhead.extend(clock() + 3.0)
    clock.advance(2.0)
    assert bulkhead.try_enter()
    clock.advance(3.0)
    bulkhead.extend(clock() + 3.0)
    assert not bulkhead.try_enter()


async def with_waiter() -> tuple[LeasedBulkhead, ManualMonotonic, "asyncio.Task[None]"]:
    """The only permit is taken, and somebody waits for it."""
    clock = ManualMonotonic()
    config = BulkheadConfig(permits=1, strategy="queue", queue_max=5, queue_wait_s=20)
    bulkhead = LeasedBulkhead("mail", config, 1.0, lambda: None, clock)
    bulkhead.item(KEY)
    bulkhead.grant(1, clock() + 3.0)
    assert bulkhead.try_enter()
    waiting = asyncio.create_task(bulkhead.enter())
    await asyncio.sleep(0)
    assert bulkhead.demand == 2
    return bulkhead, clock, waiting


async def test_nobody_who_waits_is_let_in_after_the_lease_has_ended() -> None:
    """Somebody else may have the permit by now; a new lease lets the next one in."""
    bulkhead, clock, waiting = await with_waiter()
    clock.advance(3.0)
    bulkhead.leave()
    assert (bulkhead.state.inside, bulkhead.state.limit) == (0, 0)
    bulkhead.item(KEY)
    bulkhead.grant(1, clock() + 3.0)
    await waiting
    assert bulkhead.state.inside == 1


async def test_an_answer_that_is_read_after_its_lease_has_ended_lets_nobody_in() -> None:
    bulkhead, clock, waiting = await with_waiter()
    bulkhead.item(KEY)
    sent_s = clock()
    clock.advance(4.0)
    bulkhead.grant(1, sent_s + 3.0)
    bulkhead.leave()
    assert bulkhead.state.inside == 0
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_who_asks_for_a_permit_without_a_look_first_is_not_let_in_by_a_lease_that_has_ended() -> None:
    clock = ManualMonotonic()
    bulkhead = LeasedBulkhead("mail", BulkheadConfig(permits=1), 1.0, lambda: None, clock)
    bulkhead.item(KEY)
    bulkhead.grant(1, clock() + 3.0)
    clock.advance(3.0)
    entering = asyncio.create_task(bulkhead.enter())
    await asyncio.sleep(0)
    bulkhead.item(KEY)
    bulkhead.grant(0, clock() + 3.0)
    with pytest.raises(BulkheadFullError):
        await entering


def test_what_is_asked_for_is_the_peak_of_late_and_given_back_when_idle() -> None:
    bulkhead, _ = leased()
    for _ in range(4):
        assert bulkhead.try_enter()
    for _ in range(4):
        bulkhead.leave()
    assert (bulkhead.item(KEY).held, bulkhead.item(KEY).wanted) == (5, 4)
    bulkhead.forget_peak()
    bulkhead.forget_peak()
    assert bulkhead.item(KEY).wanted == 0
    bulkhead.grant(0, 0.0)
    bulkhead.forget_peak()
    assert bulkhead.is_idle


async def test_a_call_waits_for_the_answer_that_knew_of_it() -> None:
    asked = asyncio.Event()
    bulkhead = LeasedBulkhead("mail", BulkheadConfig(permits=10), 1.0, asked.set, ManualMonotonic())
    entering = asyncio.create_task(bulkhead.enter())
    await asked.wait()
    assert bulkhead.item(KEY).wanted == 1
    bulkhead.grant(1, 2_000.0)
    await entering
    late = asyncio.create_task(bulkhead.enter())
    await asyncio.sleep(0)
    bulkhead.item(KEY)
    bulkhead.grant(1, 2_000.0)
    with pytest.raises(BulkheadFullError):
        await late


def link() -> tuple[BreakerLink, ManualMonotonic]:
    clock = ManualMonotonic()
    return BreakerLink(KEY, RULES, lambda: None, clock, lambda: 0.5), clock


def state(status: str, version: int, *, prober: str = "", wait_s: float = 10.0, incarnation: int = 1) -> State:
    return State(incarnation, *KEY, status, version, wait_s, "50 of 60 calls failed", prober)  # type: ignore[arg-type]


def test_the_clusters_open_breaker_refuses_here_and_is_not_reported_as_our_own() -> None:
    tie, _ = link()
    tie.hear(state("open", 1), "me")
    with pytest.raises(BreakerOpenError, match="50 of 60"):
        tie.breaker.permit()
    report = tie.report()
    assert report is not None
    assert (report.version, report.status, report.refused, report.local) == (1, "open", 1, [])


def test_only_the_prober_may_try_one_call() -> None:
    tie, _ = link()
    tie.hear(state("open", 1), "me")
    tie.hear(state("half_open", 2, prober="other"), "me")
    with pytest.raises(BreakerOpenError):
        tie.breaker.permit()
    tie.hear(state("half_open", 3, prober="me"), "me")
    generation = tie.breaker.permit()
    with pytest.raises(BreakerOpenError):
        tie.breaker.permit()
    under_way = tie.report()
    assert under_way is not None
    assert (under_way.probe_version, under_way.counts.calls) == (3, 0)
    tie.breaker.record(generation, failed=False, duration_s=0.1)
    done = tie.report()
    assert done is not None
    assert (done.probe_version, done.counts.calls) == (3, 1)
    tie.hear(state("closed", 4), "me")
    assert tie.breaker.permit() > generation


def at_it(tie: BreakerLink) -> bool:
    return tie.is_probing


def test_a_prober_whose_probe_was_cancelled_is_no_longer_at_it() -> None:
    """Its client left: it has nothing to say, and doesn't hold up the others by saying so for ever."""
    tie, _ = link()
    tie.hear(state("half_open", 3, prober="me"), "me")
    generation = tie.breaker.permit()
    assert at_it(tie)
    assert tie.report() is not None
    tie.breaker.release(generation)
    assert not at_it(tie)
    assert tie.report() is None
    tie.breaker.permit()
    assert at_it(tie), "its turn may still last"


def test_a_probe_that_outlasts_its_turn_is_none_any_more() -> None:
    tie, _ = link()
    tie.hear(state("half_open", 3, prober="me"), "me")
    generation = tie.breaker.permit()
    tie.hear(state("half_open", 4, prober="other"), "me")
    assert not at_it(tie)
    tie.hear(state("half_open", 5, prober="me"), "me")
    tie.breaker.permit()
    tie.breaker.release(generation)
    assert at_it(tie), "what ended began in an earlier turn"


def test_when_the_supervisor_falls_silent_the_process_probes_by_itself_later() -> None:
    tie, clock = link()
    tie.hear(state("open", 1), "me")
    clock.advance(10.5)
    with pytest.raises(BreakerOpenError):
        tie.breaker.permit()
    clock.advance(2.0)
    tie.breaker.permit()
    report = tie.report()
    assert report is not None
    assert [change.after for change in report.local] == ["half_open"]


def test_old_words_change_nothing_and_a_new_supervisors_do() -> None:
    tie, _ = link()
    tie.hear(state("open", 5, incarnation=7), "me")
    tie.hear(state("closed", 4, incarnation=7), "me")
    tie.hear(state("closed", 9, incarnation=6), "me")
    with pytest.raises(BreakerOpenError):
        tie.breaker.permit()
    tie.hear(state("closed", 1, incarnation=8), "me")
    tie.breaker.permit()


async def test_a_noisy_tenant_leaves_the_others_their_throughput() -> None:
    """One bulkhead for all; a tenant with a hundred times the calls. Measured beside the quiet one alone, by turns."""
    bulkhead = SemaphoreBulkhead("shared", 50, queue_max=2_000, queue_wait_s=60)
    quiet_calls, service_s = 30, itertools.cycle((0.08, 0.13, 0.1, 0.12, 0.07))  # so that not all end at once

    async def call(tenant: str) -> None:
        async with bulkhead.permit(tenant=tenant):
            await asyncio.sleep(next(service_s))  # the dependency at work

    async def quiet_s() -> float:
        """How long the quiet tenant's calls take, two at a time."""
        began = asyncio.get_running_loop().time()

        async def one_after_another() -> None:
            for _ in range(quiet_calls // 2):
                await call("quiet")

        await asyncio.gather(one_after_another(), one_after_another())
        return asyncio.get_running_loop().time() - began

    async def noise() -> None:
        while True:
            await call("noisy")

    best = 0.0
    for _ in range(5):  # a busy machine slows one of the two down: it can only lower a round's ratio
        alone = await quiet_s()
        noisy = [asyncio.create_task(noise()) for _ in range(500)]
        await asyncio.sleep(0)
        beside = await quiet_s()
        for task in noisy:
            task.cancel()
        await asyncio.gather(*noisy, return_exceptions=True)
        best = max(best, alone / beside)
        if best >= 0.9:
            break
    assert best >= 0.9
