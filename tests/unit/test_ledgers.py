"""The judge of the exactness run finds what is wrong with books."""

import pytest
from msgspec.structs import replace

from events.catalog import DomainEvent
from events.tenant import BudgetSet, CallReserved, CallSettled
from projections.usage import Usage, usage_of_event
from tests.faults.ledgers import INPUT_NANO, OUTPUT_NANO, Row, Served, check, tags_of

ROW = Row(123, 10, 5, "ok", streams=False, tenant="ann")
ROWS = [replace(ROW, number=number) for number in range(124)]
COST = 10 * INPUT_NANO + 5 * OUTPUT_NANO
RESERVED = CallReserved("c1", "k", "m", 2 * COST, 1, 0, tags=tags_of(123))
SETTLED = CallSettled("c1", "k", "m", 10, 5, COST, "ok", "measured", tags=tags_of(123))
BUDGET = BudgetSet(2 * COST, "total")


def differences(log: list[DomainEvent], served: Served, usage: Usage | None = None) -> list[str]:
    if usage is None:
        usage = Usage()
        for event in log:
            if isinstance(event, CallSettled):
                usage.add(usage_of_event(event))
    return check(ROWS, [served], {"ann": log}, {"ann": usage}, {}, 0).differences


def test_books_that_agree() -> None:
    assert differences([BUDGET, RESERVED, SETTLED], Served(123, 10, 5, told=True)) == []


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ([BUDGET, RESERVED], "still held at the end"),
        ([BUDGET, RESERVED, SETTLED, SETTLED], "without a reservation that is open"),
        ([BUDGET, RESERVED, SETTLED, RESERVED, SETTLED], "booked 2 times"),
        ([BUDGET, RESERVED, replace(SETTLED, output_tokens=4)], "is booked with (10, 4)"),
        ([BUDGET, RESERVED, replace(SETTLED, usage_source="unknown", cost_nano_usd=COST - 1)], f"cost {COST}"),
        ([BudgetSet(COST, "total"), RESERVED, SETTLED], f"the budget is {COST}"),
    ],
)
def test_books_that_do_not(log: list[DomainEvent], says: str) -> None:
    assert [found for found in differences(log, Served(123, 10, 5, told=True)) if says in found]


def test_a_read_model_that_says_something_else() -> None:
    log: list[DomainEvent] = [BUDGET, RESERVED, SETTLED]
    assert any("read model" in found for found in differences(log, Served(123, 10, 5, told=True), Usage(requests=2)))
