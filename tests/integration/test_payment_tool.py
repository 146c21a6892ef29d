"""The payment adapter against a provider that keeps its own books; the official ``stripe`` package judges both."""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import stripe

from actors.tools.adapter import ToolCall, ToolContext
from actors.tools.config import PaymentConfig, ToolConfigBuilder
from actors.tools.errors import ToolInputError, ToolOutcomeUnknownError, ToolRefusedError, ToolUnavailableError
from actors.tools.payment import PaymentTool, WebhookRefusedError, form_fields, verified_webhook
from tests.kit.builders import PaymentRequestBuilder, capture, refund
from tests.kit.payments import API_KEY, FakeProvider, running_provider

CONTEXT = ToolContext("acme", "call-1")
SECRET = "whsec_test"


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    async with running_provider() as running:
        yield running


@pytest.fixture
async def payments(provider: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PaymentTool]:
    monkeypatch.setenv("PAYMENTS_KEY", API_KEY)
    settings = {"base_url": provider.base_url, "api_key_env": "PAYMENTS_KEY"}
    tool = PaymentTool(ToolConfigBuilder(PaymentConfig, "payments").set(**settings).build())
    yield tool
    await tool.close()


async def pay(tool: PaymentTool, given: dict[str, Any], key: str = "order-1") -> dict[str, Any]:
    output: dict[str, Any] = (await tool.execute(ToolCall("payments", given, key), CONTEXT)).output
    return output


async def test_a_payment_is_charged_and_its_secret_is_not_handed_on(
    payments: PaymentTool, provider: FakeProvider
) -> None:
    paid = await pay(payments, PaymentRequestBuilder().amount(4_200).for_order("7").build())
    assert (paid["status"], paid["amount_received"]) == ("succeeded", 4_200)
    assert provider.books.charged == {paid["id"]: 4_200}
    assert "client_secret" not in paid


async def test_a_payment_on_hold_is_captured_in_part_and_refunded(
    payments: PaymentTool, provider: FakeProvider
) -> None:
    held = await pay(payments, PaymentRequestBuilder().amount(5_000).on_hold().build(), "hold")
    assert provider.books.held == {held["id"]: 5_000}
    captured = await pay(payments, capture(held["id"], 3_000), "capture")
    assert captured["status"] == "succeeded"
    refunded = await pay(payments, refund(held["id"], 1_000), "refund")
    assert refunded["payment_intent"] == held["id"]
    assert (provider.books.charged, provider.books.refunded) == ({held["id"]: 3_000}, {held["id"]: 1_000})


@pytest.mark.parametrize("fault", ["drop", "garbage", 500, 503, 429, 409])
async def test_a_repeat_under_the_same_key_is_charged_once(
    payments: PaymentTool, provider: FakeProvider, fault: int | str
) -> None:
    provider.faults.append(fault)
    with pytest.raises((ToolOutcomeUnknownError, ToolUnavailableError)) as failure:
        await pay(payments, PaymentRequestBuilder().build())
    assert failure.value.retryable
    for _ in range(3):
        await pay(payments, PaymentRequestBuilder().build())
    assert len(provider.books.charged) == 1
    assert len(provider.books.requests) == 4


async def test_what_did_not_answer_may_have_happened_and_says_so(payments: PaymentTool, provider: FakeProvider) -> None:
    provider.faults += ["drop", 429, "refuse"]
    with pytest.raises(ToolOutcomeUnknownError) as lost:
        await pay(payments, PaymentRequestBuilder().build())
    with pytest.raises(ToolUnavailableError) as busy:
        await pay(payments, PaymentRequestBuilder().build())
    assert (lost.value.may_have_happened, busy.value.may_have_happened, busy.value.retry_after_s) == (True, False, 0)
    with pytest.raises(ToolOutcomeUnknownError):
        await pay(payments, PaymentRequestBuilder().build())


async def test_while_the_first_request_under_a_key_is_on_its_way_its_outcome_is_unknown(
    payments: PaymentTool, provider: FakeProvider
) -> None:
    provider.faults.append("in_use")
    with pytest.raises(ToolOutcomeUnknownError) as busy:
        await pay(payments, PaymentRequestBuilder().build())
    assert (busy.value.code, busy.value.retryable) == ("idempotency_key_in_use", True)


async def test_a_declined_card_stays_declined(payments: PaymentTool, provider: FakeProvider) -> None:
    with pytest.raises(ToolRefusedError) as refusal:
        await pay(payments, PaymentRequestBuilder().declined().build())
    assert (refusal.value.code, refusal.value.retryable) == ("generic_decline", False)
    assert provider.books.charged == {}


async def test_one_key_for_two_payments_is_refused(payments: PaymentTool, provider: FakeProvider) -> None:
    await pay(payments, PaymentRequestBuilder().amount(100).build())
    with pytest.raises(ToolRefusedError) as refusal:
        await pay(payments, PaymentRequestBuilder().amount(200).build())
    assert refusal.value.code == "idempotency_error"
    assert list(provider.books.charged.values()) == [100]


