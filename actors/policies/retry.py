"""When to try again, as pure functions: exponential back-off with full jitter, and a budget that retries draw on.

The budget is what keeps retries from becoming a storm: each first attempt pays ``ratio`` into it and each retry takes 1
out, so retries are never more than ``max(reserve, ratio * calls)``. The reserve is a loan, paid back by the first calls.

Sources: M. Brooker, Exponential Backoff and Jitter (AWS, 2015); retry budgets are Finagle's.
"""

import msgspec


class RetryRules(msgspec.Struct, frozen=True, kw_only=True):
    """``attempts_max`` counts the first. ``hedge_after_s``: an idempotent call that has not answered by then is started a
    second time, and the first answer wins; 0 switches that off.
    """

    attempts_max: int = 3
    first_s: float = 0.1
    factor: float = 2.0
    cap_s: float = 10.0
    retry_after_max_s: float = 60.0
    budget_ratio: float = 0.1
    budget_reserve: int = 3
    budget_max: float = 10.0
    hedge_after_s: float = 0.0


class Budget(msgspec.Struct, frozen=True):
    """``balance``: retries that may start now. ``owed``: what is still to be paid back of the reserve."""

    balance: float
    owed: float


def opening_budget(rules: RetryRules) -> Budget:
    return Budget(float(rules.budget_reserve), float(rules.budget_reserve))


def deposited(rules: RetryRules, budget: Budget) -> Budget:
    """One more first attempt."""
    if budget.owed > 0:
        return Budget(budget.balance, max(0.0, budget.owed - rules.budget_ratio))
    if budget.balance >= rules.budget_max:
        return budget
    return Budget(min(rules.budget_max, budget.balance + rules.budget_ratio), 0.0)


def withdrawn(budget: Budget) -> Budget | None:
    """One retry less; None where there is none left."""
    return Budget(budget.balance - 1.0, budget.owed) if budget.balance >= 1.0 - 1e-9 else None


def delay_s(rules: RetryRules, attempt: int, chance: float, retry_after_s: float | None = None) -> float | None:
    """Seconds to wait after ``attempt`` (1, 2, …) failed; None: don't try again.

    ``chance`` is random, 0 to 1 (full jitter). A ``Retry-After`` of the dependency is never undercut; where it asks for more
    than ``retry_after_max_s``, the call is not worth waiting for.
    """
    if attempt >= rules.attempts_max:
        return None
    ceiling = min(rules.cap_s, rules.first_s * rules.factor ** (attempt - 1))
    if retry_after_s is None:
        return ceiling * chance
    return None if retry_after_s > rules.retry_after_max_s else retry_after_s + ceiling * chance
