"""The vault on a Valkey of its own: two hashes, ``tenantry:keys`` and ``tenantry:heads``, by tenant."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import msgspec
from redis.exceptions import RedisError

from events.valkey_client import FUNCTION_MISSING, Client, execute, load_library, translate
from events.vault import DestroyedKey, KeyRecord, Witnessed, WrappedKey

LIBRARY = "tenantry_vault_v1"
KEYS_KEY, HEADS_KEY = "tenantry:keys", "tenantry:heads"
_HEADS_AT_ONCE = 1_000  # Lua's stack ends some thousands of values up
_encode = msgspec.msgpack.Encoder().encode
_decode_key: msgspec.msgpack.Decoder[KeyRecord] = msgspec.msgpack.Decoder(KeyRecord)


class ValkeyVault:
    """``Vault`` over a server that writes through to disk (appendfsync always). ``open`` before use."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def open(self) -> None:
        try:
            await load_library(self._client, LIBRARY, files("events").joinpath("vault.lua").read_text())
        except RedisError as error:
            raise translate(error, "", 0) from error

    async def close(self) -> None:
        await self._client.aclose()

    async def key(self, tenant: str) -> KeyRecord | None:
        stored = await self._call("HGET", KEYS_KEY, tenant)
        return stored and _decode_key.decode(stored)

    async def keys(self) -> dict[str, KeyRecord]:
        rows = await self._call("HGETALL", KEYS_KEY)
        return {tenant.decode(): _decode_key.decode(stored) for tenant, stored in rows.items()}

    async def add_key(self, tenant: str, record: WrappedKey) -> KeyRecord:
        if await self._call("HSETNX", KEYS_KEY, tenant, _encode(record)):
            return record
        kept = await self.key(tenant)
        assert kept is not None
        return kept

    async def replace_key(self, tenant: str, old: WrappedKey, new: WrappedKey) -> bool:
        args = (tenant, _encode(old), _encode(new))
        return bool(await self._call("FCALL", "tenantry_vault_v1_replace_key", 1, KEYS_KEY, *args))

    async def destroy_key(self, tenant: str, now_us: int) -> DestroyedKey:
        known = await self.key(tenant)
        if isinstance(known, DestroyedKey):
            return known
        destroyed = DestroyedKey(now_us)
        await self._call("HSET", KEYS_KEY, tenant, _encode(destroyed))
        return destroyed

    async def forget_history(self) -> None:
        """Rewrite the server's own file, so that a destroyed key is no longer in it. Returns when that is under way."""
        await self._call("BGREWRITEAOF")

    async def witness(self, heads: Mapping[str, Witnessed]) -> None:
        rows = [(tenant, _packed(head)) for tenant, head in heads.items()]
        for start in range(0, len(rows), _HEADS_AT_ONCE):
            args = [value for row in rows[start : start + _HEADS_AT_ONCE] for value in row]
            await self._call("FCALL", "tenantry_vault_v1_witness", 1, HEADS_KEY, *args)

    async def witnessed(self, tenant: str) -> Witnessed | None:
        stored = await self._call("HGET", HEADS_KEY, tenant)
        return _unpacked(stored) if stored else None

    async def all_witnessed(self) -> dict[str, Witnessed]:
        rows = await self._call("HGETALL", HEADS_KEY)
        return {tenant.decode(): _unpacked(stored) for tenant, stored in rows.items()}

    async def accept(self, tenant: str, head: Witnessed | None) -> None:
        if head is None:
            await self._call("HDEL", HEADS_KEY, tenant)
        else:
            await self._call("HSET", HEADS_KEY, tenant, _packed(head))

    async def _call(self, *args: Any) -> Any:
        try:
            return await execute(self._client, *args)
        except (RedisError, OSError) as error:
            if FUNCTION_MISSING in str(error):
                await self.open()
            raise translate(error, "", 0) from error


def _packed(head: Witnessed) -> bytes:
    return head.position.to_bytes(8, "big") + head.epoch.to_bytes(8, "big") + head.hash


def _unpacked(stored: bytes) -> Witnessed:
    return Witnessed(int.from_bytes(stored[:8], "big"), stored[16:], int.from_bytes(stored[8:16], "big"))
