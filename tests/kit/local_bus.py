"""A bus within one loop, and a store that can be held up: a tenant asked as over NATS, with every answer's time in the
test's hand.
"""

import asyncio
from collections.abc import Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from actors.activation import Activation
from actors.batches import Batches
from actors.commit import Committer
from actors.effects import Effects
from actors.fairness import Share
from events.bus import Bus, Handler, NoOneListensError
from events.clock import SystemClock
from events.envelope import Envelope, Reply, decode_reply, encode
from events.memory_store import MemoryEventStore
from events.messages import Command
from events.store import Append, AppendOutcome
from tests.kit.servers import keys_in_memory

TENANT = "acme"
_DAY_US = 86_400_000_000


def envelope(command: Command, command_id: str, *, lasts_us: int = _DAY_US) -> bytes:
    deadline_us = SystemClock().now_us() + lasts_us
    return encode(Envelope(command_id, TENANT, "test", deadline_us, "", "", msgspec.Raw(encode(command))))


class LocalBus:
    """Subscriptions are called at once. ``asked``: subjects of all requests."""

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {}
        self.asked: list[str] = []
        self._answers: dict[str, asyncio.Future[bytes]] = {}
        self._inboxes = count(1)

    @property
    def as_bus(self) -> Bus:
        return cast("Bus", self)

    async def subscribe(self, subject: str, handler: Handler) -> Any:
        self.handlers[subject] = handler

        async def leave() -> None:
            self.handlers.pop(subject, None)

        return SimpleNamespace(unsubscribe=leave)

    def publish(self, subject: str, data: bytes) -> None:
        waiting = self._answers.get(subject)
        if waiting is not None and not waiting.done():
            waiting.set_result(data)

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        self.asked.append(subject)
        if subject not in self.handlers:
            raise NoOneListensError
        inbox = f"inbox-{next(self._inboxes)}"
        self._answers[inbox] = asyncio.get_running_loop().create_future()
        self.handlers[subject](data, inbox)
        async with asyncio.timeout(timeout_s):
            return await self._answers[inbox]


class HeldStore(MemoryEventStore):
    """While it ``is_held`` an append sets ``appending`` and waits until it is let through. ``lost``: what the next ones
    answer although they are done.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_held, self.appending = False, asyncio.Event()
        self._let = asyncio.Semaphore(0)
        self.lost: list[Exception] = []

    def let_one(self) -> None:
        self.appending.clear()
        self._let.release()

    async def append_many(self, requests: Sequence[Append]) -> list[AppendOutcome]:
        if self.is_held:
            self.appending.set()
            await self._let.acquire()
        outcomes = await super().append_many(requests)
        return [self.lost.pop()] * len(requests) if self.lost else outcomes


class Owner:
    """The tenant, activated over the store and listening on the bus."""

    def __init__(self, bus: LocalBus, store: MemoryEventStore, effects: Effects | None = None) -> None:
        self._bus, self._replies = bus, dict[str, Reply]()
        self.batches = Batches(self._respond)
        self.activation = Activation(
            TENANT,
            store,
            Committer(store),
            Share(),
            SystemClock(),
            self.batches.respond,
            lambda _: None,
            "pool",
            lambda _: None,
            keys_in_memory(),
            effects,
        )

    async def start(self) -> None:
        await self.activation.start()
        self._bus.handlers[f"ask.t.{TENANT}"] = self.batches.unpack(self.activation.deliver)

    def _respond(self, reply_to: str, data: bytes) -> None:
        if reply_to.startswith("inbox-"):
            self._bus.publish(reply_to, data)
        else:
            self._replies[reply_to] = decode_reply(data)

    async def do(self, command: Command, command_id: str) -> Reply:
        """Delivered, and waited for."""
        self.activation.deliver(envelope(command, command_id), command_id)
        await self.activation.drain()
        return self._replies[command_id]
