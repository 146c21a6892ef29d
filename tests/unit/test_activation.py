"""A tenant in memory, over a store whose answers get lost."""

from collections.abc import Sequence
from typing import Any

from actors.aggregate import State
from actors.run import Saga, Step, register
from events.catalog import DomainEvent
from events.envelope import Ok
from events.errors import StoreUnavailableError
from events.run import StartRun, pack
from events.sealing import Cipher
from events.tenant import CreateTenant
from tests.kit.local_bus import HeldStore, LocalBus, Owner

SAGA = register(Saga("test-activation", steps=(Step("work", tool="t"),))).name


class Begun:
    """Effects by name of what they were begun for."""

    def __init__(self) -> None:
        self.of: list[Any] = []

    def appended(self, tenant: str, state: State, events: Sequence[DomainEvent], cipher: Cipher) -> None:
        self.of += [type(event).__name__ for event in events]

    def activated(self, tenant: str, state: State, cipher: Cipher) -> None:
        self.of.append(sorted(state.runs.open))


async def test_effects_of_an_append_whose_answer_got_lost_begin_all_the_same() -> None:
    """The log has it, and the activation lives on: nobody else would begin the step before its time-out."""
    store, effects = HeldStore(), Begun()
    owner = Owner(LocalBus(), store, effects)
    await owner.start()
    await owner.do(CreateTenant("Acme"), "c0")
    effects.of.clear()
    store.lost.append(StoreUnavailableError("the connection was lost"))
    assert isinstance(await owner.do(StartRun("r", SAGA, pack({})), "c1"), Ok)
    assert effects.of == [["r"]]


async def test_a_repeated_command_begins_nothing_anew() -> None:
    store, effects = HeldStore(), Begun()
    owner = Owner(LocalBus(), store, effects)
    await owner.start()
    await owner.do(CreateTenant("Acme"), "c0")
    first = await owner.do(StartRun("r", SAGA, pack({})), "c1")
    effects.of.clear()
    assert await owner.do(StartRun("r", SAGA, pack({})), "c1") == first
    assert effects.of == []
