"""A gateway that is killed: the real chat endpoint, called without HTTP, and a model's server beside it that also breaks off
or says nothing of its usage.
"""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec

from actors.supervision.clients import Resilience
from actors.tools.model import ModelClient
from events.ask import Asker
from events.bus import Bus
from events.errors import PlatformError
from events.money import Price
from events.tenant import CreateTenant, IssueKey, SetBudget
from serve import booking
from serve.answer_cache import AnswerCache
from serve.auth import Authenticator, Principal
from serve.chat import CHAT_PATH, ModelEndpoint
from serve.idempotency import Once
from serve.settings import Model, ModelsFile, ModelUpstream
from tests.kit.history import Answered
from tests.kit.upstream import running_upstream

CALL_TIMEOUT_S, TTL_MARGIN_S = 1.0, 2.0  # a reservation that nobody settles expires after both
KEY_ID = "k1"
_BUDGET_NANO_USD = 1_000_000
_CALLERS = 4
_PRICE = Price.model_validate({"input_usd_per_mtok": "0.001", "output_usd_per_mtok": "0.001"})
_MODELS = ("ok", "ok", "ok", "no-usage", "broken")


class Keyring:
    """Everybody's key is good, and of the one tenant."""

    def __init__(self, tenant: str) -> None:
        self._principal = Principal(tenant, KEY_ID)

    async def authenticate(self, _header: str | None, _scope: str) -> Principal:
        return self._principal


class Clients:
    """Of the gateway. What they were answered is written down at once: the process may not live to write it later."""

    def __init__(self, endpoint: ModelEndpoint, tenant: str, path: Path, dice: random.Random) -> None:
        self._endpoint, self._tenant, self._dice = endpoint, tenant, dice
        self._answers = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def run(self) -> None:
        while True:
            await self._call(self._dice.choice(_MODELS), is_stream=self._dice.random() < 0.5)

    async def _call(self, model: str, *, is_stream: bool) -> None:
        body = msgspec.json.encode(
            {"model": model, "messages": [{"role": "user", "content": "?"}], "max_tokens": 8, "stream": is_stream}
        )
        unread = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if not unread:
                await asyncio.Event().wait()  # the client stays
            return unread.pop()

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self._endpoint(
            {"type": "http", "path": CHAT_PATH, "headers": []}, cast("Any", receive), cast("Any", send)
        )
        if sent[0]["status"] == 200 and _is_whole(sent, is_stream=is_stream):
            line = Answered(time.monotonic_ns(), self._tenant, dict(sent[0]["headers"])[b"x-tenantry-call"].decode())
            os.write(self._answers, msgspec.json.encode(line) + b"\n")
        else:
            await asyncio.sleep(0.01)  # refused while its tenant's shard or the tenant itself is still to come


def _is_whole(sent: list[dict[str, Any]], *, is_stream: bool) -> bool:
    return not is_stream or any(b"[DONE]" in message.get("body", b"") for message in sent)


async def call_for_ever(bus: Bus, tenant: str, answers: Path, seed: int) -> None:
    """Create the tenant, or find it there, and go on calling the model."""
    booking._TTL_MARGIN_S = TTL_MARGIN_S
    asker, dice = Asker(bus, attempt_timeout_s=0.3), random.Random(seed)
    for number, command in enumerate(
        (CreateTenant("Test"), IssueKey(KEY_ID, "default", b"d" * 32), SetBudget(_BUDGET_NANO_USD, "total"))
    ):
        await _insist(asker, tenant, command, f"gateway-{number}")
    async with running_upstream() as upstream, model_client() as client:
        models = [Model(name=name, upstreams=(ModelUpstream(base_url=upstream.base_url, model=name),), price=_PRICE)
                  for name in sorted(set(_MODELS))]  # fmt: skip
        endpoint = ModelEndpoint(
            ModelsFile(models=tuple(models)),
            cast("Authenticator", Keyring(tenant)),
            asker,
            client,
            Resilience(bus, f"gateway-{os.getpid()}"),  # not started: each process has breakers of its own
            cast("Once", None),  # no client sends an Idempotency-Key, or asks for the cache
            cast("AnswerCache", None),
            call_timeout_s=CALL_TIMEOUT_S,
            body_bytes_max=10_000,
            calls_max=1_000,
        )
        clients = Clients(endpoint, tenant, answers, dice)
        try:
            await asyncio.gather(*(clients.run() for _ in range(_CALLERS)))
        finally:
            await endpoint.drain()


@asynccontextmanager
async def model_client() -> AsyncIterator[ModelClient]:
    client = ModelClient(CALL_TIMEOUT_S)
    try:
        yield client
    finally:
        await client.close()


async def _insist(asker: Asker, tenant: str, command: Any, command_id: str) -> None:
    while True:
        try:
            await asker.ask(tenant, command, actor="gateway", command_id=command_id)
        except PlatformError:
            continue  # asked for ten seconds, and once more
        return
