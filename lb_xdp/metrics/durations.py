"""How long probes took, counted by backend: the one thing in ``/metrics`` that no snapshot has.

Owns the counts. Each backend takes the room of one short list: there may be thousands, and the
library's own histograms have a lock for each bucket.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily

from lb_xdp.metrics.table import MARK, Row, Table, label, number

# 1 ms to 10 s: a probe on the same rack takes 1 to 5 ms, the longest sensible time-out is 10 s.
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_BOUNDS = (*map(number, BUCKETS_S), "+Inf")


class ProbeDurations:
    """Written by the event loop; ``table`` may be read in another thread meanwhile."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], list[float]] = {}

    def observe(self, service: str, backend: str, duration_s: float) -> None:
        """Count one probe."""
        name = (backend, service)
        counts = self._known.get(name)
        if counts is None:
            counts = self._known[name] = [0] * len(_BOUNDS) + [0.0]
        counts[bisect_left(BUCKETS_S, duration_s)] += 1
        counts[-1] += duration_s

    def forget(self, service: str, backend: str) -> None:
        """Drop the durations of a backend that has left; unknown ones are no error."""
        self._known.pop((backend, service), None)

    def table(self) -> Table:
        """Return the histograms of all backends."""
        family = HistogramMetricFamily(
            "lb_xdp_backend_probe_duration_seconds",
            "How long health probes of the backend took, failed ones included.",
            labels=("backend", "service"),
        )
        family.add_metric((MARK, MARK), [(bound, 0) for bound in _BOUNDS], 0)
        return Table(family, self._rows())

    def _rows(self) -> Iterator[Row]:
        """Yield each backend as it is at one moment: copies of lists are made in one piece."""
        for name, counts in list(self._known.items()):
            *buckets, total_s = counts.copy()
            cumulative = [*accumulate(buckets)]
            yield (*map(label, name),), (*cumulative, cumulative[-1], total_s)
