"""Commands and events find their aggregate by kind, in tables: no kind is forgotten there."""

import pytest

from actors import aggregate
from actors.aggregate import State, decide, is_query
from events.catalog import DomainCommand, DomainEvent
from events.errors import InvalidCommandError, NotFoundError
from events.messages import Command, Query
from events.run import DescribeRun, ReopenRun
from events.slices import SYSTEM_TENANT
from events.tenant import ChangePlan, DescribeTenant
from events.timers import FireTimers
from events.tools import AllowTools


def test_every_kind_of_command_and_event_finds_its_aggregate() -> None:
    """A family that is joined to the catalog and not to the tables would fail at its first use, not at a type check."""
    assert aggregate._FAMILIES.keys() == {*DomainCommand.__args__, ReopenRun}
    assert aggregate._EVOLVE.keys() == set(DomainEvent.__args__)


@pytest.mark.parametrize("command", [ChangePlan("pro"), DescribeTenant(), DescribeRun("r1"), AllowTools(())])
def test_the_platform_s_own_tenant_takes_none_of_a_tenant_s_commands(command: DomainCommand) -> None:
    """Nor does a tenant that does not exist, and the two are told apart."""
    with pytest.raises(InvalidCommandError, match="platform itself"):
        decide(State(), SYSTEM_TENANT, command, 0)
    with pytest.raises(NotFoundError):
        decide(State(), "acme", command, 0)


def test_timers_fire_in_every_tenant() -> None:
    """The platform's own is woken like any other, and finds nothing due."""
    assert decide(State(), SYSTEM_TENANT, FireTimers(), 0) == []


def test_queries_are_told_from_what_may_write() -> None:
    """Of all kinds, exactly those that derive from Query."""
    kinds: set[type[Command]] = {*DomainCommand.__args__}
    assert {kind for kind in kinds if issubclass(kind, Query)} == aggregate._QUERIES
    assert is_query(DescribeTenant())
    assert not is_query(ChangePlan("pro"))
