from pathlib import Path

import pytest

from events.archive import Archive
from events.memory_store import MemoryEventStore
from events.store import EventStore
from tests.contract.archiving import ArchivingContract
from tests.contract.event_store import EventStoreContract, tenant

__all__ = ["tenant"]


class TestMemoryEventStore(EventStoreContract, ArchivingContract):
    @pytest.fixture
    def archive(self, tmp_path: Path) -> Archive:
        return Archive(str(tmp_path / "archive"))

    @pytest.fixture
    def store(self, archive: Archive) -> EventStore:
        return MemoryEventStore(archive=archive)
