"""Trying again, within a budget; and hedging: a second attempt before the first one has failed."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, TypeVar

from actors.policies import retry as machine
from actors.policies.refusals import CallTimeoutError, PolicyRefusal
from actors.policies.retry import Budget, RetryRules
from actors.policies.wrappers.bulkhead import SemaphoreBulkhead
from actors.policies.wrappers.timeout import remaining_s
from actors.policies.wrappers.timing import Chance
from events.errors import Refusal

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
    return isinstance(error, ConnectionRefusedError | PolicyRefusal | Refusal) or (
        getattr(error, "retry_after_s", None) is not None and not isinstance(error, CallTimeoutError)
    )


def _error_of(task: "asyncio.Future[Any]") -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def _mark(error: BaseException) -> None:
    """An attempt before it may have taken effect: who is told of this one only must not take it for surely not done."""
    error.may_have_happened = True  # type: ignore[attr-defined]  # any error can have it, a builtin one too


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
        """The first result. Raises what the last attempt raised; its ``__notes__`` say why there was no other, and it
        ``may_have_happened`` where that is so of an attempt before it.

        A call that is not ``idempotent`` is repeated only where it surely had no effect. ``may_go_on`` is asked before each
        wait and each repeat (has the breaker opened meanwhile?). A hedge is one more call at the same time, so it needs a
        permit of its own where there is a bulkhead (``hedge``); without a free one, there is no hedge.
        """
        self._budget = machine.deposited(self.rules, self._budget)
        is_unknown = False
        for number in count(1):
            try:
                if number == 1 and idempotent and self.rules.hedge_after_s > 0:
                    return await self._hedged(attempt, hedge)
                return await attempt()
            except Exception as error:
                if is_unknown:
                    _mark(error)
                is_unknown = not was_surely_not_done(error)
                if not await self._has_waited(error, number, idempotent, may_go_on):
                    raise
        raise AssertionError  # a count has no end

    async def _has_waited(self, error: Exception, number: int, idempotent: bool, may_go_on: Callable[[], bool]) -> bool:
        """Until the next attempt may begin; False: there is none."""
        wait_s = self._wait_s(error, number, idempotent, may_go_on)
        if wait_s is None:
            return False
        await self._sleep(wait_s)
        if remaining_s() > 0 and may_go_on():
            return True
        error.add_note("not tried again: while it waited, its time ran out or its dependency was switched off")
        return False

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
        running, errors = {asyncio.ensure_future(attempt())}, list[BaseException]()
        try:
            done, _ = await asyncio.wait(running, timeout=self.rules.hedge_after_s)
            if not done and self._may_hedge(bulkhead):
                second = asyncio.ensure_future(attempt())
                running.add(second)
                if bulkhead is not None:
                    second.add_done_callback(lambda _: bulkhead.leave())
            while True:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                ended = [(task, _error_of(task)) for task in done]
                errors += [error for _, error in ended if error is not None]
                if won := [task for task, error in ended if error is None]:
                    return won[0].result()
                if not running:
                    if not all(was_surely_not_done(error) for error in errors):
                        _mark(errors[-1])
                    raise errors[-1]
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
