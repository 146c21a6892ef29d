"""The event store in one process's memory: for tests of what stands above it. Same contract, same checks, same order."""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Sequence

import msgspec

from events.clock import Clock, SystemClock
from events.codec import GENESIS, StoredEvent
from events.errors import (
    CommandIdReusedError,
    FencedError,
    PlatformError,
    TenantClosedError,
    TenantErasedError,
    WrongExpectedPositionError,
)
from events.slices import slice_of
from events.store import (
    REPLY_TTL_S,
    SNAPSHOTS_KEPT,
    TAIL_POINTERS_MAX,
    Append,
    Appended,
    AppendOutcome,
    Archived,
    CommandResult,
    Head,
    Known,
    Pointer,
    Snapshot,
    check_caps,
)


class MemoryEventStore:
    def __init__(self, clock: Clock | None = None, archive: Archived | None = None) -> None:
        self._clock, self._archive = clock or SystemClock(), archive
        self._trimmed: dict[str, int] = defaultdict(int)
        self._heads: dict[str, Head] = {}
        self._logs: dict[str, list[StoredEvent]] = defaultdict(list)
        self._replies: dict[str, dict[str, tuple[int, CommandResult]]] = defaultdict(dict)
        self._streams: dict[str, dict[str, list[int]]] = defaultdict(dict)
        self._snapshots: dict[str, dict[int, Snapshot]] = defaultdict(dict)
        self._timers: dict[str, int] = {}
        self._pointers: dict[int, list[Pointer]] = defaultdict(list)
        self._appended = asyncio.Condition()

    async def claim(self, tenant: str) -> Head:
        before = self._heads.get(tenant, Head(0, 0, GENESIS))
        self._heads[tenant] = msgspec.structs.replace(before, epoch=before.epoch + 1)
        return self._heads[tenant]

    async def check(self, tenant: str, epoch: int) -> None:
        head = self._heads.get(tenant)
        if head is None or head.epoch != epoch:
            raise FencedError(tenant, epoch, f"epoch is {head and head.epoch}")

    async def epochs(self, tenants: Sequence[str]) -> list[int | None]:
        heads = [self._heads.get(tenant) for tenant in tenants]
        return [None if head is None else head.epoch for head in heads]

    async def append(self, request: Append) -> Appended | Known:
        check_caps(request)
        if known := self._known(request):
            return Known(known)
        head = self._writable_head(request)
        self._index(request, head)
        first, last = head.position + 1, head.position + len(request.entries)
        self._logs[request.tenant] += [
            StoredEvent(first + index, entry.record, entry.hash) for index, entry in enumerate(request.entries)
        ]
        self._heads[request.tenant] = Head(
            head.epoch, last, request.entries[-1].hash, request.status, request.placement
        )
        expires_us = self._clock.now_us() + REPLY_TTL_S * 1_000_000
        for command in request.commands:
            self._replies[request.tenant][command.command_id] = (expires_us, command)
        if request.next_timer_us == 0:
            self._timers.pop(request.tenant, None)
        elif request.next_timer_us is not None:
            self._timers[request.tenant] = request.next_timer_us
        await self._point(request.tenant, last)
        return Appended(first, last)

    def _known(self, request: Append) -> dict[str, bytes]:
        known = {}
        for command in request.commands:
            expires_us, stored = self._replies[request.tenant].get(command.command_id, (0, command))
            if expires_us <= self._clock.now_us():
                continue
            if stored.body_hash != command.body_hash:
                raise CommandIdReusedError(command.command_id)
            known[command.command_id] = stored.reply
        return known

    def _writable_head(self, request: Append) -> Head:
        head = self._heads.get(request.tenant)
        if head is None or head.epoch != request.epoch:
            raise FencedError(request.tenant, request.epoch, f"epoch is {head and head.epoch}")
        if head.status != "active":
            if head.status == "erased":
                raise TenantErasedError(f"tenant {request.tenant!r} is erased")
            raise TenantClosedError(f"tenant {request.tenant!r} is {head.status}")
        if head.position != request.expected_position:
            raise WrongExpectedPositionError(
                request.tenant, f"is at {head.position}, expected {request.expected_position}"
            )
        if head.hash != request.previous_hash:
            raise WrongExpectedPositionError(request.tenant, f"another event is at {head.position}")
        return head

    def _index(self, request: Append, head: Head) -> None:
        streams = self._streams[request.tenant]
        added: dict[str, list[int]] = {}
        for position, entry in enumerate(request.entries, head.position + 1):
            positions = added.setdefault(entry.stream, [])
            version = len(streams.get(entry.stream, ())) + len(positions)
            if entry.version != version + 1:
                detail = f"stream {entry.stream} is at {version}, expected {entry.version - 1}"
                raise WrongExpectedPositionError(request.tenant, detail)
            positions.append(position)
        for stream, positions in added.items():
            streams.setdefault(stream, []).extend(positions)

    async def _point(self, tenant: str, last_position: int) -> None:
        pointers = self._pointers[slice_of(tenant)]
        pointers.append(Pointer(str(len(pointers) + 1), tenant, last_position))
        async with self._appended:
            self._appended.notify_all()

    async def append_many(self, requests: Sequence[Append]) -> list[AppendOutcome]:
        outcomes: list[AppendOutcome] = []
        for request in requests:
            try:
                outcomes.append(await self.append(request))
            except PlatformError as error:
                outcomes.append(error)
        return outcomes

    async def replies(self, tenant: str, command_ids: Sequence[str]) -> dict[str, CommandResult]:
        kept = self._replies[tenant]
        now_us = self._clock.now_us()
        return {key: kept[key][1] for key in command_ids if key in kept and kept[key][0] > now_us}

    async def head(self, tenant: str) -> Head | None:
        head = self._heads.get(tenant)
        return head if head and head.position else None

    async def read(self, tenant: str, after_position: int, limit: int = 500) -> list[StoredEvent]:
        if after_position < self._trimmed[tenant]:
            assert self._archive is not None
            older = await self._archive.read(tenant, after_position, limit)
            return older + await self.read(tenant, older[-1].position, limit - len(older)) if older else []
        start = after_position - self._trimmed[tenant]
        return self._logs[tenant][start : start + limit]

    async def read_stream(self, tenant: str, stream: str, after_version: int, limit: int = 500) -> list[StoredEvent]:
        positions = self._streams[tenant].get(stream, [])[after_version : after_version + limit]
        return [event for position in positions for event in await self.read(tenant, position - 1, 1)]

    async def trim(self, tenant: str, through_position: int) -> None:
        count = through_position - self._trimmed[tenant]
        if count > len(self._logs[tenant]):
            raise WrongExpectedPositionError(tenant, f"trimmed through {through_position}")
        if count > 0:
            self._logs[tenant] = self._logs[tenant][count:]
            self._trimmed[tenant] = through_position

    async def load_snapshots(self, tenant: str) -> list[Snapshot]:
        return [kept for _, kept in sorted(self._snapshots[tenant].items(), reverse=True)]

    async def save_snapshot(self, tenant: str, snapshot: Snapshot) -> None:
        kept = {**self._snapshots[tenant], snapshot.position: snapshot}
        self._snapshots[tenant] = dict(sorted(kept.items())[-SNAPSHOTS_KEPT:])

    async def tenants(self, slice_number: int) -> list[str]:
        return sorted(
            name for name, log in self._logs.items() if (log or self._trimmed[name]) and slice_of(name) == slice_number
        )

    async def newest_cursors(self, slices: Sequence[int]) -> dict[int, str]:
        return {number: str(len(self._pointers[number])) for number in slices}

    async def tail(self, cursors: dict[int, str], block_ms: int) -> dict[int, list[Pointer]]:
        def found() -> dict[int, list[Pointer]]:
            new = {
                number: self._pointers[number][int(cursor) :][:TAIL_POINTERS_MAX] for number, cursor in cursors.items()
            }
            return {number: pointers for number, pointers in new.items() if pointers}

        async with self._appended:
            try:
                return await asyncio.wait_for(self._appended.wait_for(found), block_ms / 1000)
            except TimeoutError:
                return {}

    async def due(self, now_us: int, passed_over: Collection[str] = ()) -> list[str]:
        return [tenant for tenant, due_us in self._timers.items() if due_us <= now_us and tenant not in passed_over]

    async def set_timer(self, tenant: str, epoch: int, timer_us: int) -> None:
        head = self._heads.get(tenant)
        if (head.epoch if head else 0) != epoch:
            return
        if timer_us:
            self._timers[tenant] = timer_us
        else:
            self._timers.pop(tenant, None)

    async def halt(self, tenant: str, epoch: int, reason: str) -> None:
        head = self._heads.get(tenant)
        if head is not None and head.epoch == epoch:
            self._heads[tenant] = msgspec.structs.replace(head, status="halted", halted_because=reason)
            self._timers.pop(tenant, None)

    async def resume(self, tenant: str) -> None:
        if self._heads[tenant].status != "erased":
            self._heads[tenant] = msgspec.structs.replace(self._heads[tenant], status="active", halted_because="")
            self._timers[tenant] = 1

    async def erase(self, tenant: str) -> None:
        self._heads[tenant] = msgspec.structs.replace(self._heads[tenant], status="erased")
        for kept in (self._replies, self._snapshots, self._timers):
            kept.pop(tenant, None)

    async def leftovers(self, tenant: str) -> dict[str, int]:
        return {
            "replies": len(self._replies[tenant]),
            "snapshots": len(self._snapshots[tenant]),
            "timers": int(tenant in self._timers),
        }
