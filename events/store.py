"""The event store's port: one log per tenant, one writer at a time, every write conditional.

A tenant's log has gap-free positions 1, 2, 3... The store alone hands out epochs (``claim``) and refuses an append by
an older one, so two live copies of an actor can't both write (Ray may keep two alive; see the README's Decisions).
"""

from collections.abc import Collection, Sequence
from typing import Literal, Protocol

import msgspec

from events.codec import Entry, StoredEvent
from events.errors import TooLargeError

REPLY_SEAL = "reply"  # what a reply with personal data is sealed as
REPLY_TTL_S = 48 * 3600  # for how long a repeated command gets its first answer
COMMANDS_MAX = 512
EVENTS_MAX = 2_048  # the append function is one step for the whole server: keep it short
RECORD_BYTES_MAX = 256 * 1024
APPEND_BYTES_MAX = 4 * 1024 * 1024
REPLY_BYTES_MAX = 64 * 1024
STREAM_CHARS_MAX = 200
SNAPSHOTS_KEPT = 2
TAIL_POINTERS_MAX = 1_000  # per slice and call

Placement = Literal["pool", "silo"]
TenantStatus = Literal["active", "halted", "erased"]


class Head(msgspec.Struct, frozen=True):
    """Where a log ends, and what the store knows of its tenant without reading it. ``halted_because``: see
    ``EventStore.halt``; not filled in by ``claim``.
    """

    epoch: int
    position: int
    hash: bytes
    status: TenantStatus = "active"
    placement: Placement = "pool"
    halted_because: str = ""


class CommandResult(msgspec.Struct, frozen=True):
    """What a repeat of the command will be answered. ``body_hash`` tells a repeat from a reuse of the id."""

    command_id: str
    body_hash: bytes
    reply: bytes


class Append(msgspec.Struct, frozen=True):
    """One atomic write: the events of some commands, in any number of the tenant's streams, the commands' replies, and
    facts about the tenant derived from the events.

    ``next_timer_us`` is when the tenant wants to be woken (0: never; None: as before).
    """

    tenant: str
    epoch: int
    expected_position: int
    previous_hash: bytes
    entries: Sequence[Entry]
    commands: Sequence[CommandResult]
    placement: Placement = "pool"
    status: TenantStatus = "active"
    next_timer_us: int | None = None


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """State folded up to ``position``: a cache of the log, never the truth. ``schema`` names the state's shape and
    ``hash`` is the chain's at that position; where either is not as expected, the log is replayed instead.
    """

    schema: int
    position: int
    hash: bytes
    state: bytes


class Appended(msgspec.Struct, frozen=True):
    first_position: int
    last_position: int


class Known(msgspec.Struct, frozen=True):
    """Nothing was written: these command ids were answered before, with these replies."""

    replies: dict[str, bytes]


class Pointer(msgspec.Struct, frozen=True):
    """One append as a follower of the slice sees it."""

    cursor: str
    tenant: str
    last_position: int


AppendOutcome = Appended | Known | Exception


class Archived(Protocol):
    """Where trimmed events are read from."""

    async def read(self, tenant: str, after_position: int, limit: int) -> list[StoredEvent]: ...

    def read_on(self, tenant: str, after_position: int, limit: int) -> list[StoredEvent]:
        """What follows a page that ``read`` gave, where that is at hand; empty: ask ``read``."""
        ...

    async def read_stream(self, tenant: str, stream: str, after_version: int, limit: int) -> list[StoredEvent]: ...


