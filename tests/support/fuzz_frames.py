"""Frames to begin with: what clients, backends and routers send to a gateway, in every shape.

All are right: lengths hold together and checksums are what they should be. ``fuzz`` spoils them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from lb_xdp.core.model import Address
from lb_xdp.core.reference.build import (
    ACK,
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
from tests.support.wellformed import ICMP, ICMPV6, TCP, UDP, repair

CLIENT_MAC = bytes.fromhex("020000000102")
STRANGER_MAC = bytes.fromhex("020000009999")
VRRP_MAC = bytes.fromhex("00005e000133")
_MAX_PORTS = 64
_OPTIONS4 = (b"\1" * 4, b"\x07\x07\x04\0\0\0\0\0", ROUTER_ALERT)
"""No operation, record route (RFC 791, 3.1), router alert."""


@dataclass(frozen=True, slots=True)
class Target:
    """A service as the frames need it: where it is, and who is behind it."""

    vip: Address
    port: int
    protocol: int
    mode: str
    backends: tuple[tuple[Address, int], ...]


class Frames:
    """Makes frames for one gateway. All randomness is ``random``'s."""

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        clients: Sequence[Address],
        snats: Sequence[Address],
        tunnel_ends: Sequence[Address],
        gateway: bytes,
        random: Random,
    ) -> None:
        self._targets = targets
        self._clients = {client.version: client for client in clients}
        self._snats = snats
        self._tunnel_ends = {end.version: end for end in tunnel_ends}
        self._gateway = gateway
        self._random = random

    def all(self) -> list[bytes]:
        """Return about a hundred frames for each service, checksums made right."""
        made: list[bytes] = []
        for target in self._targets:
            for frame in self._of(target):
                whole = bytearray(frame)
                repair(whole)
                made.append(bytes(whole))
        return made

    def _port(self) -> int:
        return self._random.choice((1024, 65535, 1000)) - self._random.randrange(_MAX_PORTS)

    def _wrap(self, packet: bytes, tags: Sequence[bytes] = ()) -> bytes:
        return ethernet(packet, self._gateway, CLIENT_MAC, tags)

    def _segment(self, target: Target, octets: int, flags: int = ACK) -> bytes:
        port = target.port or self._random.randrange(1, 65536)
        return self._between(target, self._port(), port, octets, flags)

    def _between(
        self, target: Target, source: int, destination: int, octets: int, flags: int = ACK
    ) -> bytes:
        payload = self._random.randbytes(octets)
        if target.protocol == TCP:
            return tcp(source, destination, flags, payload)
        return udp(source, destination, payload)

    def _of(self, target: Target) -> Iterator[bytes]:
        yield from self._plain(target)
        yield from self._framed(target)
        yield from self._headers(target)
        yield from self._fragments(target)
        yield from self._icmp(target)
        yield from self._errors(target)
        yield from self._inside(target)
        yield from self._strangers(target)

    def _plain(self, target: Target) -> Iterator[bytes]:
        client, vip = self._clients[target.vip.version], target.vip
        for octets in (0, 1, 100, 1400, 1432, 1440, 1452, 1453, 1460, 1472, 1600, 3000, 8900):
            for flags in (SYN, ACK, ACK | FIN, RST) if octets < 2 else (ACK,):
                segment = self._segment(target, octets, flags)
                yield self._wrap(ip(client, vip, target.protocol, segment))
        for ttl in (0, 1, 2, 255):
            segment = self._segment(target, 10)
            yield self._wrap(ip(client, vip, target.protocol, segment, ttl=ttl))
        if target.protocol == UDP:
            datagram = udp(self._port(), target.port or 7, b"none", checksum=False)
            yield self._wrap(ip(client, vip, UDP, datagram))
        segment = self._segment(target, 4)
        yield self._wrap(ip(client, vip, target.protocol, segment, fragment=0x4000))

    def _framed(self, target: Target) -> Iterator[bytes]:
        client, vip = self._clients[target.vip.version], target.vip
        for tags in ((VLAN,), (SERVICE_VLAN, VLAN), (VLAN, VLAN), (VLAN, VLAN, VLAN)):
            for octets in (0, 200, 1460):
                segment = self._segment(target, octets, SYN)
                yield self._wrap(ip(client, vip, target.protocol, segment), tags)
        packet = ip(client, vip, target.protocol, self._segment(target, 30))
        yield self._wrap(packet) + bytes(17)
        for mac in (STRANGER_MAC, VRRP_MAC, b"\xff" * 6, bytes.fromhex("01005e000001")):
            yield ethernet(packet, mac, CLIENT_MAC)

    def _headers(self, target: Target) -> Iterator[bytes]:
        client, vip = self._clients[target.vip.version], target.vip
        segment = self._segment(target, 40, SYN)
        if vip.version == 4:
            chains = [*_OPTIONS4, b"".join(_OPTIONS4), b"\1" * 40]
        else:
            numbers: list[tuple[int, ...]] = [(n,) for n in range(4)]
            numbers += [(0, 1), (0, 1, 2), (0, 1, 2, 3), (1,) * 6, (1,) * 7]
            chains = [extensions(chain, target.protocol) for chain in numbers]
        for extra in chains:
            yield self._wrap(ip(client, vip, target.protocol, segment, extra=extra))

    def _fragments(self, target: Target) -> Iterator[bytes]:
        request = (self._clients[target.vip.version], target.vip, self._segment(target, 1200))
        for source, destination, segment in (request, *self._answers(target, 1200)):
            identification = self._random.randrange(1, 65536)
            for at, piece in ((0, segment[:24]), (24, segment[24:800]), (800, segment[800:])):
                more = at < 800
                field, extra = at // 8 | more << 13, b""
                if source.version == 6:
                    field = 0
                    extra = fragment_header(
                        target.protocol, at, more=more, identification=identification
                    )
                packet = ip(
                    source,
                    destination,
                    target.protocol,
                    piece,
                    extra=extra,
                    fragment=field,
                    identification=identification,
                    whole=False,
                )
                yield self._wrap(packet)

    def _answers(self, target: Target, octets: int) -> Iterator[tuple[Address, Address, bytes]]:
        """What backends send back in nat and fullnat: ends, and a segment."""
        if target.mode not in {"nat", "fullnat"}:
            return
        client = self._clients[target.vip.version]
        for address, port in target.backends:
            for destination in [client] if target.mode == "nat" else self._snats:
                if destination.version == address.version:
                    segment = self._between(target, port or 80, self._port(), octets)
                    yield address, destination, segment

    def _icmp(self, target: Target) -> Iterator[bytes]:
        client, vip = self._clients[target.vip.version], target.vip
        protocol, request = (ICMP, 8) if vip.version == 4 else (ICMPV6, 128)
        for octets in (0, 56, 1400):
            message = icmp(request, 0, 0x10001, self._random.randbytes(octets))
            for ttl in (64, 17):
                yield self._wrap(ip(client, vip, protocol, message, ttl=ttl))
            yield self._wrap(ip(client, vip, protocol, message), (VLAN,))
        extra = _OPTIONS4[0] if vip.version == 4 else extensions((0,), protocol)
        message = icmp(request, 0, 1, b"behind options")
        yield self._wrap(ip(client, vip, protocol, message, extra=extra))
        solicitation = icmp(135, 0, 0, vip.packed)
        yield self._wrap(ip(client, vip, protocol, solicitation, ttl=255))

    def _errors(self, target: Target) -> Iterator[bytes]:
        """ICMP errors from a router on the way, quoting much or little."""
        version = target.vip.version
        router, header = self._clients[version], 20 if version == 4 else 40
        protocol = ICMP if version == 4 else ICMPV6
        kinds = ((3, 4, 1400), (11, 0, 0)) if version == 4 else ((2, 0, 1400), (3, 0, 0))
        for source, destination, quoted in self._quotes(target):
            for kind, code, rest in kinds:
                for octets in (8, 40, 400):
                    message = icmp(kind, code, rest, quoted[: header + octets])
                    yield self._wrap(ip(router, source, protocol, message))
                    if octets == 40:
                        yield self._wrap(ip(destination, source, protocol, message))

    def _quotes(self, target: Target) -> Iterator[tuple[Address, Address, bytes]]:
        """Packets that routers complain of: their source, destination and octets."""
        client, vip = self._clients[target.vip.version], target.vip
        to, port, protocol = self._port(), target.port or 80, target.protocol
        segment = self._between(target, port, to, 500)
        yield vip, client, ip(vip, client, protocol, segment)
        address, backend_port = target.backends[0]
        if target.mode in {"nat", "fullnat"}:
            source = client if target.mode == "nat" else self._snat(vip.version)
            segment = self._between(target, to, backend_port or 80, 500)
            yield source, address, ip(source, address, protocol, segment)
        elif target.mode in {"ipip", "gue"} and address.version == vip.version:
            inner = ip(client, vip, protocol, self._segment(target, 500))
            number = 4 if vip.version == 4 else 41
            if target.mode == "gue":
                inner, number = udp(0xC123, 6080, inner, checksum=False), UDP
            source = self._tunnel_ends[address.version]
            yield source, address, ip(source, address, number, inner)

    def _snat(self, version: int) -> Address:
        return next(address for address in self._snats if address.version == version)

    def _inside(self, target: Target) -> Iterator[bytes]:
        """From and to the backends themselves."""
        for octets in (0, 100, 1460, 1600):
            for source, destination, segment in self._answers(target, octets):
                for ttl in (64, 1):
                    yield self._wrap(ip(source, destination, target.protocol, segment, ttl=ttl))
        for address, port in target.backends:
            client = self._clients[address.version]
            segment = self._between(target, self._port(), port or 80, 0, SYN)
            yield self._wrap(ip(client, address, target.protocol, segment))

    def _strangers(self, target: Target) -> Iterator[bytes]:
        """What is not for the service: other ports, protocols, sources, and no IP at all."""
        client, vip = self._clients[target.vip.version], target.vip
        yield self._wrap(ip(client, vip, TCP, tcp(self._port(), 9, SYN)))
        yield self._wrap(ip(client, vip, UDP, udp(self._port(), 9)))
        yield self._wrap(ip(client, vip, 47, b"gre" * 9))
        yield self._wrap(ip(client, client, TCP, tcp(self._port(), 80, SYN)))
        sources = ("127.0.0.1", "0.0.0.0", "239.1.1.1", "255.255.255.255")
        if vip.version == 6:
            sources = ("::1", "::", "ff02::1", "ff05::2")
        for text in (*sources, str(vip)):
            segment = self._segment(target, 9, SYN)
            yield self._wrap(ip(type(vip)(text), vip, target.protocol, segment))
        yield b"\xff" * 6 + CLIENT_MAC + b"\x08\x06" + bytes(28)
