"""Snapshots as Prometheus samples: the names, types, labels and help texts of ``/metrics``.

This module owns the names; docs/metrics.md lists them for operators. It refuses to own HTTP and to
read the kernel: every number but the probes' durations comes from one snapshot per scrape, so the
samples of a scrape agree with each other. Labels are bounded by the configuration.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from lb_xdp.core.snapshot import FlowTableStatus, ServiceStatus, Snapshot, State
from lb_xdp.metrics.backends import availability, backends_of, counts, states
from lb_xdp.metrics.durations import ProbeDurations
from lb_xdp.metrics.handshakes import handshakes
from lb_xdp.metrics.table import MARK, Row, Table, label, written


class Exposition:
    """All metrics of one gateway. Holds no global state: two gateways in a process stay apart."""

    def __init__(self) -> None:
        self._durations = ProbeDurations()

    def observe_probe(self, service: str, backend: str, duration_s: float) -> None:
        """Count one probe of ``backend`` that took ``duration_s`` seconds."""
        self._durations.observe(service, backend, duration_s)

    def forget(self, service: str, backend: str) -> None:
        """Drop the probe durations of a backend that has left; unknown ones are no error."""
        self._durations.forget(service, backend)

    def families(self, snapshot: Snapshot) -> Iterator[Metric | Table]:
        """Yield every metric family, in the order of docs/metrics.md."""
        backends = backends_of(snapshot)
        yield from counts(backends)
        yield from handshakes(backends)
        yield states(backends)
        yield availability(backends)
        yield self._durations.table()
        yield _service_backends(snapshot)
        yield _service_panic(snapshot)
        yield from _datapath(snapshot)
        yield from _controller(snapshot)

    def render(self, accept: str, snapshot: Snapshot) -> tuple[bytes, str]:
        """Return the body and its content type, text or OpenMetrics as ``accept`` prefers.

        This may happen in another thread than all else.
        """
        encoder, content_type = choose_encoder(accept)
        families = self.families(snapshot)
        return b"".join(written(families, encoder)), content_type


def _service_panic(snapshot: Snapshot) -> Table:
    """Return for each service whether it has no healthy backend."""
    family = GaugeMetricFamily(
        "lb_xdp_service_panic",
        "1 while no backend of the service is healthy, and its pool's `panic` rules; else 0.",
        labels=("service",),
    )
    family.add_metric((MARK,), 0)
    rows = (((label(service.name),), (int(service.panic),)) for service in snapshot.services)
    return Table(family, rows)


def _service_backends(snapshot: Snapshot) -> Table:
    """Return how many backends of each service are in each state, zeros included."""
    family = GaugeMetricFamily(
        "lb_xdp_service_backends",
        "Backends of the service that are in the state.",
        labels=("service", "state"),
    )
    for state in State:
        family.add_metric((MARK, state.value), 0)
    return Table(family, (_states(service) for service in snapshot.services))


def _states(service: ServiceStatus) -> Row:
    states = [backend.state for backend in service.backends]
    return (label(service.name),), [states.count(state) for state in State]


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
