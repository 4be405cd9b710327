"""Snapshots as Prometheus samples: the names, types, labels and help texts of ``/metrics``.

This module owns the names; docs/metrics.md lists them for operators. It refuses to own HTTP and to
read the kernel: every number but the probes' durations comes from one snapshot per scrape, so the
samples of a scrape agree with each other. Labels are bounded by the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from lb_xdp.core.snapshot import BackendStatus, FlowTableStatus, Snapshot, State
from lb_xdp.metrics.durations import Durations
from lb_xdp.metrics.handshakes import BACKEND_LABELS, Rows, handshakes

# 1 ms to 10 s: a probe on the same rack takes 1 to 5 ms, the longest sensible time-out is 10 s.
PROBE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class _BackendMetric(NamedTuple):
    """A metric with one sample for each backend of each service. A counter's name lacks _total."""

    name: str
    help: str
    value: Callable[[BackendStatus], float]


BACKEND_COUNTERS = (
    _BackendMetric(
        "lb_xdp_backend_packets", "Packets forwarded to the backend.", attrgetter("packets")
    ),
    _BackendMetric(
        "lb_xdp_backend_bytes",
        "Bytes forwarded to the backend, counted from the Ethernet header on.",
        attrgetter("bytes"),
    ),
    _BackendMetric(
        "lb_xdp_backend_flows",
        "New flows sent to the backend: TCP SYNs; retried SYNs count again.",
        attrgetter("flows"),
    ),
    _BackendMetric(
        "lb_xdp_backend_reply_packets",
        "Replies of the backend that came back through the gateway (nat and fullnat).",
        attrgetter("reply_packets"),
    ),
    _BackendMetric(
        "lb_xdp_backend_reply_bytes",
        "Bytes of the backend's replies through the gateway (nat and fullnat).",
        attrgetter("reply_bytes"),
    ),
)

BACKEND_GAUGES = (
    _BackendMetric(
        "lb_xdp_backend_up",
        "1 while the backend's state is up, else 0; a standby is up, too.",
        lambda backend: float(backend.state is State.UP),
    ),
    _BackendMetric(
        "lb_xdp_backend_weight",
        "The backend's weight that counts now, absolute; 0 takes no new flows.",
        attrgetter("weight"),
    ),
    _BackendMetric(
        "lb_xdp_backend_slots",
        "Ring slots that the backend holds now; its share of new flows.",
        attrgetter("slots"),
    ),
)


class Exposition:
    """All metrics of one gateway. Holds no global state: two gateways in a process stay apart.

    ``source`` is called once per scrape, through ``snapshot``.
    """

    def __init__(self, source: Callable[[], Snapshot]) -> None:
        self.snapshot = source
        self._probe_duration = Durations(
            "lb_xdp_backend_probe_duration_seconds",
            "How long health probes of the backend took, failed ones included.",
            BACKEND_LABELS,
            PROBE_BUCKETS_S,
        )

    def observe_probe(self, service: str, backend: str, duration_s: float) -> None:
        """Count one probe of ``backend`` that took ``duration_s`` seconds."""
        self._probe_duration.observe((service, backend), duration_s)

    def forget(self, service: str, backend: str) -> None:
        """Drop the probe durations of a backend that has left; unknown ones are no error."""
        self._probe_duration.forget((service, backend))

    def render(self, accept: str, snapshot: Snapshot | None = None) -> tuple[bytes, str]:
        """Return the body and its content type, text or OpenMetrics as ``accept`` prefers.

        Without ``snapshot`` one is taken here. A frozen snapshot may be rendered in another thread.
        """
        registry = CollectorRegistry()
        registry.register(_Scrape(snapshot or self.snapshot(), self._probe_duration))
        encoder, content_type = choose_encoder(accept)
        return encoder(registry), content_type


