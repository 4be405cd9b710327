"""Packets to try a program with before it is let near real ones, made from its configuration.

Each belongs to a flow of its own, so that none depends on another: what the model foretells for
blank tables holds for each of them, in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from itertools import zip_longest
from typing import Final

from lb_xdp.core.desired import BackendId, Structure
from lb_xdp.core.model import ANY_PORT, IPV4, Address, Mode, Protocol, ServiceKey
from lb_xdp.core.reference.build import (
    ACK,
    EXTENSIONS,
    FIN,
    ROUTER_ALERT,
    RST,
    SERVICE_VLAN,
    SYN,
    VLAN,
    ethernet,
    extensions,
    fragment_header,
    icmp,
    ip,
    tcp,
    udp,
)
from lb_xdp.core.reference.packet import ICMP, ICMPV6, TCP

_CLIENT_MAC: Final = bytes.fromhex("02006c627872")
_STRANGER_MAC: Final = bytes.fromhex("02006c6278ff")
_VRRP_MAC: Final = bytes.fromhex("00005e000101")
_CLIENTS: Final = {4: int(IPv4Address("198.51.100.1")), 6: int(IPv6Address("2001:db8:6c62::1"))}
"""From networks for documentation (RFC 5737, RFC 3849)."""

_STRANGERS: Final[Mapping[int, Address]] = {
    4: IPv4Address("192.0.2.77"),
    6: IPv6Address("2001:db8:ffff::77"),
}
_MARTIANS: Final[Mapping[int, Address]] = {4: IPv4Address("127.0.0.1"), 6: IPv6Address("ff02::1")}
_FIRST_PORT: Final = 20_000
_PORTS: Final = 40_000
_OTHER_PORT: Final = 9
_GRE: Final = 47
_FLOWS: Final = 200
_FEWEST_FLOWS: Final = 4
"""New flows in all, and of each service at least: they show that rings are read aright."""


class Trial:
    """Makes the packets. ``most_services`` bounds how many of the services take part."""

    def __init__(self, structure: Structure, most_services: int = 50) -> None:
        self._structure = structure
        self._services = _chosen(structure, most_services)
        self._gateway = min(structure.macs, default=_STRANGER_MAC)
        self._made = 0

    def __iter__(self) -> Iterator[bytes]:
        for service in self._services:
            yield from self._of(service)
        yield from self._of_nobody()

    def _client(self, family: int) -> Address:
        """Return another client for each packet; few enough to stay in their networks."""
        self._made += 1
        number = _CLIENTS[family] + self._made % 200
        return IPv4Address(number) if family == IPV4 else IPv6Address(number)

    def _port(self) -> int:
        return _FIRST_PORT + self._made % _PORTS

    def _frame(self, packet: bytes, *tags: bytes) -> bytes:
        return ethernet(packet, self._gateway, _CLIENT_MAC, tags)

    def _request(
        self,
        service: ServiceKey,
        payload: bytes = b"",
        flags: int = SYN,
        *,
        ttl: int = 64,
        extra: bytes = b"",
        fragment: int = 0,
        source: Address | None = None,
    ) -> bytes:
        """Return a packet to a service, of a flow that was not there before."""
        source = source or self._client(service.vip.version)
        port = service.port or _OTHER_PORT
        protocol = service.protocol.number
        if service.protocol is Protocol.TCP:
            segment = tcp(self._port(), port, flags, payload)
        else:
            segment = udp(self._port(), port, payload)
        return ip(
            source,
            service.vip,
            protocol,
            segment,
            ttl=ttl,
            extra=extra,
            fragment=fragment,
            identification=self._made & 0xFFFF,
        )

    def _forwarded(self, service: ServiceKey) -> int:
        """Return the flags of segments that are forwarded: fullnat knows flows by their SYN."""
        return SYN if self._structure.services[service].mode is Mode.FULLNAT else ACK

    def _of(self, service: ServiceKey) -> Iterator[bytes]:
        for _ in range(max(_FLOWS // len(self._services), _FEWEST_FLOWS)):
            yield self._frame(self._request(service))
        for flags in (ACK, ACK | FIN, RST):
            yield self._frame(self._request(service, b"data", flags))
        if service.protocol is Protocol.UDP and service.vip.version == IPV4:
            source = self._client(IPV4)
            datagram = udp(self._port(), service.port or _OTHER_PORT, b"?", checksum=False)
            yield self._frame(ip(source, service.vip, service.protocol.number, datagram))
        yield from self._framed(service)
        yield from self._behind_headers(service)
        yield from self._refused(service)
        yield from self._beside(service)

    def _framed(self, service: ServiceKey) -> Iterator[bytes]:
        yield self._frame(self._request(service), VLAN)
        yield self._frame(self._request(service), SERVICE_VLAN, VLAN)
        yield self._frame(self._request(service, b"padded")) + bytes(9)
        for octets in (1400, 3000):
            yield self._frame(self._request(service, bytes(octets), self._forwarded(service)))
        for mac in (_VRRP_MAC, _STRANGER_MAC):
            yield ethernet(self._request(service), mac, _CLIENT_MAC)

    def _behind_headers(self, service: ServiceKey) -> Iterator[bytes]:
        flags = self._forwarded(service)
        if service.vip.version == IPV4:
            yield self._frame(self._request(service, extra=ROUTER_ALERT))
            yield self._frame(self._request(service, bytes(64), flags, fragment=0x2000))
            yield self._frame(self._request(service, bytes(64), flags, fragment=0x0010))
            return
        protocol = service.protocol.number
        for number in range(len(EXTENSIONS)):
            extra = extensions((number,), protocol)
            yield self._frame(self._request(service, extra=extra))
        yield self._frame(self._request(service, extra=extensions((0, 1, 2), protocol)))
        for offset in (0, 64):
            extra = fragment_header(protocol, offset, more=True, identification=self._made)
            yield self._frame(self._request(service, bytes(64), flags, extra=extra))

    def _refused(self, service: ServiceKey) -> Iterator[bytes]:
        for ttl in (1, 2):
            yield self._frame(self._request(service, ttl=ttl))
        for source in (_MARTIANS[service.vip.version], service.vip):
            yield self._frame(self._request(service, source=source))
        whole = self._frame(self._request(service, b"cut off"))
        header_bytes = 20 if service.vip.version == IPV4 else 40
        for octets in (16, 14 + header_bytes, 14 + header_bytes + 3, len(whole) - 1):
            yield whole[:octets]

    def _beside(self, service: ServiceKey) -> Iterator[bytes]:
        """To the VIP, but not to the service."""
        vip = service.vip
        source = self._client(vip.version)
        yield self._frame(ip(source, vip, TCP, tcp(self._port(), _OTHER_PORT, SYN)))
        yield self._frame(ip(source, vip, _GRE, bytes(8)))
        protocol, request = (ICMP, 8) if vip.version == IPV4 else (ICMPV6, 128)
        echo = icmp(request, 0, 0x10001, b"lb-xdp self-test")
        for ttl in (64, 17):
            yield self._frame(ip(source, vip, protocol, echo, ttl=ttl))
        yield self._frame(ip(source, vip, protocol, echo), VLAN)

    def _of_nobody(self) -> Iterator[bytes]:
        """To no VIP at all, and what goes to and from backends of nat beside the services."""
        yield b"\xff" * 6 + _CLIENT_MAC + b"\x08\x06" + bytes(28)
        for family in (4, 6):
            stranger = _STRANGERS[family]
            for tags in ((), (VLAN,)):
                segment = tcp(self._port(), 80, SYN)
                packet = ip(self._client(family), stranger, TCP, segment)
                yield self._frame(packet, *tags)
        for identity in self._sample():
            yield from self._at_backend(identity)
        for address in self._structure.snat_addresses[:2]:
            source = self._client(address.version)
            yield self._frame(ip(source, address, TCP, tcp(_OTHER_PORT, self._port(), ACK)))

    def _sample(self) -> list[BackendId]:
        chosen = set(self._services)
        found = (
            identity
            for identity in sorted(self._structure.backends)
            if identity.service in chosen
            and self._structure.services[identity.service].mode is Mode.NAT
        )
        return [identity for identity, _ in zip(found, range(8), strict=False)]

    def _at_backend(self, identity: BackendId) -> Iterator[bytes]:
        address, port = identity.backend.address, identity.backend.port
        number, port = identity.service.protocol.number, port or _OTHER_PORT
        tcp_like = identity.service.protocol is Protocol.TCP
        there = tcp(self._port(), port, SYN) if tcp_like else udp(self._port(), port)
        yield self._frame(ip(self._client(address.version), address, number, there))
        back = tcp(port, self._port(), ACK) if tcp_like else udp(port, self._port())
        for local in sorted(self._structure.local_addresses, key=_by_version):
            if local.version == address.version:
                yield self._frame(ip(address, local, number, back))
                break


def _by_version(address: Address) -> tuple[int, int]:
    return address.version, int(address)


def _chosen(structure: Structure, most: int) -> list[ServiceKey]:
    """Return some of the services: of each sort one, before any sort gets a second."""
    sorts: dict[tuple[object, ...], list[ServiceKey]] = {}
    for key in sorted(structure.services):
        sort = (structure.services[key], key.vip.version, key.protocol, key.port == ANY_PORT)
        sorts.setdefault(sort, []).append(key)
    rounds = zip_longest(*sorts.values())
    return [key for row in rounds for key in row if key is not None][:most]
