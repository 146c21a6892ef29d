"""Where a call may be served, in which order it is tried there, and the policies around each try. What is decided is in
``actors.router.balance``; here is what it is decided on: what this gateway has seen of its upstreams.
"""

import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import msgspec

from actors.policies.refusals import PolicyRefusal
from actors.policies.wrappers.pipeline import Pipeline
from actors.policies.wrappers.timing import Chance, Monotonic
from actors.router.balance import Candidate, Gauge, ended, failed, measured, order, started
from actors.supervision.clients import Resilience
from actors.tools.errors import ToolError, ToolRefusedError
from events.tenant import Route
from serve.chat_request import Call
from serve.http_errors import HttpError
from serve.settings import Model, ModelsFile, ModelUpstream


class Hop(msgspec.Struct, frozen=True):
    """One upstream of one model, under the name it is known by."""

    model: Model
    upstream: ModelUpstream
    name: str


class Plan(msgspec.Struct, frozen=True):
    """``route`` is for the log; None where there was nothing to decide."""

    hops: tuple[Hop, ...]
    route: Route | None = None


def upstream_failed(error: BaseException) -> bool | None:
    """For the breaker: a request that the server refuses is the client's fault, and a client that leaves says nothing."""
    if isinstance(error, ToolError):
        return not isinstance(error, ToolRefusedError)
    return True if isinstance(error, HttpError) and error.code == "timeout" else None


def may_go_elsewhere(error: Exception) -> bool:
    """Another upstream may do better: this one was not called, is away, or broke. It won't where the request is refused."""
    return isinstance(error, PolicyRefusal) or (
        isinstance(error, ToolError) and not isinstance(error, ToolRefusedError)
    )


class Routing:
    """Of one process. Safe for concurrent use."""

    def __init__(
        self,
        models: ModelsFile,
        resilience: Resilience,
        *,
        clock: Monotonic = time.monotonic,
        chance: Chance = random.random,
    ) -> None:
        self._names, self._resilience = models.upstream_names(), resilience
        self._clock, self._chance = clock, chance
        self._pipelines: dict[str, Pipeline] = {}
        self._gauges: dict[str, Gauge] = {}

    def plan(self, call: Call) -> Plan:
        """Every upstream that may be tried for the call, in order: those of its model first."""
        hops, first = self._ordered(call.model)
        for model in call.fallbacks:
            hops += self._ordered(model)[0]
        if len(hops) == 1:
            return Plan(tuple(hops))
        return Plan(tuple(hops), Route(tuple(hop.name for hop in hops), first.reason, round(first.propensity, 6)))

    def _ordered(self, model: Model) -> tuple[list[Hop], Route]:
        hops = [Hop(model, upstream, self._names[upstream]) for upstream in model.upstreams]
        if len(hops) == 1:
            return hops, Route((), "the only one")
        candidates = [
            Candidate(hop.upstream.weight, self._gauge(hop.name), self._is_refused(hop)) for hop in hops
        ]  # fmt: skip
        chosen = order(model.balance, candidates, self._clock(), self._chance)
        return [hops[i] for i in chosen.indices[: model.attempts_max]], Route((), chosen.reason, chosen.propensity)

    def _gauge(self, name: str) -> Gauge:
        return self._gauges.get(name, Gauge())

    def _is_refused(self, hop: Hop) -> bool:
        pipeline = self._pipelines.get(hop.name)
        return pipeline is not None and pipeline.breaker is not None and pipeline.breaker.is_open

    def _pipeline(self, hop: Hop) -> Pipeline:
        pipeline = self._pipelines.get(hop.name)
        if pipeline is None:
            pipeline = self._resilience.pipeline(f"model/{hop.name}", hop.upstream.policies)
            self._pipelines[hop.name] = pipeline
        return pipeline

    @asynccontextmanager
    async def attempt(self, hop: Hop, tenant: str) -> AsyncIterator[Callable[[], None]]:
        """Around one try. Call what it gives when the answer has begun.

        Raises:
            PolicyRefusal: The upstream was not called: its bulkhead is full, or its breaker open.
        """
        pipeline = self._pipeline(hop)
        bulkhead, breaker = pipeline.bulkhead, pipeline.breaker
        assert breaker is not None, "an upstream has a breaker always"
        if breaker.is_open:
            breaker.permit()  # refuses, before a place in the queue is waited for
        if bulkhead is not None and not bulkhead.try_enter(tenant):
            await bulkhead.enter(0, tenant)
        try:
            with breaker.judging(upstream_failed), self._gauged(hop.name) as begun:
                yield begun
        finally:
            if bulkhead is not None:
                bulkhead.leave(tenant)

    @contextmanager
    def _gauged(self, name: str) -> Iterator[Callable[[], None]]:
        began_s = self._clock()

        def begun() -> None:
            now_s = self._clock()
            self._gauges[name] = measured(self._gauge(name), now_s - began_s, now_s)

        self._gauges[name] = started(self._gauge(name))
        try:
            yield begun
        except BaseException as error:
            if upstream_failed(error):
                wait_s = error.retry_after_s if isinstance(error, ToolError) else None
                self._gauges[name] = failed(self._gauge(name), self._clock(), wait_s)
            raise
        finally:
            self._gauges[name] = ended(self._gauge(name))
