"""Steps of kind ``model``: each attempt is one paid call, reserved and settled as the gateway's are, whose text can be
watched while it is written.

An attempt that is carried out again, because its runner died, is still the same call: same reservation, same
``Idempotency-Key`` for the model's server. So the tenant pays once, and so does the operator where that server keeps to the
key; where it does not, the operator pays for the server's second answer.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

import msgspec

from actors.policies.refusals import PolicyRefusal
from actors.run.agent import AGENT
from actors.run.functions import StepFailure
from actors.run.runner import Ciphers, Done
from actors.tools.errors import ToolError
from actors.tools.model import Assembled, ModelClient
from actors.tools.usage_meter import Tokens, UsageMeter
from events.deltas import Delta, Deltas
from events.envelope import Ok
from events.errors import CommandIdReusedError, CommandRefusedError, PlatformError
from events.ids import derived_id
from events.run import Used
from events.sealing import Cipher
from events.tenant import TokenPrice
from events.work import WorkItem
from serve.agent_turns import AgentTurns
from serve.booking import NOTHING, Booking, Bookings, used_when_failed, used_when_left
from serve.chat_request import Call, parse_chat
from serve.http_errors import HttpError
from serve.routing import Routing
from serve.settings import Model

log = logging.getLogger(__name__)

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
        self._turns, self._deltas, self._ciphers = turns, deltas, ciphers

    async def __call__(self, item: WorkItem, args: Any) -> Done:
        """
        Raises:
            StepFailure: The request, the tenant's budget, a limit; nothing was called.
            ToolError, PolicyRefusal: Of the model's server.
        """
        is_agent = item.saga == AGENT
        given = await self._turns.request(item, args["turn"]) if is_agent else _given(args)
        call = self._parsed(item, given)
        choice, used = await self._paid(item, call)
        message, reason = choice.get("message") or {}, str(choice.get("finish_reason") or "")
        if is_agent:
            return Done(await self._turns.turn(item.tenant, message, reason), used)
        usage = {"prompt_tokens": used.input_tokens, "completion_tokens": used.output_tokens}
        return Done({"message": message, "finish_reason": reason, "usage": usage}, used)

    def _parsed(self, item: WorkItem, given: dict[str, Any]) -> Call:
        """As strict as the gateway: what is reserved has to be the most that the call can cost."""
        try:
            return parse_chat(msgspec.json.encode({**given, "model": item.order.target, "stream": True}), self._models)
        except HttpError as error:
            raise StepFailure(error.code, error.message) from error

    async def _paid(self, item: WorkItem, call: Call) -> tuple[dict[str, Any], Used]:
        booking = Booking(
            item.tenant,
            item.key_id,
            f"run:{item.run_id}",
            derived_id(item.tenant, item.idempotency_key, str(item.attempt)),
            item.run_id,
            call.model,
            call.input_tokens_max,
            call.output_tokens_max,
            {**call.tags, **item.tags},
            is_repeat=item.again,
        )
        reserved = await self._reserve(booking)
        meter = UsageMeter(call.input_bytes)
        try:
            choice = await self._written(item, call, meter)
            await self._bookings.settle(booking, meter.tokens(), "ok")
        except ToolError as error:
            tokens = used_when_failed(meter, error)
            await self._bookings.settle(booking, tokens, "failed")
            error.cost_nano_usd = _used(booking, reserved, tokens).cost_nano_usd
            raise
        except PolicyRefusal:
            await self._bookings.settle(booking, NOTHING, "failed")
            raise
        finally:
            if not booking.settled:  # its time is over, or the runner is being stopped
                self._bookings.start_settling(booking, used_when_left(meter), "cancelled")
        return choice, _used(booking, reserved, meter.tokens())

    async def _reserve(self, booking: Booking) -> Ok:
        try:
            return await self._bookings.reserve(booking)
        except CommandRefusedError as refusal:
            retry_after_s = refusal.retry_after_s
            # the first try of this attempt asked otherwise (another price list, say): the next attempt is a call of its own
            retryable = retry_after_s is not None or refusal.code == CommandIdReusedError.code
            raise StepFailure(
                refusal.code, str(refusal), retryable=retryable, retry_after_s=retry_after_s or 0.0
            ) from refusal

    async def _written(self, item: WorkItem, call: Call, meter: UsageMeter) -> dict[str, Any]:
        """The completion's one choice, told as it comes, from the upstream whose turn it is: the run itself tries again."""
        hop, assembled = self._routing.plan(call).hops[0], Assembled()
        telling = _Telling(self._deltas, item, await self._ciphers.cipher(item.tenant))
        try:
            async with self._routing.attempt(hop, item.tenant) as begun:
                stream = self._client.stream(hop.upstream, call.body, idempotency_key=item.idempotency_key)
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


def _used(booking: Booking, reserved: Ok, tokens: Tokens) -> Used:
    """At the price that the tenant reserved it at."""
    price = TokenPrice(*reserved.result["price"])
    if tokens.source == "unknown":
        return Used(price.cost_nano_usd(booking.input_tokens_max, booking.output_tokens_max))
    cost = price.cost_nano_usd(tokens.input_tokens, tokens.output_tokens)
    return Used(cost, tokens.input_tokens, tokens.output_tokens)
