"""Payments through a Stripe-style REST API: create, capture and refund, each harmless to repeat; webhooks, verified.

Source: docs.stripe.com/api (payment intents, refunds, idempotent requests, errors) and docs.stripe.com/webhooks.
"""

import hashlib
import hmac
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import aiohttp
import msgspec
from pydantic import BaseModel, Field

from actors.tools.adapter import ToolAdapter, ToolCall, ToolContext
from actors.tools.config import Currency, PaymentConfig
from actors.tools.errors import (
    ToolError,
    ToolInputError,
    ToolOutcomeUnknownError,
    ToolRefusedError,
    ToolUnavailableError,
)
from actors.tools.transfer import read_capped, retry_after_s
from events.errors import Refusal

log = logging.getLogger(__name__)

WEBHOOK_TOLERANCE_S = 300
_CONNECT_TIMEOUT_S = 5.0
_ANSWER_BYTES_MAX = 1024 * 1024
# What a run needs of a payment; never its client_secret.
_SHOWN = ("id", "object", "status", "amount", "amount_received", "amount_capturable", "currency", "payment_intent")

Amount = Annotated[int, Field(gt=0, le=99_999_999, description="In the currency's smallest unit: cents")]
PaymentId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,255}$")]
Metadata = dict[Annotated[str, Field(pattern=r"^[^\[\]]{1,40}$")], Annotated[str, Field(max_length=500)]]


class CreatePayment(BaseModel, extra="forbid", frozen=True):
    """Charge now, or (``capture: manual``) hold the amount until it is captured."""

    action: Literal["create"]
    amount: Amount
    currency: Currency
    payment_method: PaymentId
    customer: PaymentId | None = None
    capture: Literal["automatic", "manual"] = "automatic"
    description: Annotated[str, Field(max_length=1000)] | None = None
    metadata: Metadata = {}


class CapturePayment(BaseModel, extra="forbid", frozen=True):
    action: Literal["capture"]
    payment_id: PaymentId
    amount: Amount | None = None


class RefundPayment(BaseModel, extra="forbid", frozen=True):
    action: Literal["refund"]
    payment_id: PaymentId
    amount: Amount | None = None
    reason: Literal["duplicate", "fraudulent", "requested_by_customer"] | None = None


PaymentRequest = Annotated[CreatePayment | CapturePayment | RefundPayment, Field(discriminator="action")]


class PaymentTool(ToolAdapter[PaymentConfig]):
    """The provider remembers idempotency keys (Stripe: at least 24 h) and answers a repeat with what it did first."""

    config_type: ClassVar[Any] = PaymentConfig
    input_type: ClassVar[Any] = PaymentRequest

    def __init__(self, config: PaymentConfig) -> None:
        super().__init__(config)
        self._session: aiohttp.ClientSession | None = None

    def check(self, call: ToolCall) -> None:
        request = self._parsed(call)
        if isinstance(request, CreatePayment) and request.currency not in self.config.currencies:
            known = ", ".join(self.config.currencies)
            raise ToolInputError(call.tool, f"currency {request.currency!r} is not one of {call.tool!r}: {known}")
        if (request.amount or 0) > self.config.amount_max:
            message = f"{request.amount} is more than {call.tool!r} moves at once ({self.config.amount_max})"
            raise ToolInputError(call.tool, message)

    def _parsed(self, call: ToolCall) -> "CreatePayment | CapturePayment | RefundPayment":
        request: CreatePayment | CapturePayment | RefundPayment = self.parse(self.input_type, call)
        return request

    def repeats_safely(self, call: ToolCall) -> bool:
        return True

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _execute_tool(self, call: ToolCall, context: ToolContext) -> dict[str, Any]:
        path, fields = _wire(self._parsed(call))
        headers = {
            "authorization": f"Bearer {os.environ.get(self.config.api_key_env, '')}",
            "idempotency-key": call.idempotency_key,
            **({"stripe-version": self.config.api_version} if self.config.api_version else {}),
        }
        try:
            async with self._open_session().post(
                self.config.base_url + path, data=dict(form_fields(fields)), headers=headers, allow_redirects=False
            ) as response:
                answer = _json_object(await read_capped(response, _ANSWER_BYTES_MAX) or b"")
                if response.status != 200:
                    raise self._error(call, response, answer)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            log.warning("payment.unreachable tool=%s: %s", call.tool, error)
            raise ToolUnavailableError(call.tool, "the payment provider can't be reached") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.warning("payment.broke_off tool=%s: %s", call.tool, error)
            message = "the payment provider broke off: it may have been paid; the same idempotency key tells"
            raise ToolOutcomeUnknownError(call.tool, message) from error
        if answer is None or "id" not in answer:
            raise ToolOutcomeUnknownError(call.tool, "the payment provider's answer can't be read")
        return {name: answer[name] for name in _SHOWN if name in answer}

    def _error(self, call: ToolCall, response: aiohttp.ClientResponse, answer: Mapping[str, Any] | None) -> ToolError:
        """Cards and requests that were refused stay refused; a busy or broken provider is asked again with the same key."""
        status, error = response.status, (answer or {}).get("error")
        details = error if isinstance(error, dict) else {}
        reason = str(details.get("decline_code") or details.get("code") or details.get("type") or f"http_{status}")[:64]
        message = f"the payment provider answered HTTP {status} ({reason})"
        wait_s = retry_after_s(response)
        if status == 409 and reason == "idempotency_key_in_use":  # the first request under it is still on its way
            return ToolOutcomeUnknownError(call.tool, message, reason, wait_s)
        if status in (409, 429):
            return ToolUnavailableError(call.tool, message, reason, wait_s)
        if status >= 500 or response.headers.get("stripe-should-retry") == "true":
            return ToolOutcomeUnknownError(call.tool, message, reason, wait_s)
        return ToolRefusedError(call.tool, message, reason)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S)
            self._session = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        return self._session


