"""How long the probes of each backend took: the one metric that is counted here, not read.

Owns the counts, some 200 bytes a backend: a ``Histogram`` of prometheus_client takes 3 kB, most of
it a lock for each bucket, and there are ten thousand backends. One thread observes; others may read
meanwhile.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily

_SUM = -1  # the place of a row after the last bucket


class Durations:
    """A histogram by labels. ``bounds_s`` are the upper bounds of its buckets but for the last."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str], bounds_s: Sequence[float]
    ) -> None:
        self._about = name, documentation
        self._labels = labels
        self._bounds_s = bounds_s
        self._rows: dict[tuple[str, ...], array[float]] = {}

    def observe(self, labels: tuple[str, ...], duration_s: float) -> None:
        """Count what took so long."""
        row = self._rows.get(labels)
        if row is None:
            row = self._rows[labels] = array("d", [0.0] * (len(self._bounds_s) + 2))
        row[bisect_left(self._bounds_s, duration_s)] += 1
        row[_SUM] += duration_s

    def forget(self, labels: tuple[str, ...]) -> None:
        """Drop what was counted under these labels; unknown ones are no error."""
        self._rows.pop(labels, None)

    def collect(self) -> HistogramMetricFamily:
        """Return all of it as samples."""
        family = HistogramMetricFamily(*self._about, labels=self._labels)
        bounds = [*map(str, self._bounds_s), "+Inf"]
        for labels, row in list(self._rows.items()):
            counts = row[:]
            total_s = counts.pop(_SUM)
            family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total_s)
        return family
