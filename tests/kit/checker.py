"""Reads a history and the final logs in it, and says which promise was broken, with the lines that show it.

    uv run python -m tests.kit.checker HISTORY.jsonl

I1 exactly once: an ``ok`` command is in the log once, in one piece, where its answer says; a ``fail`` is not; an
   ``info`` is there once or not at all.
I2 contiguity: positions 1..n and each stream's versions 1..n, without a gap.
I3 single writer: epochs never decrease along the log, each was given out once, and none that nobody was given is in it.
I4 integrity: the hash chain holds, ends at what the store remembers, and every event decodes.
I5 real-time order: what was answered before another command was sent is before it in the log.
I6 durability: no log ever got shorter, and whatever was seen in it is still there with the same hash.
I7 projections: a read model at its checkpoint is what its log folds to, and reaches the log's end.
I8 reads: an answer at position v is the log folded up to v, and v is not older than what the client's tenant was
   answered before the read was sent.
I11 money: what is reserved and spent never exceeds the budget, at any prefix of the log; a call is booked at most once,
   before its client has the whole answer, and at the latest when its reservation expires.
I18 dedupe: the same id and body get the same answer; the same id with another body gets none.

The order of a tenant's log is known, so all of it is linear in the history (no search as in general linearizability).
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from events.codec import GENESIS, Record, decode_event, decode_record, next_hash
from events.errors import PlatformError
from events.sealing import WITHOUT_KEY
from tests.kit.history import (
    Answered,
    Claimed,
    Ended,
    Final,
    Folded,
    Invoked,
    Line,
    Logged,
    Projected,
    Quiet,
    Seen,
    read_history,
    shown,
)

_EXCERPT_MAX = 8
_VIOLATIONS_EACH = 2  # of one rule and tenant: the first shows what the others repeat
CLIENT = "client-"  # who asks in a history; the platform itself asks, too, with timers for instance
Kept = TypeVar("Kept", bound=Line)


class Violation(msgspec.Struct, frozen=True):
    invariant: str
    tenant: str
    message: str
    excerpt: Sequence[str]

    def __str__(self) -> str:
        return "\n".join([f"{self.invariant} {self.tenant}: {self.message}", *(f"    {line}" for line in self.excerpt)])


class Operation(msgspec.Struct, frozen=True):
    """``ended`` is None where the history ends before the operation does: then nobody knows, as with ``info``."""

    invoked: Invoked
    ended: Ended | None

    @property
    def kind(self) -> str:
        return self.ended.kind if self.ended else "info"

    @property
    def lines(self) -> list[Line]:
        return [self.invoked] if self.ended is None else [self.invoked, self.ended]


class Written(msgspec.Struct, frozen=True):
    line: Logged
    record: Record


class TenantHistory:
    """All lines of one tenant, indexed."""

    def __init__(self, tenant: str, lines: Sequence[Line], operations: Sequence[Operation]) -> None:
        self.tenant = tenant
        self.operations = operations
        self.by_id: dict[str, list[Operation]] = defaultdict(list)
        for operation in operations:
            if operation.invoked.writes:
                self.by_id[operation.invoked.command_id].append(operation)
        self.log = [line for line in lines if isinstance(line, Logged)]
        self.written = [Written(line, record) for line in self.log if (record := _record(line))]
        self.of_command: dict[str, list[Written]] = defaultdict(list)
        for written in self.written:
            self.of_command[written.record.command_id].append(written)
        self.lines = lines

    def of(self, kind: type[Kept]) -> list[Kept]:
        return [line for line in self.lines if isinstance(line, kind)]

    def violation(self, invariant: str, message: str, lines: Sequence[Line]) -> Violation:
        return Violation(invariant, self.tenant, message, [shown(line) for line in lines[:_EXCERPT_MAX]])


def check(history: Sequence[Line]) -> list[Violation]:
    """All broken promises; none is what a test hopes for."""
    found: list[Violation] = []
    for tenant in _tenants(history):
        for rule in RULES:
            found += islice(rule(tenant), _VIOLATIONS_EACH)
    return found


def _tenants(history: Sequence[Line]) -> list[TenantHistory]:
    ends = {line.operation: line for line in history if isinstance(line, Ended)}
    lines: dict[str, list[Line]] = defaultdict(list)
    for line in history:
        if tenant := getattr(line, "tenant", ""):
            lines[tenant].append(line)
    return [
        TenantHistory(
            tenant,
            own,
            [Operation(line, ends.get(line.operation)) for line in own if isinstance(line, Invoked)],
        )
        for tenant, own in lines.items()
    ]


def _record(line: Logged) -> Record | None:
    try:
        return decode_record(line.record)
    except PlatformError:
        return None  # I4's to report


def exactly_once(tenant: TenantHistory) -> Iterator[Violation]:
    for command_id, operations in tenant.by_id.items():
        written = tenant.of_command.get(command_id, [])
        kinds = {operation.kind for operation in operations}
        lines = [line for operation in operations for line in operation.lines] + [one.line for one in written]
        positions = [one.line.position for one in written]
        if positions and positions != list(range(positions[0], positions[0] + len(positions))):
            yield tenant.violation("I1", f"command {command_id} is in the log in pieces, at {positions}", lines)
        if "ok" in kinds and not written:
            yield tenant.violation("I1", f"command {command_id} was answered ok and is not in the log", lines)
        if kinds == {"fail"} and written:
            yield tenant.violation("I1", f"command {command_id} was answered fail and is in the log", lines)
        for operation in operations:
            ended = operation.ended
            if ended and ended.kind == "ok" and positions and ended.position != positions[-1]:
                message = (
                    f"command {command_id} was answered position {ended.position}, its events end at {positions[-1]}"
                )
                yield tenant.violation("I1", message, lines)
        if len({one.record.epoch for one in written}) > 1 or _is_repeated(written):
            yield tenant.violation("I1", f"command {command_id} was carried out more than once", lines)
    ours = tenant.by_id.keys()
    strange = [
        one.line for one in tenant.written if one.record.actor.startswith(CLIENT) and one.record.command_id not in ours
    ]
    if strange and ours:
        yield tenant.violation("I1", "the log holds events of commands that nobody sent", strange)


def _is_repeated(written: Sequence[Written]) -> bool:
    """One command never writes the same event twice."""
    return len({bytes(one.record.data) for one in written}) != len(written)


def contiguity(tenant: TenantHistory) -> Iterator[Violation]:
    versions: dict[str, int] = defaultdict(int)
    for expected, line in enumerate(tenant.log, 1):
        if line.position != expected:
            yield tenant.violation("I2", f"position {expected} is missing, the next is {line.position}", [line])
            return
    for one in tenant.written:
        versions[one.record.stream] += 1
        if one.record.version != versions[one.record.stream]:
            message = (
                f"version {one.record.version} of stream {one.record.stream!r}, expected {versions[one.record.stream]}"
            )
            yield tenant.violation("I2", message, [one.line])
            return


def single_writer(tenant: TenantHistory) -> Iterator[Violation]:
    claims = tenant.of(Claimed)
    given: dict[int, Claimed] = {}
    for claim in claims:
        if claim.epoch in given:
            yield tenant.violation("I3", f"epoch {claim.epoch} was given out twice", [given[claim.epoch], claim])
        given[claim.epoch] = claim
    for before, after in zip(tenant.written, tenant.written[1:], strict=False):
        if after.record.epoch < before.record.epoch:
            message = f"epoch {after.record.epoch} wrote at {after.line.position} after epoch {before.record.epoch}"
            claimed = [given[epoch] for epoch in (after.record.epoch, before.record.epoch) if epoch in given]
            yield tenant.violation("I3", message, [*claimed, before.line, after.line])
            return
    if given:
        strange = [one.line for one in tenant.written if one.record.epoch not in given]
        if strange:
            yield tenant.violation("I3", "the log holds an epoch that nobody was given", strange)


def integrity(tenant: TenantHistory) -> Iterator[Violation]:
    previous = GENESIS
    for line in tenant.log:
        previous = next_hash(previous, line.record)
        if line.hash != previous:
            yield tenant.violation("I4", f"the hash at {line.position} does not follow from what is before it", [line])
            return
        try:
            decode_event(decode_record(line.record).data, WITHOUT_KEY)
        except PlatformError as error:
            yield tenant.violation("I4", f"the event at {line.position} does not decode: {error}", [line])
            return
    for final in tenant.of(Final):
        if (final.position, final.hash) != (len(tenant.log), previous):
            message = f"the store says that the log ends at {final.position}, it ends at {len(tenant.log)}"
            yield tenant.violation("I4", message, [final, *tenant.log[-1:]])
        if final.status != "active":
            yield tenant.violation("I4", f"the tenant was {final.status}", [final])


def real_time_order(tenant: TenantHistory) -> Iterator[Violation]:
    """Each command counts from the first time it was sent to the first time it was answered."""
    starts: list[tuple[int, str]] = []
    ends: list[tuple[int, str]] = []
    for command_id, operations in tenant.by_id.items():
        if tenant.of_command.get(command_id):
            starts.append((min(one.invoked.at_ns for one in operations), command_id))
            done = [one.ended.at_ns for one in operations if one.ended and one.kind == "ok"]
            ends += [(min(done), command_id)] if done else []
    ends.sort()
    newest, newest_id, at = 0, "", 0
    for began_ns, command_id in sorted(starts):
        while at < len(ends) and ends[at][0] < began_ns:
            position = tenant.of_command[ends[at][1]][-1].line.position
            if position > newest:
                newest, newest_id = position, ends[at][1]
            at += 1
        own = tenant.of_command[command_id][0].line.position
        if own < newest:
            message = f"command {command_id} is at {own}, before {newest_id} at {newest}, which was answered before it was sent"
            lines = [line for key in (newest_id, command_id) for one in tenant.by_id[key] for line in one.lines]
            yield tenant.violation("I5", message, lines)
            return


def durability(tenant: TenantHistory) -> Iterator[Violation]:
    by_position = {line.position: line for line in tenant.log}
    newest: Seen | None = None
    for seen in sorted(tenant.of(Seen), key=lambda line: line.at_ns):
        if newest is not None and seen.position < newest.position:
            yield tenant.violation(
                "I6", f"the log got shorter: {newest.position}, then {seen.position}", [newest, seen]
            )
            return
        newest = seen
        line = by_position.get(seen.position)
        if line is None or line.hash != seen.hash:
            what = "gone" if line is None else "another one"
            yield tenant.violation(
                "I6", f"the event seen at {seen.position} is {what}", [seen, *([line] if line else [])]
            )
            return


def projections(tenant: TenantHistory) -> Iterator[Violation]:
    for line in tenant.of(Projected):
        if line.found != line.expected:
            yield tenant.violation("I7", f"the read model is not what its log up to {line.checkpoint} folds to", [line])
        if line.checkpoint != len(tenant.log):
            message = f"the checkpoint is {line.checkpoint}, the log ends at {len(tenant.log)}"
            yield tenant.violation("I7", message, [line])


def reads(tenant: TenantHistory) -> Iterator[Violation]:
    folds = {line.position: line.result for line in tenant.of(Folded)}
    acked = sorted((one.ended.at_ns, one.ended.position) for one in tenant.operations if one.ended and one.kind == "ok")
    queries = [one for one in tenant.operations if not one.invoked.writes and one.ended and one.kind == "ok"]
    newest, at = 0, 0
    for one in sorted(queries, key=lambda query: query.invoked.at_ns):
        assert one.ended is not None
        while at < len(acked) and acked[at][0] < one.invoked.at_ns:
            newest = max(newest, acked[at][1])
            at += 1
        if one.ended.position < newest:
            message = f"a read answered from {one.ended.position}, {newest} had been answered before it was sent"
            yield tenant.violation("I8", message, one.lines)
            return
        if one.ended.position > len(tenant.log):
            message = f"a read answered from {one.ended.position}, the log ends at {len(tenant.log)}"
            yield tenant.violation("I8", message, one.lines)
            return
        if one.ended.position in folds and folds[one.ended.position] != one.ended.result:
            lines = [*one.lines, Folded(tenant.tenant, one.ended.position, folds[one.ended.position])]
            yield tenant.violation("I8", f"a read at {one.ended.position} is not what the log folds to", lines)
            return


def money(tenant: TenantHistory) -> Iterator[Violation]:
    limit: int | None = None
    spent, held = 0, {}
    for one in tenant.written:
        event: dict[str, Any] = msgspec.msgpack.decode(one.record.data)
        match event["type"].split(".v")[0]:
            case "budget.set":
                limit = event["limit_nano_usd"]
            case "call.reserved":
                held[event["reservation_id"]] = event["cost_max_nano_usd"]
            case "call.settled" | "call.reservation_expired":
                held.pop(event["reservation_id"], None)
                spent += event["cost_nano_usd"]
        if limit is not None and spent + sum(held.values()) > limit:
            message = f"{spent} spent and {sum(held.values())} reserved of a budget of {limit} at {one.line.position}"
            yield tenant.violation("I11", message, [one.line])
            return


def bookings(tenant: TenantHistory) -> Iterator[Violation]:
    """A call that expired and is credited later has been booked once, by its expiry."""
    held: dict[str, Logged] = {}
    booked: set[str] = set()
    for one in tenant.written:
        event: dict[str, Any] = msgspec.msgpack.decode(one.record.data)
        match event["type"].split(".v")[0]:
            case "call.reserved":
                held[event["reservation_id"]] = one.line
            case "call.settled" | "call.reservation_expired":
                call = event["reservation_id"]
                if held.pop(call, None) is None:
                    yield tenant.violation("I11", f"call {call} is booked, and holds no reservation", [one.line])
                    return
                booked.add(call)
    for line in tenant.of(Answered):
        if line.call not in booked:
            yield tenant.violation("I11", f"call {line.call} was answered and is not booked", [line])
    if held and (quiet := tenant.of(Quiet)):
        yield tenant.violation("I11", f"{len(held)} calls are open that nobody will settle", [*quiet, *held.values()])


def dedupe(tenant: TenantHistory) -> Iterator[Violation]:
    for command_id, operations in tenant.by_id.items():
        done = [one for one in operations if one.ended and one.kind == "ok"]
        lines = [line for one in done for line in one.lines]
        if len({one.invoked.body for one in done}) > 1:
            yield tenant.violation("I18", f"two bodies under the id {command_id} were both granted", lines)
        elif len({msgspec.json.encode((one.ended.position, one.ended.result)) for one in done if one.ended}) > 1:
            yield tenant.violation("I18", f"command {command_id} got different answers", lines)


RULES = (
    exactly_once,
    contiguity,
    single_writer,
    integrity,
    real_time_order,
    durability,
    projections,
    reads,
    money,
    bookings,
    dedupe,
)


def main() -> int:
    (path,) = sys.argv[1:]
    violations = check(read_history(Path(path)))
    for violation in violations:
        print(violation)
    print(f"{len(violations)} promises broken in {path}" if violations else f"ok: {path}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
