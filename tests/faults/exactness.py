"""Is every token and every nano-USD of a real hour's traffic booked, once, whatever dies?

Requests of Azure's 2023 production trace go through gateway processes that are killed (SIGKILL) meanwhile, to an upstream
that refuses, breaks off, reports no usage, and keeps a ledger of its own. Then the log, the read models and the ledger are
held against each other, call by call:

    uv run python -m tests.faults.exactness                    # 10,000 requests, a few minutes
    uv run python -m tests.faults.exactness --requests 500 --seed 7
"""

import argparse
import asyncio
import contextlib
import csv
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from actors.shard import Shard
from actors.supervision.shared import SharedSupervisors
from events.ask import Asker
from events.bus import Bus
from events.catalog import DomainEvent
from events.clock import SystemClock
from events.money import Price
from events.scan import scan
from events.slices import SLICE_COUNT
from events.tasks import end_tasks
from events.timers import FireTimers
from events.valkey_client import connect
from events.valkey_store import ValkeyEventStore
from projections.actor import PROJECTIONS
from projections.runner import ReadModels, Runner, decoded
from projections.usage import Usage, UsageProjection, read_usage
from serve.settings import Model, ModelsFile, ModelUpstream
from tests.faults.ledgers import INPUT_NANO, OUTPUT_NANO, Report, Row, Served, check, tags_of
from tests.kit.activator import activating
from tests.kit.gateway_process import GatewayProcess
from tests.kit.servers import Servers, open_vault, running_servers

TRACE = Path(__file__).parents[3] / "shared" / "data" / "azure_llm_trace_2023" / "AzureLLMInferenceTrace_conv.csv"
ADMIN_KEY = "sk-admin-0123456789abcdef"
FREE, TIGHT = ("ann", "bob", "eve"), "tight"
GATEWAYS = 2
IN_FLIGHT = 16
_CHUNKS_MAX = 6
_DAY_US = 86_400_000_000

# How an upstream call goes, and how often. ``leaves``: the client hangs up in the middle of the stream.
WAYS = {"ok": 84, "error-500": 4, "error-429": 3, "broken": 3, "no-usage": 3, "leaves": 3}


def rows_of(count: int, rng: random.Random) -> list[Row]:
    """The first ``count`` requests of the trace, with ways and tenants drawn for them."""
    with TRACE.open(newline="") as file:
        trace = [
            (int(line["ContextTokens"]), int(line["GeneratedTokens"])) for line in islice(csv.DictReader(file), count)
        ]
    assert len(trace) == count, f"the trace has {len(trace)} requests"
    rows = []
    for number, (tokens_in, tokens_out) in enumerate(trace):
        (way,) = rng.choices(list(WAYS), list(WAYS.values()))
        streams = way in ("broken", "leaves") or rng.random() < 0.6
        tenant = TIGHT if number % 4 == 3 else FREE[number % 4]
        rows.append(Row(number, max(1, tokens_in), max(2, tokens_out), way, streams, tenant))
    return rows


class TraceUpstream:
    """A model server that uses for each request what the trace says, and bills it in its ledger."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self.ledger: list[Served] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text = body["messages"][0]["content"]
        row = self._rows[int(text.partition(" ")[0])]
        if row.way.startswith("error-"):
            status = int(row.way.removeprefix("error-"))
            return web.json_response({"error": {"message": f"told to answer {status}"}}, status=status)
        served = Served(row.number, len(text.split()))
        self.ledger.append(served)
        usage = {
            "prompt_tokens": served.tokens_in,
            "completion_tokens": row.tokens_out,
            "total_tokens": served.tokens_in + row.tokens_out,
        }
        if row.streams:
            try:
                return await self._stream(request, row, served, usage)
            except ConnectionError:  # its gateway was killed; the ledger says how far it got
                return web.Response()
        served.tokens_out, served.told = row.tokens_out, row.way != "no-usage"
        message = {"role": "assistant", "content": "a " * row.tokens_out}
        whole = {
            "id": "c", "object": "chat.completion", "created": 1, "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }  # fmt: skip
        return web.json_response(whole if row.way == "no-usage" else {**whole, "usage": usage})

    async def _stream(self, request: web.Request, row: Row, served: Served, usage: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        parts = min(_CHUNKS_MAX, row.tokens_out)
        for part in range(parts):
            count = row.tokens_out * (part + 1) // parts - row.tokens_out * part // parts
            delta = {"index": 0, "delta": {"content": "a " * count}, "finish_reason": None}
            await response.write(_chunk([delta]))
            served.tokens_out += count
            await asyncio.sleep(0)
            if part == parts // 2 and row.way == "broken":
                assert request.transport is not None
                request.transport.abort()
                return response
            if part == parts // 2 and row.way == "leaves":
                await asyncio.sleep(30)  # cancelled when the caller has left
        await response.write(_chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}]))
        if row.way != "no-usage":
            await response.write(_chunk([], usage=usage))
            served.told = True
        await response.write(b"data: [DONE]\n\n")
        return response


def _chunk(choices: list[dict[str, Any]], **more: Any) -> bytes:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}
    return f"data: {json.dumps(chunk)}\n\n".encode()


@asynccontextmanager
async def serving_upstream(rows: Sequence[Row]) -> AsyncIterator[tuple[TraceUpstream, str]]:
    upstream = TraceUpstream(rows)
    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/chat/completions", upstream.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield upstream, "http://{}:{}/v1".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()


class HourLaterClock(SystemClock):
    """For the tenants' timers after the run: reservations of killed gateways expire."""

    offset_us = 0

    def now_us(self) -> int:
        return super().now_us() + self.offset_us


