"""Requests to model servers: counted and timed, and a span each, where requests are traced."""

import asyncio
import time
from typing import Any
from urllib.parse import urlsplit

from actors.tools.observer import ObservedRequest
from actors.tools.upstream import Upstream
from events import tracing
from events.errors import PlatformError
from events.tracing import Attributes, Span
from serve.observe.metrics import Metrics

_NAME_CHARS_MAX = 128  # of what a model server says about itself
# By OpenTelemetry's semantic conventions for generative AI. Texts are in none of them.
_REQUEST = {
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
    "stream": "gen_ai.request.stream",
}


class UpstreamObserver:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def begin(self, upstream: Upstream, body: dict[str, Any]) -> ObservedRequest:
        span = None
        if tracing.tracer is not None:
            attributes = request_attributes(upstream, body)
            span = tracing.child(f"{attributes['gen_ai.operation.name']} {upstream.model}", "client", attributes)
        return _Observed(self._metrics, upstream, span, is_stream=bool(body.get("stream")))


class _Observed:
    __slots__ = ("_awaits_first", "_began_s", "_metrics", "_span", "_upstream", "traceparent")

    def __init__(self, metrics: Metrics, upstream: Upstream, span: Span | None, *, is_stream: bool) -> None:
        self._metrics, self._upstream, self._span, self._awaits_first = metrics, upstream.model, span, is_stream
        self.traceparent = span.traceparent if span is not None and upstream.propagate_trace else ""
        self._began_s = time.perf_counter()

    def answered(self, message: dict[str, Any]) -> None:
        if self._awaits_first:
            self._awaits_first = False
            self._metrics.upstream_began_answering(self._upstream, time.perf_counter() - self._began_s)
        if self._span is not None:
            self._span.set(response_attributes(message))

    def ended(self, error: BaseException | None) -> None:
        self._metrics.upstream_ended(self._upstream, _outcome(error), time.perf_counter() - self._began_s)
        if self._span is not None:
            self._span.__exit__(type(error) if error else None, error, None)


def _outcome(error: BaseException | None) -> str:
    match error:
        case None:
            return "ok"
        case PlatformError():
            return error.code
        case asyncio.CancelledError() | GeneratorExit():
            return "left"  # the client did, or the call took longer than it may
        case _:
            return "defect"


def request_attributes(upstream: Upstream, body: dict[str, Any]) -> Attributes:
    parts = urlsplit(upstream.base_url)
    found: dict[str, str | int | float | bool] = {
        "gen_ai.operation.name": "chat" if "messages" in body else "embeddings",
        "gen_ai.provider.name": "openai",  # whose protocol it speaks; server.address says who it is
        "gen_ai.request.model": upstream.model,
        "server.address": parts.hostname or "",
        "server.port": parts.port or (443 if parts.scheme == "https" else 80),
    }
    for field, attribute in _REQUEST.items():
        if isinstance(value := body.get(field), bool | int | float):
            found[attribute] = value
    return found


def response_attributes(message: dict[str, Any]) -> Attributes:
    """Of an answer or a chunk: what it says about itself, as far as it makes sense."""
    found: dict[str, str | int | list[str]] = {}
    if isinstance(model := message.get("model"), str):
        found["gen_ai.response.model"] = model[:_NAME_CHARS_MAX]
    if isinstance(identity := message.get("id"), str):
        found["gen_ai.response.id"] = identity[:_NAME_CHARS_MAX]
    if isinstance(usage := message.get("usage"), dict):
        for field, attribute in (
            ("prompt_tokens", "gen_ai.usage.input_tokens"),
            ("completion_tokens", "gen_ai.usage.output_tokens"),
        ):
            if isinstance(count := usage.get(field), int):
                found[attribute] = count
    choices = message.get("choices")
    reasons = [
        choice["finish_reason"][:_NAME_CHARS_MAX]
        for choice in (choices if isinstance(choices, list) else ())
        if isinstance(choice, dict) and isinstance(choice.get("finish_reason"), str)
    ]
    if reasons:
        found["gen_ai.response.finish_reasons"] = reasons
    return found
