"""What Prometheus reads of one gateway replica. Each replica counts for itself, so scrape each at its own door.

Labels are routes, commands, error codes, and the names of the models file: none is a tenant's, a key's or a user's, and
none is a client's to make up. ``serve.observe.tally`` bounds them all the same.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector, exposition
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from actors.shard import Load
from actors.supervision.clients import Resilience
from actors.tools.usage_meter import Tokens
from events.bus import LOAD, Bus
from events.errors import BusUnavailableError
from serve.observe.request import OTHER, Watched
from serve.observe.tally import Counts, Timings

log = logging.getLogger(__name__)

_SHARD_SILENCE_S, _SHARDS_TIMEOUT_S = 0.1, 0.5  # a scrape waits so long for mailboxes' depths
_decode_load = msgspec.msgpack.Decoder(Load).decode
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)


class Metrics:
    """One per replica. All methods are called from its event loop."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._resilience: Resilience | None = None
        self._shards: list[Load] = []
        self._tallies: list[Counts | Timings] = []
        self._under_way = 0
        ProcessCollector(registry=self.registry)
        self._requests = self._counts(
            "http_requests", "Answered requests, and those whose client left", "method", "route", "status"
        )
        self._request_s = self._timings(
            "http_request_duration_seconds", "From a request's head to the last byte of its answer", "route"
        )
        self._errors = self._counts("http_errors", "Error answers, by the code that the client gets", "route", "code")
        self._admissions = self._counts(
            "admissions", "Model calls by what their tenant said: admitted, or the refusal's code", "model", "result"
        )
        self._asks = self._counts("asks", "Commands and queries asked of tenants", "command", "outcome")
        self._ask_s = self._timings(
            "ask_duration_seconds", "From asking a tenant to its durable answer, waiting included", "command"
        )
        self._calls = self._counts("calls", "Booked model calls", "model", "outcome", "usage_source")
        self._tokens = self._counts("tokens", "Booked tokens", "model", "direction")
        self._cost = self._counts("cost_nano_usd", "Booked cost in nano-USD", "model")
        self._upstream_calls = self._counts("upstream_requests", "Requests to model servers", "upstream", "outcome")
        self._upstream_s = self._timings(
            "upstream_request_duration_seconds", "From sending a request to the end of its answer", "upstream"
        )
        self._first_s = self._timings(
            "upstream_first_chunk_seconds", "From sending a request to the first chunk of its stream", "upstream"
        )
        self.registry.register(_Live(self))

    def _counts(self, name: str, text: str, *labels: str) -> Counts:
        tally = Counts(f"tenantry_{name}", text, *labels)
        self._tallies.append(tally)
        return tally

    def _timings(self, name: str, text: str, label: str) -> Timings:
        tally = Timings(f"tenantry_{name}", text, label, _SECONDS)
        self._tallies.append(tally)
        return tally

    def began(self) -> float:
        """A request has come; what is returned goes to ``ended``."""
        self._under_way += 1
        return time.perf_counter()

    def ended(self, request: Watched, began_s: float) -> None:
        route = request.path_template
        self._under_way -= 1
        self._requests.add(request.method, route, request.status_class)
        self._request_s.add(route, time.perf_counter() - began_s)
        if request.code:
            self._errors.add(route, request.code)

    def turned_away(self, code: str) -> None:
        """A request that the listener itself refused, before anybody looked at its path."""
        self._errors.add(OTHER, code)

    def admission(self, model: str, result: str) -> None:
        self._admissions.add(model, result)

    def asked(self, command: str, outcome: str, seconds: float) -> None:
        self._asks.add(command, outcome)
        self._ask_s.add(command, seconds)

    def booked(self, model: str, tokens: Tokens, cost_nano_usd: int, outcome: str) -> None:
        """A call is settled in its tenant's log."""
        self._calls.add(model, outcome, tokens.source)
        self._tokens.add(model, "input", count=tokens.input_tokens)
        self._tokens.add(model, "output", count=tokens.output_tokens)
        self._cost.add(model, count=cost_nano_usd)

    def upstream_began_answering(self, upstream: str, seconds: float) -> None:
        self._first_s.add(upstream, seconds)

    def upstream_ended(self, upstream: str, outcome: str, seconds: float) -> None:
        self._upstream_calls.add(upstream, outcome)
        self._upstream_s.add(upstream, seconds)

    def watch(self, resilience: Resilience) -> None:
        """Show its breakers and bulkheads from now on."""
        self._resilience = resilience

    def live(self) -> Iterator[Metric]:
        """What is read where it lives, at each scrape."""
        build = GaugeMetricFamily("tenantry_build_info", "The release that runs here", labels=("release",))
        build.add_metric((version("tenantry"),), 1)
        yield build
        yield GaugeMetricFamily("tenantry_http_requests_in_progress", "Requests being served now", self._under_way)
        for tally in self._tallies:
            yield from tally.collect()
        if self._resilience is not None:
            yield from _policies(self._resilience)
        yield from _shards(self._shards)

    def page(self, accept: str, shards: list[Load]) -> tuple[bytes, str]:
        """All of it in the format that the scraper prefers, with its media type. ``shards`` is what they said just now."""
        self._shards = shards
        encode, media_type = exposition.choose_encoder(accept)
        return encode(self.registry), media_type


