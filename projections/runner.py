"""Follows the logs of some slices and keeps read models, exactly once."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from typing import Any

from redis.exceptions import RedisError

from events.bus import Bus, live_subject
from events.catalog import DomainEvent
from events.codec import Record, StoredEvent, decode_event, decode_record
from events.errors import BusUnavailableError, IntegrityError, PlatformError, TransientError
from events.failpoints import failpoint
from events.keys import Keys
from events.sealing import WITHOUT_KEY, Cipher, looks_sealed, open_bytes, seal_bytes
from events.slices import slice_of
from events.store import TAIL_POINTERS_MAX, EventStore
from events.valkey_client import FUNCTION_MISSING, Client, execute, load_library, open_link, translate
from projections.model import (
    Add,
    Projection,
    Put,
    Rank,
    Unrank,
    checkpoint_key,
    index_key,
    model_key,
)

log = logging.getLogger(__name__)

LIBRARY = "tenantry_projection_v1"
SCORE_MAX = 2**53 - 1
_INDEXES = "#names"  # beside the indexes: the set of their names
_PAGE_EVENTS = 500
_PAGES_SHARED = 4
_BLOCK_MS = 2_000  # well below the time-out of a client's reads, 5 s
_RETRY_FIRST_S, _RETRY_MAX_S = 0.1, 2.0
_HEALTHY_AFTER_S = 10.0
# KEYS model, indexes; ARGV a field and what it must hold, the member, the fields of its row
_DROP_ROW = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
for i = 4, #ARGV do redis.call('HDEL', KEYS[1], ARGV[i]) end
for i = 2, #KEYS do redis.call('ZREM', KEYS[i], ARGV[3]) end
return 1
"""
# A busy tenant then costs a page per 50 ms instead of one per append; whoever waits for a figure waits that longer.
_GATHER_S = 0.05


Decoded = tuple[int, Record, DomainEvent]  # position, record, event


def decoded(page: Sequence[StoredEvent], cipher: Cipher | None = None) -> list[Decoded]:
    """Raises IntegrityError where an event can't be decoded. ``cipher`` is the tenant's."""
    records = [(stored.position, decode_record(stored.record)) for stored in page]
    return [(position, record, decode_event(record.data, cipher)) for position, record in records]


def _sealed_as(projection: Projection, field: bytes) -> str:
    return f"{projection.name}.{field.decode()}"


class CheckpointMovedError(TransientError):
    """Another runner keeps this projection, too (Ray may keep two copies of an actor alive for a while)."""

    code = "checkpoint_moved"


