"""One attempt to have commands decided, in order. Who relays a queue needs to know what an attempt came to: answered, or
surely not heard, or lost with whoever was to decide it. (``Asker`` tries until it can tell its caller an outcome.)
"""

import asyncio
import contextlib
from collections.abc import Sequence

import msgspec

from events.bus import ACTIVATE, Bus, NoOneListensError, ask_subject
from events.envelope import Batch, Refused, Reply, decode_replies, decode_reply, encode
from events.errors import BusUnavailableError, NotServedError, OverloadedError, PlatformError
from events.unserved import decode_unserved

_ACTIVATION_TIMEOUT_S = 9.0
_LOOK_EVERY_S = 1.0


class LostError(PlatformError):
    """Whoever was to decide the commands is gone, or has not answered at all in a long time."""

    code = "unanswered"
    retryable = True

    def __init__(self, tenant: str, detail: str) -> None:
        super().__init__(tenant, detail)
        self.tenant, self.detail = tenant, detail

    def __str__(self) -> str:
        return f"tenant {self.tenant!r}: {self.detail}"


class Courier:
    def __init__(self, bus: Bus, patience_s: float = 60.0) -> None:
        """``patience_s``: an owner that is there but answers nothing for this long is taken for stuck."""
        self._bus, self._patience_s = bus, patience_s

    async def deliver(self, tenant: str, envelopes: Sequence[bytes]) -> list[Reply]:
        """Replies in the order of the envelopes, after what they say is durable.

        Raises:
            NotServedError, BusUnavailableError: Surely not decided.
            LostError: Delivered, and no answer will come: the owner has ended meanwhile, or is stuck.
        """
        try:
            return await self._ask(tenant, envelopes)
        except NoOneListensError:
            await self._activate(tenant)
        try:
            return await self._ask(tenant, envelopes)
        except NoOneListensError as error:
            raise NotServedError(tenant, "it left again at once") from error

    async def _ask(self, tenant: str, envelopes: Sequence[bytes]) -> list[Reply]:
        data = encode(Batch(list(envelopes)))
        asked = asyncio.create_task(self._bus.request(ask_subject(tenant), data, self._patience_s))
        try:
            while True:
                done, _ = await asyncio.wait([asked], timeout=_LOOK_EVERY_S)
                if done:
                    return _replies(tenant, len(envelopes), await asked)
                if detail := await self._lost(tenant):
                    if asked.done():  # it was answered while we looked
                        continue
                    raise LostError(tenant, detail)
        except TimeoutError as error:
            raise LostError(tenant, f"its owner has not answered for {self._patience_s:g} s") from error
        finally:
            asked.cancel()

    async def _lost(self, tenant: str) -> str:
        """Mailboxes answer in turn: where something sent later is answered, what was sent before it never will be."""
        try:
            answer = decode_reply(await self._bus.request(ask_subject(tenant), b"", _LOOK_EVERY_S))
        except NoOneListensError:
            return "its owner ended before it answered"
        except TimeoutError:
            await self._report(tenant)
            return ""
        except BusUnavailableError:
            return ""
        if isinstance(answer, Refused) and answer.code == OverloadedError.code:
            return ""  # its mailbox is full: this never stood in line
        return "its owner ended before it answered, and another one serves it now"

    async def _report(self, tenant: str) -> None:
        """Somebody is subscribed and does not answer: busy, or stopped, and then nobody else would tell the supervisor."""
        with contextlib.suppress(NoOneListensError, TimeoutError, BusUnavailableError):  # asked again a moment later
            await self._bus.request(ACTIVATE, tenant.encode(), _LOOK_EVERY_S)

    async def _activate(self, tenant: str) -> None:
        try:
            answer = await self._bus.request(ACTIVATE, tenant.encode(), _ACTIVATION_TIMEOUT_S)
        except (NoOneListensError, TimeoutError) as error:
            raise NotServedError(tenant, "nobody could activate it") from error
        if problem := decode_unserved(answer):
            raise NotServedError(tenant, problem.message)


def _replies(tenant: str, count: int, data: bytes) -> list[Reply]:
    try:
        replies = decode_replies(data)
    except msgspec.DecodeError as error:
        raise NotServedError(tenant, "its owner does not know batches: it runs another release") from error
    assert len(replies) == count, (tenant, count, len(replies))
    return replies
