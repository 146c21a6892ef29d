"""The vault in one process's memory: for tests. Same contract."""

from collections.abc import Mapping

from events.vault import DestroyedKey, KeyRecord, Witnessed, WrappedKey


class MemoryVault:
    def __init__(self) -> None:
        self._keys: dict[str, KeyRecord] = {}
        self._heads: dict[str, Witnessed] = {}

    async def key(self, tenant: str) -> KeyRecord | None:
        return self._keys.get(tenant)

    async def keys(self) -> dict[str, KeyRecord]:
        return dict(self._keys)

    async def add_key(self, tenant: str, record: WrappedKey) -> KeyRecord:
        return self._keys.setdefault(tenant, record)

    async def replace_key(self, tenant: str, old: WrappedKey, new: WrappedKey) -> bool:
        if self._keys.get(tenant) != old:
            return False
        self._keys[tenant] = new
        return True

    async def destroy_key(self, tenant: str, now_us: int) -> DestroyedKey:
        known = self._keys.get(tenant)
        destroyed = known if isinstance(known, DestroyedKey) else DestroyedKey(now_us)
        self._keys[tenant] = destroyed
        return destroyed

    async def witness(self, heads: Mapping[str, Witnessed]) -> None:
        for tenant, head in heads.items():
            known = self._heads.get(tenant)
            if known is None or known.position < head.position:
                self._heads[tenant] = head

    async def witnessed(self, tenant: str) -> Witnessed | None:
        return self._heads.get(tenant)

    async def all_witnessed(self) -> dict[str, Witnessed]:
        return dict(self._heads)

    async def accept(self, tenant: str, head: Witnessed | None) -> None:
        if head is None:
            self._heads.pop(tenant, None)
        else:
            self._heads[tenant] = head
