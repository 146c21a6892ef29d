"""HTTP: commands with a body (budgets set on the real gateway, each a durable event), chat completions and streams, through
Serve's door and through the replica's own. Beside each the bare application, behind the same HAProxy or on a uvicorn of its
own, whose bare responder appends as many bytes. One load generator and one model server for all.
"""

import asyncio
import os
import sys
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from serve.installation import Running
from tests.bench import bare_app
from tests.bench.load import Outcome, Plan
from tests.bench.programs import ROOT
from tests.bench.results import BenchError

CONNECTIONS = 64
MODEL = "instant"
_WARMUP_S = 1.0
_BUDGET = '{"limit_usd":"%d.00","window":"month"}'
_CHAT = '{"model":"instant","messages":[{"role":"user","content":"What is the square root of %d?"}],"max_tokens":200}'
_STREAM = _CHAT[:-1] + ',"stream":true}'

Kind = Literal["command", "chat", "stream"]
Door = Literal["serve", "own"]


class Target(msgspec.Struct, frozen=True):
    method: str
    path: str
    headers: Mapping[str, str]
    body: str


class Loads:
    """One load after the other; no two requests are ever the same."""

    def __init__(
        self, running: Running, tenant: str, key: str, own_url: str, ceiling_own_url: str, model_url: str
    ) -> None:
        self._doors = {
            ("ours", "serve"): running.base_url,
            ("ours", "own"): own_url,
            ("ceiling", "serve"): running.base_url,
            ("ceiling", "own"): ceiling_own_url,
            ("direct", "serve"): model_url,
        }
        admin, ours = {"authorization": f"Bearer {running.admin_key}"}, {"authorization": f"Bearer {key}"}
        self._targets = {
            ("ours", "command"): Target("PUT", f"/admin/v1/tenants/{tenant}/budget", admin, _BUDGET),
            ("ours", "chat"): Target("POST", "/v1/chat/completions", ours, _CHAT),
            ("ours", "stream"): Target("POST", "/v1/chat/completions", ours, _STREAM),
            ("ceiling", "command"): Target("PUT", bare_app.PREFIX, {}, _BUDGET),
            ("ceiling", "chat"): Target("POST", f"{bare_app.PREFIX}/chat", {}, _CHAT),
            ("ceiling", "stream"): Target("POST", f"{bare_app.PREFIX}/stream", {}, _STREAM),
            ("direct", "chat"): Target("POST", "/v1/chat/completions", {}, _CHAT),
        }
        self._number = 1_000_000

    async def ours(self, kind: Kind, door: Door, seconds: float, connections: int = CONNECTIONS) -> Outcome:
        return await self._load(("ours", door), ("ours", kind), seconds, connections)

    async def ceiling(self, kind: Kind, door: Door, seconds: float, connections: int = CONNECTIONS) -> Outcome:
        return await self._load(("ceiling", door), ("ceiling", kind), seconds, connections)

    async def direct(self, seconds: float, connections: int) -> Outcome:
        """The model server without anything before it."""
        return await self._load(("direct", "serve"), ("direct", "chat"), seconds, connections)

    async def _load(self, door: tuple[str, str], target: tuple[str, str], seconds: float, connections: int) -> Outcome:
        address, asked = urlsplit(self._doors[door]), self._targets[target]
        assert address.hostname is not None
        assert address.port is not None
        headers = {"content-type": "application/json", **asked.headers}
        plan = Plan(
            address.hostname,
            address.port,
            asked.method,
            asked.path,
            headers,
            asked.body,
            self._number,
            connections,
            _WARMUP_S,
            seconds,
            target[1] == "stream",
        )
        self._number += 1_000_000
        return await _generate(plan)


async def _generate(plan: Plan) -> Outcome:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.bench.load",
        cwd=ROOT,
        env=dict(os.environ),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await process.communicate(msgspec.json.encode(plan))
    finally:
        if process.returncode is None:  # we are being cancelled
            process.kill()
    if process.returncode:
        raise BenchError(f"the load generator failed on {plan.path}: {errors.decode(errors='replace')[-1000:]}")
    return msgspec.json.decode(output, type=Outcome)
