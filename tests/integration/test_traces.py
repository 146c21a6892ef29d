"""One request as one trace: gateway, asks, appends, the model server. And nothing of it where nobody asked for traces."""

import asyncio
import re
import sys
from typing import Any

import httpx
import openai
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status as ProtoStatus
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import SpanKind

from actors.tools.model import ModelClient
from actors.tools.upstream import Upstream
from events import tracing
from serve.observe.metrics import Metrics
from serve.observe.traces import OtelTracer, OwnDice, exporting
from serve.observe.upstreams import UpstreamObserver
from tests.kit.gateway import ASK, World

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "tracer", OtelTracer("test", 1.0, SimpleSpanProcessor(exporter)))
    return exporter


def of_trace(exporter: InMemorySpanExporter, trace_id: str) -> dict[str, ReadableSpan]:
    """By name; the later one where a name comes twice."""
    return {span.name: span for span in exporter.get_finished_spans() if f"{span.context.trace_id:032x}" == trace_id}


def parent_id(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_a_call_is_one_trace_from_the_clients_span_to_the_append_and_the_model_server(
    world: World, spans: InMemorySpanExporter
) -> None:
    async with world.client(default_headers={"traceparent": PARENT, "tracestate": "a=b", "baggage": "c=d"}) as client:
        stream = await client.chat.completions.create(
            model="m-ok", messages=ASK, stream=True, max_tokens=50, temperature=0.5
        )
        async for _ in stream:
            pass
    found = of_trace(spans, PARENT[3:35])
    assert set(found) == {
        "POST /v1/chat/completions",
        "ask Authenticate",
        "ask ReserveCall",
        "ask SettleCall",
        "append",
        "chat ok",
    }
    root = found["POST /v1/chat/completions"]
    assert root.kind is SpanKind.SERVER
    assert f"{parent_id(root):016x}" == PARENT[36:52]
    assert attributes(root)["http.response.status_code"] == 200
    for name in ("ask ReserveCall", "ask SettleCall", "chat ok"):
        assert parent_id(found[name]) == root.context.span_id, name
    appends = [span for span in spans.get_finished_spans() if span.name == "append"]
    asks = {found[name].context.span_id for name in ("ask ReserveCall", "ask SettleCall")}
    assert {parent_id(span) for span in appends} == asks
    generation = attributes(found["chat ok"])
    assert generation.pop("server.port") > 0
    assert generation == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "ok",
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "ok",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 4,
        "gen_ai.usage.output_tokens": 7,
        "server.address": "127.0.0.1",
    }


async def test_failures_are_marked_by_their_type_alone(world: World, spans: InMemorySpanExporter) -> None:
    async with world.client() as client:
        with pytest.raises(openai.APIStatusError):
            await client.chat.completions.create(model="m-error-500", messages=ASK)
    (generation,) = [span for span in spans.get_finished_spans() if span.name == "chat error-500"]
    assert attributes(generation)["error.type"] == "upstream_error"
    assert not generation.events
    assert not generation.status.description


@pytest.mark.parametrize(
    "header",
    ["", "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "ff" + PARENT[2:], PARENT.upper(), "x" * 5_000],
)
async def test_a_traceparent_that_is_none_begins_a_trace_of_our_own(
    world: World, spans: InMemorySpanExporter, header: str
) -> None:
    async with httpx.AsyncClient(base_url=world.base_url) as http:
        assert (await http.get("/healthz", headers={"traceparent": header})).status_code == 200
    (span,) = spans.get_finished_spans()
    assert span.parent is None
    assert span.name == "GET /healthz"


async def test_what_is_kept_is_our_dices_to_say_and_not_the_clients(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "tracer", OtelTracer("test", 0.0, SimpleSpanProcessor(exporter)))
    async with world.client(default_headers={"traceparent": PARENT}) as client:
        await client.chat.completions.create(model="m-ok", messages=ASK)
    assert exporter.get_finished_spans() == ()
    rolls = iter([0.0, 0.49, 0.5, 0.99])
    dice = OwnDice(0.5, lambda: next(rolls))
    kept = [dice.should_sample(None, 0, "x", SpanKind.SERVER).decision is Decision.DROP for _ in range(4)]
    assert kept == [False, False, True, True]


@pytest.mark.parametrize("propagates", [False, True])
async def test_a_model_server_hears_of_the_trace_where_the_operator_says_so(
    world: World, spans: InMemorySpanExporter, propagates: bool
) -> None:
    upstream = Upstream(base_url=world.upstream.base_url, model="ok", propagate_trace=propagates)
    client = ModelClient(10, UpstreamObserver(Metrics()))
    assert tracing.tracer is not None
    with tracing.tracer.begin("test", "server", "", {}) as span:
        token = tracing.current.set(span.traceparent)
        await client.complete(upstream, {"messages": ASK, "max_tokens": 5})
        tracing.current.reset(token)
    await client.close()
    sent = world.upstream.ledger.headers[-1].get("traceparent", "")
    assert bool(re.fullmatch(f"00-{span.traceparent[3:35]}-[0-9a-f]{{16}}-01", sent)) is propagates


async def test_without_traces_nothing_is_carried_and_opentelemetry_is_not_even_loaded(world: World) -> None:
    assert tracing.tracer is None
    async with world.client(default_headers={"traceparent": PARENT}) as client:
        await client.chat.completions.create(model="m-ok", messages=ASK)
    assert "traceparent" not in world.upstream.ledger.headers[-1]
    program = "import sys, serve.gateway; assert 'serve.observe.traces' not in sys.modules"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    assert await process.wait() == 0


async def test_a_collector_gets_what_opentelemetrys_protocol_says() -> None:
    """Bytes on the wire, read by the protocol's own schema: parents, kinds, times, attributes, a failure."""
    batches: list[ExportTraceServiceRequest] = []

    async def collect(request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        batches.append(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response(body=ExportTraceServiceResponse().SerializeToString(), content_type=request.content_type)

    app = web.Application()
    app.router.add_post("/v1/traces", collect)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    tracer = exporting(f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces", 1.0, "gateway")
    with (
        tracer.begin("POST /x", "server", PARENT, {"http.request.method": "POST"}) as root,
        pytest.raises(ValueError, match="prompt"),
        tracer.begin("ask X", "client", root.traceparent, {}),
    ):
        raise ValueError("quotes a prompt")
    await asyncio.to_thread(tracer.close)
    await runner.cleanup()
    ((resource,),) = [batch.resource_spans for batch in batches]
    assert {"service.name", "service.instance.id"} <= {field.key for field in resource.resource.attributes}
    spans = {span.name: span for scope in resource.scope_spans for span in scope.spans}
    ask, post = spans["ask X"], spans["POST /x"]
    assert {span.trace_id.hex() for span in (ask, post)} == {PARENT[3:35]}
    assert (post.parent_span_id.hex(), ask.parent_span_id) == (PARENT[36:52], post.span_id)
    assert (post.kind, ask.kind) == (ProtoSpan.SPAN_KIND_SERVER, ProtoSpan.SPAN_KIND_CLIENT)
    assert post.start_time_unix_nano <= ask.start_time_unix_nano <= ask.end_time_unix_nano <= post.end_time_unix_nano
    assert ask.status.code == ProtoStatus.STATUS_CODE_ERROR
    assert b"prompt" not in batches[0].SerializeToString()