def _wire(request: CreatePayment | CapturePayment | RefundPayment) -> tuple[str, dict[str, Any]]:
    """Path and fields, as the provider names them."""
    match request:
        case CreatePayment():
            fields = request.model_dump(include={"amount", "currency", "payment_method", "customer", "description"})
            methods = {"enabled": True, "allow_redirects": "never"}
            more = {"confirm": True, "capture_method": request.capture, "automatic_payment_methods": methods}
            return "/v1/payment_intents", {**fields, **more, "metadata": request.metadata}
        case CapturePayment(payment_id=payment_id, amount=amount):
            return f"/v1/payment_intents/{payment_id}/capture", {"amount_to_capture": amount}
        case RefundPayment(payment_id=payment_id, amount=amount, reason=reason):
            return "/v1/refunds", {"payment_intent": payment_id, "amount": amount, "reason": reason}


def form_fields(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested fields as form fields: ``metadata[order]=7``; what is None is left out."""
    for name, value in fields.items():
        key = f"{prefix}[{name}]" if prefix else name
        match value:
            case None:
                continue
            case bool():
                yield key, "true" if value else "false"
            case dict():
                yield from form_fields(value, key)
            case _:
                yield key, str(value)


def _json_object(data: bytes) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class WebhookRefusedError(Refusal):
    """The webhook is not the provider's, or not of now. Which of the two is not said."""

    code = "invalid_signature"

    def __str__(self) -> str:
        return "the webhook's signature is not valid: check the endpoint's secret and this machine's clock"


def verified_webhook(
    body: bytes, signature: str, secret: str, now_s: float, tolerance_s: float = WEBHOOK_TOLERANCE_S
) -> dict[str, Any]:
    """The event in a webhook, if the provider signed it just now.

    Args:
        body: As it came, byte for byte.
        signature: The header ``Stripe-Signature``: ``t=<time>,v1=<hex>[,v1=…]``; several while secrets rotate.
        now_s: Unix time.

    Raises:
        WebhookRefusedError: Unsigned, signed by somebody else, or further from now than the tolerance: a replay.
    """
    pairs = [part.strip().partition("=") for part in signature.split(",")]
    times = [value for name, _, value in pairs if name == "t" and value.isascii() and value.isdigit()]
    if len(times) != 1:
        raise WebhookRefusedError
    expected = hmac.new(secret.encode(), times[0].encode() + b"." + body, hashlib.sha256).hexdigest()
    given = [value for name, _, value in pairs if name == "v1"]
    is_signed = any([hmac.compare_digest(expected.encode(), value.encode()) for value in given])  # noqa: C419 - all, always
    if not is_signed or abs(now_s - int(times[0])) > tolerance_s:
        raise WebhookRefusedError
    event = _json_object(body)
    if event is None:
        raise WebhookRefusedError
    return event
