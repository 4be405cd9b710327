"""The Snapshot of a gateway, put together from what the reconciler knows and what was counted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from math import ceil
from typing import NamedTuple, Protocol

from lb_xdp.core.desired import BackendRecord, traits
from lb_xdp.core.health import HealthState
from lb_xdp.core.model import Backend, Config, NoBackend, Service, ServiceKey
from lb_xdp.core.override import Kind, Override, Overrides
from lb_xdp.core.remembered import remembered
from lb_xdp.core.snapshot import (
    BackendStatus,
    Handshakes,
    OverrideStatus,
    Records,
    ServiceStatus,
    Share,
    State,
)
from lb_xdp.core.standing import Standing, panic_sentence
from lb_xdp.core.topology import Topology
from lb_xdp.core.ways import why_unreachable


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


class Watched(Protocol):
    """What was seen of one backend's handshakes; Handshakes says what it means."""

    @property
    def begun(self) -> int: ...  # noqa: D102 - see Handshakes
    @property
    def answered(self) -> int: ...  # noqa: D102 - see Handshakes
    @property
    def repeated(self) -> int: ...  # noqa: D102 - see Handshakes
    @property
    def resets(self) -> int: ...  # noqa: D102 - see Handshakes
    @property
    def duration_us(self) -> int: ...  # noqa: D102 - see Handshakes
    @property
    def durations(self) -> tuple[int, ...]: ...  # noqa: D102 - see Handshakes


class BackendView(NamedTuple):
    """What is known of one backend of one service. ``health`` is that of its pool's member.

    ``recorded`` is how many flow records name it; ``hidden``: it gets no new flow and may have some
    without one. ``leaves_in_s`` is how long one may stay that was removed from the file.
    ``ejected``: that is why it is down. A tuple, as one is made of each backend for every look.
    """

    health: HealthState
    record: BackendRecord
    totals: Count | None
    slots: int
    probe_duration_s: float | None
    since_timestamp_s: float
    recorded: int
    standing: Standing
    overrides: tuple[Override, ...] = ()
    leaves_in_s: float | None = None
    hidden: bool = False
    watched: Watched | None = None
    ejected: bool = False


Shares = Callable[[str, str], Mapping[str, Share]]
"""From the names of a service and a backend to its availability, by window."""


def _no_shares(_service: str, _backend: str) -> Mapping[str, Share]:
    return {}


@remembered
def _endpoints(config: Config) -> Mapping[ServiceKey, Sequence[str]]:
    """Return the addresses of all backends as they are shown."""
    return {
        service.key: [str(backend.key) for backend in service.pool.backends]
        for service in config.services
    }


def backend_status(
    service: Service,
    backend: Backend,
    topology: Topology,
    view: BackendView,
    *,
    address: str,
    counted: bool,
    availability: Mapping[str, Share],
) -> BackendStatus:
    """Return one backend's line of the status; ``counted``: its connections are."""
    obstacle = why_unreachable(service, backend.address, topology, view.record)
    count, standing = view.totals, view.standing
    return BackendStatus(
        name=backend.name,
        address=address,
        state=standing.state(view.health.health, reachable=obstacle is None),
        admin=standing.admin,
        health=view.health.health,
        weight=standing.weight,
        slots=view.slots,
        packets=count.packets if count else 0,
        bytes=count.bytes if count else 0,
        flows=count.flows if count else 0,
        reply_packets=count.reply_packets if count else 0,
        reply_bytes=count.reply_bytes if count else 0,
        detail=_detail(view, obstacle),
        since_timestamp_s=_since_timestamp_s(view),
        probe_duration_s=view.probe_duration_s,
        recorded=view.recorded,
        connections=count.connections if count and counted else None,
        max_connections=backend.max_connections,
        configured_weight=standing.configured_weight,
        priority=backend.priority,
        overrides=tuple(map(_override_status, view.overrides)),
        availability=availability,
        hidden=view.hidden,
        handshakes=_handshakes(service, view.watched),
        ejected=view.ejected,
    )


