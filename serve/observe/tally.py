"""Counters and histograms that cost a look into a dictionary. The client library's own take a lock for each increment, which
matters where a call makes a dozen; ours are counted by one event loop, and read by the library when it is asked for a page.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from serve.observe.request import OTHER

LABELS_MAX = 512  # sets of values that one metric tells apart; what comes later is counted as ``(other)``


class Counts:
    def __init__(self, name: str, text: str, *labels: str) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._counts: dict[tuple[str, ...], int] = {}

    def add(self, *values: str, count: int = 1) -> None:
        counts = self._counts
        if values in counts:
            counts[values] += count
            return
        if len(counts) >= LABELS_MAX:
            values = (OTHER,) * len(self._labels)
        counts[values] = counts.get(values, 0) + count

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, count in self._counts.items():
            family.add_metric(values, count)
        yield family


class Timings:
    """Seconds, by one label. ``bounds`` are the upper ends of the buckets, ascending; one without an end comes after them."""

    def __init__(self, name: str, text: str, label: str, bounds: Sequence[float]) -> None:
        self._name, self._text, self._label, self._bounds = name, text, label, bounds
        self._buckets: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def add(self, value: str, seconds: float) -> None:
        buckets = self._buckets.get(value)
        if buckets is None:
            if len(self._buckets) >= LABELS_MAX:
                value = OTHER
            buckets = self._buckets.setdefault(value, [0] * (len(self._bounds) + 1))
            self._sums.setdefault(value, 0.0)
        buckets[bisect_left(self._bounds, seconds)] += 1
        self._sums[value] += seconds

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=(self._label,))
        for value, buckets in self._buckets.items():
            total, cumulated = 0, []
            for bound, count in zip((*map(str, self._bounds), "+Inf"), buckets, strict=True):
                total += count
                cumulated.append((bound, float(total)))
            family.add_metric((value,), cumulated, self._sums[value])
        yield family
