"""Paid model calls and the tenant's budget: the maximum is reserved before a call, and what it really used is settled once
after it, whether it ends, fails or is left. Where this process dies in between, the tenant's timer does it.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from actors.tools.errors import ToolError
from actors.tools.usage_meter import Tokens, UsageMeter
from events.ask import Asker
from events.envelope import Ok
from events.errors import CommandIdReusedError, CommandRefusedError, PlatformError
from events.failpoints import failpoint
from events.ids import derived_id
from events.tenant import Attempt, Outcome, ReserveCall, Route, SettleCall, Target
from serve.allowance import list_prices
from serve.settings import Model

log = logging.getLogger(__name__)

_TTL_MARGIN_S = 60.0  # a reservation outlives its call's own time-out, so only a dead process's expire
_SETTLE_RETRY_S = 0.5
_SETTLE_WAIT_S = 10.0  # how long an answer waits for its booking; the reservation is durable in any case
NOTHING, UNKNOWN = Tokens(0, 0, "measured"), Tokens(0, 0, "unknown")


class Priced(msgspec.Struct, frozen=True):
    """What a model costs this tenant: per token, and for this call at most."""

    input_nano_usd: int
    output_nano_usd: int
    cost_max_nano_usd: int


class Booking(msgspec.Struct):
    """One call's reservation. ``call_id`` names it: reserving it again while it is open changes nothing. ``settled``
    guards against booking it twice; ``is_repeat``: another process may have made this very call, and settled it.
    """

    tenant: str
    key_id: str
    actor: str
    call_id: str
    correlation_id: str
    model: Model
    input_tokens_max: int
    output_tokens_max: int
    tags: dict[str, str] = {}
    is_repeat: bool = False
    settled: bool = False
    fallbacks: tuple[Target, ...] = ()
    route: Route | None = None
    prices: dict[str, Priced] = {}  # by model, once it is reserved: those that may serve it
    served_by: str = ""  # the model that does, where it is not the one that was asked for
    attempts: tuple[Attempt, ...] = ()

    @property
    def cost_max_nano_usd(self) -> int:
        return self.model.price.cost_nano_usd(self.input_tokens_max, self.output_tokens_max)

    def cost_nano_usd(self, tokens: Tokens) -> int:
        """What the tenant books for these tokens."""
        price = self.prices[self.served_by or self.model.name]
        if tokens.source == "unknown":
            return price.cost_max_nano_usd
        return price.input_nano_usd * tokens.input_tokens + price.output_nano_usd * tokens.output_tokens


OnBooked = Callable[[str, Tokens, int, Outcome], None]  # model, tokens, nano-USD, outcome


def unnoticed(_model: str, _tokens: Tokens, _cost_nano_usd: int, _outcome: Outcome) -> None:
    """For who counts nothing."""


class Bookings:
    """Safe for concurrent use. ``drain`` before the end: it waits for bookings under way."""

    def __init__(
        self, asker: Asker, models: Iterable[Model], call_timeout_s: float, on_booked: OnBooked = unnoticed
    ) -> None:
        self._asker, self._on_booked = asker, on_booked
        self._ttl_us = int((call_timeout_s + _TTL_MARGIN_S) * 1e6)
        self._list_prices = list_prices(models)
        self._settling: set[asyncio.Task[Ok | None]] = set()

    async def reserve(self, booking: Booking) -> Ok:
        """Hold the most that the call can cost.

        Raises:
            CommandRefusedError: Surely not reserved: the budget, a limit, the key, the model.
            PlatformError: It may have been reserved; what was is freed, for no call will be made.
        """
        command = ReserveCall(
            booking.call_id,
            booking.key_id,
            booking.model.name,
            booking.cost_max_nano_usd,
            self._ttl_us,
            booking.input_tokens_max,
            booking.output_tokens_max,
            self._list_prices[booking.model.name],
            booking.tags,
            booking.fallbacks,
            booking.route,
        )
        try:
            reserved = await self._asker.ask(
                booking.tenant,
                command,
                actor=booking.actor,
                command_id=booking.call_id,
                correlation_id=booking.correlation_id,
            )
        except CommandRefusedError:
            raise
        except BaseException:
            self.start_settling(booking, NOTHING, "failed")  # comes after it and frees it
            raise
        booking.prices = _prices(booking, reserved.result)
        return reserved

    async def was_freed(self, booking: Booking) -> bool:
        """Whether whoever reserved this very call before has settled it at nothing: what it held pays for no other call.

        The tenant knows no reservation that is closed, but every command that it has granted. So it is asked, under the id of
        the freeing, for what it must refuse: as a reservation that never was, or as the id of another command.

        Raises:
            PlatformError: That can't be learnt now.
        """
        freeing = _freeing_id(booking)
        command = SettleCall(freeing, 0, 0, 0, "failed", "measured")
        try:
            await self._asker.ask(
                booking.tenant,
                command,
                actor=booking.actor,
                command_id=freeing,
                correlation_id=booking.correlation_id,
            )
        except CommandRefusedError as refusal:
            if refusal.retry_after_s is not None:
                raise
            return refusal.code == CommandIdReusedError.code
        raise AssertionError(f"a reservation {freeing!r} was never made")

    async def settle(self, booking: Booking, tokens: Tokens, outcome: Outcome) -> Ok | None:
        """None: not confirmed within the wait. It goes on in the background, and if all fails the timer books it."""
        task = self.start_settling(booking, tokens, outcome)
        done, _ = await asyncio.wait((task,), timeout=_SETTLE_WAIT_S)
        return task.result() if done else None

    def start_settling(self, booking: Booking, tokens: Tokens, outcome: Outcome) -> "asyncio.Task[Ok | None]":
        """Does not wait: whoever is being cancelled must not."""
        booking.settled = True
        failpoint("gw.before_settle")
        task = asyncio.create_task(self._book(booking, tokens, outcome), name=f"settle-{booking.call_id}")
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        return task

    async def _book(self, booking: Booking, tokens: Tokens, outcome: Outcome) -> Ok | None:
        command = SettleCall(
            booking.call_id,
            tokens.input_tokens,
            tokens.output_tokens,
            booking.cost_nano_usd(tokens) if booking.prices else 0,
            outcome,
            tokens.source,
            booking.served_by,
            booking.attempts,
        )
        command_id = _freeing_id(booking) if tokens is NOTHING else self._asker.new_id()
        gives_up_at = asyncio.get_running_loop().time() + self._ttl_us / 1e6
        while asyncio.get_running_loop().time() < gives_up_at:
            try:
                booked = await self._asker.ask(
                    booking.tenant,
                    command,
                    actor=booking.actor,
                    command_id=command_id,
                    correlation_id=booking.correlation_id,
                )
                self._on_booked(booking.served_by or booking.model.name, tokens, command.cost_nano_usd, outcome)
                return booked
            except CommandRefusedError as refusal:
                if refusal.retry_after_s is None:
                    level = logging.INFO if tokens is NOTHING or booking.is_repeat else logging.ERROR
                    log.log(level, "call.settle_refused call=%s: %s", booking.call_id, refusal)
                    return None
            except PlatformError as error:
                log.warning("call.settle_retried call=%s: %s", booking.call_id, error)
            await asyncio.sleep(_SETTLE_RETRY_S)  # back-off; only asking again tells
        log.error("call.settle_gave_up call=%s: the tenant's timer books it", booking.call_id)
        return None

    async def drain(self) -> None:
        """Wait for bookings under way."""
        if self._settling:
            await asyncio.wait(self._settling, timeout=_SETTLE_WAIT_S)


def _freeing_id(booking: Booking) -> str:
    """Of the command that settles it at nothing; see ``was_freed``."""
    return derived_id(booking.tenant, booking.call_id, "freed")


def _prices(booking: Booking, reserved: dict[str, Any]) -> dict[str, Priced]:
    """Of all models that may serve it, as the tenant answered."""
    if targets := reserved.get("targets"):
        return {model: Priced(*figures) for model, figures in targets.items()}
    input_price, output_price = reserved.get("price", booking.model.price.nano_usd_per_token)[:2]
    most = input_price * booking.input_tokens_max + output_price * booking.output_tokens_max
    return {booking.model.name: Priced(input_price, output_price, most)}


def used_when_failed(meter: UsageMeter, error: ToolError) -> Tokens:
    """What to settle for a call that has failed: what had come, nothing, or nobody knows."""
    if meter.has_begun:
        return meter.tokens()
    return UNKNOWN if error.may_have_happened else NOTHING


def used_when_left(meter: UsageMeter) -> Tokens:
    """What to settle for a call that is cut off from this side."""
    return meter.tokens() if meter.has_begun else UNKNOWN
