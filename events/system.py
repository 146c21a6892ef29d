"""What the platform records about itself, in the log of the tenant ``system``: breakers, bulkheads, quarantined tenants.

The platform's own supervisors write it, and operators through them; no API creates that tenant or lets others write to it.
A dependency is shared by all tenants (``tenant`` is "") or is one tenant's own.
"""

from typing import Literal

from events.messages import Command, Event, Query

BreakerStatus = Literal["closed", "open", "half_open", "forced_open", "forced_closed"]
BreakerAction = Literal["open", "close", "reset"]
BulkheadState = Literal["free", "saturated"]


def breaker_stream(name: str, tenant: str) -> str:
    return f"breaker/{name}@{tenant}" if tenant else f"breaker/{name}"


class SystemFact(Event, frozen=True):
    """Marks what only the log of the tenant ``system`` holds."""


class RecordStart(Command, frozen=True, tag="system.start"):
    """A supervisor has come up. ``incarnation`` tells its lives apart: the wall clock then, in microseconds."""

    supervisor: str
    incarnation: int


class RecordBreaker(Command, frozen=True, tag="system.breaker.record"):
    """A breaker has changed: the cluster's, or where ``caller`` is set only that process's own.

    ``calls`` of which ``failures`` failed and ``slow`` were slow is what it was decided on, by ``callers`` processes, of
    which ``callers_bad`` saw it failing. ``version`` counts the changes.
    """

    name: str
    tenant: str
    before: BreakerStatus
    after: BreakerStatus
    cause: str
    calls: int = 0
    failures: int = 0
    slow: int = 0
    callers: int = 0
    callers_bad: int = 0
    version: int = 0
    caller: str = ""


class ForceBreaker(Command, frozen=True, tag="system.breaker.force"):
    """By an operator: hold it open, hold it closed, or reset it: closed, and judging afresh."""

    name: str
    tenant: str
    action: BreakerAction
    reason: str


class RecordBulkhead(Command, frozen=True, tag="system.bulkhead.record"):
    """A bulkhead's permits ran out or are enough again. ``wanted`` is what all callers together would use."""

    name: str
    tenant: str
    state: BulkheadState
    limit: int
    leased: int
    wanted: int
    callers: int
    cause: str


class QuarantineTenant(Command, frozen=True, tag="system.tenant.quarantine"):
    """It crashed its actor ``crashes`` times: it is not activated again before ``until_us``, or until it is released."""

    tenant: str
    reason: str
    crashes: int
    until_us: int


class ReleaseTenant(Command, frozen=True, tag="system.tenant.release"):
    tenant: str
    reason: str


class DescribeSystem(Query, frozen=True, tag="system.describe"):
    """Breakers and bulkheads as last recorded, and quarantined tenants."""


SystemCommand = (
    RecordStart | RecordBreaker | ForceBreaker | RecordBulkhead | QuarantineTenant | ReleaseTenant | DescribeSystem
)


class SupervisorStarted(SystemFact, frozen=True, tag="supervisor.started.v1"):
    supervisor: str
    incarnation: int

    @property
    def stream(self) -> str:
        return f"supervisor/{self.supervisor}"


class BreakerChanged(SystemFact, frozen=True, tag="breaker.changed.v1"):
    name: str
    tenant: str
    before: BreakerStatus
    after: BreakerStatus
    cause: str
    changed_us: int
    calls: int = 0
    failures: int = 0
    slow: int = 0
    callers: int = 0
    callers_bad: int = 0
    version: int = 0
    caller: str = ""

    @property
    def stream(self) -> str:
        return breaker_stream(self.name, self.tenant)


class BreakerForced(SystemFact, frozen=True, tag="breaker.forced.v1"):
    name: str
    tenant: str
    before: BreakerStatus
    after: BreakerStatus
    reason: str
    changed_us: int
    version: int

    @property
    def stream(self) -> str:
        return breaker_stream(self.name, self.tenant)


class BulkheadChanged(SystemFact, frozen=True, tag="bulkhead.changed.v1"):
    name: str
    tenant: str
    state: BulkheadState
    limit: int
    leased: int
    wanted: int
    callers: int
    cause: str
    changed_us: int

    @property
    def stream(self) -> str:
        return f"bulkhead/{self.name}@{self.tenant}" if self.tenant else f"bulkhead/{self.name}"


class TenantQuarantined(SystemFact, frozen=True, tag="tenant.quarantined.v1"):
    tenant: str
    reason: str
    crashes: int
    until_us: int
    changed_us: int

    @property
    def stream(self) -> str:
        return f"quarantine/{self.tenant}"


class TenantReleased(SystemFact, frozen=True, tag="tenant.released.v1"):
    tenant: str
    reason: str
    changed_us: int

    @property
    def stream(self) -> str:
        return f"quarantine/{self.tenant}"


SystemEvent = SupervisorStarted | BreakerChanged | BreakerForced | BulkheadChanged | TenantQuarantined | TenantReleased