class ReadModels:
    """The read side's Valkey: read models and their checkpoints, personal values sealed. ``open`` before use."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client, self._keys = client, keys
        self._link = open_link(client)  # for what is called all the time: a tenth of the client's own way

    async def open(self) -> None:
        source = files("projections").joinpath("library.lua").read_text()
        try:
            await load_library(self._client, LIBRARY, source)
        except RedisError as error:
            raise translate(error, "", 0) from error

    async def close(self) -> None:
        if self._link is not None:
            await self._link.close()
        await self._client.aclose()

    async def checkpoint(self, projection: Projection, tenant: str) -> int:
        key = checkpoint_key(projection.name, projection.generation, slice_of(tenant))
        return int(await self._call("HGET", key, tenant) or 0)

    async def checkpoints(self, projection: Projection, slice_number: int) -> dict[str, int]:
        rows = await self._call("HGETALL", checkpoint_key(projection.name, projection.generation, slice_number))
        return {tenant.decode(): int(position) for tenant, position in rows.items()}

    async def cipher(self, tenant: str) -> Cipher:
        """What the tenant's events and read models are read and written with."""
        return await self._keys.cipher(tenant, create=True)

    async def fields(self, projection: Projection, tenant: str) -> dict[bytes, bytes]:
        """The tenant's read model, sealed values opened; those that were erased are left out."""
        key = model_key(projection.name, projection.generation, tenant)
        rows: dict[bytes, bytes] = await self._call("HGETALL", key)
        if not any(map(looks_sealed, rows.values())):
            return rows
        cipher = await self.cipher(tenant)
        opened = {field: open_bytes(cipher, _sealed_as(projection, field), value) for field, value in rows.items()}
        return {field: value for field, value in opened.items() if value is not None}

    async def erase(self, projection: Projection, tenant: str) -> None:
        """Drop the tenant's read model; its checkpoint stays, so that nothing fills it again."""
        names = [*await self.indexes(projection, tenant), _INDEXES]
        keys = [index_key(projection.name, projection.generation, tenant, name) for name in names]
        await self._call("DEL", model_key(projection.name, projection.generation, tenant), *keys)

    async def indexes(self, projection: Projection, tenant: str) -> list[str]:
        """The names of all indexes that have ever had a member."""
        key = index_key(projection.name, projection.generation, tenant, _INDEXES)
        return sorted(name.decode() for name in await self._call("SMEMBERS", key))

    async def some_fields(self, projection: Projection, tenant: str, fields: Sequence[str]) -> list[bytes | None]:
        """Values of fields that are not personal, in this order."""
        if not fields:
            return []
        found: list[bytes | None] = await self._call(
            "HMGET", model_key(projection.name, projection.generation, tenant), *fields
        )
        return found

    async def drop_row(
        self,
        projection: Projection,
        tenant: str,
        fields: Sequence[str],
        member: str,
        indexes: Sequence[str],
        as_read: tuple[str, bytes],
    ) -> bool:
        """Take a row out of the model, and its member out of indexes, in one step. False: the field of ``as_read`` holds something
        else by now, and nothing was changed.
        """
        keys = [
            model_key(projection.name, projection.generation, tenant),
            *(index_key(projection.name, projection.generation, tenant, name) for name in indexes),
        ]
        return bool(await self._call("EVAL", _DROP_ROW, len(keys), *keys, *as_read, member, *fields))

    async def count(self, projection: Projection, tenant: str, index: str) -> int:
        return int(await self._call("ZCARD", index_key(projection.name, projection.generation, tenant, index)))

    async def ranked(
        self,
        projection: Projection,
        tenant: str,
        index: str,
        limit: int,
        *,
        lowest: int = 0,
        highest: int = SCORE_MAX,
        after: tuple[int, str] | None = None,
    ) -> list[tuple[int, str]]:
        """(score, member) from the highest score down, of members with the same score the last by name first; ``after``
        goes on behind that one.
        """
        key = index_key(projection.name, projection.generation, tenant, index)
        skipped = 0
        if after is not None:
            highest = min(highest, after[0])
            skipped = int(await self._call("ZCOUNT", key, after[0], after[0]))
        rows = await self._call(
            "ZRANGE", key, highest, lowest, "BYSCORE", "REV", "LIMIT", 0, limit + skipped, "WITHSCORES"
        )
        found = [(int(score), member.decode()) for member, score in _pairs(rows)]
        return [row for row in found if after is None or row < after][:limit]

    async def apply(self, projection: Projection, tenant: str, page: Sequence[Decoded], expected: int) -> int:
        """Fold a page of events into the read model. Returns the new checkpoint.

        Raises:
            CheckpointMovedError: The checkpoint is not at ``expected``; nothing was changed.
        """
        adds: dict[str, int] = {}
        puts: dict[str, bytes] = {}
        moves: list[Rank | Unrank] = []
        cipher = await self.cipher(tenant)
        for _, record, event in page:
            for write in projection.apply(tenant, record, event):
                if type(write) is Add:  # first, and by its type alone: most are of this kind
                    field = write.field
                    adds[field] = adds.get(field, 0) + write.amount
                elif not isinstance(write, Put):
                    assert not isinstance(write, Add)
                    moves.append(write)
                elif not write.is_personal:
                    puts[write.field] = write.value
                elif cipher is not WITHOUT_KEY:  # of an erased tenant nothing personal is kept
                    puts[write.field] = seal_bytes(cipher, _sealed_as(projection, write.field.encode()), write.value)
        keys = [
            checkpoint_key(projection.name, projection.generation, slice_of(tenant)),
            model_key(projection.name, projection.generation, tenant),
        ]
        args: list[Any] = [tenant, expected, page[-1][0], len(adds), len(puts)]
        for pair in (*adds.items(), *puts.items()):
            args += pair
        if moves:
            names = sorted(
                {move.index for move in moves} | {move.like for move in moves if isinstance(move, Rank)} - {""}
            )
            numbers = {name: number for number, name in enumerate(names, len(keys) + 1)}
            keys += [index_key(projection.name, projection.generation, tenant, name) for name in (*names, _INDEXES)]
            args += [len(names), len(moves), *names]
            for move in moves:
                args += [numbers[move.index], move.member, *_score(move, numbers)]
        answer: int = await self._call("FCALL", "tenantry_projection_v1_apply", len(keys), *keys, *args, is_bare=True)
        return answer

    async def _call(self, *args: Any, is_bare: bool = False) -> Any:
        """``is_bare``: over the link, which gives a reply as it comes (a map is a list there)."""
        try:
            if self._link is None or not is_bare:
                return await execute(self._client, *args)
            (answer,) = await self._link.call([args])
            if isinstance(answer, Exception):
                raise answer
            return answer
        except (RedisError, OSError) as error:
            if str(error).startswith("CHECKPOINT"):
                raise CheckpointMovedError(f"another runner was here: {error}") from error
            translated = translate(error, "", 0)
            if FUNCTION_MISSING in str(error):
                await self.open()
            raise translated from error


def _score(move: Rank | Unrank, numbers: dict[str, int]) -> tuple[int | str, int]:
    """As the function takes it: the score, and the key of the index that has it (0: none)."""
    if isinstance(move, Unrank):
        return "out", 0
    return move.score, numbers.get(move.like, 0)


def _pairs(rows: Sequence[Any]) -> list[tuple[bytes, float]]:
    """Members with scores, as the protocol in use gives them: in pairs, or one after the other."""
    if rows and isinstance(rows[0], list | tuple):
        return [(member, float(score)) for member, score in rows]
    return [(rows[at], float(rows[at + 1])) for at in range(0, len(rows), 2)]


