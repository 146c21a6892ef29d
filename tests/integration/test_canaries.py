"""SEC-16: secrets, a prompt and its answer go through everything that can happen to a request, and are found nowhere that
an operator looks: no log line, metric, trace or dead letter, and no message of an exception that was logged.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from events import tracing
from serve.chat import ModelEndpoint
from serve.observe.logs import PACKAGES, LineFormatter
from serve.observe.traces import OtelTracer
from serve.settings import Settings
from tests.kit.gateway import ADMIN_KEY, METRICS_KEY, UPSTREAM_KEY, World
from tests.kit.inbox import until
from tests.kit.servers import MASTER_KEY, OLD_MASTER_KEY, PASSWORD
from tests.kit.upstream import WORDS

PROMPT = "canary-prompt-9f2e"
ANSWER = "".join(WORDS[1:5])
ASK: Any = [{"role": "user", "content": PROMPT}]


class Lines(logging.Handler):
    """What would stand on standard error, in both formats."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.formatters = [LineFormatter("text"), LineFormatter("json")]
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += [formatter.format(record) for formatter in self.formatters]


@pytest.fixture
async def lines() -> AsyncIterator[Lines]:
    """At the level debug, and without the secrets being known: what is blacked out anyway must not even be needed."""
    handler = Lines()
    loggers = [logging.getLogger(package) for package in PACKAGES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    yield handler
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "tracer", OtelTracer("test", 1.0, SimpleSpanProcessor(exporter)))
    return exporter


async def everything_that_can_happen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.client() as client:
        for model in ("m-ok", "m-no-usage", "m-error-400", "m-error-429", "m-error-500", "m-away", "m-broken", PROMPT):
            for streams in (False, True):
                await tolerantly(client, model, stream=streams)
        await tolerantly(client, "m-ok", unknown_field=PROMPT)
        leaving = asyncio.create_task(tolerantly(client, "m-hang"))
        await until(lambda: reached(world, "hang"), "the call that hangs")
        leaving.cancel()
        await asyncio.wait([leaving])
        with monkeypatch.context() as patched:
            patched.setattr(ModelEndpoint, "_serve", defect)
            await tolerantly(client, "m-ok")
    bearer = {"authorization": f"Bearer {world.key}"}
    async with httpx.AsyncClient(base_url=world.base_url, headers=bearer) as http:
        await http.post("/v1/chat/completions", content=b'{"model": "m-ok", "messages": "' + PROMPT.encode() + b'"')
        await http.post("/v1/runs", json={"saga": "nobody", "input": {"text": PROMPT}})
        await http.get(f"/v1/models/{PROMPT}")
        for authorization in (f"Bearer {world.key}x", f"Basic {world.key}", f"Bearer {ADMIN_KEY}"):
            await http.get("/v1/models", headers={"authorization": authorization})
    await world.admin.post("/tenants", json={"id": PROMPT, "name": PROMPT, PROMPT: PROMPT})
    command = {"type": "user.add", "user_id": PROMPT, "name": PROMPT, "role": PROMPT}
    await world.admin.post(f"/tenants/{world.tenant}/commands", json=command)
    call = {"tool": "mock", "input": {"text": PROMPT}}
    await world.admin.post(f"/tenants/{world.tenant}/tool-calls", json=call)


async def tolerantly(client: openai.AsyncOpenAI, model: str, **options: Any) -> None:
    """Whatever comes of it."""
    extra = {"unknown_field": options.pop("unknown_field")} if "unknown_field" in options else None
    try:
        answer = await client.chat.completions.create(model=model, messages=ASK, extra_body=extra, **options)
        if options.get("stream"):
            async for _ in answer:
                pass
    except openai.APIError:
        pass


async def reached(world: World, model: str) -> bool:
    return any(request["model"] == model for request in world.upstream.ledger.requests)


async def defect(*_: Any) -> None:
    raise RuntimeError(f"a defect that quotes {PROMPT} and {ANSWER}")


async def test_no_canary_is_found_where_an_operator_looks(
    world: World, lines: Lines, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    await everything_that_can_happen(world, monkeypatch)
    scraped = await world.admin.get(f"{world.base_url}/metrics")
    letters = await world.admin.get("/dead-letters", params={"limit": 1000})
    places = {
        "logs": "\n".join(lines.lines),
        "metrics": scraped.text,
        "traces": "\n".join(span.to_json() for span in spans.get_finished_spans()),
        "dead letters": letters.text,
    }
    assert scraped.status_code == letters.status_code == 200
    assert "upstream.refused" in places["logs"]
    assert "http.unexpected_error" in places["logs"]
    assert "chat error-500" in places["traces"]
    secrets = [*Settings.from_environment().secrets(), world.key, world.key.split("-")[-2]]
    assert {ADMIN_KEY, METRICS_KEY, UPSTREAM_KEY, MASTER_KEY, OLD_MASTER_KEY, PASSWORD} <= set(secrets)
    for place, text in places.items():
        for canary in (*secrets, PROMPT, ANSWER, json.dumps(ANSWER)[1:-1]):
            where = text.find(canary)
            assert where < 0, f"{place}: …{text[max(0, where - 300) : where + 50]}…"
