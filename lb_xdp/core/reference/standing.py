"""Who stands where: services, backends and addresses of a structure, to be asked by address."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import TypeVar

from lb_xdp.core.desired import BackendId, Structure
from lb_xdp.core.model import ANY_PORT, IPV4, Address, Mode, ServiceKey
from lb_xdp.core.reference.packet import number

_VRRP_MACS = (bytes.fromhex("00005e0001"), bytes.fromhex("00005e0002"))
"""The first five octets of a virtual router's MAC (RFC 9568, 7.3)."""

_ERRORS = {4: frozenset({3, 11, 12}), 6: frozenset({1, 2, 3, 4})}
"""ICMP: unreachable, time exceeded, parameter problem; ICMPv6: these, and packet too big."""

_MARTIANS: dict[int, tuple[IPv4Network | IPv6Network, ...]] = {
    4: tuple(map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3"))),
    6: tuple(map(IPv6Network, ("::/127", "ff00::/8"))),
}
"""What no client can have (RFC 1122, 3.2.1.3; RFC 4291, 2.5 and 2.7)."""

_Found = TypeVar("_Found")
Place = tuple[Address, int, int]
"""Address, port and IANA protocol number."""


class Standing:
    """The structure's inhabitants. ``endpoints`` are nat backends at their own places."""

    def __init__(self, structure: Structure, indices: Mapping[BackendId, int]) -> None:
        self._macs = structure.macs
        self._services = {
            (key.vip, key.port, key.protocol.number): key for key in structure.services
        }
        self._endpoints = _endpoints(structure, indices)
        translating = {key for key, has in structure.services.items() if has.mode.translates}
        self.vips: frozenset[Address] = frozenset(key.vip for key in structure.services)
        self.families = frozenset(vip.version for vip in self.vips)
        self.locals = structure.local_addresses
        self.snats = frozenset(structure.snat_addresses)
        self.backends: frozenset[Address] = frozenset(
            identity.backend.address
            for identity in structure.backends
            if identity.service in translating
        )
        self.tunnels = _tunnel_sources(structure)

    def service_at(self, place: Place) -> ServiceKey | None:
        """Return the service at a place; one with a port of its own goes before any port."""
        return _at(self._services, place)

    def endpoint_at(self, place: Place) -> BackendId | None:
        """Return the nat backend at a place; of several entries there, the oldest."""
        return _at(self._endpoints, place)

    def is_for_us(self, frame: bytes) -> bool:
        """Say whether a frame was sent to the gateway, as itself or as a virtual router."""
        return frame[:6] in self._macs or frame[:5] in _VRRP_MACS

    def in_tunnels(self, address: Address) -> bool:
        """Say whether an address is the gateway's end of a tunnel."""
        return any(address in network for network in self.tunnels)


def _at(where: Mapping[Place, _Found], place: Place) -> _Found | None:
    found = where.get(place)
    return where.get((place[0], ANY_PORT, place[2])) if found is None else found


def _endpoints(structure: Structure, indices: Mapping[BackendId, int]) -> dict[Place, BackendId]:
    found: dict[Place, BackendId] = {}
    for identity in sorted(structure.backends, key=indices.__getitem__, reverse=True):
        if structure.services[identity.service].mode is Mode.NAT:
            address, port = identity.backend.address, identity.backend.port
            found[address, port, identity.service.protocol.number] = identity
    return found


def _tunnel_sources(structure: Structure) -> tuple[IPv4Network | IPv6Network, ...]:
    sources, versions = structure.tunnel_sources, set()
    for identity in structure.backends:
        if structure.services[identity.service].mode.tunnel:
            versions.add(identity.backend.address.version)
    return tuple(sources.ipv4 if version == IPV4 else sources.ipv6 for version in sorted(versions))


def is_martian(source: Address, destination: Address) -> bool:
    """Say whether no client can have this source, the destination's own included."""
    return source == destination or any(source in net for net in _MARTIANS[source.version])


def is_error(frame: bytes, l4: int, family: int) -> bool:
    """Say whether an ICMP message is an error about a packet (RFC 1122, 3.2.2; RFC 4443, 2.1)."""
    kind = number(frame, l4, 1)
    return kind in _ERRORS[family]
