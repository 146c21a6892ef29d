"""What one tenant's actor decides on: all aggregates of the tenant together, because one append covers them all. Pure.

Each aggregate has a module of its own with ``decide`` and ``evolve``; here commands and events find theirs.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from itertools import groupby
from typing import Any, NamedTuple, cast

import msgspec
from msgspec.structs import replace

from actors import system as systems
from actors import tenant as tenants
from actors import tool_calls
from actors.run import again, open_runs
from actors.run import machine as runs
from actors.run.open_runs import Runs
from actors.system import System
from actors.tenant import Tenant
from actors.tool_calls import ToolCalls
from events.catalog import DomainCommand, DomainEvent
from events.errors import InvalidCommandError, NotFoundError, TenantSuspendedError
from events.messages import Query
from events.run import CapRuns, CapsCommand, ReopenRun, RunCommand, RunEvents, RunsCapped
from events.slices import SYSTEM_TENANT
from events.store import EVENTS_MAX, Placement
from events.system import SystemCommand, SystemEvent
from events.tenant import CallEvent, TenantCommand, TenantEvent
from events.timers import FireTimers
from events.tools import RecordToolCall, ToolCommand, ToolsEvent

STATE_SCHEMA = 10  # raise it whenever State changes: older snapshots are then replayed instead of misread


class State(msgspec.Struct, frozen=True):
    """Folded from all events of the tenant's log."""

    tenant: Tenant = Tenant()
    runs: Runs = Runs()
    system: System = System()  # of the tenant ``system`` only
    tools: ToolCalls = ToolCalls()

    @property
    def exists(self) -> bool:
        return self.tenant.exists

    @property
    def placement(self) -> Placement:
        return self.tenant.placement

    @property
    def is_erased(self) -> bool:
        return self.tenant.erased_us > 0

    @property
    def next_timer_us(self) -> int:
        """When the tenant wants to be woken next, for whatever reason; 0: never."""
        return min(filter(None, (self.tenant.next_timer_us, self.runs.next_timer_us)), default=0)


def decide(state: State, tenant: str, command: DomainCommand | ReopenRun, now_us: int) -> list[DomainEvent]:
    """What should happen. An empty list: what was asked for is so already.

    Raises:
        Refusal: The command can't be granted; nothing happens.
    """
    return _FAMILIES[type(command)].decide(state, tenant, command, now_us)


def act(state: State, tenant: str, command: DomainCommand | ReopenRun, now_us: int) -> tuple[list[DomainEvent], State]:
    """``decide``, and the state after its events. Raises Refusal."""
    if type(command) not in _OF_RUNS:
        events = decide(state, tenant, command, now_us)
        return events, reduce(evolve, events, state)
    _check_exists(state, tenant)
    of_runs, after = runs.act(state.runs, cast("RunCommand", command), now_us)
    return [*of_runs], replace(state, runs=after) if of_runs else state


def _decide_tenant(state: State, tenant: str, command: TenantCommand, now_us: int) -> list[DomainEvent]:
    if tenant == SYSTEM_TENANT:
        raise _of_the_platform()
    events: list[Any] = tenants.decide(state.tenant, tenant, command, now_us)
    return events


def _of_the_platform() -> InvalidCommandError:
    return InvalidCommandError(f"tenant {SYSTEM_TENANT!r} is the platform itself: it has no keys, budget or plan")


def _decide_runs(state: State, tenant: str, command: RunCommand, now_us: int) -> list[DomainEvent]:
    _check_exists(state, tenant)
    return [*runs.decide(state.runs, command, now_us)]


def _check_exists(state: State, tenant: str) -> None:
    if tenant == SYSTEM_TENANT:
        raise _of_the_platform()
    if not state.exists:
        raise NotFoundError("tenant", tenant)


def _decide_caps(state: State, tenant: str, command: CapsCommand, now_us: int) -> list[DomainEvent]:
    _check_exists(state, tenant)
    return [*runs.cap(state.runs, command, now_us)] if isinstance(command, CapRuns) else []


def _decide_reopening(state: State, tenant: str, command: ReopenRun, now_us: int) -> list[DomainEvent]:
    if tenant == SYSTEM_TENANT:
        raise _of_the_platform()
    return [*again.reopen(again.run_of(command), now_us, state.runs)]


def _decide_tools(state: State, tenant: str, command: ToolCommand, now_us: int) -> list[DomainEvent]:
    _check_exists(state, tenant)
    if state.tenant.is_suspended and isinstance(command, RecordToolCall):
        raise TenantSuspendedError
    return [*tool_calls.decide(state.tools, tenant, command, now_us)]


def _decide_system(state: State, tenant: str, command: SystemCommand, now_us: int) -> list[DomainEvent]:
    return [*systems.decide(state.system, tenant, command, now_us)]


