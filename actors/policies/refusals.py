"""How a policy says no. What refuses before the dependency is called costs nothing and can be tried again later."""

from typing import ClassVar

from events.errors import TransientError


class PolicyRefusal(TransientError):
    """The dependency was not called. ``policy`` names the policy that refused; ``retry_after_s`` when to try again."""

    code = "dependency_unavailable"
    policy: ClassVar[str] = ""

    def __init__(self, name: str, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(name, reason, retry_after_s)
        self.name, self.reason, self.retry_after_s = name, reason, retry_after_s

    def __str__(self) -> str:
        wait = "" if self.retry_after_s is None else f": try again in {self.retry_after_s:.3g} s"
        return f"{self.name!r} was not called, {self.reason}{wait}"


class RateLimitedError(PolicyRefusal):
    """The dependency's own rate limit; a tenant's limits are refused by the tenant, as ``rate_limited``."""

    code = "dependency_rate_limited"
    policy = "rate_limiter"


class BulkheadFullError(PolicyRefusal):
    """All permits are taken, and there is no place in the queue (or the deadline came before a permit did)."""

    code = "bulkhead_full"
    policy = "bulkhead"


class BreakerOpenError(PolicyRefusal):
    """The dependency failed too often; nobody calls it for a while."""

    code = "breaker_open"
    policy = "breaker"


class UnhealthyError(PolicyRefusal):
    """The health checker says that the dependency is down."""

    code = "dependency_unhealthy"
    policy = "health"


class DeadlineExceededError(PolicyRefusal):
    """No time was left to call the dependency."""

    code = "deadline_exceeded"
    policy = "timeout"


class CallTimeoutError(TransientError):
    """The dependency was called and did not answer in time: whether it did what was asked is unknown."""

    code = "dependency_timeout"

    def __init__(self, name: str, timeout_s: float) -> None:
        super().__init__(name, timeout_s)
        self.name, self.timeout_s = name, timeout_s

    def __str__(self) -> str:
        return f"{self.name!r} did not answer within {self.timeout_s:.3g} s"
