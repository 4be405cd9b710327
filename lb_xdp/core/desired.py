"""What the datapath should be, as plain values; ``goals`` makes them.

``Structure`` is what the program and its endpoint table are built from; ``BackendRecord`` and rings
change in place. Two desired states with the same structure differ by map writes only.

Names are left behind here: the datapath knows services and backends by what they are on the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from lb_xdp.core.model import (
    Address,
    Affinity,
    Algorithm,
    BackendKey,
    Mode,
    NoBackend,
    OnBackendDown,
    Service,
    ServiceKey,
    TunnelSources,
)
from lb_xdp.core.remembered import remembered
from lb_xdp.core.ring import Ring


class BackendId(NamedTuple):
    """A backend of a service: what has an index, a record and counters of its own."""

    service: ServiceKey
    backend: BackendKey

    def __str__(self) -> str:
        """Return ``203.0.113.10:80/tcp -> 10.0.0.11:8080``."""
        return f"{self.service} -> {self.backend}"


@remembered
def identities(service: Service) -> tuple[BackendId, ...]:
    """Return what the datapath knows a service's backends by, in the order of its pool."""
    return tuple(BackendId(service.key, backend.key) for backend in service.pool.backends)


class Schedule(Enum):
    """How a new flow of a service gets its slot; values as ``LB_SCHEDULE_*``."""

    HASH = 0
    TURN = 1
    RANDOM = 2
    LEAST = 3


class Traits(NamedTuple):
    """All that the endpoint table holds of a service; ``bpf/lb_types.h`` says what each means.

    ``stateless``: no flow is ever recorded. ``reset``: flows of a backend that dies are reset.
    ``watched``: handshakes are.
    """

    mode: Mode
    schedule: Schedule
    tracked: bool
    by_source: bool
    client: bool
    prefix: bool
    reject: bool
    limited: bool
    counted: bool
    stateless: bool
    reset: bool = False
    watched: bool = False


_SCHEDULES = {
    Algorithm.MAGLEV: Schedule.HASH,
    Algorithm.SOURCE_HASH: Schedule.HASH,
    Algorithm.ROUND_ROBIN: Schedule.TURN,
    Algorithm.RANDOM: Schedule.RANDOM,
    Algorithm.LEAST_CONNECTIONS: Schedule.LEAST,
}


@remembered
def traits(service: Service) -> Traits:
    """Return what the program needs to know of a service."""
    schedule = _SCHEDULES[service.algorithm]
    limited = any(backend.max_connections is not None for backend in service.pool.backends)
    return Traits(
        mode=service.mode,
        schedule=schedule,
        tracked=service.tracked,
        by_source=service.algorithm is Algorithm.SOURCE_HASH,
        client=service.session.affinity is not Affinity.NONE,
        prefix=service.session.affinity is Affinity.CLIENT_PREFIX,
        reject=service.no_backend is NoBackend.REJECT,
        limited=limited,
        counted=limited or schedule is Schedule.LEAST,
        stateless=not (service.tracked or service.session.flows),
        reset=service.on_backend_down is OnBackendDown.RESET,
        watched=service.watched is not None,
    )


@dataclass(frozen=True, slots=True)
class BackendRecord:
    """What the program needs to know of a backend. ``ifindex`` 0: no way to it is known.

    ``mac`` is the next hop's and ``source_mac`` the outgoing interface's, 6 bytes each in wire
    order; ``mtu`` is in octets of the client's packet, what a tunnel adds already taken off.
    ``up``: packets may go there. ``shared``: several nat services use the same address, port and
    protocol. ``no_new``: recorded flows only. ``tracked``: its service records every flow.
    ``watched``: its service has handshakes watched.

    ``limit`` is how many connections it may have, 0 for no limit; once there, it is full until
    ``resume`` are left. ``weight`` is for least_connections. These three are 0 where the service
    counts no connections.
    """

    ifindex: int
    mac: bytes
    source_mac: bytes
    mtu: int
    up: bool
    shared: bool
    no_new: bool = False
    tracked: bool = False
    limit: int = 0
    resume: int = 0
    weight: int = 0
    watched: bool = False

    @property
    def reachable(self) -> bool:
        """Whether a packet can be sent to it at all."""
        return self.ifindex != 0


UNREACHABLE = BackendRecord(0, bytes(6), bytes(6), 0, up=False, shared=False)


@dataclass(frozen=True, slots=True)
class Structure:
    """What a generation is built from: another structure is another generation.

    ``build`` identifies the program's sources; ``local_addresses`` are the gateway's own, empty
    where no service needs them (they tell answers to probes from replies to clients).
    ``macs`` are those of the interfaces, 6 octets each: only frames sent to them are forwarded.

    ``snat_addresses``, ``tunnel_sources`` and ``gue_port`` are the defaults where no service uses
    them, so that a setting without a use makes no new generation. ``flow_entries`` is the size of
    the flow table.
    """

    build: int
    services: Mapping[ServiceKey, Traits]
    backends: frozenset[BackendId]
    local_addresses: frozenset[Address]
    macs: frozenset[bytes]
    snat_addresses: tuple[Address, ...]
    tunnel_sources: TunnelSources
    gue_port: int
    flow_entries: int


@dataclass(frozen=True, slots=True)
class Desired:
    """The goal. ``interfaces`` maps the names to attach to onto their indices.

    ``settle_ns`` is how long a service's slot stays unsettled after a change of its backend; 0:
    slots are always settled, because no flow ever gets a record. Where every flow has one, slots
    tell about flows that are older than that: since a reload, or since a record was lost.
    ``affinity_s`` is how long a client without flows is remembered, 0 where none is.
    """

    structure: Structure
    records: Mapping[BackendId, BackendRecord]
    rings: Mapping[ServiceKey, Ring]
    interfaces: Mapping[str, int]
    settle_ns: Mapping[ServiceKey, int]
    affinity_s: Mapping[ServiceKey, int]
