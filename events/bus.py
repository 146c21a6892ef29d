"""NATS, with what nats-py 2.16 needs around it to be trusted.

Subjects: ``ask.t.<tenant>`` (commands, request/reply), ``tell.…`` and ``dead.…`` (durable: ``events.inbox``), ``work.…``
(durable: ``events.work``), ``supervisor.>`` and ``shards.load`` (below, and in ``actors.supervision``),
``live.<tenant>.<kind>`` and ``delta.…`` (hints, best effort), ``keys.revoked``. Tenant ids are checked before they get
here, so none can hold a wildcard.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Self

from nats.errors import Error as NatsError
from nats.js import JetStreamContext

from events.errors import BusUnavailableError
from events.nats_client import DirectClient, Handler, NoOneListensError, Subscription

__all__ = ["Bus", "Handler", "NoOneListensError", "Subscription"]

log = logging.getLogger(__name__)

ACTIVATE = "supervisor.activate"  # a tenant's id: have it served; answered as in ``events.unserved``
PREPARE = "supervisor.prepare"  # a tenant's id: start the actor that it belongs to; answered likewise
CRASHED = "supervisor.crashed"  # by a shard, MessagePack [tenant, why]: its activation ended by a defect
RELEASED = "supervisor.released"  # by an operator, a tenant's id: its quarantine is over
VACANT = "supervisor.vacant"  # by a silo, its name: it has lost its tenant
LOAD = "shards.load"  # to all that host tenants, empty: what have you to do at the moment
KEYS_REVOKED = "keys.revoked"  # MessagePack [tenant, key id, or "" for all of its keys]: forget what you know of them
# Deaf or half-open is noticed within 2 x (2 + 5) s, and a server that is merely slow is not taken for that.
WATCHDOG_PERIOD_S, _WATCHDOG_ANSWER_S = 2.0, 5
_WATCHDOG_MISSES = 2
_CONNECT_TIMEOUT_S = 5.0
_JETSTREAM_TIMEOUT_S = 5.0


def ask_subject(tenant: str) -> str:
    return f"ask.t.{tenant}"


def live_subject(tenant: str, kind: str) -> str:
    return f"live.{tenant}.{kind}"


class Bus:
    """One connection. Reconnects for ever; ``on_lost`` is called when it looks connected but answers no more."""

    def __init__(self, client: DirectClient, on_lost: Callable[[], None]) -> None:
        self._client = client
        self._on_lost = on_lost
        self._closing = False
        self._watchdog = asyncio.create_task(self._watch(), name="bus-watchdog")

    @classmethod
    async def connect(cls, url: str, name: str, on_lost: Callable[[], None]) -> Self:
        """Raises BusUnavailableError where no server answers within five seconds."""

        async def report(error: Exception) -> None:
            # awaited inline by nats-py's read loop: an exception here would kill the loop
            log.warning("bus.error name=%s error=%r", name, error)

        async def closed() -> None:
            if bus is not None and not bus._closing:  # for good, after an error that nats-py does not reconnect from
                log.error("bus.closed name=%s", name)
                bus._on_lost()

        bus: Self | None = None
        client = DirectClient()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):  # nats-py itself would try for ever, as asked to later on
                await client.connect(
                    url,
                    name=name,
                    error_cb=report,
                    closed_cb=closed,
                    connect_timeout=5,
                    allow_reconnect=True,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.2,  # type: ignore[arg-type]  # seconds to sleep, whatever it says
                    ping_interval=5,
                    max_outstanding_pings=2,
                )
        except (NatsError, OSError, TimeoutError) as error:
            detail = str(error) or "no answer, or a wrong password"
            raise BusUnavailableError(f"NATS at {_without_password(url)}: {detail}") from error
        bus = cls(client, on_lost)
        return bus

    async def _watch(self) -> None:
        """An unexpected exception ends nats-py's read loop without a reconnect: the client stays "connected" and deaf."""
        misses = 0
        while misses < _WATCHDOG_MISSES:
            await asyncio.sleep(WATCHDOG_PERIOD_S)  # the watchdog's own beat
            if not self._client.is_connected:  # nats-py knows and is reconnecting
                misses = 0
                continue
            try:
                await self._client.rtt(timeout=_WATCHDOG_ANSWER_S)
                misses = 0
            except (NatsError, TimeoutError) as error:
                misses += 1
                log.warning("bus.deaf misses=%s error=%r", misses, error)
        self._on_lost()

    @property
    def is_connected(self) -> bool:
        return self._client.is_connected

    @property
    def client(self) -> DirectClient:
        """For what reads streams (``events.pull``)."""
        return self._client

    def jetstream(self) -> JetStreamContext:
        """Durable streams; ``events.inbox`` puts the platform's errors around it."""
        return self._client.jetstream(timeout=_JETSTREAM_TIMEOUT_S)

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """
        Raises:
            NoOneListensError: At once, where nobody is subscribed.
            TimeoutError: Nobody answered in time; whether the request was handled is unknown.
            BusUnavailableError: It could not be sent.
        """
        try:
            return await self._client.ask(subject, data, timeout_s)
        except TimeoutError:  # it is an OSError, too
            raise
        except (NatsError, OSError) as error:
            raise BusUnavailableError(f"{type(error).__name__}: {error}") from error

    def publish(self, subject: str, data: bytes) -> None:
        """Best effort: a success says that the bytes are on their way, not that anybody got them.

        Raises:
            BusUnavailableError: They could not even be buffered.
        """
        try:
            self._client.post(subject, data)
        except (NatsError, OSError) as error:
            raise BusUnavailableError(f"{type(error).__name__}: {error}") from error

    async def gather(self, subject: str, silence_s: float, timeout_s: float) -> list[bytes]:
        """What all answer that listen there: it ends when nobody has answered for ``silence_s``, or at the time-out.

        Raises:
            BusUnavailableError: It could not be asked.
        """
        answers: list[bytes] = []
        came = asyncio.Event()

        def take(data: bytes, _reply_to: str) -> None:
            answers.append(data)
            came.set()

        inbox = self._client.new_inbox()
        subscription = await self.subscribe(inbox, take)
        try:
            self._client.post(subject, b"", inbox)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    while True:
                        await asyncio.wait_for(came.wait(), silence_s)
                        came.clear()
        except (NatsError, OSError) as error:
            raise BusUnavailableError(f"{type(error).__name__}: {error}") from error
        finally:
            await unsubscribe(subscription)
        return [answer for answer in answers if answer]  # "nobody listens" is an empty one

    async def subscribe(self, subject: str, handler: Handler) -> Subscription:
        """Call ``handler`` for every message, in order of arrival. It must not block; what it raises is logged."""
        try:
            subscription = self._client.listen(subject, handler)
        except (NatsError, OSError) as error:
            raise BusUnavailableError(f"{type(error).__name__}: {error}") from error
        try:
            await self._client.flush()  # only now does the server know of it
        except (NatsError, OSError) as error:
            await unsubscribe(subscription)  # or it would come alive at the next reconnect, with nobody behind it
            raise BusUnavailableError(f"{type(error).__name__}: {error}") from error
        return subscription

    async def reaches_server(self, timeout_s: float) -> bool:
        """Whether the server answers us: if so, all that was published before has reached it."""
        try:
            await self._client.flush(timeout=timeout_s)  # type: ignore[arg-type] # a float does
        except (NatsError, OSError, TimeoutError):
            return False
        return self._client.is_connected

    async def close(self) -> None:
        self._closing = True
        self._watchdog.cancel()
        with contextlib.suppress(NatsError, OSError, TimeoutError):  # leaving anyway
            if self._client.is_connected:
                await self._client.flush(timeout=2)
            await self._client.close()


async def unsubscribe(subscription: Subscription) -> None:
    """Nothing is delivered after this returns; what was delivered meanwhile was handled. Leaving can only fail where
    the connection is gone, and then nobody listens there any more.
    """
    with contextlib.suppress(NatsError, OSError, TimeoutError):
        await subscription.unsubscribe()


def _without_password(url: str) -> str:
    return url.rsplit("@", 1)[-1]
