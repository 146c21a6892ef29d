"""Things tests need many of, each valid unless told otherwise."""

from typing import Any

import msgspec

from events.catalog import DomainEvent
from events.codec import GENESIS, Entry, Record, chain
from events.ids import uuid7
from events.messages import TENANT_STREAM
from events.store import Append, CommandResult
from events.tenant import CallReserved, CallSettled, KeyIssued, TenantCreated

NOW_US = 1_790_000_000_000_000  # 2026-09-21, a Monday
HOUR_US = 3_600_000_000


class Ids:
    """Deterministic ids: the same test gets the same ones every time."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self) -> str:
        self._count += 1
        return uuid7(NOW_US + self._count, self._count.to_bytes(8, "big"))


def created(name: str = "Acme", plan: str = "free") -> TenantCreated:
    return TenantCreated(name, plan, NOW_US)  # type: ignore[arg-type]


def key_issued(key_id: str = "k1", digest: bytes = b"d" * 32) -> KeyIssued:
    return KeyIssued(key_id, "default", digest, NOW_US)


def reserved(call: str = "c1", cost: int = 100, *, expires_us: int = NOW_US + HOUR_US, window: int = 0) -> CallReserved:
    return CallReserved(call, "k1", "small", cost, expires_us, window)


def settled(call: str = "c1", cost: int = 60, **changes: Any) -> CallSettled:
    fields: dict[str, Any] = {"input_tokens": 10, "output_tokens": 5, "outcome": "ok", "usage_source": "measured"}
    return CallSettled(call, "k1", "small", cost_nano_usd=cost, **{**fields, **changes})


def record(event: DomainEvent, version: int = 1, *, command_id: str = "cmd", epoch: int = 1) -> Record:
    return Record(TENANT_STREAM, version, NOW_US, command_id, "test", command_id, "", epoch, in_clear(event))


def in_clear(event: DomainEvent) -> msgspec.Raw:
    """As a release before encryption wrote it: readable without any key."""
    return msgspec.Raw(msgspec.msgpack.encode(event))


def entries(previous: bytes, start: int, count: int, *, epoch: int = 1) -> list[Entry]:
    """``count`` chained entries whose stream versions begin at ``start``."""
    return chain(previous, [record(reserved(f"c{n}"), n, epoch=epoch) for n in range(start, start + count)])


def append_request(
    tenant: str,
    *,
    epoch: int,
    position: int = 0,
    previous: bytes = GENESIS,
    events: int = 1,
    commands: tuple[str, ...] = (),
    body: bytes = b"b" * 32,
    **changes: Any,
) -> Append:
    results = [CommandResult(name, body, b"reply to " + name.encode()) for name in commands]
    written = entries(previous, position + 1, events, epoch=epoch)
    return Append(tenant, epoch, position, previous, written, results, **changes)
