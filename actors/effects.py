"""What a tenant's events bring about beyond the log: a port, so that a tenant in memory knows nothing of queues."""

from collections.abc import Sequence
from typing import Protocol

from actors.aggregate import State
from events.catalog import DomainEvent
from events.sealing import Cipher


class Effects(Protocol):
    """Started after the events are durable, and never awaited."""

    def appended(self, tenant: str, state: State, events: Sequence[DomainEvent], cipher: Cipher) -> None:
        """``state`` is the one after the events."""
        ...

    def activated(self, tenant: str, state: State, cipher: Cipher) -> None:
        """The state as it was replayed: what the activation before this one may not have got to is started again."""
        ...


class NoEffects:
    def appended(self, tenant: str, state: State, events: Sequence[DomainEvent], cipher: Cipher) -> None:
        pass

    def activated(self, tenant: str, state: State, cipher: Cipher) -> None:
        pass