def _detail(view: BackendView, obstacle: str | None) -> str:
    """Say in words why a backend's state is what it is: all layers that have something to say."""
    seen = obstacle or view.health.detail
    if not view.standing.why and view.leaves_in_s is None:
        return seen  # of nearly all
    words = [view.standing.why, seen]
    if view.leaves_in_s is not None:
        words.insert(0, f"removed from the file, {ceil(view.leaves_in_s)} s left")
    return "; ".join(filter(None, words))


def _since_timestamp_s(view: BackendView) -> float:
    """Return when the state became what it is, as far as that is known."""
    if not view.overrides:
        return view.since_timestamp_s
    asked = (o.at_timestamp_s for o in view.overrides if o.subject.kind is Kind.ADMIN)
    return max(next(asked, 0.0), view.since_timestamp_s)


def _override_status(override: Override) -> OverrideStatus:
    return OverrideStatus(
        override.subject.kind.value,
        override.value,
        override.author,
        override.reason,
        override.at_timestamp_s,
        override.expires_timestamp_s,
    )


def _handshakes(service: Service, watched: Watched | None) -> Handshakes | None:
    if watched is None:
        return None
    return Handshakes(
        begun=watched.begun,
        answered=watched.answered,
        repeated=watched.repeated,
        resets=watched.resets,
        exact=service.mode.translates,
        duration_us=watched.duration_us,
        durations=watched.durations if service.mode.translates else (),
    )


def _records(service: Service) -> Records:
    if service.tracked:
        return Records.ALL
    return Records.UNSETTLED if service.session.flows else Records.NONE


def service_statuses(
    config: Config,
    topology: Topology,
    views: Mapping[ServiceKey, Sequence[BackendView]],
    slots: Mapping[ServiceKey, tuple[int, int]],
    panics: Collection[ServiceKey] = (),
    *,
    shares: Shares = _no_shares,
) -> Iterator[ServiceStatus]:
    """Yield every service with its backends, in the file's order; those that linger come last.

    ``views`` are of each service's backends in their order, ``slots`` are its unsettled and marked
    ones.
    """
    endpoints = _endpoints(config)
    for service in config.services:
        yield ServiceStatus(
            name=service.name,
            vip=str(service.vip),
            port=service.port,
            protocol=service.protocol.value,
            mode=service.mode.value,
            algorithm=service.algorithm.value,
            pool=service.pool.name,
            backends=tuple(
                _backend_statuses(
                    service, topology, views[service.key], endpoints[service.key], shares
                )
            ),
            affinity=service.session.affinity.value,
            no_backend=service.no_backend.value,
            why_tracked=service.why_tracked,
            records=_records(service),
            unsettled_slots=slots.get(service.key, (0, 0))[0],
            marked_slots=slots.get(service.key, (0, 0))[1],
            panic=service.key in panics,
        )


def _backend_statuses(
    service: Service,
    topology: Topology,
    views: Sequence[BackendView],
    endpoints: Sequence[str],
    shares: Shares,
) -> Iterator[BackendStatus]:
    counted = traits(service).counted
    for backend, view, address in zip(service.pool.backends, views, endpoints, strict=True):
        yield backend_status(
            service,
            backend,
            topology,
            view,
            address=address,
            counted=counted,
            availability=shares(service.name, backend.name),
        )


def empty_services(services: tuple[ServiceStatus, ...]) -> list[str]:
    """Return a sentence for each service that has nobody to take its packets.

    A service in a panic has a louder one.
    """
    return [
        f"service {service.name}: no backend is up; its packets are "
        + ("refused" if service.no_backend == NoBackend.REJECT else "dropped")
        for service in services
        if not service.panic
        and not any(b.state is State.UP and b.weight > 0 for b in service.backends)
    ]


def panic_notices(config: Config, panics: Collection[ServiceKey]) -> list[str]:
    """Return a sentence for each service that is in a panic."""
    return [
        f"PANIC: service {service.name}: {panic_sentence(service)}"
        for service in config.services
        if service.key in panics
    ]


def orphan_notices(config: Config, overrides: Overrides) -> list[str]:
    """Return a sentence for each override that is about nobody who is there now."""
    if not overrides:
        return []
    names = {(service.name, backend.name) for service, backend in config.backends()}
    return [
        f"override {override.subject}: there is no such backend now; clear it, unless it comes back"
        for override in overrides
        if (override.subject.service, override.subject.backend) not in names
    ]
