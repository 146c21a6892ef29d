"""given / when / then for the tenant aggregate. The history passes through the codec, so every test checks the wire."""

from functools import reduce
from typing import Any

from actors.aggregate import State, fold
from actors.tenant import Tenant, decide, evolve, fire_timers
from events.codec import decode_event, encode_data
from events.sealing import TenantCipher
from events.tenant import TenantCommand, TenantEvent
from tests.kit.factories import NOW_US

CIPHER = TenantCipher("acme", b"a test key of thirty-two bytes!!")


class Scenario:
    def __init__(self, state: Tenant) -> None:
        self.state = state

    def when(self, command: TenantCommand, now_us: int = NOW_US) -> list[TenantEvent]:
        """Decide, and fold what was decided into the state."""
        return self._fold(decide(self.state, "acme", command, now_us))

    def when_timers_fire(self, now_us: int = NOW_US) -> list[TenantEvent]:
        return self._fold(fire_timers(self.state, now_us))

    def _fold(self, events: list[TenantEvent]) -> list[TenantEvent]:
        self.state = replay(events, self.state)
        return events


def replay(events: list[TenantEvent], state: Tenant | None = None) -> Tenant:
    through_the_wire: list[Any] = [decode_event(encode_data(event, CIPHER), CIPHER) for event in events]
    return reduce(evolve, through_the_wire, state or Tenant())


def replay_in_pages(events: list[TenantEvent], page_events: int) -> Tenant:
    """As an activation does it: page by page."""
    state = State()
    for first in range(0, len(events), page_events):
        state = fold(state, events[first : first + page_events])
    return state.tenant


def given(*history: TenantEvent) -> Scenario:
    return Scenario(replay(list(history)))