async def test_a_wrong_api_key_is_refused_and_stands_in_no_message(
    payments: PaymentTool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PAYMENTS_KEY", "sk_test_wrong_canary")
    with pytest.raises(ToolRefusedError) as refusal:
        await pay(payments, PaymentRequestBuilder().build())
    assert refusal.value.code == "api_key_invalid"
    assert "canary" not in str(refusal.value) + repr(refusal.value) + caplog.text


async def test_a_provider_that_is_not_there_was_surely_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAYMENTS_KEY", API_KEY)
    config = ToolConfigBuilder(PaymentConfig, "payments").set(base_url="http://127.0.0.1:1", api_key_env="PAYMENTS_KEY")
    tool = PaymentTool(config.build())
    with pytest.raises(ToolUnavailableError, match="can't be reached") as failure:
        await pay(tool, PaymentRequestBuilder().build())
    assert not failure.value.may_have_happened
    assert "127.0.0.1" not in str(failure.value)
    await tool.close()


async def test_a_cancelled_payment_lets_go_of_its_connection(payments: PaymentTool, provider: FakeProvider) -> None:
    provider.faults.append("hang")
    call = asyncio.create_task(pay(payments, PaymentRequestBuilder().build()))
    await asyncio.wait_for(provider.books.hanging.wait(), 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(provider.books.cancelled.wait(), 10)
    assert payments._session is not None
    assert payments._session.connector is not None
    assert not payments._session.connector._acquired


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (PaymentRequestBuilder().amount(0).build(), "amount"),
        (PaymentRequestBuilder().amount(-5).build(), "amount"),
        (PaymentRequestBuilder().amount(1_000_001).build(), "more than"),
        (PaymentRequestBuilder().currency("xyz").build(), "currency"),
        (PaymentRequestBuilder(payment_method="pm/../../refunds").build(), "payment_method"),
        (capture("pi_1/../../customers"), "payment_id"),
        (refund("pi_1?x=1"), "payment_id"),
        ({"action": "drain"}, "action"),
        ({**PaymentRequestBuilder().build(), "destination": "acct_evil"}, "destination"),
        (PaymentRequestBuilder(metadata={"a][confirm": "x"}).build(), "metadata"),
    ],
)
async def test_what_makes_no_sense_is_refused_before_it_is_sent(
    payments: PaymentTool, provider: FakeProvider, given: dict[str, Any], says: str
) -> None:
    with pytest.raises(ToolInputError, match=says):
        await pay(payments, given)
    assert provider.books.requests == []


def test_nested_fields_are_written_as_the_provider_reads_them() -> None:
    fields = dict(form_fields({"a": 1, "b": None, "c": True, "d": {"e": {"f": "g"}}}))
    assert fields == {"a": "1", "c": "true", "d[e][f]": "g"}


async def test_the_official_client_takes_our_provider_for_real(provider: FakeProvider) -> None:
    """So that what we test against answers as the real one does."""
    client = stripe.StripeClient(API_KEY, base_addresses={"api": provider.base_url})
    params: Any = {"amount": 1_500, "currency": "eur", "payment_method": "pm_card_visa", "confirm": True}

    def use() -> tuple[str, str, str]:
        intents: Any = client.v1.payment_intents
        paid = intents.create(params, {"idempotency_key": "k1"})
        assert intents.create(params, {"idempotency_key": "k1"}).id == paid.id
        with pytest.raises(stripe.CardError) as declined:
            intents.create({**params, "payment_method": "pm_card_chargeDeclined"})
        refunded = client.v1.refunds.create({"payment_intent": paid.id})
        return paid.status, str(declined.value.code), str(refunded.status)

    assert await asyncio.to_thread(use) == ("succeeded", "card_declined", "succeeded")
    assert provider.books.refunded == provider.books.charged


async def test_we_send_what_the_official_client_sends(payments: PaymentTool, provider: FakeProvider) -> None:
    """Both under one idempotency key: the provider would refuse other fields."""
    held = await pay(payments, PaymentRequestBuilder().on_hold().build(), "hold")
    captured = await pay(payments, capture(held["id"], 700), "capture")
    client = stripe.StripeClient(API_KEY, base_addresses={"api": provider.base_url})
    same: Any = await asyncio.to_thread(
        client.v1.payment_intents.capture, held["id"], {"amount_to_capture": 700}, {"idempotency_key": "capture"}
    )
    assert same.id == captured["id"]


BODY = json.dumps({"id": "evt_1", "object": "event", "type": "payment_intent.succeeded"}).encode()


def signed(body: bytes, secret: str, at: int) -> str:
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def test_a_webhook_that_the_provider_signed_is_read_as_the_official_package_reads_it() -> None:
    now = int(time.time())
    header = signed(BODY, SECRET, now)
    ours = verified_webhook(BODY, header, SECRET, now)
    theirs: Any = stripe.Webhook.construct_event(BODY, header, SECRET)
    assert ours["id"] == theirs["id"] == "evt_1"


def test_while_secrets_rotate_one_good_signature_of_several_is_enough() -> None:
    header = signed(BODY, "old", 100) + "," + signed(BODY, SECRET, 100).partition(",")[2]
    assert verified_webhook(BODY, header, SECRET, 100)["id"] == "evt_1"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "garbage",
        signed(BODY, "another secret", 1_000),
        signed(BODY + b" ", SECRET, 1_000),
        signed(BODY, SECRET, 1_000).replace("t=1000", "t=1001"),
        signed(BODY, SECRET, 1_000 - 301),
        signed(BODY, SECRET, 1_000 + 301),
        signed(BODY, SECRET, 1_000).replace("v1=", "v0="),
        signed(BODY, SECRET, 1_000) + ",t=999",
        "t=1000,v1=",
        "t=\u0661\u0660\u0660\u0660,v1=\u00fc",
        "t=-1000,v1=00",
    ],
)
def test_any_other_webhook_is_refused(header: str) -> None:
    with pytest.raises(WebhookRefusedError):
        verified_webhook(BODY, header, SECRET, 1_000)


def test_a_signed_body_that_is_no_event_is_refused() -> None:
    with pytest.raises(WebhookRefusedError):
        verified_webhook(b"[1]", signed(b"[1]", SECRET, 1_000), SECRET, 1_000)
