"""How a backend is reached from this host: by which interface, with which MACs, and how much.

Owns what follows from the network for one backend, and why there may be no way. It refuses to know
whether the backend is alive.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lb_xdp.core.desired import BackendRecord
from lb_xdp.core.model import IPV6, Address, Config, Mode, Service
from lb_xdp.core.topology import Interface, NextHop, Topology

_IPV4_BYTES, _IPV6_BYTES, _UDP_BYTES = 20, 40, 8


def attached(config: Config, topology: Topology) -> list[Interface]:
    """Return the interfaces to attach to that exist now."""
    names = config.gateway.interfaces
    return [topology.interfaces[name] for name in names if name in topology.interfaces]


class Way(NamedTuple):
    """The first part of a BackendRecord. ``ifindex`` 0: there is none."""

    ifindex: int
    mac: bytes
    source_mac: bytes
    mtu: int


NO_WAY = Way(0, bytes(6), bytes(6), 0)


def way_to(
    config: Config,
    mode: Mode,
    address: Address,
    topology: Topology,
    held: BackendRecord | None,
) -> Way:
    """Return how a backend is reached; ``held`` is its present record."""
    ours = {interface.index: interface for interface in attached(config, topology)}
    return find_way(mode, address, topology, ours, held)


def find_way(
    mode: Mode,
    address: Address,
    topology: Topology,
    ours: Mapping[int, Interface],
    held: BackendRecord | None,
) -> Way:
    """Return how a backend is reached by ``ours``, the interfaces to attach to, by index."""
    hop = topology.next_hops.get(address)
    interface = ours.get(hop.ifindex) if hop else None
    mac = _mac(hop, held) if hop else None
    if hop is None or interface is None or mac is None or not _carries(mode, hop):
        return NO_WAY
    mtu = max(interface.mtu - _outer_bytes(mode, address), 0)
    return Way(hop.ifindex, mac, hop.source_mac, mtu)


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
