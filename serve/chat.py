"""``POST /v1/chat/completions`` and ``/v1/embeddings``: authenticate, reserve the maximum, call a model, settle what was
really used.

Whatever happens in between, a reservation is settled once: by the answer, by its failure, by the client's leaving, or,
where this process dies, by the tenant's timer. Where an upstream fails before the client has got a byte, the next one of
the plan is tried; a try that may be billed although it failed is booked by itself, at its maximum, before the next begins.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec

from actors.policies.refusals import PolicyRefusal
from actors.supervision.clients import Resilience
from actors.tools.errors import ToolError, ToolOutcomeUnknownError
from actors.tools.model import ModelClient
from actors.tools.usage_meter import Tokens, UsageMeter
from events.ask import Asker
from events.envelope import Ok
from events.errors import CommandRefusedError, PlatformError
from events.failpoints import failpoint
from events.money import money
from events.tenant import Attempt, ServeCached
from serve.allowance import list_prices, told_headers
from serve.answer_cache import CACHE_HEADER, AnswerCache, Wish, wish_of
from serve.asgi import ClientLeftError, Receive, Responder, Scope, Send, header, read_body, run_unless_client_leaves
from serve.auth import Authenticator, Principal
from serve.booking import NOTHING, Booking, Bookings, OnBooked, unnoticed, used_when_failed, used_when_left
from serve.cached_answer import chunks_of, is_complete, whole
from serve.chat_request import Call, parse_chat
from serve.embedding_request import parse_embeddings
from serve.fair_share import FairShare
from serve.http_errors import HttpError, as_http_error, unexpected_error
from serve.idempotency import Once, as_asked
from serve.routing import Hop, Plan, Routing, may_go_elsewhere
from serve.settings import Model, ModelsFile
from serve.shed import Shed

log = logging.getLogger(__name__)

CHAT_PATH, EMBEDDINGS_PATH = "/v1/chat/completions", "/v1/embeddings"
_PARSERS: dict[str, Callable[[bytes, dict[str, Model]], Call]] = {
    CHAT_PATH: parse_chat,
    EMBEDDINGS_PATH: parse_embeddings,
}
_SSE_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
_TIMED_OUT = "upstream_timeout"
_CACHE_HEADER = CACHE_HEADER.encode()

Work = Callable[[], Awaitable[None]]


class OpenCall(msgspec.Struct):
    """A reserved call on its way. ``ends_s``: when it is given up, in the loop's time. ``is_out``: an upstream may have it."""

    call: Call
    booking: Booking
    meter: UsageMeter
    ends_s: float
    cache_as: str = ""  # where a complete answer is kept; "": nowhere
    position: int = 0
    tries: int = 0
    is_out: bool = False


