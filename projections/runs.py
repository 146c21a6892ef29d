"""Runs: a row for each that a tenant has started, and indexes to list them by. Child runs are drawn within their run, so
they have no rows.

Rows are fields of one hash, ``<kind>|<run id>``, because each event knows only a part of a row:

| kind | holds |
|---|---|
| ``b`` | how it began (``Began``) |
| ``s`` | where it stands: status, end |
| ``c`` | the code of what went wrong |
| ``x`` | whether it is blocked |
| ``n``, ``i``, ``o`` | nano-USD, tokens in, tokens out |

Indexes are ordered by the run's start: ``all``, ``saga:<name>``, ``status:<status>``, ``stuck`` (of compensations that a
person has to look at; members are ``<run id>#<step>``).
"""

from collections.abc import Mapping, Sequence

import msgspec

from events.catalog import DomainEvent
from events.codec import Record
from events.run import (
    ENDS,
    CompensationStuck,
    RunBlocked,
    RunEnded,
    RunEvent,
    RunFailing,
    RunReopened,
    RunStarted,
    RunStatus,
    RunUnblocked,
    StepFailed,
    StepSucceeded,
    Used,
)
from projections.model import Add, Put, Rank, Unrank, Write

ALL, STUCK, BLOCKED = "all", "stuck", "status:blocked"
ROW_KINDS = "bscxnio"
# the others are ends, but for "blocked", which stands beside what the run would be otherwise
_OPEN: tuple[RunStatus, ...] = ("running", "compensating")


class Began(msgspec.Struct, frozen=True, array_like=True):
    saga: str
    version: int
    started_us: int
    priority: int = 0
    forked_from: str = ""
    tags: dict[str, str] = {}


class _Reopened(msgspec.Struct, frozen=True):
    """What a row takes from the run that ``RunReopened`` brings along."""

    saga: str
    version: int
    started_us: int
    priority: int = 0
    forked_from: str = ""
    tags: dict[str, str] = {}


class Standing(msgspec.Struct, frozen=True, array_like=True):
    status: RunStatus
    ended_us: int = 0


class RunRow(msgspec.Struct, frozen=True):
    """``error_code``: of what went wrong. ``stuck``: steps that could not be undone, ``run#step``."""

    id: str
    saga: str
    version: int
    status: RunStatus
    started_us: int
    ended_us: int
    priority: int
    forked_from: str
    tags: dict[str, str]
    error_code: str
    cost_nano_usd: int
    input_tokens: int
    output_tokens: int
    stuck: list[str] = []


class RunsProjection:
    name = "runs"
    generation = 1

    def apply(self, tenant: str, record: Record, event: DomainEvent) -> list[Write]:
        if not isinstance(event, RunEvent):
            return []
        alarms = _alarms(event, record.time_us)
        return alarms if "/" in event.run_id else [*alarms, *_row(event)]


def status_index(status: str) -> str:
    return f"status:{status}"


def standing_field(run_id: str) -> str:
    return f"s|{run_id}"


def saga_index(saga: str) -> str:
    return f"saga:{saga}"


def root_of(member: str) -> str:
    """The run that a member of ``STUCK`` belongs to."""
    return member.partition("#")[0].partition("/")[0]


def _alarms(event: RunEvent, time_us: int) -> list[Write]:
    match event:
        case CompensationStuck(run_id, step):
            return [Rank(STUCK, f"{run_id}#{step}", time_us)]
        case RunReopened(run_id, steps):
            return [Unrank(STUCK, f"{run_id}#{step}") for step in steps]
        case _:
            return []


def _row(event: RunEvent) -> list[Write]:
    run_id = event.run_id
    match event:
        case RunStarted():
            return _begun(event)
        case StepSucceeded(used=used) | StepFailed(used=used):
            return _used(run_id, used)
        case RunFailing(code=code):
            return [Put(f"c|{run_id}", code.encode()), *_standing(run_id, Standing("compensating"))]
        case RunReopened(is_forward=True):
            return [*_listed_again(event), Put(f"c|{run_id}", b""), *_standing(run_id, Standing("running"))]
        case RunReopened():
            return [*_listed_again(event), *_standing(run_id, Standing("compensating"))]
        case RunBlocked():
            return [Put(f"x|{run_id}", b"1"), Rank(BLOCKED, run_id, like=ALL)]
        case RunUnblocked():
            return [Put(f"x|{run_id}", b""), Unrank(BLOCKED, run_id)]
        case RunEnded(status=status, ended_us=ended_us, code=code):
            told: list[Write] = [Put(f"c|{run_id}", code.encode())] if code else []
            return [*told, Unrank(BLOCKED, run_id), *_standing(run_id, Standing(status, ended_us))]
        case _:
            return []


def _begun(event: RunStarted) -> list[Write]:
    began = Began(event.saga, event.version, event.started_us, event.priority, event.forked_from, dict(event.tags))
    return [*_listed(event.run_id, began), *_standing(event.run_id, Standing("running"))]


def _listed(run_id: str, began: Began) -> list[Write]:
    return [
        Put(f"b|{run_id}", msgspec.msgpack.encode(began)),
        Rank(ALL, run_id, began.started_us),
        Rank(saga_index(began.saga), run_id, began.started_us),
    ]


def _listed_again(event: RunReopened) -> list[Write]:
    """Its row may have been dropped since it ended (``projections.retention``); what it had cost by then is not in the new one."""
    if not event.run:  # of an erased tenant
        return []
    was = msgspec.msgpack.decode(event.run, type=_Reopened)
    began = Began(was.saga, was.version, was.started_us, was.priority, was.forked_from, was.tags)
    return _listed(event.run_id, began)


def _standing(run_id: str, standing: Standing) -> list[Write]:
    """It leaves the indexes that it may be in. An end can only be followed by a ``RunReopened``, so those are looked at
    then, and not with every end.
    """
    left = ENDS if standing.status in _OPEN and standing.ended_us == 0 else ()
    return [
        Put(standing_field(run_id), msgspec.msgpack.encode(standing)),
        *(Unrank(status_index(status), run_id) for status in (*_OPEN, *sorted(left)) if status != standing.status),
        Rank(status_index(standing.status), run_id, like=ALL),
    ]


def _used(run_id: str, used: Used) -> list[Write]:
    amounts = {"n": used.cost_nano_usd, "i": used.input_tokens, "o": used.output_tokens}
    return [Add(f"{kind}|{run_id}", amount) for kind, amount in amounts.items() if amount]


def row_fields(run_id: str) -> list[str]:
    """What ``read_row`` takes, in that order."""
    return [f"{kind}|{run_id}" for kind in ROW_KINDS]


def read_row(run_id: str, values: Sequence[bytes | None]) -> RunRow | None:
    """Fields of a run as a row; None where the read model holds no such run."""
    found: Mapping[str, bytes | None] = dict(zip(ROW_KINDS, values, strict=True))
    if not found["b"] or not found["s"]:
        return None
    began = msgspec.msgpack.decode(found["b"], type=Began)
    standing = msgspec.msgpack.decode(found["s"], type=Standing)
    is_blocked = bool(found["x"]) and standing.status not in ENDS
    return RunRow(
        run_id,
        began.saga,
        began.version,
        "blocked" if is_blocked else standing.status,
        began.started_us,
        standing.ended_us,
        began.priority,
        began.forked_from,
        began.tags,
        (found["c"] or b"").decode(),
        int(found["n"] or 0),
        int(found["i"] or 0),
        int(found["o"] or 0),
    )
