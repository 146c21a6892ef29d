"""Each promise, broken by hand in an otherwise good history: the checker names it, and shows the lines."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from events.codec import GENESIS, Record, chain
from events.tenant import BudgetSet, CallReserved, CallSettled, ReservationExpired, TenantCreated, TenantEvent
from tests.kit.checker import check
from tests.kit.factories import in_clear
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
    write_history,
)

T = "acme"
Break = Callable[[list[Line]], list[Line]]


def record(version: int, command_id: str, event: TenantEvent, epoch: int) -> Record:
    return Record("tenant", version, 1, command_id, "client-0", command_id, "", epoch, in_clear(event))


def log_of(records: Sequence[Record]) -> list[Line]:
    written = chain(GENESIS, records)
    lines: list[Line] = [Logged(T, at, entry.record, entry.hash) for at, entry in enumerate(written, 1)]
    return [*lines, Final(T, len(written), written[-1].hash, "active")]


def events() -> list[tuple[str, TenantEvent, int]]:
    return [
        ("a", TenantCreated("Acme", "free", 1), 1),
        ("b", BudgetSet(15, "total"), 1),
        ("c", CallReserved("r1", "k1", "small", 10, 9, 0), 2),
        ("d", CallSettled("r1", "k1", "small", 1, 1, 3, "ok", "measured"), 2),
        ("e", CallReserved("r2", "k1", "small", 10, 9, 0), 2),
    ]


def log(rows: Sequence[tuple[str, TenantEvent, int]]) -> list[Line]:
    return log_of([record(at, name, event, epoch) for at, (name, event, epoch) in enumerate(rows, 1)])


def operation(number: int, name: str, kind: str, position: int = 0, *, body: str = "", at_ns: int = 0) -> list[Line]:
    began_ns = at_ns or number * 10
    return [
        Invoked(began_ns, number, "client-0", T, "ReserveCall", name, body or name),
        Ended(began_ns + 5, number, kind, position, {"id": name} if kind == "ok" else None),  # type: ignore[arg-type]
    ]


def clients() -> list[Line]:
    lines: list[Line] = [Claimed(1, 7, T, 1), Claimed(25, 8, T, 2)]
    for number, name in enumerate("abcde", 1):
        lines += operation(number, name, "ok", number)
    lines += [Invoked(100, 9, "client-0", T, "DescribeTenant", "q", "", writes=False), Ended(105, 9, "ok", 5, {"v": 5})]
    return [*lines, Folded(T, 5, {"v": 5}), Projected(T, 5, {"calls": 2}, {"calls": 2})]


def good() -> list[Line]:
    return [*clients(), *log(events())]


def with_log(rows: Sequence[tuple[str, TenantEvent, int]]) -> list[Line]:
    return [*clients(), *log(rows)]


def without(lines: list[Line], kind: type[Line], **fields: object) -> list[Line]:
    return [
        line
        for line in lines
        if not (isinstance(line, kind) and all(getattr(line, name) == value for name, value in fields.items()))
    ]


def replaced(lines: list[Line], kind: type[Line], changes: dict[str, object], **fields: object) -> list[Line]:
    return [
        msgspec.structs.replace(line, **changes)
        if isinstance(line, kind) and all(getattr(line, name) == value for name, value in fields.items())
        else line
        for line in lines
    ]


def test_a_good_history_breaks_nothing_and_survives_its_file(tmp_path: Path) -> None:
    write_history(tmp_path / "h", good())
    assert check(read_history(tmp_path / "h")) == []


def test_an_unknown_outcome_may_be_in_the_log_or_not() -> None:
    in_it = replaced(good(), Ended, {"kind": "info", "position": 0, "result": None}, operation=3)
    assert check([*in_it, *operation(50, "never", "info")]) == []


BROKEN: list[tuple[str, str, Break]] = [
    ("I1", "answered ok and is not in the log", lambda lines: [*lines, *operation(50, "lost", "ok", 6)]),
    ("I1", "answered fail and is in the log", lambda lines: replaced(lines, Ended, {"kind": "fail"}, operation=3)),
    ("I1", "in pieces", lambda _: with_log([*events(), ("a", BudgetSet(20, "total"), 2)])),
    ("I1", "more than once", lambda _: with_log([*events(), ("e", BudgetSet(20, "total"), 3)])),
    ("I1", "was answered position 4", lambda lines: replaced(lines, Ended, {"position": 4}, operation=3)),
    ("I1", "nobody sent", lambda _: with_log([*events(), ("zz", BudgetSet(20, "total"), 2)])),
    ("I2", "position 3 is missing", lambda lines: without(lines, Logged, position=3)),
    ("I2", "version 9", lambda _: [*clients(), *log_of([record(9, "a", TenantCreated("A", "free", 1), 1)])]),
    ("I3", "after epoch 2", lambda _: with_log([*events(), ("f", BudgetSet(20, "total"), 1)])),
    ("I3", "given out twice", lambda lines: [*lines, Claimed(30, 9, T, 2)]),
    ("I3", "nobody was given", lambda _: with_log([*events(), ("f", BudgetSet(20, "total"), 3)])),
    ("I4", "hash at 4", lambda lines: replaced(lines, Logged, {"hash": b"x" * 32}, position=4)),
    ("I4", "does not decode", lambda _: [*clients(), *log_of([record(1, "a", created_of_the_future(), 1)])]),
    ("I4", "the store says", lambda lines: replaced(lines, Final, {"position": 6})),
    ("I4", "was halted", lambda lines: replaced(lines, Final, {"status": "halted"})),
    ("I5", "before a at 2", lambda _: reordered()),
    ("I6", "got shorter", lambda lines: [*lines, seen(lines, 50, 4), seen(lines, 60, 3)]),
    ("I6", "another one", lambda lines: [*lines, Seen(50, T, 4, b"y" * 32)]),
    ("I6", "gone", lambda lines: [*lines, Seen(50, T, 6, b"y" * 32)]),
    ("I7", "not what its log", lambda lines: replaced(lines, Projected, {"found": {"calls": 3}})),
    ("I7", "the checkpoint is 4", lambda lines: replaced(lines, Projected, {"checkpoint": 4})),
    ("I8", "5 had been answered", lambda lines: replaced(lines, Ended, {"position": 4}, operation=9)),
    ("I8", "not what the log folds to", lambda lines: replaced(lines, Ended, {"result": {"v": 4}}, operation=9)),
    ("I8", "the log ends at 5", lambda lines: replaced(lines, Ended, {"position": 7}, operation=9)),
    ("I11", "of a budget of 15", lambda _: with_log([*events(), ("f", CallReserved("r3", "k1", "s", 10, 9, 0), 2)])),
    (
        "I11",
        "r2 was answered and is not booked",
        lambda lines: [*lines, Answered(200, T, "r1"), Answered(210, T, "r2")],
    ),
    ("I11", "1 calls are open", lambda lines: [*lines, Quiet(T)]),
    (
        "I11",
        "r1 is booked, and holds no",
        lambda _: with_log([*events(), ("f", ReservationExpired("r1", "k1", "s", 10), 2)]),
    ),
    ("I18", "different answers", lambda lines: [*lines, *altered(operation(50, "e", "ok", 5))]),
    ("I18", "both granted", lambda lines: [*lines, *operation(50, "e", "ok", 5, body="other")]),
]


class FromTheFuture(msgspec.Struct, frozen=True, tag_field="type", tag="tenant.created.v99"):
    pass


def created_of_the_future() -> TenantEvent:
    return FromTheFuture()  # type: ignore[return-value]


def seen(lines: list[Line], at_ns: int, position: int) -> Seen:
    (line,) = (line for line in lines if isinstance(line, Logged) and line.position == position)
    return Seen(at_ns, T, position, line.hash)


def altered(lines: list[Line]) -> list[Line]:
    return replaced(lines, Ended, {"result": {"id": "another"}})


def reordered() -> list[Line]:
    """ "b" was sent after "a" was answered, and precedes it."""
    rows = events()
    lines = [*operation(1, "b", "ok", 1, at_ns=50), *operation(2, "a", "ok", 2, at_ns=10)]
    swapped = log([("b", rows[1][1], 1), ("a", rows[0][1], 1)])
    return [*lines, *swapped]


@pytest.mark.parametrize(("invariant", "says", "spoil"), BROKEN, ids=[f"{row[0]} {row[1]}" for row in BROKEN])
def test_a_broken_promise_is_named_and_shown(invariant: str, says: str, spoil: Break) -> None:
    found = [violation for violation in check(spoil(good())) if violation.invariant == invariant]
    assert any(says in violation.message for violation in found), check(spoil(good()))
    assert all(violation.excerpt for violation in found)
    assert all(len(violation.excerpt) <= 8 for violation in found)