class _Scrape(Collector):
    """The samples of one snapshot."""

    def __init__(self, snapshot: Snapshot, probe_duration: Durations) -> None:
        self._snapshot = snapshot
        self._probe_duration = probe_duration

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family in the order of docs/metrics.md."""
        yield from _backends(self._snapshot)
        yield self._probe_duration.collect()
        yield _service_backends(self._snapshot)
        yield _service_panic(self._snapshot)
        yield from _datapath(self._snapshot)
        yield from _controller(self._snapshot)


def _backends(snapshot: Snapshot) -> Iterator[Metric]:
    """Yield what is counted and known for each backend of each service."""
    rows = [
        ((service.name, backend.name), backend)
        for service in snapshot.services
        for backend in service.backends
    ]
    for spec in BACKEND_COUNTERS:
        counter = CounterMetricFamily(spec.name, spec.help, labels=BACKEND_LABELS)
        for labels, backend in rows:
            counter.add_metric(labels, spec.value(backend))
        yield counter
    for spec in BACKEND_GAUGES:
        gauge = GaugeMetricFamily(spec.name, spec.help, labels=BACKEND_LABELS)
        for labels, backend in rows:
            gauge.add_metric(labels, spec.value(backend))
        yield gauge
    yield from _connections(rows)
    yield from handshakes(rows)
    states = GaugeMetricFamily(
        "lb_xdp_backend_state",
        "1 for the state that the backend is in, 0 for every other state.",
        labels=(*BACKEND_LABELS, "state"),
    )
    for labels, backend in rows:
        for state in State:
            states.add_metric((*labels, state.value), float(backend.state is state))
    yield states
    yield _availability(rows)


def _availability(rows: Rows) -> Metric:
    """Return the shares of time in which backends were up, of windows in which that is known."""
    metric = GaugeMetricFamily(
        "lb_xdp_backend_availability_ratio",
        "Part of the last hour, day and 30 days in which the backend was up; time in which its "
        "state was not known, or the daemon did not run, is not counted.",
        labels=(*BACKEND_LABELS, "window"),
    )
    for labels, backend in rows:
        for window, share in backend.availability.items():
            metric.add_metric((*labels, window), share.up)
    return metric


def _connections(rows: Rows) -> Iterator[Metric]:
    """Yield what is known of services that record flows or count connections."""
    recorded = GaugeMetricFamily(
        "lb_xdp_backend_recorded_flows",
        "Flow records that name the backend, at the last look.",
        labels=BACKEND_LABELS,
    )
    connections = GaugeMetricFamily(
        "lb_xdp_backend_connections",
        "Connections of the backend, where its service counts them: exact in nat and fullnat, "
        "an estimate in dsr, ipip and gue.",
        labels=BACKEND_LABELS,
    )
    for labels, backend in rows:
        recorded.add_metric(labels, backend.recorded)
        if backend.connections is not None:
            connections.add_metric(labels, backend.connections)
    yield recorded
    yield connections


def _service_panic(snapshot: Snapshot) -> Metric:
    """Return for each service whether it has no healthy backend."""
    metric = GaugeMetricFamily(
        "lb_xdp_service_panic",
        "1 while no backend of the service is healthy, and its pool's `panic` rules; else 0.",
        labels=("service",),
    )
    for service in snapshot.services:
        metric.add_metric((service.name,), float(service.panic))
    return metric


def _service_backends(snapshot: Snapshot) -> Metric:
    """Return how many backends of each service are in each state, zeros included."""
    metric = GaugeMetricFamily(
        "lb_xdp_service_backends",
        "Backends of the service that are in the state.",
        labels=("service", "state"),
    )
    for service in snapshot.services:
        states = [backend.state for backend in service.backends]
        for state in State:
            metric.add_metric((service.name, state.value), states.count(state))
    return metric


def _datapath(snapshot: Snapshot) -> Iterator[Metric]:
    """Yield what the program saw and what is loaded."""
    datapath = snapshot.datapath
    packets = CounterMetricFamily(
        "lb_xdp_packets",
        "Packets that the program saw, by what became of them and why; the sum is all packets.",
        labels=("verdict", "reason"),
    )
    for item in datapath.reasons:
        packets.add_metric((item.verdict.value, item.reason), item.packets)
    yield packets
    info = InfoMetricFamily(
        "lb_xdp_datapath",
        "The XDP program on each interface and the mode it got; version is the controller's.",
        labels=("interface", "mode", "program_id", "version"),
    )
    for program in datapath.programs:
        labels = (program.interface, program.mode, str(program.id), snapshot.version)
        info.add_metric(labels, {})
    yield info
    yield from _flow_table(datapath.flow_table)


def _flow_table(flows: FlowTableStatus) -> Iterator[Metric]:
    """Yield how full the flow table is and what happened to its records."""
    yield GaugeMetricFamily(
        "lb_xdp_flow_table_entries", "Flows recorded, at the last look.", value=flows.entries
    )
    yield GaugeMetricFamily(
        "lb_xdp_flow_table_capacity",
        "Flows that can be recorded at the same time; none is evicted for another.",
        value=flows.capacity,
    )
    yield CounterMetricFamily(
        "lb_xdp_flow_table_inserts", "Flow records made or replaced.", value=flows.inserted
    )
    ended = CounterMetricFamily(
        "lb_xdp_flow_table_ended",
        "Flow records that ended: closed by FIN or RST, expired in silence.",
        labels=("how",),
    )
    ended.add_metric(("closed",), flows.closed)
    ended.add_metric(("expired",), flows.expired)
    yield ended
    yield CounterMetricFamily(
        "lb_xdp_flow_table_full", "Flows that found no room for a record.", value=flows.full
    )
    yield CounterMetricFamily(
        "lb_xdp_flow_table_rehashed",
        "Recorded flows that were given another backend because theirs was gone or down.",
        value=flows.rehashed,
    )


def _controller(snapshot: Snapshot) -> Iterator[Metric]:
    """Yield what the controller did and how it fares."""
    yield CounterMetricFamily(
        "lb_xdp_failovers",
        "Times that a backend lost its ring slots because it went down.",
        value=snapshot.failovers,
    )
    yield GaugeMetricFamily(
        "lb_xdp_ring_build_seconds",
        "How long the last build of rings took.",
        value=snapshot.ring_build_s,
    )
    yield GaugeMetricFamily(
        "lb_xdp_config_last_reload_success",
        "1 if the last load of the configuration file was accepted, 0 if it was refused "
        "and the former one is still in force.",
        value=float(snapshot.last_reload.success),
    )
    yield GaugeMetricFamily(
        "lb_xdp_config_last_reload_timestamp_seconds",
        "When the configuration file was last loaded or refused, in Unix time.",
        value=snapshot.last_reload.timestamp_s,
    )
    yield GaugeMetricFamily(
        "lb_xdp_config_is_file",
        "1 if the daemon's file is in force for good; 0 if another configuration is, or while a "
        "change waits to be confirmed.",
        value=float(snapshot.change is None),
    )
    yield CounterMetricFamily(
        "lb_xdp_api_strangers",
        "Requests to the API over TCP without a token that is known.",
        value=snapshot.api_strangers,
    )
    yield GaugeMetricFamily(
        "lb_xdp_ready",
        "1 once the gateway forwards as its configuration asks, as /readyz says.",
        value=float(snapshot.ready),
    )
