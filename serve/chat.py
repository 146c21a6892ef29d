"""``POST /v1/chat/completions``: authenticate, reserve the maximum, call the model, settle what was really used.

Whatever happens in between, a reservation is settled once: by the answer, by its failure, by the client's leaving, or,
where this process dies, by the tenant's timer.
"""

import asyncio
import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec

from actors.policies.config import BreakerConfig, PoliciesConfig
from actors.policies.refusals import BreakerOpenError
from actors.supervision.clients import Resilience
from actors.tools.errors import ToolError, ToolRefusedError
from actors.tools.model import ModelClient
from actors.tools.usage_meter import Tokens, UsageMeter
from events.ask import Asker
from events.envelope import Ok
from events.errors import CommandRefusedError, PlatformError
from events.failpoints import failpoint
from events.tenant import Outcome
from serve.allowance import told_headers
from serve.asgi import ClientLeftError, Receive, Responder, Scope, Send, header, read_body, run_unless_client_leaves
from serve.auth import Authenticator, Principal
from serve.booking import NOTHING, Booking, Bookings, OnBooked, unnoticed, used_when_failed, used_when_left
from serve.chat_request import Call, parse_chat
from serve.http_errors import HttpError, as_http_error, unexpected_error
from serve.settings import Model
from serve.shed import Shed

log = logging.getLogger(__name__)

_SSE_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


# A model's server is a dependency that all tenants share. Its calls are long: what failed half a minute ago still counts.
MODEL_POLICIES = PoliciesConfig(breaker=BreakerConfig(window_s=30.0))


def upstream_failed(error: BaseException) -> bool | None:
    """For the breaker: a request that the server refuses is the client's fault, and a client that leaves says nothing."""
    if isinstance(error, ToolError):
        return not isinstance(error, ToolRefusedError)
    return True if isinstance(error, HttpError) and error.code == "timeout" else None


class OpenCall(msgspec.Struct):
    """A reserved call on its way."""

    call: Call
    booking: Booking
    reserved_position: int
    meter: UsageMeter
    told: dict[str, str] = {}  # headers: what is left of limits, budgets that warn


