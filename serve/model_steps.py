"""Steps of kind ``model``: each attempt is one paid call, reserved and settled as the gateway's are, whose text can be
watched while it is written.

An attempt that is carried out again, because its runner died, is still the same call: same reservation, same
``Idempotency-Key`` for the model's server. So the tenant pays once, and so does the operator where that server keeps to the
key; where it does not, the operator pays for the server's second answer. Where the first one failed and cost nothing, its
reservation is gone, and the second has one of its own.
"""

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

import msgspec

from actors.policies.refusals import PolicyRefusal
from actors.run.agent import AGENT
from actors.run.functions import StepFailure
from actors.run.runner import Ciphers, Done
from actors.run.spending import spend
from actors.tools.errors import ToolError
from actors.tools.model import Assembled, ModelClient
from actors.tools.usage_meter import Tokens, UsageMeter
from events.deltas import Delta, Deltas
from events.errors import CommandIdReusedError, CommandRefusedError, PlatformError
from events.ids import derived_id
from events.run import Used
from events.sealing import Cipher
from events.tenant import Outcome
from events.work import WorkItem
from serve.agent_turns import AgentTurns
from serve.allowance import list_prices
from serve.booking import NOTHING, Booking, Bookings, used_when_failed, used_when_left
from serve.chat_request import Call, parse_chat
from serve.http_errors import HttpError
from serve.routing import Hop, Routing, may_go_elsewhere
from serve.settings import Model

log = logging.getLogger(__name__)

_canonical = msgspec.json.Encoder(order="deterministic")
_TELL_PERIOD_S = 0.05  # a delta per token would cost the broker more than it gives the reader


