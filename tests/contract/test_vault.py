from collections.abc import AsyncIterator

import pytest

from events.errors import StoreUnavailableError
from events.memory_vault import MemoryVault
from events.valkey_client import connect
from events.valkey_vault import ValkeyVault
from events.vault import Vault
from tests.contract.vault import VaultContract, tenant
from tests.kit.servers import Servers

__all__ = ["tenant"]


class TestMemoryVault(VaultContract):
    @pytest.fixture
    def vault(self) -> Vault:
        return MemoryVault()


class TestValkeyVault(VaultContract):
    """In a database of its own: the made-up keys of these tests can't be unwrapped by anybody."""

    @pytest.fixture
    async def vault(self, servers: Servers) -> AsyncIterator[ValkeyVault]:
        opened = ValkeyVault(connect(servers.vault_url, db=2))
        await opened.open()
        yield opened
        await opened.close()


async def test_a_vault_that_is_away_is_a_transient_error() -> None:
    vault = ValkeyVault(connect("redis://127.0.0.1:1", timeout_s=1))
    for call in (vault.open(), vault.key("a1"), vault.witnessed("a1")):
        with pytest.raises(StoreUnavailableError):
            await call
    await vault.close()