class ChatEndpoint:
    def __init__(
        self,
        models: dict[str, Model],
        authenticator: Authenticator,
        asker: Asker,
        model_client: ModelClient,
        *,
        call_timeout_s: float,
        body_bytes_max: int,
        resilience: Resilience | None = None,
        on_booked: OnBooked = unnoticed,
    ) -> None:
        self._resilience = resilience
        self._models, self._authenticator, self._asker = models, authenticator, asker
        self._model_client = model_client
        self._call_timeout_s = call_timeout_s
        self._body_bytes_max = body_bytes_max
        self._bookings = Bookings(asker, models.values(), call_timeout_s, on_booked)
        self._shed = Shed()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        responder = Responder(send)
        try:
            principal = await self._authenticator.authenticate(header(scope, b"authorization"), "inference")
            call = parse_chat(await read_body(receive, self._body_bytes_max), self._models)
            await run_unless_client_leaves(self._serve(principal, call, responder), receive)
        except ClientLeftError:
            log.info("chat.client_left")
        except HttpError as error:
            await responder.error(error)
        except PlatformError as error:
            await responder.error(as_http_error(error))
        except Exception as error:  # noqa: BLE001 - a defect: the log gets it, the client a number to ask for
            await responder.error(unexpected_error(error))

    async def _serve(self, principal: Principal, call: Call, responder: Responder) -> None:
        self._shed.check(principal.tenant, principal.key_id)
        running = OpenCall(call, self._booking(principal, call), 0, UsageMeter(call.input_bytes))
        try:
            reserved = await self._bookings.reserve(running.booking)
        except CommandRefusedError as refusal:
            self._shed.note(principal.tenant, principal.key_id, refusal)
            raise
        running.reserved_position, running.told = reserved.position, told_headers(reserved.result)
        failpoint("gw.after_reserve")
        try:
            with self._breaker(call.model):
                await self._call_upstream(running, responder)
        except BreakerOpenError:
            self._start_settling(running, NOTHING, "failed")
            raise
        finally:
            if not running.booking.settled:  # the client left, or we are being stopped
                self._start_settling(running, used_when_left(running.meter), "cancelled")

    def _booking(self, principal: Principal, call: Call) -> Booking:
        call_id = self._asker.new_id()
        return Booking(
            principal.tenant,
            principal.key_id,
            f"key:{principal.key_id}",
            call_id,
            call_id,
            call.model,
            call.input_tokens_max,
            call.output_tokens_max,
            call.tags,
        )

    def _breaker(self, model: Model) -> AbstractContextManager[None]:
        """Around a call of the model's server: where the cluster finds that it fails, nobody calls it for a while."""
        if self._resilience is None:
            return nullcontext()
        breaker = self._resilience.pipeline(f"model/{model.upstreams[0].model}", MODEL_POLICIES).breaker
        assert breaker is not None
        return breaker.judging(upstream_failed)

    async def _call_upstream(self, running: OpenCall, responder: Responder) -> None:
        call = running.call
        try:
            # a client that reads slowly, or not at all, holds its call no longer than a slow model may
            async with asyncio.timeout(self._call_timeout_s):
                if call.is_stream:
                    await self._stream(running, responder)
                else:
                    await self._complete(running, responder)
        except ToolError as error:
            await self._settle(running, used_when_failed(running.meter, error), "failed")
            raise
        except TimeoutError as error:
            message = f"the call was not done within {self._call_timeout_s:g} s"
            raise HttpError(504, "timeout", message, should_retry=False) from error

    async def _complete(self, running: OpenCall, responder: Responder) -> None:
        answer = await self._model_client.complete(running.call.model.upstreams[0], running.call.body)
        running.meter.see(answer)
        booked = await self._settle(running, running.meter.tokens(), "ok")
        answer["model"] = running.call.model.name
        answer.setdefault("usage", _usage(running.meter.tokens()))
        position = booked.position if booked else running.reserved_position
        await responder.json(200, msgspec.json.encode(answer), _headers(running, position))

    async def _stream(self, running: OpenCall, responder: Responder) -> None:
        last: dict[str, Any] = {}
        has_sent_usage = False
        async for chunk in self._model_client.stream(running.call.model.upstreams[0], running.call.body):
            running.meter.see(chunk)
            if not responder.has_started:  # only now: until the first chunk an error can still be a status
                await responder.start(200, {**_SSE_HEADERS, **_headers(running, running.reserved_position)})
            chunk["model"] = running.call.model.name
            if not running.call.wants_usage and "usage" in chunk:
                if not chunk.get("choices"):
                    continue
                del chunk["usage"]
            has_sent_usage = has_sent_usage or chunk.get("usage") is not None
            last = chunk
            await responder.event(msgspec.json.encode(chunk))
        if not responder.has_started:
            await responder.start(200, {**_SSE_HEADERS, **_headers(running, running.reserved_position)})
        if running.call.wants_usage and not has_sent_usage:
            closing = {**last, "choices": [], "usage": _usage(running.meter.tokens())}
            await responder.event(msgspec.json.encode(closing))
        await self._settle(running, running.meter.tokens(), "ok")  # before the end, so that the end means "booked"
        await responder.event(b"[DONE]")
        await responder.body(b"", more=False)

    async def _settle(self, running: OpenCall, tokens: Tokens, outcome: Outcome) -> Ok | None:
        return await self._bookings.settle(running.booking, tokens, outcome)

    def _start_settling(self, running: OpenCall, tokens: Tokens, outcome: Outcome) -> None:
        self._bookings.start_settling(running.booking, tokens, outcome)

    async def drain(self) -> None:
        """Wait for bookings under way."""
        await self._bookings.drain()


def _headers(running: OpenCall, position: int) -> dict[str, str]:
    return {"x-tenantry-position": str(position), "x-tenantry-call": running.booking.call_id, **running.told}


def _usage(tokens: Tokens) -> dict[str, int]:
    return {
        "prompt_tokens": tokens.input_tokens,
        "completion_tokens": tokens.output_tokens,
        "total_tokens": tokens.input_tokens + tokens.output_tokens,
    }
