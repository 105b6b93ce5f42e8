"""Histograms that are cheap to count into: the engine thread does it for each token.

One of prometheus_client takes two locks and a search from its first bucket for an observation, as
any thread may call it. Here a series belongs to one thread, which adds to plain numbers; scraping
makes of them what prometheus_client would have.
"""

from __future__ import annotations

import itertools
import math
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Series:
    """The counts of one label value. Only one thread may observe; any may read meanwhile."""

    __slots__ = ("_bounds", "counts", "created", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # a bucket each, the last without bound
        self.total = 0.0
        self.created = time.time()

    def observe(self, value: float) -> None:
        """Count one value; a bound is in the bucket below it."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Histogram(Collector):
    """A family with one label. bounds: ascending upper bounds, the infinite one left out."""

    def __init__(
        self,
        name: str,
        text: str,
        label: str,
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        assert list(bounds) == sorted(bounds)
        self._name = name
        self._text = text
        self._label = label
        self._bounds = tuple(map(float, bounds))
        ends = (*self._bounds, math.inf)
        self._names = [floatToGoString(end) for end in ends]  # type: ignore[no-untyped-call]
        self._series: dict[str, Series] = {}
        registry.register(self)

    def series(self, value: str) -> Series:
        """The series whose label has this value, made if there is none."""
        return self._series.setdefault(value, Series(self._bounds))

    def collect(self) -> Iterator[Metric]:
        """The family as prometheus_client writes it."""
        family = HistogramMetricFamily(self._name, self._text, labels=[self._label])
        for value, series in list(self._series.items()):
            sums = itertools.accumulate(series.counts)
            family.add_metric([value], list(zip(self._names, sums, strict=True)), series.total)
            family.add_sample(f"{self._name}_created", {self._label: value}, series.created)
        yield family
