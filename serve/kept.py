"""Answers that are kept: those under Idempotency-Keys, until nobody repeats them any more; and those in the cache, as many
as a tenant has room for.

Keys of a tenant in slice 17: ``{s017}:answers:<tenant>`` and ``{s017}:cache:<tenant>``, each a hash of sealed answers, with a
sorted set of when each is over (or was last used) and a hash of their sizes beside it. Both kinds are bounded in bytes per
tenant: no flood of keys or prompts fills the store.
"""

from typing import Any

from redis.exceptions import RedisError

from events.errors import Refusal
from events.slices import slice_of, slice_tag
from events.valkey_client import Client, execute, translate

_REFUSED = b"FULL"

_DROP = """
local function drop(field)
  local size = redis.call('HGET', KEYS[3], field)
  if size then redis.call('HINCRBY', KEYS[3], '', -size) end
  redis.call('HDEL', KEYS[1], field)
  redis.call('ZREM', KEYS[2], field)
  redis.call('HDEL', KEYS[3], field)
end
local function put(field, value, score, keep_ms)
  local before = tonumber(redis.call('HGET', KEYS[3], field) or '0')
  local size = #value + 256
  redis.call('HSET', KEYS[1], field, value)
  redis.call('ZADD', KEYS[2], score, field)
  redis.call('HSET', KEYS[3], field, size)
  local total = redis.call('HINCRBY', KEYS[3], '', size - before)
  for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], keep_ms) end
  return total
end
"""
# The server's clock, which all gateways have in common: by its own, one that is ahead would take another's claim for over.
_NOW = """
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
"""
# ARGV field, value, ms to hold it, bytes that may be kept, ms to keep the keys
_CLAIM = (
    _DROP
    + _NOW
    + """
for _, late in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms, 'LIMIT', 0, 100)) do drop(late) end
local held = redis.call('HGET', KEYS[1], ARGV[1])
if held then return held end
if tonumber(redis.call('HGET', KEYS[3], '') or '0') + #ARGV[2] + 256 > tonumber(ARGV[4]) then return 'FULL' end
put(ARGV[1], ARGV[2], now_ms + ARGV[3], ARGV[5])
return false
"""
)
# ARGV field, what has to be there, what to put there ('' to drop it), ms to hold that, ms to keep the keys
_REPLACE = (
    _DROP
    + _NOW
    + """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
if ARGV[3] == '' then drop(ARGV[1]) else put(ARGV[1], ARGV[3], now_ms + ARGV[4], ARGV[5]) end
return 1
"""
)
# ARGV field, now ms
_USE = """
local value = redis.call('HGET', KEYS[1], ARGV[1])
if value then redis.call('ZADD', KEYS[2], 'XX', ARGV[2], ARGV[1]) end
return value
"""
# ARGV field, value, now ms, bytes that may be kept, ms to keep the keys
_FILL = (
    _DROP
    + """
if #ARGV[2] + 256 > tonumber(ARGV[4]) then
  drop(ARGV[1])
  return 0
end
local total = put(ARGV[1], ARGV[2], ARGV[3], ARGV[5])
while total > tonumber(ARGV[4]) do
  drop(redis.call('ZRANGE', KEYS[2], 0, 0)[1])
  total = tonumber(redis.call('HGET', KEYS[3], ''))
end
return 1
"""
)


class NoRoomError(Refusal):
    """The tenant's own limit: it uses more Idempotency-Keys than can be remembered."""

    code = "rate_limited"
    retry_after_s = 60.0

    def __init__(self, bytes_max: int) -> None:
        super().__init__(bytes_max)
        self.bytes_max = bytes_max

    def __str__(self) -> str:
        return (
            f"the answers kept under Idempotency-Keys fill all of the {self.bytes_max} bytes there are for them: send "
            "fewer, or without a key; the oldest are forgotten after a day"
        )


class _Area:
    """What both kinds share. Every method raises StoreUnavailableError."""

    def __init__(self, client: Client, kind: str) -> None:
        self._client, self._kind = client, kind

    async def erase(self, tenant: str) -> None:
        await self._call("DEL", *self._keys(tenant))

    async def count(self, tenant: str) -> int:
        """How many answers of the tenant are kept."""
        return int(await self._call("HLEN", self._keys(tenant)[0]))

    async def size_bytes(self, tenant: str) -> int:
        """How much of the tenant's room they take."""
        return int(await self._call("HGET", self._keys(tenant)[2], "") or 0)

    async def close(self) -> None:
        await self._client.aclose()

    def _keys(self, tenant: str) -> tuple[str, str, str]:
        key = f"{slice_tag(slice_of(tenant))}:{self._kind}:{tenant}"
        return key, f"{key}:order", f"{key}:sizes"

    async def _eval(self, script: str, tenant: str, *args: object) -> Any:
        return await self._call("EVAL", script, 3, *self._keys(tenant), *args)

    async def _call(self, *args: Any) -> Any:
        try:
            return await execute(self._client, *args)
        except (RedisError, OSError) as error:
            raise translate(error, "", 0) from error


class KeyedAnswers(_Area):
    """One value per Idempotency-Key, first come first served; on the log's own Valkey, durable like the log."""

    def __init__(self, client: Client, *, bytes_max: int, keep_ms: int) -> None:
        super().__init__(client, "answers")
        self._bytes_max, self._keep_ms = bytes_max, keep_ms

    async def claim(self, tenant: str, field: str, claim: bytes, held_ms: int) -> bytes | None:
        """None: it is ours for ``held_ms``. Else what is there.

        Raises:
            NoRoomError: For another key, before some of the old ones are over.
        """
        held: bytes | None = await self._eval(_CLAIM, tenant, field, claim, held_ms, self._bytes_max, self._keep_ms)
        if held == _REFUSED:
            raise NoRoomError(self._bytes_max)
        return held

    async def replace(self, tenant: str, field: str, claim: bytes, value: bytes, held_ms: int) -> bool:
        """Put ``value`` in place of our claim, for ``held_ms`` from now (b"": drop it; the claim itself: hold it longer). False:
        it was ours no more.
        """
        return bool(await self._eval(_REPLACE, tenant, field, claim, value, held_ms, self._keep_ms))


class CachedAnswers(_Area):
    """The most recently used ones that fit; on the read models' Valkey, where nothing is missed that gets lost."""

    def __init__(self, client: Client, *, bytes_max: int, keep_ms: int) -> None:
        super().__init__(client, "cache")
        self._bytes_max, self._keep_ms = bytes_max, keep_ms

    async def get(self, tenant: str, field: str, now_ms: int) -> bytes | None:
        found: bytes | None = await self._eval(_USE, tenant, field, now_ms)
        return found

    async def put(self, tenant: str, field: str, value: bytes, now_ms: int) -> bool:
        """False: it is larger than all the room there is."""
        return bool(await self._eval(_FILL, tenant, field, value, now_ms, self._bytes_max, self._keep_ms))
