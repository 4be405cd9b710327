"""What the datapath should be: a pure function of configuration, liveness and topology.

``Structure`` is what the program and its endpoint table are built from; ``BackendRecord`` and rings
change in place. Two desired states with the same structure differ by map writes only.

Names are left behind here: the datapath knows services and backends by what they are on the wire.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from math import ceil
from typing import NamedTuple

from lb_xdp.core.model import (
    GUE_PORT,
    IPV6,
    Address,
    Affinity,
    Algorithm,
    BackendKey,
    Config,
    FlowTable,
    Mode,
    NoBackend,
    OnBackendDown,
    Protocol,
    Service,
    ServiceKey,
    TunnelSources,
)
from lb_xdp.core.ring import Ring
from lb_xdp.core.topology import Interface, NextHop, Topology

_IPV4_BYTES, _IPV6_BYTES, _UDP_BYTES = 20, 40, 8
_RESUME_PERCENT = 95


class BackendId(NamedTuple):
    """A backend of a service: what has an index, a record and counters of its own."""

    service: ServiceKey
    backend: BackendKey

    def __str__(self) -> str:
        """Return ``203.0.113.10:80/tcp -> 10.0.0.11:8080``."""
        return f"{self.service} -> {self.backend}"


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


RingOf = Callable[[Service, frozenset[BackendKey]], Ring]
"""From a service and its live backends to its ring; the caller may remember results."""


def desire(
    config: Config,
    topology: Topology,
    live: Collection[BackendId],
    ring_of: RingOf,
    *,
    build: int,
    held: Mapping[BackendId, BackendRecord],
) -> Desired:
    """Return what the datapath should be, given which backends may take traffic.

    ``held`` are the present records: a backend whose neighbour does not answer now keeps the MAC
    that it had. Whether it is alive is for probes to say, not for ARP.
    """
    records = _records(config, topology, live, held)
    rings = {}
    for service in config.services:
        keys = (backend.key for backend in service.pool.backends)
        up = frozenset(key for key in keys if records[BackendId(service.key, key)].up)
        rings[service.key] = ring_of(service, up)
    ours = _ours(config, topology)
    return Desired(
        _structure(config, topology, frozenset(records), build),
        records,
        rings,
        {interface.name: interface.index for interface in ours},
        {
            service.key: _settle_ns(service, config.gateway.flow_table)
            for service in config.services
        },
        {service.key: _affinity_s(service) for service in config.services},
    )


def _structure(
    config: Config, topology: Topology, backends: frozenset[BackendId], build: int
) -> Structure:
    gateway = config.gateway
    modes = {service.mode for service in config.services}
    families = {s.vip.version for s in config.services if s.mode.translates}
    tunnels = any(mode.tunnel for mode in modes)
    return Structure(
        build=build,
        services={service.key: traits(service) for service in config.services},
        backends=backends,
        local_addresses=frozenset(a for a in topology.local_addresses if a.version in families),
        macs=frozenset(interface.mac for interface in _ours(config, topology)),
        snat_addresses=_ordered(gateway.snat_addresses) if Mode.FULLNAT in modes else (),
        tunnel_sources=gateway.tunnel_sources if tunnels else TunnelSources(),
        gue_port=gateway.gue_port if Mode.GUE in modes else GUE_PORT,
        flow_entries=gateway.flow_table.entries,
    )


def _ordered(addresses: Collection[Address]) -> tuple[Address, ...]:
    """Return addresses in the order of the map that holds them: by family, then by value."""
    return tuple(sorted(addresses, key=lambda address: (address.version, int(address))))


def _settle_ns(service: Service, times: FlowTable) -> int:
    """Return after how long a flow that has not shown itself is taken to be over."""
    if not (service.tracked or service.session.flows):
        return 0
    seconds = times.settle_s if service.protocol is Protocol.TCP else times.udp_idle_s
    return round(seconds * 1e9)


def _affinity_s(service: Service) -> int:
    return 0 if service.session.affinity is Affinity.NONE else ceil(service.session.timeout_s)


def _ours(config: Config, topology: Topology) -> list[Interface]:
    """Return the interfaces to attach to that exist now."""
    names = config.gateway.interfaces
    return [topology.interfaces[name] for name in names if name in topology.interfaces]


def _records(
    config: Config,
    topology: Topology,
    live: Collection[BackendId],
    held: Mapping[BackendId, BackendRecord],
) -> dict[BackendId, BackendRecord]:
    users = Counter(
        (backend.key, service.protocol)
        for service, backend in config.backends()
        if service.mode is Mode.NAT
    )
    ours = {interface.index: interface for interface in _ours(config, topology)}
    records = {}
    for service in config.services:
        rules = traits(service)
        for backend in service.pool.backends:
            identity = BackendId(service.key, backend.key)
            way = _way(service.mode, backend.address, topology, ours, held.get(identity))
            limit = backend.max_connections or 0
            records[identity] = BackendRecord(
                *way,
                up=way is not _NO_WAY and identity in live,
                shared=service.mode is Mode.NAT and users[backend.key, service.protocol] > 1,
                no_new=backend.weight == 0,
                tracked=rules.tracked,
                limit=limit,
                resume=_resume(service.mode, limit),
                weight=backend.weight if rules.counted else 0,
                watched=rules.watched,
            )
    return records


class Way(NamedTuple):
    """The first part of a BackendRecord. ``ifindex`` 0: there is none."""

    ifindex: int
    mac: bytes
    source_mac: bytes
    mtu: int


_NO_WAY = Way(0, bytes(6), bytes(6), 0)


def way_to(
    config: Config,
    mode: Mode,
    address: Address,
    topology: Topology,
    held: BackendRecord | None,
) -> Way:
    """Return how a backend is reached; ``held`` is its present record."""
    ours = {interface.index: interface for interface in _ours(config, topology)}
    return _way(mode, address, topology, ours, held)


def _way(
    mode: Mode,
    address: Address,
    topology: Topology,
    ours: Mapping[int, Interface],
    held: BackendRecord | None,
) -> Way:
    """Return how a backend is reached."""
    hop = topology.next_hops.get(address)
    interface = ours.get(hop.ifindex) if hop else None
    mac = _mac(hop, held) if hop else None
    if hop is None or interface is None or mac is None or not _carries(mode, hop):
        return _NO_WAY
    mtu = max(interface.mtu - _outer_bytes(mode, address), 0)
    return Way(hop.ifindex, mac, hop.source_mac, mtu)


def _resume(mode: Mode, limit: int) -> int:
    """Return how many connections a full backend must be down to before it takes new ones.

    Where both directions pass by, each connection is seen to end and the next one may come at once;
    elsewhere the number is an estimate, and a backend that wavers about its limit would flap.
    """
    if mode.translates:
        return max(limit - 1, 0)
    return limit * _RESUME_PERCENT // 100


def _outer_bytes(mode: Mode, address: Address) -> int:
    """Return what a tunnel to an address adds to a packet (RFC 2003, RFC 2473, GUE variant 1)."""
    if not mode.tunnel:
        return 0
    header = _IPV6_BYTES if address.version == IPV6 else _IPV4_BYTES
    return header + (_UDP_BYTES if mode is Mode.GUE else 0)


def _carries(mode: Mode, hop: NextHop) -> bool:
    """Say whether a mode can go this way: dsr changes MACs only, so it ends at a router."""
    return hop.on_link or mode.routes


def _mac(hop: NextHop, held: BackendRecord | None) -> bytes | None:
    if hop.mac is None and held is not None and held.ifindex == hop.ifindex:
        return held.mac
    return hop.mac


def why_unreachable(
    service: Service, address: Address, topology: Topology, record: BackendRecord
) -> str | None:
    """Say in words why no packet can be sent to a backend, or None if its record can be used."""
    if record.reachable:
        return None
    hop = topology.next_hops.get(address)
    names = {interface.index: name for name, interface in topology.interfaces.items()}
    if hop is None:
        return f"no route to {address}"
    if hop.ifindex not in names:
        return f"the route to {address} leaves by an interface that is not in gateway.interfaces"
    if not _carries(service.mode, hop):
        return (
            f"behind router {hop.gateway}: dsr reaches only the own network, "
            "use mode: ipip, gue or nat"
        )
    asked = "neighbour discovery" if address.version == IPV6 else "ARP"
    return f"no answer to {asked} for {hop.gateway or address} on {names[hop.ifindex]}"
