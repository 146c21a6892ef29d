"""A payment provider that speaks Stripe's REST API and keeps books of its own, to compare with the platform's."""

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

API_KEY = "sk_test_kept_secret"


@dataclass
class Books:
    """Money that moved, in cents. ``requests`` counts every request, repeats included."""

    charged: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    refunded: dict[str, int] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)


class FakeProvider:
    """Cards behave by their name: ``pm_card_visa`` pays, ``pm_card_chargeDeclined`` does not.

    ``faults`` are what goes wrong with the next requests, one each: a status, ``drop`` (done, but no answer), ``hang``
    (done, and the answer does not come), ``garbage`` (done, and the answer can't be read), ``refuse`` (not done, no answer),
    ``in_use`` (another request under the key is on its way).
    """

    def __init__(self) -> None:
        self.books = Books()
        self.faults: deque[int | str] = deque()
        self.base_url = ""
        self._known: dict[str, tuple[str, int, dict[str, Any]]] = {}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.books.requests.append(request.path)
        fault = self.faults.popleft() if self.faults else None
        if request.headers.get("authorization") != f"Bearer {API_KEY}":
            return _error(401, "invalid_request_error", "api_key_invalid")
        if isinstance(fault, int):
            headers = {"retry-after": "0"} if fault in (429, 503) else {}
            return _error(fault, "api_error", f"told_to_{fault}", headers)
        if fault == "in_use":
            return _error(409, "idempotency_error", "idempotency_key_in_use")
        if fault == "refuse":
            return self._abort(request)
        status, answer = await self._remembered(request)
        if fault == "drop":
            return self._abort(request)
        if fault == "hang":
            self.books.hanging.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.books.cancelled.set()
                raise
        if fault == "garbage":
            return web.Response(text="<html>502</html>")
        return web.json_response(answer, status=status)

    @staticmethod
    def _abort(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def _remembered(self, request: web.Request) -> tuple[int, dict[str, Any]]:
        """The first answer again, for a known idempotency key."""
        fields = dict((await request.post()).items())
        key = request.headers.get("idempotency-key", "")
        print_of = hashlib.sha256(json.dumps([request.path, sorted(map(str, fields.items()))]).encode()).hexdigest()
        if key in self._known:
            same, status, answer = self._known[key]
            if same != print_of:
                return 400, {"error": {"type": "idempotency_error", "message": "other parameters under the same key"}}
            return status, answer
        status, answer = self._do(request.path, {name: str(value) for name, value in fields.items()})
        if key:
            self._known[key] = (print_of, status, answer)
        return status, answer

    def _do(self, path: str, fields: dict[str, str]) -> tuple[int, dict[str, Any]]:
        if path == "/v1/payment_intents":
            return self._create(fields)
        if path == "/v1/refunds":
            return self._refund(fields)
        payment, _, action = path.removeprefix("/v1/payment_intents/").partition("/")
        if action == "capture" and payment in self.books.held:
            amount = int(fields.get("amount_to_capture", self.books.held[payment]))
            if amount > self.books.held[payment]:
                return 400, {"error": {"type": "invalid_request_error", "code": "amount_too_large"}}
            del self.books.held[payment]
            self.books.charged[payment] = amount
            return 200, _payment(payment, amount, "succeeded", amount)
        return 404, {"error": {"type": "invalid_request_error", "code": "resource_missing"}}

    def _create(self, fields: dict[str, str]) -> tuple[int, dict[str, Any]]:
        if fields["payment_method"] == "pm_card_chargeDeclined":
            error = {"type": "card_error", "code": "card_declined", "decline_code": "generic_decline"}
            return 402, {"error": {**error, "message": "Your card was declined."}}
        payment, amount = f"pi_{len(self.books.charged) + len(self.books.held) + 1}", int(fields["amount"])
        if fields.get("capture_method") == "manual":
            self.books.held[payment] = amount
            return 200, _payment(payment, amount, "requires_capture", 0)
        self.books.charged[payment] = amount
        return 200, _payment(payment, amount, "succeeded", amount)

    def _refund(self, fields: dict[str, str]) -> tuple[int, dict[str, Any]]:
        payment = fields["payment_intent"]
        left = self.books.charged.get(payment, 0) - self.books.refunded.get(payment, 0)
        amount = int(fields.get("amount", left))
        if not 0 < amount <= left:
            return 400, {"error": {"type": "invalid_request_error", "code": "charge_already_refunded"}}
        self.books.refunded[payment] = self.books.refunded.get(payment, 0) + amount
        refund = {"id": f"re_{payment}_{amount}", "object": "refund", "amount": amount, "payment_intent": payment}
        return 200, {**refund, "status": "succeeded", "currency": "eur"}


def _payment(payment: str, amount: int, status: str, received: int) -> dict[str, Any]:
    secret = {"client_secret": f"{payment}_secret_never_shown"}
    shown = {
        "id": payment,
        "object": "payment_intent",
        "amount": amount,
        "amount_received": received,
        "currency": "eur",
    }
    return {**shown, **secret, "status": status}


def _error(status: int, kind: str, code: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"type": kind, "code": code}}, status=status, headers=headers)


@asynccontextmanager
async def running_provider() -> AsyncIterator[FakeProvider]:
    provider = FakeProvider()
    app = web.Application()
    app.router.add_post("/v1/{rest:.*}", provider.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    provider.base_url = f"http://{host}:{port}"
    yield provider
    await runner.cleanup()
