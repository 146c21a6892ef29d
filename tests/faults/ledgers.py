"""The logs of tenants against the ledger of the model server, call by call. Pure."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from events.catalog import DomainEvent
from events.tenant import BudgetSet, CallReserved, CallSettled, ReservationExpired
from projections.usage import Usage, usage_of_event

Booking = CallSettled | ReservationExpired
INPUT_NANO, OUTPUT_NANO = 100, 400  # a token's price


class Row(msgspec.Struct, frozen=True):
    """A request of the trace. ``tokens_in`` and ``tokens_out`` are what the model is to use for it."""

    number: int
    tokens_in: int
    tokens_out: int
    way: str
    streams: bool
    tenant: str


class Served(msgspec.Struct):
    """An entry of the upstream's ledger. ``told``: the caller was sent the usage, and everything before it."""

    row: int
    tokens_in: int
    tokens_out: int = 0
    told: bool = False


class Report(msgspec.Struct):
    """What came out. ``differences`` must be empty; the rest says that the run was no easy one."""

    requests: int
    answers: dict[str, int]
    booked: dict[str, int]
    tokens_measured: tuple[int, int]
    kills: int
    differences: list[str]


def tags_of(number: int) -> dict[str, str]:
    """Two tags name a row: a tenant tells apart 200 values of each."""
    return {"hundreds": str(number // 100), "ones": str(number % 100)}


def row_of(tags: Mapping[str, str]) -> int:
    return int(tags["hundreds"]) * 100 + int(tags["ones"])


def check(
    rows: Sequence[Row],
    ledger: Sequence[Served],
    logs: Mapping[str, Sequence[DomainEvent]],
    usage: Mapping[str, Usage],
    answers: Mapping[str, int],
    kills: int,
) -> Report:
    """``logs``: each tenant's whole log; ``usage``: what its read model says; ``answers``: how calls ended for their
    clients. Every row was sent once, with ``tags_of`` its number.
    """
    differences: list[str] = []
    bookings: dict[int, list[Booking]] = defaultdict(list)
    for tenant, log in logs.items():
        differences += [f"{tenant}: {what}" for what in _log_differences(log)]
        made = [event for event in log if isinstance(event, Booking)]
        differences += [f"{tenant}: {what}" for what in _usage_differences(made, usage[tenant])]
        for booking in made:
            bookings[row_of(booking.tags)].append(booking)
    served_rows = {served.row: served for served in ledger}
    if len(served_rows) != len(ledger):
        differences.append(f"the upstream served {len(ledger)} calls for {len(served_rows)} rows")
    for row in rows:
        differences += _call_differences(row, served_rows.get(row.number), bookings[row.number])
    booked = [booking for made in bookings.values() for booking in made]
    measured = [
        served_rows[number] for b in booked if source_of(b) == "measured" and (number := row_of(b.tags)) in served_rows
    ]
    return Report(
        requests=len(rows),
        answers=dict(answers),
        booked=dict(Counter(map(source_of, booked))),
        tokens_measured=(sum(s.tokens_in for s in measured), sum(s.tokens_out for s in measured)),
        kills=kills,
        differences=differences,
    )


def source_of(booking: Booking) -> str:
    return booking.usage_source if isinstance(booking, CallSettled) else "expired"


def _log_differences(log: Sequence[DomainEvent]) -> list[str]:
    """Each reservation ends once, and held and spent together never pass the budget at any position of the log."""
    found, held, spent, limit = [], dict[str, int](), 0, None
    for position, event in enumerate(log, 1):
        match event:
            case BudgetSet():
                limit = event.limit_nano_usd
            case CallReserved():
                held[event.reservation_id] = event.cost_max_nano_usd
            case CallSettled() | ReservationExpired():
                if held.pop(event.reservation_id, None) is None:
                    found.append(f"{event.reservation_id} is booked at {position} without a reservation that is open")
                spent += event.cost_nano_usd
        if limit is not None and spent + sum(held.values()) > limit:
            found.append(f"at {position} {spent} are spent and {sum(held.values())} held, the budget is {limit}")
    return found + [f"{reservation} is still held at the end" for reservation in held]


def _usage_differences(made: Sequence[Booking], usage: Usage) -> list[str]:
    """The read model says what the log adds up to."""
    wanted = Usage()
    for booking in made:
        wanted.add(usage_of_event(booking))
    return [] if usage == wanted else [f"the read model says {usage}, the log {wanted}"]


def _call_differences(row: Row, served: Served | None, made: Sequence[Booking]) -> list[str]:
    """What the upstream served is booked, once: to the token where it said what it used, else at no less than nothing was
    known; what it did not serve costs nothing, unless its gateway died and nobody can know.
    """
    name = f"row {row.number} ({row.way})"
    if served is None:
        measured = [b for b in made if isinstance(b, CallSettled) and b.usage_source == "measured"]
        paid = [b for b in measured if b.cost_nano_usd or b.input_tokens or b.output_tokens]
        return [f"{name} was never served and booked with {len(paid)} costs"] if paid else []
    if len(made) != 1:
        return [f"{name} was served once and is booked {len(made)} times"]
    (booking,) = made
    if not isinstance(booking, CallSettled) or booking.usage_source == "unknown":
        cost = served.tokens_in * INPUT_NANO + served.tokens_out * OUTPUT_NANO
        return [f"{name} cost {cost} and is booked at {booking.cost_nano_usd}"] if booking.cost_nano_usd < cost else []
    if booking.usage_source == "measured":
        if not served.told:
            return [f"{name} is booked as measured, and the upstream told nothing"]
        booked = (booking.input_tokens, booking.output_tokens)
        used = (served.tokens_in, served.tokens_out)
        return [f"{name} used {used} tokens and is booked with {booked}"] if booked != used else []
    return [f"{name} is estimated, and the upstream told"] if served.told and booking.outcome == "ok" else []
