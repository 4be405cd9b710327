"""A frame taken apart, by the RFCs and not by the program: what the reference model reasons about.

Read here: Ethernet II with up to two tags (IEEE 802.1Q), IPv4 (RFC 791), IPv6 and its extension
headers (RFC 8200, 4), and the ports of TCP and UDP. It never reads past the end: what is not there
raises ``UnclearError``, whose reason says what a gateway calls that. Whether claimed lengths hold
together is for ``lengths_hold``, since that only matters for packets of ours.

Offsets count octets from the start of the frame; ports and lengths are host-order integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from lb_xdp.core.model import IPV4, IPV6, Address

ETHERNET_BYTES: Final = 14
TAG_BYTES: Final = 4
MAX_TAGS: Final = 2
IPV4_BYTES: Final = 20
IPV6_BYTES: Final = 40
TCP_BYTES: Final = 20
UDP_BYTES: Final = 8
ICMP_BYTES: Final = 8

ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ICMPV6: Final = 58

TAGS: Final = frozenset({0x8100, 0x88A8})
FAMILIES: Final = {0x0800: IPV4, 0x86DD: IPV6}
DONT_FRAGMENT: Final = 0x4000

_ROUTING_HEADER: Final = 43
_FRAGMENT_HEADER: Final = 44
_EXTENSIONS: Final = frozenset({0, 43, 60})
"""Hop-by-hop options, routing, destination options: those with a length in units of 8 octets."""

MAX_EXTENSIONS: Final = 6


class UnclearError(Exception):
    """A packet that cannot be followed. ``reason`` is what becomes of it if it is to a VIP."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Part(Enum):
    """What there is of a datagram: all of it, its first fragment or a later one."""

    WHOLE = "whole"
    FIRST = "first"
    LATER = "later"


@dataclass(frozen=True, slots=True)
class Envelope:
    """The outside of an IP packet: enough to tell whether it is anybody's concern."""

    frame: bytes
    family: int
    l3: int
    source: Address
    destination: Address

    @property
    def hops(self) -> int:
        """Return the TTL or hop limit."""
        return self.frame[self.l3 + (8 if self.family == IPV4 else 7)]

    @property
    def l3_bytes(self) -> int:
        """Return the length that the IP header claims, itself included."""
        if self.family == IPV4:
            return number(self.frame, self.l3 + 2)
        return IPV6_BYTES + number(self.frame, self.l3 + 4)


@dataclass(frozen=True, slots=True)
class Inside:
    """What an IP packet carries. ``ports`` are source and destination, of TCP and UDP alone."""

    protocol: int
    l4: int
    part: Part
    ports: tuple[int, int] | None


def number(data: bytes | bytearray, at: int, octets: int = 2) -> int:
    """Return a big-endian number at ``at``."""
    return int.from_bytes(data[at : at + octets])


def payload_of(frame: bytes) -> tuple[int, int]:
    """Return the EtherType behind all tags, and where the payload begins. Raises UnclearError."""
    if len(frame) < ETHERNET_BYTES:
        raise UnclearError("truncated")
    at = ETHERNET_BYTES - 2
    for _ in range(MAX_TAGS):
        if number(frame, at) not in TAGS:
            break
        at += TAG_BYTES
        if len(frame) < at + 2:
            raise UnclearError("truncated")
    return number(frame, at), at + 2


def open_envelope(frame: bytes, family: int, l3: int) -> Envelope:
    """Return the addresses of an IP packet. Raises UnclearError for half a header."""
    if len(frame) < l3 + (IPV4_BYTES if family == IPV4 else IPV6_BYTES):
        raise UnclearError("truncated")
    if family == IPV4:
        source, destination = frame[l3 + 12 : l3 + 16], frame[l3 + 16 : l3 + 20]
        return Envelope(frame, family, l3, IPv4Address(source), IPv4Address(destination))
    source, destination = frame[l3 + 8 : l3 + 24], frame[l3 + 24 : l3 + 40]
    return Envelope(frame, family, l3, IPv6Address(source), IPv6Address(destination))


def look_inside(envelope: Envelope) -> Inside:
    """Follow the headers to the transport protocol. Raises UnclearError."""
    if envelope.frame[envelope.l3] >> 4 != envelope.family:
        raise UnclearError("odd_header")
    follow = _follow4 if envelope.family == IPV4 else _follow6
    protocol, l4, part = follow(envelope.frame, envelope.l3)
    if len(envelope.frame) < l4:
        raise UnclearError("truncated")
    if part is Part.LATER or protocol not in {TCP, UDP}:
        return Inside(protocol, l4, part, None)
    if len(envelope.frame) < l4 + 4:
        raise UnclearError("truncated")
    ports = (number(envelope.frame, l4), number(envelope.frame, l4 + 2))
    return Inside(protocol, l4, part, ports)


def _part(offset: int, *, more: bool) -> Part:
    if offset:
        return Part.LATER
    return Part.FIRST if more else Part.WHOLE


def _follow4(frame: bytes, l3: int) -> tuple[int, int, Part]:
    header_bytes = (frame[l3] & 15) * 4
    if header_bytes < IPV4_BYTES:
        raise UnclearError("odd_header")
    fragment = number(frame, l3 + 6)
    part = _part(fragment & 0x1FFF, more=bool(fragment & 0x2000))
    return frame[l3 + 9], l3 + header_bytes, part


def _follow6(frame: bytes, l3: int) -> tuple[int, int, Part]:
    protocol, at, part = frame[l3 + 6], l3 + IPV6_BYTES, Part.WHOLE
    for _ in range(MAX_EXTENSIONS + 1):
        # What follows a later fragment's header is the middle of something.
        if part is Part.LATER or protocol not in _EXTENSIONS | {_FRAGMENT_HEADER}:
            return protocol, at, part
        if len(frame) < at + 8:
            raise UnclearError("truncated")
        step = 8
        if protocol == _FRAGMENT_HEADER:
            field = number(frame, at + 2)
            part = _part(field >> 3, more=bool(field & 1))
        else:
            step = (frame[at + 1] + 1) * 8
        if protocol == _ROUTING_HEADER and frame[at + 3]:
            raise UnclearError("odd_header")  # segments left: it is to travel on from here
        protocol, at = frame[at], at + step
    raise UnclearError("odd_header")


def lengths_hold(envelope: Envelope, inside: Inside) -> bool:
    """Say whether all that headers claim is inside the frame, and what they need inside of that.

    TCP: RFC 9293, 3.1 (data offset); UDP: RFC 768 (length). A first fragment has only its part of
    the transport header's claim, but must have that header.
    """
    frame, end = envelope.frame, envelope.l3 + envelope.l3_bytes
    if end > len(frame) or end < inside.l4:
        return False
    if inside.part is Part.LATER:
        return True
    if inside.protocol == TCP:
        least, claimed = TCP_BYTES, _tcp_header_bytes(frame, inside.l4)
    else:
        least, claimed = UDP_BYTES, number(frame, inside.l4 + 4)
    if end < inside.l4 + least or claimed < least:
        return False
    return inside.part is Part.FIRST or inside.l4 + claimed <= end


def _tcp_header_bytes(frame: bytes, l4: int) -> int:
    return (frame[l4 + 12] >> 4) * 4 if len(frame) > l4 + 12 else 0
