"""The system aggregate: what the platform remembers about its own breakers, bulkheads and quarantined tenants. Pure.

It decides little: supervisors decide, and this is where that is written down, in order, once. Its state is what a
supervisor that was killed begins with.
"""

from collections.abc import Mapping
from typing import Any, assert_never

import msgspec

from events.errors import InvalidCommandError, NotFoundError
from events.slices import SYSTEM_TENANT
from events.system import (
    BreakerChanged,
    BreakerForced,
    BreakerStatus,
    BulkheadChanged,
    BulkheadState,
    DescribeSystem,
    ForceBreaker,
    QuarantineTenant,
    RecordBreaker,
    RecordBulkhead,
    RecordStart,
    ReleaseTenant,
    SupervisorStarted,
    SystemCommand,
    SystemEvent,
    TenantQuarantined,
    TenantReleased,
)

_REASON_CHARS_MAX = 500
NAME_CHARS_MAX = 120  # with the tenant's id it still fits into a stream's name
_FORCED: dict[str, BreakerStatus] = {"open": "forced_open", "close": "forced_closed", "reset": "closed"}


class BreakerMemory(msgspec.Struct, frozen=True):
    status: BreakerStatus
    since_us: int
    version: int
    cause: str


class BulkheadMemory(msgspec.Struct, frozen=True):
    state: BulkheadState
    since_us: int
    limit: int


class Quarantine(msgspec.Struct, frozen=True):
    reason: str
    crashes: int
    since_us: int
    until_us: int


class System(msgspec.Struct, frozen=True):
    """Breakers and bulkheads by (name, tenant), "" where it is all tenants'; quarantined tenants by id."""

    breakers: Mapping[tuple[str, str], BreakerMemory] = {}
    bulkheads: Mapping[tuple[str, str], BulkheadMemory] = {}
    quarantined: Mapping[str, Quarantine] = {}


_UNKNOWN_BREAKER = BreakerMemory("closed", 0, 0, "")


def decide(system: System, tenant: str, command: SystemCommand, now_us: int) -> list[SystemEvent]:
    """What is to be written down; nothing where it is so already. Raises InvalidCommandError, NotFoundError."""
    if tenant != SYSTEM_TENANT:
        raise InvalidCommandError(f"only tenant {SYSTEM_TENANT!r} takes this command, this is {tenant!r}")
    match command:
        case RecordStart(supervisor, incarnation):
            return [SupervisorStarted(supervisor, incarnation)]
        case RecordBreaker():
            _check(command.name, command.cause)
            return [BreakerChanged(**msgspec.structs.asdict(command), changed_us=now_us)]
        case ForceBreaker(name, owner, action, reason):
            _check(name, reason)
            memory = system.breakers.get((name, owner), _UNKNOWN_BREAKER)
            if memory.status == _FORCED[action] and action != "reset":
                return []
            return [BreakerForced(name, owner, memory.status, _FORCED[action], reason, now_us, memory.version + 1)]
        case RecordBulkhead(name, owner, state, limit):
            _check(name, command.cause)
            known = system.bulkheads.get((name, owner))
            if known is not None and (known.state, known.limit) == (state, limit):
                return []
            return [BulkheadChanged(**msgspec.structs.asdict(command), changed_us=now_us)]
        case QuarantineTenant(whom, reason, crashes, until_us):
            return [TenantQuarantined(whom, reason[:_REASON_CHARS_MAX], crashes, until_us, now_us)]
        case ReleaseTenant(whom, reason):
            if whom not in system.quarantined:
                raise NotFoundError("quarantined tenant", whom)
            return [TenantReleased(whom, reason[:_REASON_CHARS_MAX], now_us)]
        case DescribeSystem():
            return []
        case _:
            assert_never(command)


def _check(name: str, text: str) -> None:
    if not 0 < len(name) <= NAME_CHARS_MAX:
        raise InvalidCommandError(f"a dependency's name has 1 to {NAME_CHARS_MAX} characters, got {len(name)}")
    if not 0 < len(text) <= _REASON_CHARS_MAX:
        raise InvalidCommandError(f"a reason has 1 to {_REASON_CHARS_MAX} characters, got {len(text)}")


def evolve(system: System, event: SystemEvent) -> System:
    breakers, bulkheads, quarantined = system.breakers, system.bulkheads, system.quarantined
    match event:
        case SupervisorStarted():
            pass
        case BreakerChanged(name, tenant):
            if not event.caller:
                memory = _newer(breakers, event, event.cause)
                breakers = {**breakers, (name, tenant): memory}
        case BreakerForced(name, tenant):
            memory = _newer(breakers, event, event.reason)
            breakers = {**breakers, (name, tenant): memory}
        case BulkheadChanged(name, tenant):
            bulkheads = {**bulkheads, (name, tenant): BulkheadMemory(event.state, event.changed_us, event.limit)}
        case TenantQuarantined(tenant, reason, crashes, until_us):
            quarantined = {**quarantined, tenant: Quarantine(reason, crashes, event.changed_us, until_us)}
        case TenantReleased(tenant):
            quarantined = {whom: held for whom, held in quarantined.items() if whom != tenant}
        case _:
            assert_never(event)
    return System(breakers, bulkheads, quarantined)


def _newer(
    breakers: Mapping[tuple[str, str], BreakerMemory], event: BreakerChanged | BreakerForced, cause: str
) -> BreakerMemory:
    """Versions never go back, also where an operator and a supervisor counted at the same time."""
    known = breakers.get((event.name, event.tenant), _UNKNOWN_BREAKER)
    return BreakerMemory(event.after, event.changed_us, max(known.version, event.version), cause)


def answer(system: System, command: SystemCommand) -> dict[str, Any]:
    """Plain data: all that is remembered for ``DescribeSystem``, the breaker for ``ForceBreaker``, else nothing."""
    match command:
        case DescribeSystem():
            return {
                "breakers": [_named(key, memory) for key, memory in system.breakers.items()],
                "bulkheads": [_named(key, memory) for key, memory in system.bulkheads.items()],
                "quarantined": [
                    {"tenant": tenant, **msgspec.structs.asdict(held)} for tenant, held in system.quarantined.items()
                ],
            }
        case ForceBreaker(name, tenant):
            return _named((name, tenant), system.breakers[name, tenant])
        case _:
            return {}


def _named(key: tuple[str, str], memory: BreakerMemory | BulkheadMemory) -> dict[str, Any]:
    return {"name": key[0], "tenant": key[1], **msgspec.structs.asdict(memory)}