@asynccontextmanager
async def platform(servers: Servers) -> AsyncIterator[tuple[Asker, ValkeyEventStore, ReadModels, HourLaterClock]]:
    """All but the gateways, in this process."""
    async with contextlib.AsyncExitStack() as stack:
        vault, keys = await open_vault(servers.vault_url)
        stack.push_async_callback(vault.close)
        store = ValkeyEventStore(connect(servers.valkey_url))
        await store.open()
        stack.push_async_callback(store.close)
        bus = await Bus.connect(servers.nats_url, "platform", lambda: None)
        stack.push_async_callback(bus.close)
        clock = HourLaterClock()
        shard = Shard("test", "pool", store, bus, clock, keys)
        stack.push_async_callback(shard.close)
        await stack.enter_async_context(activating(bus, shard))
        supervisors = SharedSupervisors(bus, is_first=True)
        await supervisors.start()
        stack.push_async_callback(supervisors.close)
        models = ReadModels(connect(servers.valkey_url, db=2), keys)
        await models.open()
        stack.push_async_callback(models.close)
        projecting = asyncio.create_task(Runner(store, models, bus, PROJECTIONS, range(SLICE_COUNT)).run())
        stack.push_async_callback(end_tasks, projecting)
        yield Asker(bus, clock), store, models, clock


