"""HTTP commands with a body through Serve: budgets set on the real gateway, each a durable event, and the bare
application beside it, which has the bare responder append as many bytes. One HAProxy, one load generator for both.
"""

import asyncio
import os
import sys
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from serve.installation import Running
from tests.bench import bare_app
from tests.bench.load import Outcome, Plan
from tests.bench.programs import ROOT
from tests.bench.results import BenchError

CONNECTIONS = 64
_WARMUP_S = 1.0
_BODY = '{"limit_usd":"%d.00","window":"month"}'


class Commands:
    """One load after the other; no two requests ever set the same limit."""

    def __init__(self, running: Running, tenant: str) -> None:
        address = urlsplit(running.base_url)
        assert address.hostname is not None
        assert address.port is not None
        self._host, self._port = address.hostname, address.port
        self._our_path = f"/admin/v1/tenants/{tenant}/budget"
        self._our_headers = {"authorization": f"Bearer {running.admin_key}"}
        self._number = 1_000_000

    async def ours(self, seconds: float) -> Outcome:
        return await self._load(self._our_path, self._our_headers, seconds)

    async def ceiling(self, seconds: float) -> Outcome:
        return await self._load(bare_app.PREFIX, {}, seconds)

    async def _load(self, path: str, headers: Mapping[str, str], seconds: float) -> Outcome:
        typed = {"content-type": "application/json", **headers}
        plan = Plan(
            self._host, self._port, "PUT", path, typed, _BODY, self._number, CONNECTIONS, _WARMUP_S, seconds
        )  # fmt: skip
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
