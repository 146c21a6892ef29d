"""The vault: what must not share the event store's fate, and so lies in a server and in backups of its own.

It holds the tenants' data keys (wrapped: useless without the master key), because a backup of the log that also held
the keys would bring erased data back to life; and the witness, the end of each log as it was acknowledged, because a
store that comes back from an old file can't know by itself what it has lost.
"""

from collections.abc import Mapping
from typing import Protocol

import msgspec


class WrappedKey(msgspec.Struct, frozen=True, array_like=True, tag="key"):
    """A tenant's data key, encrypted under the master key whose fingerprint is ``master_id``."""

    master_id: bytes
    wrapped: bytes
    created_us: int


class DestroyedKey(msgspec.Struct, frozen=True, array_like=True, tag="destroyed"):
    """There was a key, and it is gone for good: what it sealed reads as placeholders."""

    destroyed_us: int


KeyRecord = WrappedKey | DestroyedKey


class Witnessed(msgspec.Struct, frozen=True, array_like=True):
    """An end of a tenant's log that was acknowledged to somebody. The log must hold this event for ever."""

    position: int
    hash: bytes
    epoch: int


class Vault(Protocol):
    """Every method raises StoreUnavailableError where the vault can't be reached. Writes are durable when they return."""

    async def key(self, tenant: str) -> KeyRecord | None: ...

    async def keys(self) -> dict[str, KeyRecord]:
        """All of them, by tenant."""
        ...

    async def add_key(self, tenant: str, record: WrappedKey) -> KeyRecord:
        """Keep it unless there is one already; returns the one that is kept."""
        ...

    async def replace_key(self, tenant: str, old: WrappedKey, new: WrappedKey) -> bool:
        """The same data key wrapped anew. False, and nothing changed, where the record is not ``old`` any more."""
        ...

    async def destroy_key(self, tenant: str, now_us: int) -> DestroyedKey:
        """Overwrite the key for good. Safe to repeat: the first time of destruction stays."""
        ...

    async def witness(self, heads: Mapping[str, Witnessed]) -> None:
        """Remember acknowledged ends of logs. A lower position than the one known changes nothing."""
        ...

    async def witnessed(self, tenant: str) -> Witnessed | None: ...

    async def all_witnessed(self) -> dict[str, Witnessed]: ...

    async def accept(self, tenant: str, head: Witnessed | None) -> None:
        """A person has accepted that the log ends there (None: that it is gone). The only way down."""
        ...
