"""The Snapshot of a gateway, put together from what the reconciler knows and what was counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from lb_xdp.core.desired import BackendId, BackendRecord, traits, why_unreachable
from lb_xdp.core.health import HealthState
from lb_xdp.core.model import Backend, Config, NoBackend, Service, ServiceKey
from lb_xdp.core.snapshot import (
    Admin,
    BackendStatus,
    Health,
    Records,
    ServiceStatus,
    State,
)
from lb_xdp.core.topology import Topology


class Count(Protocol):
    """Totals of one backend; BackendStatus says what they mean."""

    @property
    def packets(self) -> int: ...  # noqa: D102 - see BackendStatus
    @property
    def bytes(self) -> int: ...  # noqa: D102 - see BackendStatus
    @property
    def flows(self) -> int: ...  # noqa: D102 - see BackendStatus
    @property
    def reply_packets(self) -> int: ...  # noqa: D102 - see BackendStatus
    @property
    def reply_bytes(self) -> int: ...  # noqa: D102 - see BackendStatus
    @property
    def connections(self) -> int: ...  # noqa: D102 - see BackendStatus


@dataclass(frozen=True, slots=True)
class BackendView:
    """What is known of one backend of one service. ``health`` is that of its pool's member.

    ``recorded`` is how many flow records name it.
    """

    health: HealthState
    record: BackendRecord
    count: Count | None
    slots: int
    probe_duration_s: float | None
    since_timestamp_s: float
    recorded: int = 0


def state_of(health: Health, *, reachable: bool) -> State:
    """Return what counts for traffic."""
    if health is Health.UNKNOWN:
        return State.UNKNOWN
    return State.UP if reachable and health is not Health.DOWN else State.DOWN


def backend_status(
    service: Service, backend: Backend, topology: Topology, view: BackendView
) -> BackendStatus:
    """Return one backend's line of the status."""
    obstacle = why_unreachable(service, backend.address, topology, view.record)
    count = view.count
    return BackendStatus(
        name=backend.name,
        address=str(backend.key),
        state=state_of(view.health.health, reachable=obstacle is None),
        admin=Admin.READY,
        health=view.health.health,
        weight=backend.weight,
        slots=view.slots,
        packets=count.packets if count else 0,
        bytes=count.bytes if count else 0,
        flows=count.flows if count else 0,
        reply_packets=count.reply_packets if count else 0,
        reply_bytes=count.reply_bytes if count else 0,
        detail=obstacle or view.health.detail,
        since_timestamp_s=view.since_timestamp_s,
        probe_duration_s=view.probe_duration_s,
        recorded=view.recorded,
        connections=count.connections if count and traits(service).counted else None,
        max_connections=backend.max_connections,
    )


def _records(service: Service) -> Records:
    if service.tracked:
        return Records.ALL
    return Records.UNSETTLED if service.session.flows else Records.NONE


def service_statuses(
    config: Config,
    topology: Topology,
    views: Mapping[BackendId, BackendView],
    slots: Mapping[ServiceKey, tuple[int, int]],
) -> tuple[ServiceStatus, ...]:
    """Return every service with its backends, in the file's order.

    ``slots`` are each service's unsettled and marked ones.
    """
    return tuple(
        ServiceStatus(
            name=service.name,
            vip=str(service.vip),
            port=service.port,
            protocol=service.protocol.value,
            mode=service.mode.value,
            algorithm=service.algorithm.value,
            pool=service.pool.name,
            backends=tuple(
                backend_status(
                    service, backend, topology, views[BackendId(service.key, backend.key)]
                )
                for backend in service.pool.backends
            ),
            affinity=service.session.affinity.value,
            no_backend=service.no_backend.value,
            why_tracked=service.why_tracked,
            records=_records(service),
            unsettled_slots=slots.get(service.key, (0, 0))[0],
            marked_slots=slots.get(service.key, (0, 0))[1],
        )
        for service in config.services
    )


def empty_services(services: tuple[ServiceStatus, ...]) -> list[str]:
    """Return a sentence for each service that has nobody to take its packets."""
    return [
        f"service {service.name}: no backend is up; its packets are "
        + ("refused" if service.no_backend == NoBackend.REJECT else "dropped")
        for service in services
        if not any(b.state is State.UP and b.weight > 0 for b in service.backends)
    ]
