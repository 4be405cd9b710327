"""Who stands where: services, backends and addresses of a structure, to be asked by address."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Network, IPv6Network

from lb_xdp.core.desired import Structure
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

Place = tuple[int, ...]
"""IP version, address, port and IANA protocol number: what is underneath a ``ServiceKey``."""


def place_of(address: Address, port: int, protocol: int) -> Place:
    """Return a place; ``protocol`` is IANA's number."""
    return address.version, int(address), port, protocol


class Standing:
    """The structure's inhabitants."""

    def __init__(self, structure: Structure) -> None:
        modes = {key: has.mode for key, has in structure.services.items()}
        translating = {key for key, mode in modes.items() if mode.translates}
        self._macs = structure.macs
        self._services: dict[Place, ServiceKey] = {key: key for key in modes}
        self._endpoints = {
            (*backend, service[-1])
            for service, backend in structure.backends
            if modes[service] is Mode.NAT
        }
        self.vips: frozenset[Address] = frozenset(key.vip for key in modes)
        self.families = frozenset(vip.version for vip in self.vips)
        self.locals = structure.local_addresses
        self.snats = frozenset(structure.snat_addresses)
        self.backends = _addresses(structure, translating)
        self.tunnels = _tunnel_sources(structure)

    def service_at(self, place: Place) -> ServiceKey | None:
        """Return the service at a place; one with a port of its own goes before any port."""
        return self._services.get(place) or self._services.get(_any_port(place))

    def is_endpoint(self, place: Place) -> bool:
        """Say whether a nat backend stands at a place, with that port or with all of them."""
        return place in self._endpoints or _any_port(place) in self._endpoints

    def is_for_us(self, frame: bytes) -> bool:
        """Say whether a frame was sent to the gateway, as itself or as a virtual router."""
        return frame[:6] in self._macs or frame[:5] in _VRRP_MACS

    def in_tunnels(self, address: Address) -> bool:
        """Say whether an address is the gateway's end of a tunnel."""
        return any(address in network for network in self.tunnels)


def _any_port(place: Place) -> Place:
    return (*place[:2], ANY_PORT, place[3])


def _addresses(structure: Structure, services: Collection[ServiceKey]) -> frozenset[Address]:
    """Return the addresses of these services' backends."""
    keys = (backend for service, backend in structure.backends if service in services)
    return frozenset({key[:2]: key.address for key in keys}.values())


def _tunnel_sources(structure: Structure) -> tuple[IPv4Network | IPv6Network, ...]:
    sources = structure.tunnel_sources
    inside = {key for key, has in structure.services.items() if has.mode.tunnel}
    versions = {address.version for address in _addresses(structure, inside)}
    return tuple(sources.ipv4 if version == IPV4 else sources.ipv6 for version in sorted(versions))


def is_martian(source: Address, destination: Address) -> bool:
    """Say whether no client can have this source, the destination's own included."""
    return source == destination or any(source in net for net in _MARTIANS[source.version])


def is_error(frame: bytes, l4: int, family: int) -> bool:
    """Say whether an ICMP message is an error about a packet (RFC 1122, 3.2.2; RFC 4443, 2.1)."""
    kind = number(frame, l4, 1)
    return kind in _ERRORS[family]