class Runner:
    """One follower of some slices for some projections."""

    def __init__(
        self, store: EventStore, models: ReadModels, bus: Bus, projections: Sequence[Projection], slices: Sequence[int]
    ) -> None:
        self._store, self._models, self._bus = store, models, bus
        self._projections = projections
        self._slices = slices
        self._checkpoints: dict[tuple[str, str], int] = {}
        self._parked: set[tuple[str, str]] = set()

    @property
    def parked(self) -> list[tuple[str, str]]:
        """(projection, tenant) pairs that stopped at an event they can't apply."""
        return sorted(self._parked)

    async def run(self) -> None:
        """Until cancelled. What is unavailable is waited for."""
        delay_s, loop = _RETRY_FIRST_S, asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            try:
                await self._follow()
            except PlatformError as error:
                log.warning("projection.retried in_s=%s: %s", delay_s, error)
            await asyncio.sleep(delay_s)  # back-off; only asking again tells that the store is back
            went_well = loop.time() - began_s > _HEALTHY_AFTER_S
            delay_s = _RETRY_FIRST_S if went_well else min(delay_s * 2, _RETRY_MAX_S)

    async def _follow(self) -> None:
        """The pointers kept per slice are a bounded hint, so start by comparing every log's end with its checkpoint;
        the cursors are taken before that, so that nothing falls between the two.
        """
        cursors = await self._store.newest_cursors(self._slices)
        for number in self._slices:
            await self._reconcile(number)
        while True:
            found = await self._store.tail(cursors, _BLOCK_MS)
            if found:
                await asyncio.sleep(_GATHER_S)
            for number, pointers in found.items():
                # many appends of a tenant, one page: only the newest position matters
                newest = {pointer.tenant: pointer.last_position for pointer in pointers}
                for tenant, position in newest.items():
                    await self._advance(tenant, position)
                cursors[number] = pointers[-1].cursor
                if len(pointers) >= TAIL_POINTERS_MAX:  # so far behind that pointers may have been dropped unseen
                    await self._reconcile(number)

    async def _reconcile(self, number: int) -> None:
        tenants = await self._store.tenants(number)
        if not tenants:
            return
        for projection in self._projections:
            for tenant, position in (await self._models.checkpoints(projection, number)).items():
                self._checkpoints[projection.name, tenant] = position
        for tenant in tenants:
            head = await self._store.head(tenant)
            if head is not None:
                await self._advance(tenant, head.position)

    async def _advance(self, tenant: str, position: int) -> None:
        """All projections side by side: what they write then shares a write of the server's log to its disk."""
        pages = _Pages(self._page)
        wanted = [one for one in self._projections if (one.name, tenant) not in self._parked]
        outcomes = await asyncio.gather(
            *(self._advance_or_park(projection, tenant, position, pages) for projection in wanted),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    async def _advance_or_park(self, projection: Projection, tenant: str, position: int, pages: "_Pages") -> None:
        try:
            await self._advance_one(projection, tenant, position, pages)
        except TransientError:
            raise
        except Exception:
            # one tenant's poison event stops that tenant's read model, and nobody else's
            log.exception("projection.parked projection=%s tenant=%s", projection.name, tenant)
            self._parked.add((projection.name, tenant))

    async def _page(self, tenant: str, after_position: int) -> list[Decoded]:
        cipher = await self._models.cipher(tenant)
        return decoded(await self._store.read(tenant, after_position, _PAGE_EVENTS), cipher)

    async def _advance_one(self, projection: Projection, tenant: str, position: int, pages: "_Pages") -> None:
        key = (projection.name, tenant)
        at = self._checkpoints.pop(key, None)  # kept again only when it is known for sure
        if at is None:
            at = await self._models.checkpoint(projection, tenant)
        if at > position and (head := await self._store.head(tenant)) and head.position < at:
            raise IntegrityError(f"the log of {tenant!r} ends at {head.position}, its read model has seen {at}")
        while at < position:
            page = await pages.read(tenant, at)
            if not page:
                raise IntegrityError(f"log of {tenant!r} ends at {at}, its slice says {position}")
            failpoint("proj.before_txn")
            try:
                at = await self._models.apply(projection, tenant, page, at)
                failpoint("proj.after_txn")
            except CheckpointMovedError:
                at = await self._models.checkpoint(projection, tenant)
        self._checkpoints[key] = at
        try:
            self._bus.publish(live_subject(tenant, projection.name), str(at).encode())
        except BusUnavailableError as error:  # a hint; who waits for it also looks for itself
            log.warning("projection.hint_lost tenant=%s: %s", tenant, error)


class _Pages:
    """What one projection reads of a tenant's log, the others mostly want, too, at the same time or soon after."""

    def __init__(self, read: Callable[[str, int], Awaitable[list[Decoded]]]) -> None:
        self._read = read
        self._shared: dict[int, asyncio.Future[list[Decoded]]] = {}

    async def read(self, tenant: str, after_position: int) -> list[Decoded]:
        shared = self._shared.get(after_position)
        if shared is None:
            shared = asyncio.ensure_future(self._read(tenant, after_position))
            if len(self._shared) < _PAGES_SHARED:
                self._shared[after_position] = shared
        return await shared