class ModelEndpoint:
    """Both routes; their paths are the keys of ``_PARSERS``."""

    paths = frozenset(_PARSERS)

    def __init__(
        self,
        models: ModelsFile,
        authenticator: Authenticator,
        asker: Asker,
        model_client: ModelClient,
        resilience: Resilience,
        once: Once,
        cache: AnswerCache,
        *,
        call_timeout_s: float,
        body_bytes_max: int,
        calls_max: int,
        on_booked: OnBooked = unnoticed,
    ) -> None:
        self._models = {model.name: model for model in models.models}
        self._routing = Routing(models, resilience)
        self._authenticator, self._asker, self._once, self._cache = authenticator, asker, once, cache
        self._model_client = model_client
        self._call_timeout_s = call_timeout_s
        self._body_bytes_max = body_bytes_max
        self._bookings = Bookings(asker, models.models, call_timeout_s, on_booked)
        self._list_prices = list_prices(models.models)
        self._shed = Shed()
        self._places = FairShare(calls_max)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        responder = Responder(send)
        try:
            principal = await self._authenticator.authenticate(header(scope, b"authorization"), "inference")
            with self._places.place(principal.tenant):
                body = await read_body(scope, receive, self._body_bytes_max)
                work = self._work(scope, body, principal, responder)
                await run_unless_client_leaves(work(), receive)
        except ClientLeftError:
            log.info("chat.client_left")
        except HttpError as error:
            await responder.error(error)
        except PlatformError as error:
            await responder.error(as_http_error(error))
        except Exception as error:  # noqa: BLE001 - a defect: the log gets it, the client a number to ask for
            await responder.error(unexpected_error(error))

    def _work(self, scope: Scope, body: bytes, principal: Principal, responder: Responder) -> Work:
        """What answers the request: the call itself, behind the cache and its Idempotency-Key where it asks for them."""
        call, key = _PARSERS[scope["path"]](body, self._models), header(scope, b"idempotency-key")
        request = b"" if key is None else scope["path"].encode() + b"\x00" + as_asked(body)
        if key is not None:
            # a gateway that dies before it has kept the answer leaves a repeat that its upstream may know
            call = msgspec.structs.replace(call, repeat_key=self._once.name_of(principal, key, request))
        work: Work = partial(self._serve, principal, call, responder)
        if (wish := wish_of(header(scope, _CACHE_HEADER))) is not None:
            work = partial(self._serve_cached, principal, call, responder, wish)
        if key is not None:
            work = partial(self._once.run, principal, key, request, responder, work)
        return work

    async def _serve_cached(self, principal: Principal, call: Call, responder: Responder, wish: Wish) -> None:
        """From the cache, where it has the answer; else the usual way, and then it has."""
        field = self._cache.field(principal.tenant, call)
        found = await self._cache.find(principal.tenant, field, wish)
        if found is None:
            responder.headers[CACHE_HEADER] = "miss"
            await self._serve(principal, call, responder, field)
            return
        self._shed.check(principal.tenant, principal.key_id)
        call_id = self._asker.new_id()
        command = ServeCached(call_id, principal.key_id, call.model.name, call.tags)
        try:
            booked = await self._asker.ask(
                principal.tenant, command, actor=f"key:{principal.key_id}", command_id=call_id, correlation_id=call_id
            )
        except CommandRefusedError as refusal:
            self._shed.note(principal.tenant, principal.key_id, refusal)
            raise
        responder.headers |= {
            CACHE_HEADER: "hit",
            "age": str(found.age_s),
            "x-tenantry-position": str(booked.position),
            "x-tenantry-call": call_id,
            "x-tenantry-model": call.model.name,
            "x-tenantry-attempts": "0",
            "x-tenantry-cost-usd": "0",
        }
        if not call.is_stream:
            await responder.json(200, found.answer)
            return
        await responder.start(200, _SSE_HEADERS)
        for chunk in chunks_of(msgspec.json.decode(found.answer), wants_usage=call.wants_usage):
            await responder.event(msgspec.json.encode(chunk))
        await responder.event(b"[DONE]")
        await responder.body(b"", more=False)

    async def _serve(self, principal: Principal, call: Call, responder: Responder, cache_as: str = "") -> None:
        self._shed.check(principal.tenant, principal.key_id)
        plan, ends_s = self._routing.plan(call), asyncio.get_running_loop().time() + self._call_timeout_s
        running = OpenCall(call, self._booking(principal, call, plan), UsageMeter(call.input_bytes), ends_s, cache_as)
        try:
            await self._reserve(running, responder)
        except CommandRefusedError as refusal:
            self._shed.note(principal.tenant, principal.key_id, refusal)
            raise
        failpoint("gw.after_reserve")
        try:
            await self._try_all(running, plan, responder)
        finally:
            if not running.booking.settled:  # the client left, or we are being stopped
                tokens = used_when_left(running.meter) if running.is_out else NOTHING
                self._bookings.start_settling(running.booking, tokens, "cancelled")

    def _booking(self, principal: Principal, call: Call, plan: Plan) -> Booking:
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
            fallbacks=tuple(call.target(model, self._list_prices[model.name]) for model in call.fallbacks),
            route=plan.route,
        )

    async def _reserve(self, running: OpenCall, responder: Responder) -> None:
        reserved = await self._bookings.reserve(running.booking)
        running.position = reserved.position
        responder.headers |= {
            "x-tenantry-position": str(reserved.position),
            "x-tenantry-call": running.booking.call_id,
            **told_headers(reserved.result),
        }

    async def _try_all(self, running: OpenCall, plan: Plan, responder: Responder) -> None:
        """One upstream after the other, until one has answered. Raises what the last one raised."""
        hops = [hop for hop in plan.hops if hop.model.name in running.booking.prices]  # those that the key may call
        for hop in hops:
            error = await self._try(running, hop, responder, is_choice=len(hops) > 1)
            if error is None:
                return
            tokens = NOTHING if isinstance(error, PolicyRefusal) else used_when_failed(running.meter, error)
            if hop is hops[-1] or responder.has_started or not may_go_elsewhere(error):
                await self._bookings.settle(running.booking, tokens, "failed")
                raise error
            if tokens is not NOTHING:
                await self._book_apart(running, tokens, error, responder)

    async def _book_apart(
        self, running: OpenCall, tokens: Tokens, error: ToolError | PolicyRefusal, responder: Responder
    ) -> None:
        """A try that has failed may cost all the same, and the next one too: so each is a call of its own in the books.
        Raises the ``error`` where there is no budget for another.
        """
        await self._bookings.settle(running.booking, tokens, "failed")
        running.booking = msgspec.structs.replace(
            running.booking, call_id=self._asker.new_id(), settled=False, prices={}, served_by=""
        )
        try:
            await self._reserve(running, responder)
        except CommandRefusedError as refusal:
            running.booking.settled = True  # there is nothing to settle
            log.info("chat.no_further_try call=%s: %s", running.booking.correlation_id, refusal)
            raise error from refusal

    async def _try(
        self, running: OpenCall, hop: Hop, responder: Responder, *, is_choice: bool
    ) -> ToolError | PolicyRefusal | None:
        """None: it has answered, and all is booked. An error is noted, and not yet booked."""
        loop, booking = asyncio.get_running_loop(), running.booking
        began_s, tried = loop.time(), booking.attempts
        running.meter, running.is_out = UsageMeter(running.call.input_bytes), False
        running.tries += 1
        booking.served_by = "" if hop.model is running.call.model else hop.model.name
        responder.headers |= {
            "x-tenantry-upstream": hop.name,
            "x-tenantry-model": hop.model.name,
            "x-tenantry-attempts": str(running.tries),
            "x-tenantry-cost-max-usd": money(booking.prices[hop.model.name].cost_max_nano_usd),
        }

        def note(result: str) -> None:
            if is_choice or result != "ok":
                attempt = Attempt(hop.name, hop.model.name, result, int((loop.time() - began_s) * 1e3))
                booking.attempts = (*tried, attempt)

        try:
            async with self._routing.attempt(hop, booking.tenant) as begun:
                running.is_out = True
                await self._call_upstream(running, hop, responder, begun, note)
        except (ToolError, PolicyRefusal) as error:
            note(error.code)
            return error
        except HttpError as error:
            note(error.code)
            raise
        return None

    async def _call_upstream(
        self,
        running: OpenCall,
        hop: Hop,
        responder: Responder,
        begun: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        loop, first_s = asyncio.get_running_loop(), hop.model.attempt_timeout_s
        until_s = running.ends_s if first_s is None else min(running.ends_s, loop.time() + first_s)
        try:
            # a client that reads slowly, or not at all, holds its call no longer than a slow model may
            async with asyncio.timeout_at(until_s) as limit:

                def on_begin() -> None:
                    limit.reschedule(running.ends_s)
                    begun()

                if running.call.is_stream:
                    await self._stream(running, hop, responder, on_begin, note)
                else:
                    await self._complete(running, hop, responder, on_begin, note)
        except TimeoutError as error:
            if until_s < running.ends_s and not responder.has_started:
                message = f"the server of model {hop.upstream.model!r} did not begin to answer within {first_s:g} s"
                raise ToolOutcomeUnknownError(hop.upstream.model, message, _TIMED_OUT) from error
            message = f"the call was not done within {self._call_timeout_s:g} s"
            raise HttpError(504, "timeout", message, should_retry=False) from error

    async def _complete(
        self,
        running: OpenCall,
        hop: Hop,
        responder: Responder,
        on_begin: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        call = running.call
        answer = await self._model_client.complete(
            hop.upstream, call.body_for(hop.model), call.path, idempotency_key=call.key_at(hop.name)
        )
        on_begin()
        running.meter.see(answer)
        tokens = running.meter.tokens()
        note("ok")
        booked = await self._bookings.settle(running.booking, tokens, "ok")
        answer["model"] = hop.model.name
        answer.setdefault("usage", _usage(tokens))
        headers = {"x-tenantry-cost-usd": money(running.booking.cost_nano_usd(tokens))}
        if booked is not None:
            headers["x-tenantry-position"] = str(booked.position)
        encoded = msgspec.json.encode(answer)
        if running.cache_as and is_complete(answer):
            await self._keep(running, hop, encoded)
        await responder.json(200, encoded, headers)

    async def _stream(
        self,
        running: OpenCall,
        hop: Hop,
        responder: Responder,
        on_begin: Callable[[], None],
        note: Callable[[str], None],
    ) -> None:
        call, last, has_sent_usage = running.call, dict[str, Any](), False
        chunks: list[dict[str, Any]] = []  # for the cache only
        key = call.key_at(hop.name)
        async for batch in self._model_client.batches(hop.upstream, call.body_for(hop.model), idempotency_key=key):
            if not responder.has_started:  # only now: until the first chunk an error can still be a status
                on_begin()
                await responder.start(200, _SSE_HEADERS)
            events = []
            for chunk in batch:
                running.meter.see(chunk)
                chunk["model"] = hop.model.name
                if not call.wants_usage and "usage" in chunk:
                    if not chunk.get("choices"):
                        continue
                    del chunk["usage"]
                has_sent_usage = has_sent_usage or chunk.get("usage") is not None
                last = chunk
                if running.cache_as:
                    chunks.append(chunk)
                events.append(msgspec.json.encode(chunk))
            await responder.events(events)
        if not responder.has_started:
            on_begin()
            await responder.start(200, _SSE_HEADERS)
        tokens = running.meter.tokens()
        if call.wants_usage and not has_sent_usage:
            closing = {**last, "choices": [], "usage": _usage(tokens)}
            await responder.event(msgspec.json.encode(closing))
        note("ok")
        booked = await self._bookings.settle(
            running.booking, tokens, "ok"
        )  # before the end, so that the end means "booked"
        if chunks and is_complete(answer := whole(chunks, hop.model.name, _usage(tokens))):
            await self._keep(running, hop, msgspec.json.encode(answer))
        await responder.comment(_booked_comment(running.booking.cost_nano_usd(tokens), booked))
        await responder.event(b"[DONE]")
        await responder.body(b"", more=False)

    async def _keep(self, running: OpenCall, hop: Hop, answer: bytes) -> None:
        """For the next who asks the same; but not what another model has answered in place of the one that was asked."""
        if hop.model is running.call.model:
            await self._cache.put(running.booking.tenant, running.cache_as, answer)

    async def drain(self) -> None:
        """Wait for bookings under way."""
        await self._bookings.drain()
        await self._once.drain()


def _booked_comment(cost_nano_usd: int, booked: Ok | None) -> str:
    """What a whole answer says in headers, and a stream knows only at its end."""
    position = f" position={booked.position}" if booked is not None else ""
    return f"x-tenantry cost_usd={money(cost_nano_usd)}{position}"


def _usage(tokens: Tokens) -> dict[str, int]:
    return {
        "prompt_tokens": tokens.input_tokens,
        "completion_tokens": tokens.output_tokens,
        "total_tokens": tokens.input_tokens + tokens.output_tokens,
    }