def _fire_timers(state: State, _tenant: str, _command: FireTimers, now_us: int) -> list[DomainEvent]:
    """Each aggregate says what is due of its own; ``next_timer_us`` is the earliest of theirs."""
    own = tenants.fire_timers(state.tenant, now_us)
    room = min(runs.OF_ONE_RUN_MAX, EVENTS_MAX - len(own))
    return [*own, *runs.fire_timers(state.runs, now_us, room=room)]


def evolve(state: State, event: DomainEvent) -> State:
    """What is now true. History can't be refused, so no rule is checked here."""
    return _EVOLVE[type(event)](state, event)


def _evolve_tenant(state: State, event: TenantEvent) -> State:
    return replace(state, tenant=tenants.evolve(state.tenant, event))


def _evolve_call(state: State, event: CallEvent) -> State:
    return replace(state, tenant=tenants.fold_calls(state.tenant, (event,)))


def _evolve_runs(state: State, event: RunEvents) -> State:
    return replace(state, runs=open_runs.fold(state.runs, event))


def _evolve_caps(state: State, event: RunsCapped) -> State:
    return replace(state, runs=open_runs.capped(state.runs, event))


def _evolve_system(state: State, event: SystemEvent) -> State:
    return replace(state, system=systems.evolve(state.system, event))


def _evolve_tools(state: State, event: ToolsEvent) -> State:
    return replace(state, tools=tool_calls.evolve(state.tools, event))


# by kind, found at once: asking one family after the other takes longer than most events
_EVOLVE: dict[type[DomainEvent], Callable[[State, Any], State]] = {
    **dict.fromkeys(TenantEvent.__args__, _evolve_tenant),
    **dict.fromkeys(CallEvent.__args__, _evolve_call),
    **dict.fromkeys(RunEvents.__args__, _evolve_runs),
    RunsCapped: _evolve_caps,
    **dict.fromkeys(SystemEvent.__args__, _evolve_system),
    **dict.fromkeys(ToolsEvent.__args__, _evolve_tools),
}


def fold(state: State, events: Sequence[DomainEvent]) -> State:
    """``evolve`` over all of them in this order; where calls follow each other, as in most of every log, several times as
    fast.
    """
    if _OF_CALLS.issuperset(map(type, events)):
        return replace(state, tenant=tenants.fold_calls(state.tenant, cast("Sequence[CallEvent]", events)))
    for are_calls, some in groupby(events, _is_of_call):
        if are_calls:
            calls = cast("Iterable[CallEvent]", some)
            state = replace(state, tenant=tenants.fold_calls(state.tenant, calls))
        else:
            state = reduce(evolve, some, state)
    return state


_OF_CALLS = frozenset(CallEvent.__args__)


def _is_of_call(event: DomainEvent) -> bool:
    return type(event) in _OF_CALLS


def answer(state: State, tenant: str, command: DomainCommand | ReopenRun, now_us: int) -> dict[str, Any]:
    """The result of a command that was granted, as plain data; ``state`` is the one after its events."""
    return _FAMILIES[type(command)].answer(state, tenant, command, now_us)


def is_query(command: DomainCommand | ReopenRun) -> bool:
    return type(command) in _QUERIES


class _Family(NamedTuple):
    """What a kind of command is decided and answered by."""

    decide: Callable[[State, str, Any, int], list[DomainEvent]]
    answer: Callable[[State, str, Any, int], dict[str, Any]]


_TENANT = _Family(_decide_tenant, lambda state, *asked: tenants.answer(state.tenant, *asked))
_RUNS = _Family(_decide_runs, lambda state, _tenant, command, _now_us: runs.answer(state.runs, command))
_CAPS = _Family(_decide_caps, lambda state, *_: open_runs.describe_caps(state.runs))
_SYSTEM = _Family(_decide_system, lambda state, _tenant, command, _now_us: systems.answer(state.system, command))
_TOOLS = _Family(_decide_tools, lambda state, _tenant, command, _now_us: tool_calls.answer(state.tools, command))
_FAMILIES: dict[type[DomainCommand | ReopenRun], _Family] = {
    **dict.fromkeys(TenantCommand.__args__, _TENANT),
    **dict.fromkeys(RunCommand.__args__, _RUNS),
    **dict.fromkeys(CapsCommand.__args__, _CAPS),
    **dict.fromkeys(SystemCommand.__args__, _SYSTEM),
    **dict.fromkeys(ToolCommand.__args__, _TOOLS),
    ReopenRun: _Family(_decide_reopening, _RUNS.answer),
    FireTimers: _Family(_fire_timers, lambda *_: {}),
}
_OF_RUNS = frozenset(RunCommand.__args__)
_QUERIES = frozenset(kind for kind in _FAMILIES if issubclass(kind, Query))
