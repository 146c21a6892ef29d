"""Trying again, within a budget; and hedging: a second attempt before the first one has failed."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from itertools import count
from typing import TypeVar

from actors.policies import retry as machine
from actors.policies.refusals import CallTimeoutError, PolicyRefusal
from actors.policies.retry import Budget, RetryRules
from actors.policies.wrappers.bulkhead import SemaphoreBulkhead
from actors.policies.wrappers.timeout import remaining_s
from actors.policies.wrappers.timing import Chance

Result = TypeVar("Result")
Retryable = Callable[[BaseException], bool]


def is_retryable(error: BaseException) -> bool:
    """What the error says of itself (``retryable``, as all errors of the platform do); else only trouble of the network."""
    says: bool | None = getattr(error, "retryable", None)
    return isinstance(error, (OSError, TimeoutError)) if says is None else says


def was_surely_not_done(error: BaseException) -> bool:
    """The dependency refused for now, or was never reached: repeating is safe even where a call must not happen twice. What
    the error says of itself (``may_have_happened``, as tools' errors do) comes first.
    """
    may_have_happened: bool | None = getattr(error, "may_have_happened", None)
    if may_have_happened is not None:
        return not may_have_happened
    return isinstance(error, ConnectionRefusedError) or (
        getattr(error, "retry_after_s", None) is not None and not isinstance(error, CallTimeoutError)
    )


class Retry:
    """One per dependency: its budget is shared by all calls to it."""

    def __init__(
        self,
        rules: RetryRules,
        *,
        retryable: Retryable = is_retryable,
        chance: Chance = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.rules = rules
        self._retryable, self._chance, self._sleep = retryable, chance, sleep
        self._budget = machine.opening_budget(rules)

    @property
    def budget(self) -> Budget:
        return self._budget

    async def run(
        self,
        attempt: Callable[[], Awaitable[Result]],
        *,
        idempotent: bool = True,
        may_go_on: Callable[[], bool] = lambda: True,
        hedge: SemaphoreBulkhead | None = None,
    ) -> Result:
        """The first result. Raises what the last attempt raised; its ``__notes__`` say why there was no other.

        A call that is not ``idempotent`` is repeated only where it surely had no effect. ``may_go_on`` is asked before each
        repeat (has the breaker opened meanwhile?). A hedge is one more call at the same time, so it needs a permit of its own
        where there is a bulkhead (``hedge``); without a free one, there is no hedge.
        """
        self._budget = machine.deposited(self.rules, self._budget)
        try:
            if idempotent and self.rules.hedge_after_s > 0:
                return await self._hedged(attempt, hedge)
            return await attempt()
        except Exception as error:
            if (wait_s := self._wait_s(error, 1, idempotent, may_go_on)) is None:
                raise
        return await self._again(wait_s, attempt, idempotent, may_go_on)

    async def _again(
        self, wait_s: float, attempt: Callable[[], Awaitable[Result]], idempotent: bool, may_go_on: Callable[[], bool]
    ) -> Result:
        for number in count(2):
            await self._sleep(wait_s)
            try:
                return await attempt()
            except Exception as error:
                if (wait := self._wait_s(error, number, idempotent, may_go_on)) is None:
                    raise
                wait_s = wait
        raise AssertionError  # a count has no end

    def _wait_s(self, error: Exception, number: int, idempotent: bool, may_go_on: Callable[[], bool]) -> float | None:
        """How long to wait before the next attempt, which is paid for; None: there is none."""
        if isinstance(error, PolicyRefusal) or not self._retryable(error):
            return None
        if not idempotent and not was_surely_not_done(error):
            return None
        wait_s = machine.delay_s(self.rules, number, self._chance(), getattr(error, "retry_after_s", None))
        if wait_s is None or wait_s >= remaining_s() or not may_go_on() or not self._may_spend(error):
            return None
        return wait_s

    def _may_spend(self, error: Exception | None = None) -> bool:
        left = machine.withdrawn(self._budget)
        if left is None:
            if error is not None:
                error.add_note("not tried again: the retry budget is spent (too many calls fail at present)")
            return False
        self._budget = left
        return True

    async def _hedged(self, attempt: Callable[[], Awaitable[Result]], bulkhead: SemaphoreBulkhead | None) -> Result:
        """The first success of up to two attempts; the error of the last one where both fail. The loser is cancelled."""
        running = {asyncio.ensure_future(attempt())}
        try:
            done, _ = await asyncio.wait(running, timeout=self.rules.hedge_after_s)
            if not done and self._may_hedge(bulkhead):
                second = asyncio.ensure_future(attempt())
                running.add(second)
                if bulkhead is not None:
                    second.add_done_callback(lambda _: bulkhead.leave())
            while True:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                won = [task for task in done if not task.cancelled() and task.exception() is None]
                if won or not running:
                    return (won or list(done))[0].result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _may_hedge(self, bulkhead: SemaphoreBulkhead | None) -> bool:
        if bulkhead is not None and not bulkhead.try_enter():
            return False
        if self._may_spend():
            return True
        if bulkhead is not None:
            bulkhead.leave()
        return False
