"""The ceilings of the HTTP rows: a bare ASGI application that asks the bare responder and relays the model server. No
framework, no authentication, no validation, no booking. It is deployed into the platform's own Serve, behind the same
HAProxy; and, as our gateway does, its replica also listens on a port of its own, with uvicorn as it comes.

``PUT /`` asks once. ``POST /chat`` asks, relays one whole answer, asks again. ``POST /stream`` asks, relays the stream as it
comes, asks again. ``GET /door`` opens the port and says which.
"""

import asyncio
import logging
import os
from typing import Any

import aiohttp
import nats
from nats.aio.client import Client

from serve.asgi import Receive, Scope, Send
from tests.bench.responder import SUBJECT

PREFIX = "/bench-ceiling"


class BareApp:
    def __init__(self, nats_url: str, model_url: str) -> None:
        self._nats_url, self._model_url = nats_url, f"{model_url}/chat/completions"
        self._connecting: asyncio.Task[tuple[Client, aiohttp.ClientSession]] | None = None
        self._door: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        client, session = await asyncio.shield(self._connecting)
        match scope["path"].rpartition("/")[2]:
            case "chat":
                await client.request(SUBJECT, body, timeout=10)
                async with session.post(self._model_url, data=body) as response:
                    answer = await response.read()
                await client.request(SUBJECT, answer, timeout=10)
            case "stream":
                await self._relay(client, session, body, send)
                return
            case "door":
                answer = b"%d" % await self._open_door()
            case _:
                answer = (await client.request(SUBJECT, body, timeout=10)).data
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _relay(self, client: Client, session: aiohttp.ClientSession, body: bytes, send: Send) -> None:
        await client.request(SUBJECT, body, timeout=10)
        async with session.post(self._model_url, data=body) as response:
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for data in response.content.iter_any():
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await client.request(SUBJECT, body, timeout=10)
        await send({"type": "http.response.body", "body": b""})

    async def _connect(self) -> tuple[Client, aiohttp.ClientSession]:
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers={"content-type": "application/json"}
        )
        return await nats.connect(self._nats_url), session

    async def _open_door(self) -> int:
        import uvicorn

        config = uvicorn.Config(self, host="127.0.0.1", port=0, lifespan="off", access_log=False, log_config=None)
        sock = config.bind_socket()
        # not ``serve``: the signals of a replica are Ray's
        self._door = asyncio.create_task(uvicorn.Server(config)._serve([sock]))
        port: int = sock.getsockname()[1]
        return port


def set_environment() -> None:
    """Serve's driver has to agree with its controller on these; ``ray.serve`` reads them as it is imported."""
    os.environ |= {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # under `uv run`, Ray would build an environment of its own for each of our actors
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }


def deploy(nats_url: str, model_url: str) -> None:
    """One replica, with what the gateway's deployment says about its requests. Returns when it is healthy."""
    from ray import serve as ray_serve  # it reads its environment as it is imported
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.WARNING)

    @ray_serve.deployment(
        name="bench-ceiling",
        max_ongoing_requests=1_000,
        max_queued_requests=1_000,
        ray_actor_options={"num_cpus": 0},
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    @ray_serve.ingress(BareApp(nats_url, model_url))
    class BareDeployment:
        pass

    bare: Any = BareDeployment
    ray_serve.run(bare.bind(), name="bench-ceiling", route_prefix=PREFIX)
