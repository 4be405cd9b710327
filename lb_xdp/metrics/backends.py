"""What a snapshot says of each backend of each service, as Prometheus samples.

Owns names, types and help texts of these; ``exposition`` puts them beside the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple, TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from lb_xdp.core.snapshot import BackendStatus, Snapshot, State
from lb_xdp.metrics.table import MARK, Labels, Table, label

LABELS = ("backend", "service")
"""In the order in which samples have them."""

MARKS = (MARK, MARK)

Backends: TypeAlias = Sequence[tuple[Labels, BackendStatus]]
"""Backends and their labels."""

Value = Callable[[BackendStatus], float]


class _Metric(NamedTuple):
    """A metric with one sample for each backend of each service. A counter's name lacks _total."""

    name: str
    help: str
    value: Value


_COUNTERS = (
    _Metric("lb_xdp_backend_packets", "Packets forwarded to the backend.", attrgetter("packets")),
    _Metric(
        "lb_xdp_backend_bytes",
        "Bytes forwarded to the backend, counted from the Ethernet header on.",
        attrgetter("bytes"),
    ),
    _Metric(
        "lb_xdp_backend_flows",
        "New flows sent to the backend: TCP SYNs; retried SYNs count again.",
        attrgetter("flows"),
    ),
    _Metric(
        "lb_xdp_backend_reply_packets",
        "Replies of the backend that came back through the gateway (nat and fullnat).",
        attrgetter("reply_packets"),
    ),
    _Metric(
        "lb_xdp_backend_reply_bytes",
        "Bytes of the backend's replies through the gateway (nat and fullnat).",
        attrgetter("reply_bytes"),
    ),
)

_GAUGES = (
    _Metric(
        "lb_xdp_backend_up",
        "1 while the backend's state is up, else 0; a standby is up, too.",
        lambda backend: int(backend.state is State.UP),
    ),
    _Metric(
        "lb_xdp_backend_weight",
        "The backend's weight that counts now, absolute; 0 takes no new flows.",
        attrgetter("weight"),
    ),
    _Metric(
        "lb_xdp_backend_slots",
        "Ring slots that the backend holds now; its share of new flows.",
        attrgetter("slots"),
    ),
    _Metric(
        "lb_xdp_backend_recorded_flows",
        "Flow records that name the backend, at the last look.",
        attrgetter("recorded"),
    ),
)

_CONNECTIONS = _Metric(
    "lb_xdp_backend_connections",
    "Connections of the backend, where its service counts them: exact in nat and fullnat, "
    "an estimate in dsr, ipip and gue.",
    attrgetter("connections"),
)


def backends_of(snapshot: Snapshot) -> Backends:
    """Return the backends of all services."""
    return [
        ((label(backend.name), service), backend)
        for service, members in ((label(s.name), s.backends) for s in snapshot.services)
        for backend in members
    ]


def counter(name: str, text: str, value: Value, backends: Backends) -> Table:
    """Return a counter with a sample for each of these backends."""
    family = CounterMetricFamily(name, text, labels=LABELS)
    family.add_metric(MARKS, 0)
    return Table(family, ((labels, (value(backend),)) for labels, backend in backends))


def gauge(name: str, text: str, value: Value, backends: Backends) -> Table:
    """Return a gauge with a sample for each of these backends."""
    family = GaugeMetricFamily(name, text, labels=LABELS)
    family.add_metric(MARKS, 0)
    return Table(family, ((labels, (value(backend),)) for labels, backend in backends))


def counts(backends: Backends) -> Iterator[Table]:
    """Yield what is counted, and how much of something a backend has."""
    yield from (counter(*metric, backends) for metric in _COUNTERS)
    yield from (gauge(*metric, backends) for metric in _GAUGES)
    yield gauge(*_CONNECTIONS, [each for each in backends if each[1].connections is not None])


def states(backends: Backends) -> Table:
    """Return for each backend and state whether it is in it."""
    family = GaugeMetricFamily(
        "lb_xdp_backend_state",
        "1 for the state that the backend is in, 0 for every other state.",
        labels=(*LABELS, "state"),
    )
    for state in State:
        family.add_metric((*MARKS, state.value), 0)
    values = {state: [int(state is other) for other in State] for state in State}
    return Table(family, ((labels, values[backend.state]) for labels, backend in backends))


def availability(backends: Backends) -> Table:
    """Return the shares of time in which backends were up, of windows in which that is known."""
    family = GaugeMetricFamily(
        "lb_xdp_backend_availability_ratio",
        "Part of the last hour, day and 30 days in which the backend was up; time in which its "
        "state was not known, or the daemon did not run, is not counted.",
        labels=(*LABELS, "window"),
    )
    family.add_metric((*MARKS, MARK), 0)
    rows = (
        ((*labels, window), (share.up,))
        for labels, backend in backends
        for window, share in backend.availability.items()
    )
    return Table(family, rows)
