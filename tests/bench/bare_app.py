"""The ceiling of HTTP commands: a bare ASGI application in Serve that asks the bare responder. No framework, no
authentication, no validation; deployed into the platform's own Serve, behind the same HAProxy.
"""

import asyncio
import logging
import os
from typing import Any

import nats
from nats.aio.client import Client

from serve.asgi import Receive, Scope, Send
from tests.bench.responder import SUBJECT

PREFIX = "/bench-ceiling"


class BareApp:
    def __init__(self, nats_url: str) -> None:
        self._nats_url = nats_url
        self._connecting: asyncio.Task[Client] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if self._connecting is None:
            self._connecting = asyncio.create_task(nats.connect(self._nats_url))
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        client = await asyncio.shield(self._connecting)
        answer = (await client.request(SUBJECT, body, timeout=10)).data
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


def set_environment() -> None:
    """Serve's driver has to agree with its controller on these; ``ray.serve`` reads them as it is imported."""
    os.environ |= {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


def deploy(nats_url: str) -> None:
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
    @ray_serve.ingress(BareApp(nats_url))
    class BareDeployment:
        pass

    bare: Any = BareDeployment
    ray_serve.run(bare.bind(), name="bench-ceiling", route_prefix=PREFIX)
