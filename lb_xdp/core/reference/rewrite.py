"""How a packet looks when it leaves: the modes, written as bytes from the RFCs.

dsr changes the MACs; ipip wraps (RFC 2003, RFC 2473, RFC 4213), gue wraps in UDP as well (variant 1
of draft-ietf-intarea-gue-09, section 4); nat and fullnat translate (RFC 3022). Checksums change by
the difference (RFC 1624), so that a wrong one stays wrong. Numbers that are sums of 16-bit words
live modulo 65535 here, which is what one's complement arithmetic is.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Final

from lb_xdp.core.model import IPV4, IPV6, Address
from lb_xdp.core.reference.packet import (
    DONT_FRAGMENT,
    IPV4_BYTES,
    TCP,
    UDP,
    UDP_BYTES,
    Envelope,
    Inside,
    number,
)

_MACS_BYTES: Final = 12
_OUTER_HOPS: Final = 64
_GUE_SOURCE_PORTS: Final = 0xC000
_ETHERTYPES: Final = {IPV4: b"\x08\x00", IPV6: b"\x86\xdd"}
_AS_PAYLOAD: Final = {IPV4: 4, IPV6: 41}
"""IANA's numbers for IP inside of IP (RFC 2003, RFC 2473)."""

_CHECKSUM_AT: Final = {TCP: 16, UDP: 6}
_ONES: Final = 0xFFFF


def ones_sum(data: bytes) -> int:
    """Return the one's complement sum of 16-bit words, modulo 65535 (RFC 1071)."""
    return int.from_bytes(data if len(data) % 2 == 0 else data + b"\0") % _ONES


def adjusted(checksum: int, before: bytes, after: bytes) -> int:
    """Return a checksum after ``before`` was replaced in what it covers (RFC 1624, 3)."""
    total = (_ONES - checksum - ones_sum(before) + ones_sum(after)) % _ONES
    return _ONES - (total or _ONES)


@dataclass(frozen=True, slots=True)
class Tunnel:
    """What a tunnel's outer header bears. ``gue_port`` None: ipip."""

    source: IPv4Network | IPv6Network
    destination: Address
    gue_port: int | None


def with_macs(frame: bytes | bytearray, destination: bytes, source: bytes) -> bytes:
    """Return a frame with other MAC addresses."""
    return destination + source + frame[_MACS_BYTES:]


def one_hop_less(envelope: Envelope) -> bytearray:
    """Return the frame with its TTL or hop limit decremented (RFC 791, 3.2; RFC 8200, 3)."""
    frame, l3 = bytearray(envelope.frame), envelope.l3
    if envelope.family == IPV6:
        frame[l3 + 7] -= 1
        return frame
    before = bytes(frame[l3 + 8 : l3 + 10])
    frame[l3 + 8] -= 1
    _adjust(frame, l3 + 10, before, bytes(frame[l3 + 8 : l3 + 10]))
    return frame


def _adjust(frame: bytearray, at: int, before: bytes, after: bytes) -> None:
    frame[at : at + 2] = adjusted(number(frame, at), before, after).to_bytes(2)


def translated(
    envelope: Envelope,
    inside: Inside,
    source: tuple[Address, int] | None,
    destination: tuple[Address, int] | None,
) -> bytes:
    """Return the frame with other ends, one hop further. None keeps an end as it is."""
    assert inside.ports is not None, "only packets with ports are translated"  # noqa: S101
    frame, l3, l4 = one_hop_less(envelope), envelope.l3, inside.l4
    new_source = source or (envelope.source, inside.ports[0])
    new_destination = destination or (envelope.destination, inside.ports[1])
    before = envelope.source.packed + envelope.destination.packed
    after = new_source[0].packed + new_destination[0].packed
    at = l3 + (12 if envelope.family == IPV4 else 8)
    frame[at : at + len(after)] = after
    if envelope.family == IPV4:
        _adjust(frame, l3 + 10, before, after)
    ports = struct.pack("!HH", new_source[1], new_destination[1])
    _adjust_transport(frame, inside, before + bytes(frame[l4 : l4 + 4]), after + ports)
    frame[l4 : l4 + 4] = ports
    return bytes(frame)


