"""Requests to model servers, counted and timed."""

import asyncio
import time
from typing import Any

from actors.tools.observer import ObservedRequest
from actors.tools.upstream import Upstream
from events.errors import PlatformError
from serve.observe.metrics import Metrics


class UpstreamObserver:
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def begin(self, upstream: Upstream, body: dict[str, Any]) -> ObservedRequest:
        return _Observed(self._metrics, upstream.model, is_stream=bool(body.get("stream")))


class _Observed:
    __slots__ = ("_awaits_first", "_began_s", "_metrics", "_upstream")
    traceparent = ""

    def __init__(self, metrics: Metrics, upstream: str, *, is_stream: bool) -> None:
        self._metrics, self._upstream, self._awaits_first = metrics, upstream, is_stream
        self._began_s = time.perf_counter()

    def answered(self, message: dict[str, Any]) -> None:
        if self._awaits_first:
            self._awaits_first = False
            self._metrics.upstream_began_answering(self._upstream, time.perf_counter() - self._began_s)

    def ended(self, error: BaseException | None) -> None:
        self._metrics.upstream_ended(self._upstream, _outcome(error), time.perf_counter() - self._began_s)


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
