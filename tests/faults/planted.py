"""Known bugs, put back in on purpose. A checker that does not find them proves nothing by finding nothing.

Each is a wrapper around a port, for test processes only; production code has no switch that turns a promise off.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from actors import turn
from actors.aggregate import State, act, decide, fold
from events.catalog import DomainCommand, DomainEvent
from events.failpoints import failpoint
from events.keys import Keys
from events.slices import slice_of
from events.store import Append, Appended, AppendOutcome, CommandResult, EventStore
from events.tenant import ReserveCall
from events.valkey_client import Client
from events.valkey_store import ValkeyEventStore
from projections.model import Projection, checkpoint_key
from projections.runner import Decoded, ReadModels

_STALE_S = 0.3


class Wrapped:
    """An event store that is another one but for what a subclass says."""

    def __init__(self, store: ValkeyEventStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class AckBeforeAppend(Wrapped):
    """Answers while the append is still on its way to the disk, as a write-behind cache does."""

    def __init__(self, store: ValkeyEventStore) -> None:
        super().__init__(store)
        self._last: asyncio.Task[Any] | None = None

    async def append_many(self, requests: Sequence[Append]) -> list[AppendOutcome]:
        before = self._last

        async def write() -> None:
            await asyncio.sleep(0.02)  # the disk
            if before is not None:
                await asyncio.wait([before])
            await self._store.append_many(requests)

        self._last = asyncio.create_task(write())
        return [
            Appended(request.expected_position + 1, request.expected_position + len(request.entries))
            for request in requests
        ]


class _WhatYouLike(int):
    """An epoch that is everybody's own."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


class NoDedupe(Wrapped):
    """Forgets which commands it has seen."""

    async def append_many(self, requests: Sequence[Append]) -> list[AppendOutcome]:
        return await self._store.append_many([msgspec.structs.replace(request, commands=[]) for request in requests])

    async def replies(self, tenant: str, command_ids: Sequence[str]) -> dict[str, CommandResult]:
        return {}


class NoEpochCheck(Wrapped):
    """Takes an append of whatever epoch, and tells every activation that it is the owner."""

    async def append_many(self, requests: Sequence[Append]) -> list[AppendOutcome]:
        return await self._store.append_many([await self._with_current_epoch(request) for request in requests])

    async def _with_current_epoch(self, request: Append) -> Append:
        head = await self._store.head(request.tenant)
        return request if head is None else msgspec.structs.replace(request, epoch=head.epoch)

    async def check(self, tenant: str, epoch: int) -> None:
        return

    async def epochs(self, tenants: Sequence[str]) -> list[int | None]:
        return [_WhatYouLike() for _ in tenants]


class NoOwnershipCheck(Wrapped):
    """Fences appends, and lets every activation answer reads from memory."""

    async def check(self, tenant: str, epoch: int) -> None:
        return

    async def epochs(self, tenants: Sequence[str]) -> list[int | None]:
        return [_WhatYouLike() for _ in tenants]


class CheckpointApart(ReadModels):
    """Writes the checkpoint after the read model, in a step of its own."""

    async def apply(self, projection: Projection, tenant: str, page: Sequence[Decoded], expected: int) -> int:
        at = await super().apply(projection, tenant, page, expected)
        key = checkpoint_key(projection.name, projection.generation, slice_of(tenant))
        await self._call("HSET", key, tenant, expected)
        failpoint("proj.after_txn")  # between the two steps
        await self._call("HSET", key, tenant, at)
        return at


class CheckThenIncrement:
    """Checks a budget against a balance that was read a moment ago."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, State]] = {}

    def act(self, state: State, tenant: str, command: DomainCommand, now_us: int) -> tuple[list[DomainEvent], State]:
        if not isinstance(command, ReserveCall):
            return act(state, tenant, command, now_us)
        read_at, balance = self._seen.get(tenant, (0.0, state))
        if time.monotonic() - read_at > _STALE_S:
            self._seen[tenant] = (time.monotonic(), state)
            balance = state
        events = decide(balance, tenant, command, now_us)
        return events, fold(state, events)


STORES: dict[str, type[Wrapped]] = {
    "ack-before-append": AckBeforeAppend,
    "no-dedupe": NoDedupe,
    "no-epoch-check": NoEpochCheck,
    "no-ownership-check": NoOwnershipCheck,
}
BUGS = [*STORES, "check-then-increment", "checkpoint-apart"]


def store(bug: str, healthy: ValkeyEventStore) -> EventStore:
    """The store with the bug in it; the healthy one where the bug is elsewhere, or none."""
    assert not bug or bug in BUGS, f"unknown bug {bug!r}, there are: {', '.join(BUGS)}"
    if bug == "check-then-increment":
        turn.act = CheckThenIncrement().act  # type: ignore[attr-defined,assignment]
    return cast("EventStore", STORES[bug](healthy)) if bug in STORES else healthy


def read_models(bug: str, client: Client, keys: Keys) -> ReadModels:
    return CheckpointApart(client, keys) if bug == "checkpoint-apart" else ReadModels(client, keys)
