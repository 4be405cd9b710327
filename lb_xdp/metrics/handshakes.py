"""What was seen of TCP handshakes, as Prometheus samples, and who is ejected because of it.

``exposition`` puts them beside the other samples of a snapshot. Which of these numbers are exact
depends on the mode, and each help text says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import attrgetter

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from lb_xdp.core.snapshot import BackendStatus

BACKEND_LABELS = ("service", "backend")

Rows = Sequence[tuple[tuple[str, str], BackendStatus]]
"""Backends and their labels."""

_FIRST_BOUND_S = 16e-6

_COUNTERS = {
    "lb_xdp_backend_handshakes": (
        "TCP handshakes that clients began, where detect watches: SYNs but for repeated ones.",
        attrgetter("begun"),
    ),
    "lb_xdp_backend_handshakes_answered": (
        "Handshakes answered by the backend's SYN-ACK (nat, fullnat), or whose client went on.",
        attrgetter("answered"),
    ),
    "lb_xdp_backend_syn_repeats": (
        "SYNs that clients sent again, where detect watches.",
        attrgetter("repeated"),
    ),
}


def handshakes(rows: Rows) -> Iterator[Metric]:
    """Yield what was seen of handshakes, where they are watched."""
    seen = [(labels, b.handshakes) for labels, b in rows if b.handshakes is not None]
    for name, (text, value) in _COUNTERS.items():
        counter = CounterMetricFamily(name, text, labels=BACKEND_LABELS)
        for labels, of_backend in seen:
            counter.add_metric(labels, value(of_backend))
        yield counter
    resets = CounterMetricFamily(
        "lb_xdp_backend_resets",
        "RSTs from the backend (nat and fullnat), where detect watches.",
        labels=BACKEND_LABELS,
    )
    durations = HistogramMetricFamily(
        "lb_xdp_backend_handshake_duration_seconds",
        "From a SYN to the backend's SYN-ACK (nat and fullnat), where detect watches.",
        labels=BACKEND_LABELS,
    )
    for labels, of_backend in seen:
        if of_backend.exact:
            total_s = of_backend.duration_us / 1e6
            resets.add_metric(labels, of_backend.resets)
            durations.add_metric(labels, _buckets(of_backend.durations), total_s)
    yield resets
    yield durations
    yield _ejected(rows)


def _buckets(durations: Sequence[int]) -> list[tuple[str, float]]:
    """Return cumulative counts by upper bound in seconds: each twice the one before."""
    bounds = [f"{_FIRST_BOUND_S * 2**place:.9g}" for place in range(len(durations) - 1)]
    return list(zip([*bounds, "+Inf"], accumulate(map(float, durations)), strict=True))


def _ejected(rows: Rows) -> Metric:
    metric = GaugeMetricFamily(
        "lb_xdp_backend_ejected",
        "1 while the backend is out of service because of what its traffic told, else 0.",
        labels=BACKEND_LABELS,
    )
    for labels, backend in rows:
        metric.add_metric(labels, float(backend.ejected))
    return metric
