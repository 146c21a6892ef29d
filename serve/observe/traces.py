"""Traces with OpenTelemetry (extra ``otel``), for who sets ``TENANTRY_TRACES_URL``. Loaded only then.

Spans: ``POST /v1/chat/completions`` (server) → ``ask ReserveCall`` (client) → ``append`` (client, in the tenant's process);
beside the asks ``chat <model>`` (client), the request to the model server, with the attributes of the semantic conventions
for generative AI. Prompts, answers, keys and messages of exceptions are in none.
"""

import random
import re
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes as OtelAttributes

from events.errors import PlatformError
from events.tracing import Attributes, Kind

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}


class OwnDice(Sampler):
    """Keeps this share of the traces, whatever the client wishes: it names the trace, and has no say in what it costs us.
    What we keep is kept in all processes: below a span of ours there is nothing more to decide.
    """

    def __init__(self, ratio: float, chance: Callable[[], float] = random.random) -> None:
        self._ratio, self._chance = ratio, chance

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: OtelAttributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        is_kept = kind is not SpanKind.SERVER or self._chance() < self._ratio
        return SamplingResult(Decision.RECORD_AND_SAMPLE if is_kept else Decision.DROP, attributes)

    def get_description(self) -> str:
        return f"OwnDice{{{self._ratio}}}"


def exporting(url: str, ratio: float, process: str) -> "OtelTracer":
    """Sends spans to an OTLP/HTTP collector, in batches from a thread; ``OTEL_EXPORTER_OTLP_HEADERS`` and its like apply."""
    exporter = OTLPSpanExporter(endpoint=url)
    return OtelTracer(process, ratio, BatchSpanProcessor(exporter))


class OtelTracer:
    """For ``events.tracing``. ``process`` is this process' name, ``ratio`` the share of requests that are traced."""

    def __init__(self, process: str, ratio: float, processor: SpanProcessor) -> None:
        resource = Resource.create({"service.name": "tenantry", "service.instance.id": process})
        self._provider = TracerProvider(sampler=OwnDice(ratio), resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("tenantry")

    def begin(self, name: str, kind: Kind, parent: str, attributes: Attributes) -> "OtelSpanOfOurs":
        span = self._tracer.start_span(name, _context(parent), _KINDS[kind], attributes, record_exception=False)
        return OtelSpanOfOurs(span)

    def close(self) -> None:
        self._provider.shutdown()


class OtelSpanOfOurs:
    def __init__(self, span: OtelSpan) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        if not context.trace_flags.sampled:
            return ""
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def fail(self, error_type: str) -> None:
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(Status(StatusCode.ERROR))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # what it says may quote a prompt
            self.fail(error.code if isinstance(error, PlatformError) else type(error).__name__)
        self._span.end()


def _context(traceparent: str) -> Context:
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None or traceparent.startswith("ff"):
        return Context()
    trace_id, span_id = int(found[1], 16), int(found[2], 16)
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return set_span_in_context(NonRecordingSpan(context), Context()) if context.is_valid else Context()