def _adjust_transport(frame: bytearray, inside: Inside, before: bytes, after: bytes) -> None:
    at = inside.l4 + _CHECKSUM_AT[inside.protocol]
    if inside.protocol == UDP and not number(frame, at):
        return  # the sender computed none (RFC 768)
    _adjust(frame, at, before, after)
    if inside.protocol == UDP and not number(frame, at):
        frame[at : at + 2] = b"\xff\xff"


def wrapped(envelope: Envelope, tunnel: Tunnel, hashed: int) -> bytes:
    """Return the frame with its packet, one hop further, inside a tunnel's.

    ``hashed`` is the flow's hash: outer source, UDP source port and IPv6 flow label come from it.
    Tags and padding stay where they are.
    """
    inner, l3 = one_hop_less(envelope), envelope.l3
    payload_bytes = envelope.l3_bytes
    protocol = _AS_PAYLOAD[envelope.family]
    udp = b""
    if tunnel.gue_port is not None:
        payload_bytes += UDP_BYTES
        port = _GUE_SOURCE_PORTS | hashed & 0x3FFF
        udp = struct.pack("!4H", port, tunnel.gue_port, payload_bytes, 0)
        protocol = UDP
    outer = _outer(envelope, tunnel, hashed, protocol, payload_bytes)
    ethertype = _ETHERTYPES[tunnel.destination.version]
    return bytes(inner[: l3 - 2]) + ethertype + outer + udp + bytes(inner[l3:])


def _outer(
    envelope: Envelope, tunnel: Tunnel, hashed: int, protocol: int, payload_bytes: int
) -> bytes:
    """Return the outer IP header; its traffic class is the inner one's (RFC 2983)."""
    prefix, l3, frame = tunnel.source, envelope.l3, envelope.frame
    host_bits = hashed & int(prefix.hostmask) & 0xFFFF_FFFF
    source = int(prefix.network_address) | host_bits
    if envelope.family == IPV4:
        traffic = frame[l3 + 1]
        identification = number(frame, l3 + 4)
        flags = number(frame, l3 + 6) & DONT_FRAGMENT
    else:
        traffic = number(frame, l3) >> 4 & 0xFF
        identification, flags = 0, DONT_FRAGMENT
    if prefix.version == IPV6:
        first = 6 << 28 | traffic << 20 | hashed & 0xFFFFF
        fixed = struct.pack("!IHBB", first, payload_bytes, protocol, _OUTER_HOPS)
        return fixed + source.to_bytes(16) + tunnel.destination.packed
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        traffic,
        IPV4_BYTES + payload_bytes,
        identification,
        flags,
        _OUTER_HOPS,
        protocol,
        0,
        IPv4Address(source).packed,
        tunnel.destination.packed,
    )
    checksum = _ONES - (ones_sum(header) or _ONES)
    return header[:10] + checksum.to_bytes(2) + header[12:]


def echo_reply(envelope: Envelope, inside: Inside, reply_type: int) -> bytes:
    """Return the answer to an echo request: swapped ends, code 0 and a new TTL.

    RFC 792; RFC 4443, 4.2.
    Swapped ends leave every sum as it is; the TTL and the type do not.
    """
    frame, l3, l4 = bytearray(envelope.frame), envelope.l3, inside.l4
    frame[:_MACS_BYTES] = frame[6:12] + frame[:6]
    hops, at = (l3 + 8, l3 + 12) if envelope.family == IPV4 else (l3 + 7, l3 + 8)
    ends = envelope.destination.packed + envelope.source.packed
    frame[at : at + len(ends)] = ends
    before = bytes([frame[hops], 0])
    frame[hops] = _OUTER_HOPS
    if envelope.family == IPV4:
        _adjust(frame, l3 + 10, before, bytes([_OUTER_HOPS, 0]))
    request = bytes(frame[l4 : l4 + 2])
    frame[l4 : l4 + 2] = bytes([reply_type, 0])
    _adjust(frame, l4 + 2, request, bytes(frame[l4 : l4 + 2]))
    return bytes(frame)
