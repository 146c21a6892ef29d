"""Which gateway replicas listen where. Each says so every few seconds; one that has died is forgotten soon after."""

import asyncio
import logging
import uuid
from collections.abc import Callable
from contextlib import suppress

import msgspec
from redis.exceptions import RedisError

from events.errors import PlatformError
from events.valkey_client import Client, execute, translate
from serve.asgi import App
from serve.listener import Listener
from serve.settings import Settings

log = logging.getLogger(__name__)

_KEY = "tenantry:gateways"
BEAT_S = 3.0
FORGOTTEN_AFTER_S = 10


class Door(msgspec.Struct, frozen=True):
    """``url`` has no path: a load balancer's server, or what a client's base URL begins with."""

    replica: str
    url: str


class Doors:
    """The list, in the read side's Valkey. Raises StoreUnavailableError where that is away."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def announce(self, door: Door) -> None:
        await self._call("HSETEX", _KEY, "EX", FORGOTTEN_AFTER_S, "FIELDS", 1, door.replica, door.url)

    async def withdraw(self, replica: str) -> None:
        await self._call("HDEL", _KEY, replica)

    async def all(self) -> list[Door]:
        rows = await self._call("HGETALL", _KEY)
        return sorted((Door(key.decode(), url.decode()) for key, url in rows.items()), key=lambda door: door.url)

    async def close(self) -> None:
        await self._client.aclose()

    async def _call(self, *args: object) -> dict[bytes, bytes]:
        try:
            answer: dict[bytes, bytes] = await execute(self._client, *args)
            return answer
        except (RedisError, OSError) as error:
            raise translate(error, "", 0) from error


class OwnDoor:
    """A replica's own listener, and its place in the list, for as long as the replica lives."""

    def __init__(
        self, app: App, doors: Doors, settings: Settings, requests_max: int, on_refused: Callable[[str], None]
    ) -> None:
        self._listener = Listener(
            app,
            host=settings.gateway_host,
            ports=settings.gateway_port_range,
            requests_max=requests_max,
            on_refused=on_refused,
        )
        self._doors, self._replica = doors, uuid.uuid4().hex
        self._beating: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Returns when it listens. Raises OSError where it can't."""
        await self._listener.start()
        self._beating = asyncio.create_task(self._beat(), name="door-beat")

    async def _beat(self) -> None:
        door = Door(self._replica, self._listener.url)
        while True:
            try:
                await self._doors.announce(door)
            except PlatformError as error:
                log.warning("door.unannounced url=%s: %s", door.url, error)
            await asyncio.sleep(BEAT_S)  # the beat itself

    async def close(self) -> None:
        """Off the list first, so that nobody new is sent here; then what runs is finished."""
        if self._beating is not None:
            self._beating.cancel()
        with suppress(PlatformError):  # it is forgotten in any case
            await self._doors.withdraw(self._replica)
        await self._listener.close()
