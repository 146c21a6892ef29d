"""Builders: a valid request in one line, and every way it can differ from that."""

from typing import Any

from actors.tools.adapter import ToolCall


class PaymentRequestBuilder:
    """``PaymentRequestBuilder().amount(4_200).on_hold().build()``. Each step is a builder of its own, so that they branch."""

    def __init__(self, **fields: Any) -> None:
        self._fields: dict[str, Any] = {
            "action": "create",
            "amount": 1_000,
            "currency": "eur",
            "payment_method": "pm_card_visa",
            **fields,
        }

    def amount(self, cents: int) -> "PaymentRequestBuilder":
        return self._with(amount=cents)

    def currency(self, code: str) -> "PaymentRequestBuilder":
        return self._with(currency=code)

    def declined(self) -> "PaymentRequestBuilder":
        return self._with(payment_method="pm_card_chargeDeclined")

    def on_hold(self) -> "PaymentRequestBuilder":
        """Held, to be captured later."""
        return self._with(capture="manual")

    def for_order(self, order: str) -> "PaymentRequestBuilder":
        return self._with(metadata={"order": order}, description=f"Order {order}")

    def _with(self, **fields: Any) -> "PaymentRequestBuilder":
        return PaymentRequestBuilder(**{**self._fields, **fields})

    def build(self) -> dict[str, Any]:
        return dict(self._fields)

    def call(self, key: str = "order-1", tool: str = "payments") -> ToolCall:
        return ToolCall(tool, self.build(), key)


def capture(payment: str, amount: int | None = None) -> dict[str, Any]:
    return {"action": "capture", "payment_id": payment, **({"amount": amount} if amount else {})}


def refund(payment: str, amount: int | None = None) -> dict[str, Any]:
    return {"action": "refund", "payment_id": payment, **({"amount": amount} if amount else {})}