async def shard_loads(bus: Bus) -> list[Load]:
    """What all that host tenants say they have to do; none where the bus is away: the other figures matter then."""
    try:
        answers = await bus.gather(LOAD, _SHARD_SILENCE_S, _SHARDS_TIMEOUT_S)
    except BusUnavailableError as error:
        log.warning("metrics.shards_unheard: %s", error)
        return []
    return [_decode_load(answer) for answer in answers]


class _Live(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        """Nothing: it may have none yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._metrics.live()


def _policies(resilience: Resilience) -> Iterator[Metric]:
    """A dependency whose breaker or bulkhead is each tenant's own is one row all the same: how many are in which state."""
    breakers = GaugeMetricFamily(
        "tenantry_breakers", "Breakers that this process knows, by state", labels=("name", "state")
    )
    states: dict[tuple[str, str], int] = {}
    for name, state in resilience.breaker_states():
        states[name, state] = states.get((name, state), 0) + 1
    for key, count in states.items():
        breakers.add_metric(key, count)
    yield breakers
    permits = GaugeMetricFamily(
        "tenantry_bulkhead_permits", "Permits leased by this process, in use, and waited for", labels=("name", "kind")
    )
    sums: dict[tuple[str, str], int] = {}
    for name, bulkhead in resilience.bulkhead_states():
        uses = (("leased", bulkhead.limit), ("in_use", bulkhead.inside), ("waited_for", len(bulkhead.queue)))
        for kind, count in uses:
            sums[name, kind] = sums.get((name, kind), 0) + count
    for key, count in sums.items():
        permits.add_metric(key, count)
    yield permits


def _shards(loads: list[Load]) -> Iterator[Metric]:
    """Of all shards that answered, by kind: a silo's name would be its tenant's."""
    families = [
        GaugeMetricFamily(f"tenantry_{name}", text, labels=("kind",))
        for name, text in (
            ("shards", "Actors that host tenants and answered this scrape"),
            ("tenants_in_memory", "Tenants in the memory of these"),
            ("mailbox_commands", "Commands that wait in mailboxes"),
            ("mailbox_depth_max", "Commands that wait in the deepest mailbox"),
        )
    ]
    for kind in sorted({load.serves for load in loads}):
        of = [load for load in loads if load.serves == kind]
        waiting, deepest = sum(load.waiting for load in of), max(load.deepest for load in of)
        figures = (len(of), sum(load.tenants for load in of), waiting, deepest)
        for family, figure in zip(families, figures, strict=True):
            family.add_metric((kind,), figure)
    yield from families
