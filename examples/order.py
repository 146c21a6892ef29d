"""Processing an order: reserve stock and charge the card side by side, send a mail, ship. What is done is undone where the
rest can't be.

The shop behind it is a SQLite file (``ORDER_LEDGER``), in which each effect stands once under its idempotency key, however
often it is attempted: what a real payment provider does with the key it is sent.
"""

import contextlib
import os
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from actors.run import Parallel, Saga, Step, Undo, View, register
from actors.run.functions import StepContext, StepFailure, step_function

LEDGER_VARIABLE = "ORDER_LEDGER"


class Order(msgspec.Struct, frozen=True):
    """``address`` empty: it can't be shipped, so all of it is undone."""

    sku: str
    quantity: int = 1
    amount_cents: int = 1_000
    address: str = "Main Street 1"


def _order(run: View) -> Order:
    order: Order = run.input
    return order


register(
    Saga(
        "order",
        input=Order,
        steps=(
            Parallel(
                Step(
                    "reserve_stock",
                    function="shop.reserve",
                    args=_order,
                    undo=Undo(function="shop.release", args=lambda run: run["reserve_stock"]),
                ),
                Step(
                    "charge_payment",
                    function="shop.charge",
                    args=_order,
                    undo=Undo(function="shop.refund", args=lambda run: run["charge_payment"]),
                ),
            ),
            Step("send_email", function="shop.mail", args=_order),
            Step("ship", function="shop.ship", args=_order),
        ),
        output=lambda run: {"shipment": run["ship"], "payment": run["charge_payment"]},
    )
)


@step_function("shop.reserve")
def reserve(order: Order, context: StepContext) -> str:
    return record("reserve", context, f"{order.quantity} x {order.sku}")


@step_function("shop.release")
def release(_reservation: str, context: StepContext) -> str:
    return record("release", context)


@step_function("shop.charge")
def charge(order: Order, context: StepContext) -> str:
    if order.amount_cents <= 0:
        raise StepFailure("card_declined", "the card was declined")  # no retry can mend that
    return record("charge", context, str(order.amount_cents))


@step_function("shop.refund")
def refund(_payment: str, context: StepContext) -> str:
    return record("refund", context)


@step_function("shop.mail")
def mail(order: Order, context: StepContext) -> str:
    return record("mail", context, order.sku)


@step_function("shop.ship")
def ship(order: Order, context: StepContext) -> str:
    if not order.address:
        raise StepFailure("no_address", "an order without an address can't be shipped")
    return record("ship", context, order.address)


def record(effect: str, context: StepContext, detail: str = "") -> str:
    """Do it, or find that it is done. The effect's id either way."""
    with contextlib.closing(open_ledger()) as ledger, ledger:
        ledger.execute("INSERT INTO attempts VALUES (?, ?)", (context.run_id, effect))
        ledger.execute(
            "INSERT OR IGNORE INTO effects VALUES (?, ?, ?, ?)",
            (context.idempotency_key, context.run_id, effect, detail),
        )
    return f"{effect}-{context.idempotency_key[:12]}"


def open_ledger() -> sqlite3.Connection:
    default = Path(tempfile.gettempdir()) / f"tenantry-orders-{os.getuid()}.sqlite"
    ledger = sqlite3.connect(os.environ.get(LEDGER_VARIABLE, default), timeout=30)
    ledger.execute("CREATE TABLE IF NOT EXISTS effects (key TEXT PRIMARY KEY, run TEXT, effect TEXT, detail TEXT)")
    ledger.execute("CREATE TABLE IF NOT EXISTS attempts (run TEXT, effect TEXT)")
    return ledger


def effects_of(run_id: str) -> list[Any]:
    """What was done for a run, by name."""
    with contextlib.closing(open_ledger()) as ledger:
        return [row[0] for row in ledger.execute("SELECT effect FROM effects WHERE run = ? ORDER BY effect", (run_id,))]