class ModelSteps:
    """A declared step's arguments are those of a chat completion but for the model, or a text alone; its result is
    ``{message, finish_reason, usage}``. An agent's turn is asked from its history and returns an ``agent.Turn``.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        bookings: Bookings,
        client: ModelClient,
        routing: Routing,
        turns: AgentTurns,
        deltas: Deltas,
        ciphers: Ciphers,
    ) -> None:
        self._models, self._bookings, self._client, self._routing = dict(models), bookings, client, routing
        self._list_prices = list_prices(models.values())
        self._turns, self._deltas, self._ciphers = turns, deltas, ciphers

    async def __call__(self, item: WorkItem, args: Any) -> Done:
        """
        Raises:
            StepFailure: The request, the tenant's budget, a limit; nothing was called.
            ToolError, PolicyRefusal: Of the model's server, the last one where several were tried.
        """
        is_agent = item.saga == AGENT
        given, left = await self._turns.request(item, args["turn"]) if is_agent else (_given(args), None)
        choice, used = await self._paid(item, given, left)
        message, reason = choice.get("message") or {}, str(choice.get("finish_reason") or "")
        if is_agent:
            return Done(await self._turns.turn(item.tenant, message, reason), used)
        usage = {"prompt_tokens": used.input_tokens, "completion_tokens": used.output_tokens}
        return Done({"message": message, "finish_reason": reason, "usage": usage}, used)

    async def _paid(
        self, item: WorkItem, given: dict[str, Any], left: int | None, tried: frozenset[str] = frozenset()
    ) -> tuple[dict[str, Any], Used]:
        """The answer of the first upstream that has one, in chat's order, without those that were ``tried``. ``left``: what it may
        cost, in nano-USD.
        """
        call, booking = await self._reserved(item, given, left, len(tried))
        hops, trying = self._hops(call, booking, left, tried), _Try(item, call, booking, UsageMeter(call.input_bytes))
        try:
            choice = await self._written_by_one(trying, hops)
            used = await self._settle(booking, trying.meter.tokens(), "ok")
        except (ToolError, PolicyRefusal) as error:
            used = await self._settle(booking, _used_by(trying.meter, error), "failed")
            if trying.meter.has_begun or not hops or not may_go_elsewhere(error):
                raise
            known = frozenset(hop.name for hop in self._routing.plan(call).hops)
            return await self._paid_elsewhere(error, used, item, given, left, known - {hop.name for hop in hops})
        finally:
            if not booking.settled:  # its time is over, or the runner is being stopped
                tokens = trying.used_when_left()
                _count(booking, tokens)
                self._bookings.start_settling(booking, tokens, "cancelled")
        return choice, used

    async def _settle(self, booking: Booking, tokens: Tokens, outcome: Outcome) -> Used:
        used = _count(booking, tokens)
        await self._bookings.settle(booking, tokens, outcome)
        return used

    async def _paid_elsewhere(
        self,
        error: ToolError | PolicyRefusal,
        before: Used,
        item: WorkItem,
        given: dict[str, Any],
        left: int | None,
        tried: frozenset[str],
    ) -> tuple[dict[str, Any], Used]:
        """A try that has failed may cost all the same: it is booked by itself, and the next one has a reservation of its own. Raises
        the ``error`` where there is no budget for that.
        """
        cost = before.cost_nano_usd
        try:
            choice, used = await self._paid(item, given, None if left is None else left - cost, tried)
        except StepFailure as refusal:
            raise error from refusal
        return choice, msgspec.structs.replace(used, cost_nano_usd=used.cost_nano_usd + cost)

    async def _written_by_one(self, trying: "_Try", hops: deque[Hop]) -> dict[str, Any]:
        """By the first that takes it; those that were tried are taken off. Raises what the last one raised, or the first one that may
        cost although it failed.
        """
        item, booking = trying.item, trying.booking
        while True:
            hop = hops.popleft()
            booking.served_by = "" if hop.model is trying.call.model else hop.model.name
            try:
                return await self._written(trying, hop)
            except (ToolError, PolicyRefusal) as error:
                if not hops or _used_by(trying.meter, error) is not NOTHING or not may_go_elsewhere(error):
                    raise
                trying.is_out = False
                log.info("model_step.next_upstream run=%s step=%s: %s", item.run_id, item.order.step, error)

    def _hops(self, call: Call, booking: Booking, left: int | None, tried: frozenset[str]) -> deque[Hop]:
        """Those that the key may call and what is left can pay."""
        found = deque(
            hop
            for hop in self._routing.plan(call).hops
            if hop.name not in tried
            and (priced := booking.prices.get(hop.model.name)) is not None
            and (left is None or priced.cost_max_nano_usd <= left)
        )
        if not found:
            self._bookings.start_settling(booking, NOTHING, "failed")
            raise StepFailure("cost_limit", "what is left of the run's limit pays for none of the model's upstreams")
        return found

    async def _reserved(
        self, item: WorkItem, given: dict[str, Any], left: int | None, tried: int
    ) -> tuple[Call, Booking]:
        """The call as it may be made, and its reservation. Where a run has a ceiling, the answer is made so short that the call costs
        no more than is ``left``: by the list price, and where the tenant has another, by that.
        """
        call = self._parsed(item, given)
        if left is None:
            return call, await self._open(await self._reserve(item, call, str(tried)))
        prices = call.model.price.nano_usd_per_token
        for by in ("list", "tenant"):
            call = self._parsed(item, {**given, "max_tokens": _affordable(call, prices, left)})
            booking = await self._reserve(item, call, f"{tried}.{by}")
            own = booking.prices[call.model.name]
            if own.cost_max_nano_usd <= left:
                return call, await self._open(booking)
            await self._bookings.settle(booking, NOTHING, "failed")
            prices = (own.input_nano_usd, own.output_nano_usd)
        raise StepFailure("cost_limit", "the model's price has changed while the call was prepared", retryable=True)

    def _parsed(self, item: WorkItem, given: dict[str, Any]) -> Call:
        """As strict as the gateway: what is reserved has to be the most that the call can cost."""
        try:
            return parse_chat(msgspec.json.encode({**given, "model": item.order.target, "stream": True}), self._models)
        except HttpError as error:
            raise StepFailure(error.code, error.message) from error

    async def _reserve(self, item: WorkItem, call: Call, number: str) -> Booking:
        """``number`` tells reservations of one attempt apart; the attempt carried out again makes the same ones."""
        parts = () if number == "0" else (number,)
        booking = Booking(
            item.tenant,
            item.key_id,
            f"run:{item.run_id}",
            derived_id(item.tenant, item.idempotency_key, str(item.attempt), *parts),
            item.run_id,
            call.model,
            call.input_tokens_max,
            call.output_tokens_max,
            {**call.tags, **item.tags},
            is_repeat=item.again,
            fallbacks=tuple(call.target(model, self._list_prices[model.name]) for model in call.fallbacks),
        )
        with _refusal_as_failure():
            await self._bookings.reserve(booking)
        return booking

    async def _open(self, booking: Booking) -> Booking:
        """One that pays for the call: where a runner that died has freed this one after its call had failed, another in its place,
        for which budget, limits and suspension are asked again.
        """
        with _refusal_as_failure():
            while booking.is_repeat and await self._bookings.was_freed(booking):
                call_id = derived_id(booking.tenant, booking.call_id, "again")
                booking = msgspec.structs.replace(booking, call_id=call_id, prices={})
                await self._bookings.reserve(booking)
        return booking

    async def _written(self, trying: "_Try", hop: Hop) -> dict[str, Any]:
        """The completion's one choice, told as it comes."""
        item, call, meter, assembled = trying.item, trying.call, trying.meter, Assembled()
        telling = _Telling(self._deltas, item, await self._ciphers.cipher(item.tenant))
        try:
            async with self._routing.attempt(hop, item.tenant) as begun:
                trying.is_out = True
                body = call.body_for(hop.model)
                stream = self._client.stream(hop.upstream, body, idempotency_key=_key_at(hop, item, body))
                async with aclosing(stream) as chunks:
                    async for chunk in chunks:
                        if not meter.has_begun:
                            begun()
                        meter.see(chunk)
                        assembled.add(chunk)
                        telling.add(_text_of(chunk))
        finally:
            await telling.close()
        choices = assembled.choices()
        return choices[0] if choices else {"message": {"role": "assistant", "content": ""}}


