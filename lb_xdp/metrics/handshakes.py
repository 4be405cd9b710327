"""What was seen of TCP handshakes, as Prometheus samples, and who is ejected because of it.

``exposition`` puts them beside the other samples of a snapshot. Which of these numbers are exact
depends on the mode, and each help text says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from operator import attrgetter

from prometheus_client.core import HistogramMetricFamily

from lb_xdp.core.snapshot import Handshakes
from lb_xdp.metrics.backends import LABELS, MARKS, Backends, counter, gauge
from lb_xdp.metrics.table import Labels, Row, Table

_FIRST_BOUND_S = 16e-6

_COUNTERS = (
    (
        "lb_xdp_backend_handshakes",
        "TCP handshakes that clients began, where detect watches: SYNs but for repeated ones.",
        attrgetter("handshakes.begun"),
    ),
    (
        "lb_xdp_backend_handshakes_answered",
        "Handshakes answered by the backend's SYN-ACK (nat, fullnat), or whose client went on.",
        attrgetter("handshakes.answered"),
    ),
    (
        "lb_xdp_backend_syn_repeats",
        "SYNs that clients sent again, where detect watches.",
        attrgetter("handshakes.repeated"),
    ),
)


def handshakes(backends: Backends) -> Iterator[Table]:
    """Yield what was seen of handshakes, where they are watched."""
    seen = [each for each in backends if each[1].handshakes is not None]
    exact = [(labels, b) for labels, b in seen if b.handshakes is not None and b.handshakes.exact]
    yield from (counter(*metric, seen) for metric in _COUNTERS)
    yield counter(
        "lb_xdp_backend_resets",
        "RSTs from the backend (nat and fullnat), where detect watches.",
        attrgetter("handshakes.resets"),
        exact,
    )
    yield _durations([(labels, b.handshakes) for labels, b in exact if b.handshakes is not None])
    yield gauge(
        "lb_xdp_backend_ejected",
        "1 while the backend is out of service because of what its traffic told, else 0.",
        lambda backend: int(backend.ejected),
        backends,
    )


def _durations(exact: list[tuple[Labels, Handshakes]]) -> Table:
    """Return histograms of how long answers took. All of a snapshot's have the same buckets."""
    family = HistogramMetricFamily(
        "lb_xdp_backend_handshake_duration_seconds",
        "From a SYN to the backend's SYN-ACK (nat and fullnat), where detect watches.",
        labels=LABELS,
    )
    if exact:
        buckets = [(bound, 0.0) for bound in _bounds(len(exact[0][1].durations))]
        family.add_metric(MARKS, buckets, 0)
    return Table(family, (_row(labels, seen) for labels, seen in exact))


def _row(labels: Labels, seen: Handshakes) -> Row:
    cumulative = list(accumulate(seen.durations))
    return labels, (*cumulative, cumulative[-1], seen.duration_us / 1e6)


def _bounds(count: int) -> list[str]:
    """Return the upper bounds of so many buckets, in seconds: each twice the one before."""
    return [*(f"{_FIRST_BOUND_S * 2**place:.9g}" for place in range(count - 1)), "+Inf"]
