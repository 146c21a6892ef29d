"""A dependency that does as it is told and counts for itself what is under way at it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import web

Mood = Literal["well", "errors", "hangs", "slow", "garbage", "flaps"]


@dataclass
class Counted:
    """``under_way`` goes on until the dependency is done with a call, whether or not its caller is still there."""

    mood: Mood = "well"
    service_s: float = 0.01
    under_way: int = 0
    most: int = 0
    calls: int = 0
    failures_ns: list[int] = field(default_factory=list)


class Dependency:
    """Every path is a dependency of its own: ``count("mail").mood = "errors"``."""

    def __init__(self) -> None:
        self.base_url = ""
        self._counted: dict[str, Counted] = {}

    def count(self, name: str) -> Counted:
        return self._counted.setdefault(name, Counted())

    def url(self, name: str) -> str:
        return f"{self.base_url}/{name}"

    async def handle(self, request: web.Request) -> web.Response:
        counted = self.count(request.match_info["name"])
        counted.calls += 1
        counted.under_way += 1
        counted.most = max(counted.most, counted.under_way)
        try:
            return await self._answer(counted)
        finally:
            counted.under_way -= 1

    async def _answer(self, counted: Counted) -> web.Response:
        mood = counted.mood
        if mood == "flaps":
            mood = "errors" if counted.calls % 3 else "well"
        await asyncio.sleep({"hangs": 30.0, "slow": 1.2}.get(mood, counted.service_s))
        if mood == "errors":
            counted.failures_ns.append(time.monotonic_ns())
            return web.Response(status=500)
        return web.Response(body=b"\xff{" if mood == "garbage" else b"{}")


@asynccontextmanager
async def running_dependency() -> AsyncIterator[Dependency]:
    dependency = Dependency()
    app = web.Application()
    app.router.add_get("/{name}", dependency.handle)
    # a caller that dies doesn't make its call undone: the handler goes on
    runner = web.AppRunner(app, handler_cancellation=False, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=2048)
    await site.start()
    host, port = runner.addresses[0][:2]
    dependency.base_url = f"http://{host}:{port}"
    yield dependency
    await runner.cleanup()