class EventStore(Protocol):
    """Every method raises StoreUnavailableError where the store can't be reached; then a write's outcome is unknown
    and repeating it is safe (an append that happened answers Known).
    """

    async def claim(self, tenant: str) -> Head:
        """Start a new epoch. From here on, appends of all older epochs are refused."""
        ...

    async def check(self, tenant: str, epoch: int) -> None:
        """Raises FencedError unless ``epoch`` is the tenant's current one."""
        ...

    async def epochs(self, tenants: Sequence[str]) -> list[int | None]:
        """Each tenant's current epoch, in one round trip; None where it was never claimed."""
        ...

    async def append(self, request: Append) -> Appended | Known:
        """All or nothing. Checks, in this order and all before the first write: size caps, known command ids, epoch,
        status, expected position and previous hash, expected stream versions.

        Raises:
            TooLargeError: Over a cap; nothing was sent.
            CommandIdReusedError: A known command id came with another body.
            FencedError: A newer epoch was claimed.
            TenantClosedError: The log takes no more events.
            WrongExpectedPositionError: The log's end, or that of a stream in it, is elsewhere.
        """
        ...

    async def append_many(self, requests: Sequence[Append]) -> list[AppendOutcome]:
        """Independent appends in one round trip, so that one fsync serves all. Errors are returned, not raised."""
        ...

    async def replies(self, tenant: str, command_ids: Sequence[str]) -> dict[str, CommandResult]:
        """What these commands were answered, for those that wrote events in the last 48 h."""
        ...

    async def head(self, tenant: str) -> Head | None:
        """None: this store has no log of that tenant."""
        ...

    async def read(self, tenant: str, after_position: int, limit: int = 500) -> list[StoredEvent]:
        """Events after a position, in order. Fewer than ``limit`` means the end was reached."""
        ...

    async def read_stream(self, tenant: str, stream: str, after_version: int, limit: int = 500) -> list[StoredEvent]:
        """Events of one stream after a version, in order. Costs what it returns, however long the log is."""
        ...

    async def trim(self, tenant: str, through_position: int) -> None:
        """Drop the store's own copy of old events, which an archive must hold by now. Every read still sees them."""
        ...

    async def load_snapshots(self, tenant: str) -> list[Snapshot]:
        """The snapshots kept, newest first. Whether one fits the log is for the caller to check."""
        ...

    async def save_snapshot(self, tenant: str, snapshot: Snapshot) -> None:
        """Keep it, and the newest one before it."""
        ...

    async def tenants(self, slice_number: int) -> list[str]:
        """Tenants of a slice that have at least one event, sorted."""
        ...

    async def newest_cursors(self, slices: Sequence[int]) -> dict[int, str]:
        """Where ``tail`` would start to see only what is appended from now on."""
        ...

    async def tail(self, cursors: dict[int, str], block_ms: int) -> dict[int, list[Pointer]]:
        """Appends of slices after each slice's cursor ("0": from the oldest kept). Waits up to ``block_ms`` for the
        first. Old pointers are dropped: a follower compares ``tenants`` and ``head`` with its checkpoint when it starts.
        """
        ...

    async def due(self, now_us: int, passed_over: Collection[str] = ()) -> list[str]:
        """Tenants whose timer is at or before ``now_us``, but for those passed over: of each slice at least the 100 that
        are due longest. Costs the same however many timers there are.
        """
        ...

    async def set_timer(self, tenant: str, epoch: int, timer_us: int) -> None:
        """Correct a tenant's timer outside of an append (0: none). No effect for an older epoch: its successor's timer is
        not its to clear.
        """
        ...

    async def halt(self, tenant: str, epoch: int, reason: str) -> None:
        """Close the log until a person has looked: no append and no timer any more. No effect for an older epoch."""
        ...

    async def resume(self, tenant: str) -> None:
        """Open a halted log again; its timer, which the halt dropped, is due at once, and whoever is woken by it corrects
        it. An erased one stays closed.
        """
        ...

    async def erase(self, tenant: str) -> None:
        """Close the log for ever, whoever owns it, and drop replies, snapshots and timer. Its events stay."""
        ...

    async def leftovers(self, tenant: str) -> dict[str, int]:
        """How many replies, snapshots and timers of the tenant are kept."""
        ...


def check_caps(request: Append) -> None:
    """Raises TooLargeError before anything is sent: the server must never be busy for long with one tenant."""
    records = [len(entry.record) for entry in request.entries]
    if records and max(records) > RECORD_BYTES_MAX:
        raise TooLargeError("an event in bytes", max(records), RECORD_BYTES_MAX)
    for stream in {entry.stream for entry in request.entries}:
        if len(stream) > STREAM_CHARS_MAX:
            raise TooLargeError("a stream's name in characters", len(stream), STREAM_CHARS_MAX)
    size = sum(records) + 32 * len(records)
    for command in request.commands:
        if len(command.reply) > REPLY_BYTES_MAX:
            raise TooLargeError("a reply in bytes", len(command.reply), REPLY_BYTES_MAX)
        size += len(command.reply) + 64
    for what, count, limit in (
        ("commands in one append", len(request.commands), COMMANDS_MAX),
        ("events in one append", len(request.entries), EVENTS_MAX),
        ("one append in bytes", size, APPEND_BYTES_MAX),
    ):
        if count > limit:
            raise TooLargeError(what, count, limit)
