import pytest

from events.errors import StoreUnavailableError
from events.memory_vault import MemoryVault
from events.valkey_store import connect
from events.valkey_vault import ValkeyVault
from events.vault import Vault
from tests.contract.vault import VaultContract, tenant

__all__ = ["tenant"]


class TestMemoryVault(VaultContract):
    @pytest.fixture
    def vault(self) -> Vault:
        return MemoryVault()


class TestValkeyVault(VaultContract):
    """With the fixture that all tests share."""


async def test_a_vault_that_is_away_is_a_transient_error() -> None:
    vault = ValkeyVault(connect("redis://127.0.0.1:1", timeout_s=1))
    for call in (vault.open(), vault.key("a1"), vault.witnessed("a1")):
        with pytest.raises(StoreUnavailableError):
            await call
    await vault.close()
