"""What became of told commands, as far as the tenant's log does not say it: refusals, no-ops, dead letters; and how often
a suspicious command was tried.

Keys of a tenant in slice 17: ``{s017}:outcomes:<tenant>`` (command id -> encoded reply) and ``{s017}:attempts:<tenant>``
(command id -> tries begun), each field for 48 h, as long as the log remembers replies.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from redis.exceptions import RedisError

from events.envelope import Reply, decode_reply, encode
from events.slices import slice_of, slice_tag
from events.store import REPLY_TTL_S
from events.valkey_client import Client, execute, translate


class Outcomes:
    """On the event store's own Valkey, in the tenant's slice. Every method raises StoreUnavailableError."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def record(self, tenant: str, outcomes: Mapping[str, Reply]) -> None:
        """Durable on return. A later outcome of the same command replaces an earlier one."""
        await self._set(_key("outcomes", tenant), {name: encode(reply) for name, reply in outcomes.items()})

    async def find(self, tenant: str, command_ids: Sequence[str]) -> dict[str, Reply]:
        found = await self._call("HMGET", _key("outcomes", tenant), *command_ids)
        return {name: decode_reply(reply) for name, reply in zip(command_ids, found, strict=True) if reply is not None}

    async def attempts(self, tenant: str, command_id: str) -> int:
        return int(await self._call("HGET", _key("attempts", tenant), command_id) or 0)

    async def mark_attempt(self, tenant: str, command_id: str, number: int) -> None:
        """Before the attempt, so that one that takes the whole machine down is counted, too."""
        await self._set(_key("attempts", tenant), {command_id: str(number).encode()})

    async def clear_attempts(self, tenant: str, command_ids: Iterable[str]) -> None:
        await self._call("HDEL", _key("attempts", tenant), *command_ids)

    async def forget(self, tenant: str, command_id: str) -> None:
        """The command is to be tried anew, as if it had never been."""
        await self._call("HDEL", _key("outcomes", tenant), command_id)
        await self.clear_attempts(tenant, [command_id])

    async def erase(self, tenant: str) -> None:
        await self._call("DEL", _key("outcomes", tenant), _key("attempts", tenant))

    async def left(self, tenant: str) -> int:
        """How many outcomes and counted attempts of the tenant are there."""
        return sum([int(await self._call("HLEN", _key(kind, tenant))) for kind in ("outcomes", "attempts")])

    async def close(self) -> None:
        await self._client.aclose()

    async def _set(self, key: str, fields: Mapping[str, bytes]) -> None:
        flat = [part for field in fields.items() for part in field]
        await self._call("HSETEX", key, "PX", REPLY_TTL_S * 1000, "FIELDS", len(fields), *flat)

    async def _call(self, *args: Any) -> Any:
        try:
            return await execute(self._client, *args)
        except (RedisError, OSError) as error:
            raise translate(error, "", 0) from error


def _key(kind: str, tenant: str) -> str:
    return f"{slice_tag(slice_of(tenant))}:{kind}:{tenant}"