class _Try(msgspec.Struct):
    """A reserved call on its way. ``is_out``: an upstream may have it."""

    item: WorkItem
    call: Call
    booking: Booking
    meter: UsageMeter
    is_out: bool = False

    def used_when_left(self) -> Tokens:
        """Of a repeat nobody knows: the call of the runner that died may have reached an upstream."""
        return used_when_left(self.meter) if self.is_out or self.booking.is_repeat else NOTHING


class _Telling:
    """Hands out what is being written, a few times a second. Where the broker can't take it, nobody watches: the step goes on."""

    def __init__(self, deltas: Deltas, item: WorkItem, cipher: Cipher) -> None:
        self._deltas, self._item, self._cipher = deltas, item, cipher
        self._call = deltas.new_call()
        self._text, self._offset = "", 0
        self._has_more, self._is_closing = asyncio.Event(), False
        self._task = asyncio.create_task(self._tell(), name=f"deltas-{item.order.step}")

    def add(self, text: str) -> None:
        if text:
            self._text += text
            self._has_more.set()

    async def close(self) -> None:
        """Returns when all of it can be read."""
        self._is_closing = True
        self._has_more.set()
        await asyncio.wait((self._task,))

    async def _tell(self) -> None:
        order, item = self._item.order, self._item
        while not (self._is_closing and not self._text):
            await self._has_more.wait()
            self._has_more.clear()
            text, self._text = self._text, ""
            if not text:
                continue
            try:
                delta = Delta(order.step, item.attempt, self._call, self._offset, text)
                await self._deltas.put(item.tenant, item.run_id, delta, self._cipher)
            except PlatformError as error:
                log.warning("deltas.lost run=%s step=%s: %s", item.run_id, order.step, error)
                return
            self._offset += len(text)
            if not self._is_closing:
                await asyncio.sleep(_TELL_PERIOD_S)  # gathers the next delta
                self._has_more.set()


@contextmanager
def _refusal_as_failure() -> Iterator[None]:
    try:
        yield
    except CommandRefusedError as refusal:
        retry_after_s = refusal.retry_after_s
        # the first try of this attempt asked otherwise (another price list, say): the next attempt is a call of its own
        retryable = retry_after_s is not None or refusal.code == CommandIdReusedError.code
        raise StepFailure(
            refusal.code, str(refusal), retryable=retryable, retry_after_s=retry_after_s or 0.0
        ) from refusal


def _given(args: Any) -> dict[str, Any]:
    if isinstance(args, str):
        return {"messages": [{"role": "user", "content": args}]}
    if not isinstance(args, dict):
        raise StepFailure("invalid_request", f"a model step takes a text or an object, got {type(args).__name__}")
    if args.get("n") not in (None, 1):
        raise StepFailure("invalid_request", "a model step has one answer: leave out n")
    return args


def _text_of(chunk: dict[str, Any]) -> str:
    choices = chunk.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    delta = first.get("delta") if isinstance(first, dict) else None
    content = delta.get("content") if isinstance(delta, dict) else None
    return content if isinstance(content, str) else ""


def _count(booking: Booking, tokens: Tokens) -> Used:
    """What its run is told that it costs, whatever becomes of the step."""
    used = Used(booking.cost_nano_usd(tokens), tokens.input_tokens, tokens.output_tokens)
    spend(used)
    return used


def _key_at(hop: Hop, item: WorkItem, body: dict[str, Any]) -> str:
    """The Idempotency-Key for one upstream and one body: the next attempt may have to ask for a shorter answer, and a server
    that keeps to its keys refuses one that comes with another body.
    """
    digest = hashlib.sha256(f"{item.idempotency_key}/{hop.name}/{hop.upstream.model}/".encode())
    digest.update(_canonical.encode(body))
    return digest.hexdigest()


def _used_by(meter: UsageMeter, error: ToolError | PolicyRefusal) -> Tokens:
    return NOTHING if isinstance(error, PolicyRefusal) else used_when_failed(meter, error)


def _affordable(call: Call, prices: tuple[int, int], left: int) -> int:
    """How many tokens the answer may have. Raises StepFailure where there is not enough for one."""
    input_price, output_price = prices
    for_output = left - input_price * call.input_tokens_max
    tokens = min(call.output_tokens_max, for_output // output_price if output_price else call.output_tokens_max)
    if for_output < 0 or tokens < 1:
        raise StepFailure(
            "cost_limit", f"{max(0, left)} nano-USD are left of the run's limit, too few for another turn"
        )
    return tokens
