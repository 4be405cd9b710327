"""What the datapath should be: a pure function of configuration, liveness and topology.

``Structure`` is what the program and its endpoint table are built from; ``BackendRecord`` and rings
change in place. Two desired states with the same structure differ by map writes only.

Names are left behind here: the datapath knows services and backends by what they are on the wire.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import NamedTuple

from lb_xdp.core.model import BackendKey, Config, Mode, Service, ServiceKey
from lb_xdp.core.ring import Ring
from lb_xdp.core.topology import Interface, NextHop, Topology


class BackendId(NamedTuple):
    """A backend of a service: what has an index, a record and counters of its own."""

    service: ServiceKey
    backend: BackendKey

    def __str__(self) -> str:
        """Return ``203.0.113.10:80/tcp -> 10.0.0.11:8080``."""
        return f"{self.service} -> {self.backend}"


@dataclass(frozen=True, slots=True)
class BackendRecord:
    """What the program needs to reach a backend. ``ifindex`` 0: no way to it is known.

    ``mac`` is the next hop's and ``source_mac`` the outgoing interface's, 6 bytes each in wire
    order; ``mtu`` in octets of IP packet. ``up`` is written for the controller that starts next.
    ``shared``: several nat services use the same address, port and protocol.
    """

    ifindex: int
    mac: bytes
    source_mac: bytes
    mtu: int
    up: bool
    shared: bool

    @property
    def reachable(self) -> bool:
        """Whether a packet can be sent to it at all."""
        return self.ifindex != 0


UNREACHABLE = BackendRecord(0, bytes(6), bytes(6), 0, up=False, shared=False)


@dataclass(frozen=True, slots=True)
class Structure:
    """What a generation is built from: another structure is another generation.

    ``build`` identifies the program's sources; ``local_addresses`` are the gateway's own, empty
    where no service needs them (they tell answers to probes from replies to clients in nat).
    ``macs`` are those of the interfaces, 6 octets each: only frames sent to them are forwarded.
    """

    build: int
    modes: Mapping[ServiceKey, Mode]
    backends: frozenset[BackendId]
    local_addresses: frozenset[IPv4Address]
    macs: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Desired:
    """The goal. ``interfaces`` maps the names to attach to onto their indices."""

    structure: Structure
    records: Mapping[BackendId, BackendRecord]
    rings: Mapping[ServiceKey, Ring]
    interfaces: Mapping[str, int]


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
    modes = {service.key: service.mode for service in config.services}
    local = topology.local_addresses if Mode.NAT in modes.values() else frozenset()
    macs = frozenset(interface.mac for interface in _ours(config, topology))
    return Desired(
        Structure(build, modes, frozenset(records), local, macs),
        records,
        rings,
        {interface.name: interface.index for interface in _ours(config, topology)},
    )


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
    for service, backend in config.backends():
        identity = BackendId(service.key, backend.key)
        hop = topology.next_hops.get(backend.address)
        interface = ours.get(hop.ifindex) if hop else None
        mac = _mac(hop, held.get(identity)) if hop else None
        shared = service.mode is Mode.NAT and users[backend.key, service.protocol] > 1
        if hop is None or interface is None or mac is None or not _carries(service.mode, hop):
            records[identity] = replace(UNREACHABLE, shared=shared)
            continue
        records[identity] = BackendRecord(
            hop.ifindex,
            mac,
            hop.source_mac,
            interface.mtu,
            up=identity in live,
            shared=shared,
        )
    return records


def _carries(mode: Mode, hop: NextHop) -> bool:
    """Say whether a mode can go this way: dsr changes MACs only, so it ends at a router."""
    return hop.on_link or mode is not Mode.DSR


def _mac(hop: NextHop, held: BackendRecord | None) -> bytes | None:
    if hop.mac is None and held is not None and held.ifindex == hop.ifindex:
        return held.mac
    return hop.mac


def why_unreachable(
    service: Service, address: IPv4Address, topology: Topology, record: BackendRecord
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
        return f"behind router {hop.gateway}: dsr reaches only the own network, use mode: nat"
    return f"no answer to ARP for {hop.gateway or address} on {names[hop.ifindex]}"
