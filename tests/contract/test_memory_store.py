import pytest

from events.memory_store import MemoryEventStore
from events.store import EventStore
from tests.contract.event_store import EventStoreContract, tenant

__all__ = ["tenant"]


class TestMemoryEventStore(EventStoreContract):
    @pytest.fixture
    def store(self) -> EventStore:
        return MemoryEventStore()