class Run:
    """Drives the rows through the gateways, killing one now and then."""

    def __init__(self, rows: Sequence[Row], gateways: Sequence[GatewayProcess], kills: int, rng: random.Random) -> None:
        self._rows, self._gateways, self._rng = rows, gateways, rng
        self._kill_before = set(rng.sample(range(len(rows) // 10, len(rows)), kills))
        self.answers = Counter[str]()
        self.keys: dict[str, str] = {}

    async def prepare(self) -> None:
        """Waits for the gateways, and makes the tenants."""
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        for gateway in self._gateways:
            await gateway.until_listening()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{self._gateways[0].port}", headers=headers) as admin:
            for tenant in (*FREE, TIGHT):
                await _post(admin, "/admin/v1/tenants", {"id": tenant, "name": tenant})
                self.keys[tenant] = (await _post(admin, f"/admin/v1/tenants/{tenant}/keys", {"name": "run"}))["key"]
            rows = [row for row in self._rows if row.tenant == TIGHT]
            limit = sum(row.tokens_in * INPUT_NANO + row.tokens_out * OUTPUT_NANO for row in rows) // 2
            body = {"limit_usd": f"{limit / 1e9:.9f}", "window": "total"}
            async with admin.put(f"/admin/v1/tenants/{TIGHT}/budget", json=body) as answer:
                assert answer.status == 200, await answer.text()

    async def drive(self) -> None:
        waiting = iter(self._rows)
        timeout = aiohttp.ClientTimeout(total=120)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as client:
            await asyncio.gather(*(self._work(client, waiting) for _ in range(IN_FLIGHT)))

    async def _work(self, client: aiohttp.ClientSession, waiting: Iterator[Row]) -> None:
        for row in waiting:
            if row.number in self._kill_before:
                gateway = self._rng.choice(self._gateways)
                await asyncio.to_thread(gateway.kill)
                await gateway.until_listening()
            self.answers[await self._call_until_sent(client, row)] += 1

    async def _call_until_sent(self, client: aiohttp.ClientSession, row: Row) -> str:
        while True:
            gateway = self._gateways[row.number % len(self._gateways)]
            try:
                return await self._call(client, gateway.port, row)
            except aiohttp.ClientConnectorError:  # surely not sent
                await gateway.until_listening()
            except (aiohttp.ClientError, OSError):  # killed meanwhile: the log says what became of the call
                return "cut off"

    async def _call(self, client: aiohttp.ClientSession, port: int, row: Row) -> str:
        body: dict[str, Any] = {
            "model": "m",
            "messages": [{"role": "user", "content": f"{row.number} " + "a " * (row.tokens_in - 1)}],
            "max_tokens": row.tokens_out,
            "metadata": tags_of(row.number),
            "stream": row.streams,
        }
        headers = {"authorization": f"Bearer {self.keys[row.tenant]}"}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        async with client.post(url, json=body, headers=headers) as answer:
            async for piece in answer.content.iter_any():
                if row.way == "leaves" and answer.status == 200 and piece:
                    answer.close()
                    return "left"
            return str(answer.status)


async def _post(client: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> dict[str, Any]:
    async with client.post(path, json=body) as answer:
        assert answer.status == 201, await answer.text()
        made: dict[str, Any] = await answer.json()
        return made


async def run(count: int, kills: int, seed: int, directory: Path) -> Report:
    """One run on servers of its own."""
    rng = random.Random(seed)
    rows = rows_of(count, rng)
    with running_servers(directory) as servers:
        async with serving_upstream(rows) as (upstream, base_url), platform(servers) as (asker, store, models, clock):
            gateways = [GatewayProcess(_settings(servers, base_url, directory)) for _ in range(GATEWAYS)]
            try:
                driven = Run(rows, gateways, kills, rng)
                await driven.prepare()
                await driven.drive()
                clock.offset_us = _DAY_US
                for tenant in driven.keys:
                    await asker.ask(tenant, FireTimers(), actor="supervisor")
                logs = {tenant: await _log(store, models, tenant) for tenant in driven.keys}
                usage = {tenant: await _usage(store, models, tenant) for tenant in driven.keys}
            finally:
                for gateway in gateways:
                    gateway.stop()
    return check(rows, upstream.ledger, logs, usage, driven.answers, kills)


def _settings(servers: Servers, base_url: str, directory: Path) -> dict[str, str]:
    price = Price.model_validate({"input_usd_per_mtok": "0.10", "output_usd_per_mtok": "0.40"})
    model = Model(name="m", upstreams=(ModelUpstream(base_url=base_url, model="m"),), price=price)
    settings = servers.settings(
        ADMIN_KEY,
        models=ModelsFile(models=(model,)),
        archive_url=str(directory / "archive"),
        objects_url=str(directory / "objects"),
    )
    return settings.to_environment()


async def _log(store: ValkeyEventStore, models: ReadModels, tenant: str) -> list[DomainEvent]:
    head = await store.head(tenant)
    assert head is not None
    return [
        event
        async for page in scan(store, tenant, 0, head.position)
        for _, _, event in decoded(page, await models.cipher(tenant))
    ]


async def _usage(store: ValkeyEventStore, models: ReadModels, tenant: str) -> Usage:
    projection, head = UsageProjection(), await store.head(tenant)
    assert head is not None
    async with asyncio.timeout(120):
        while await models.checkpoint(projection, tenant) < head.position:  # noqa: ASYNC110 - as beside the sleep
            await asyncio.sleep(0.05)  # a checkpoint is a value in Valkey: its runner, in another process, tells nobody
    total = Usage()
    for usage in read_usage(await models.fields(projection, tenant)).values():
        total.add(usage)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--requests", type=int, default=10_000, help="of the trace, from its beginning (default: %(default)s)"
    )
    parser.add_argument("--kills", type=int, default=20, help="of gateways, at random moments (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="draws ways, tenants and moments (default: %(default)s)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        report = asyncio.run(run(given.requests, given.kills, given.seed, Path(directory)))
    print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    sys.exit(1 if report.differences else 0)


if __name__ == "__main__":
    main()
