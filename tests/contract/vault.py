"""The contract of a ``Vault``. Subclass it with a ``vault`` fixture, as for ``EventStoreContract``."""

import uuid

import pytest

from events.vault import DestroyedKey, Vault, Witnessed, WrappedKey

KEY = WrappedKey(b"master-1", b"wrapped", 1)


@pytest.fixture
def tenant() -> str:
    return f"v{uuid.uuid4().hex[:12]}"


def head(position: int, epoch: int = 1) -> Witnessed:
    return Witnessed(position, bytes([position]) * 32, epoch)


class VaultContract:
    """Each test uses a tenant of its own, so the vault may be shared."""

    async def test_the_first_key_stays(self, vault: Vault, tenant: str) -> None:
        """Two activations may make one at once: both must go on with the same."""
        assert await vault.key(tenant) is None
        assert await vault.add_key(tenant, KEY) == KEY
        assert await vault.add_key(tenant, WrappedKey(b"master-1", b"another", 2)) == KEY
        assert await vault.key(tenant) == KEY
        assert (await vault.keys())[tenant] == KEY

    async def test_a_key_is_wrapped_anew_only_where_it_still_is_what_it_was(self, vault: Vault, tenant: str) -> None:
        new = WrappedKey(b"master-2", b"anew", 1)
        assert not await vault.replace_key(tenant, KEY, new)
        await vault.add_key(tenant, KEY)
        assert await vault.replace_key(tenant, KEY, new)
        assert not await vault.replace_key(tenant, KEY, new)
        assert await vault.key(tenant) == new

    async def test_a_destroyed_key_never_comes_back(self, vault: Vault, tenant: str) -> None:
        await vault.add_key(tenant, KEY)
        assert await vault.destroy_key(tenant, 5) == DestroyedKey(5)
        assert await vault.destroy_key(tenant, 9) == DestroyedKey(5)
        assert await vault.add_key(tenant, KEY) == DestroyedKey(5)
        assert not await vault.replace_key(tenant, KEY, KEY)
        assert await vault.key(tenant) == DestroyedKey(5)

    async def test_what_was_witnessed_only_ever_rises(self, vault: Vault, tenant: str) -> None:
        """Whoever is late, and whoever is a copy that should be dead, lowers nothing."""
        other = f"{tenant}-b"
        assert await vault.witnessed(tenant) is None
        await vault.witness({tenant: head(7), other: head(1)})
        await vault.witness({tenant: head(3), other: head(2)})
        assert await vault.witnessed(tenant) == head(7)
        assert await vault.witnessed(other) == head(2)
        await vault.witness({tenant: head(255)})
        await vault.witness({tenant: Witnessed(256, b"h" * 32, 9)})
        assert (await vault.all_witnessed())[tenant] == Witnessed(256, b"h" * 32, 9)

    async def test_only_a_person_lowers_it(self, vault: Vault, tenant: str) -> None:
        await vault.witness({tenant: head(7)})
        await vault.accept(tenant, head(4, epoch=3))
        assert await vault.witnessed(tenant) == head(4, epoch=3)
        await vault.accept(tenant, None)
        assert await vault.witnessed(tenant) is None

    async def test_thousands_of_heads_at_once(self, vault: Vault, tenant: str) -> None:
        heads = {f"{tenant}-{number}": head(number % 200 + 1) for number in range(3_000)}
        await vault.witness(heads)
        found = await vault.all_witnessed()
        assert {name: found[name] for name in heads} == heads
