"""Frames made from nothing: packets as hosts send them, for trials and tests.

Checksums are filled in by ``ip``. Addresses are ``ipaddress`` objects, ports and lengths host-order
integers, MACs six octets.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from lb_xdp.core.model import IPV4, Address
from lb_xdp.core.reference.packet import ICMP, ICMPV6, IPV4_BYTES, TCP, UDP
from lb_xdp.core.reference.rewrite import ones_sum

FIN, SYN, RST, ACK = 1, 2, 4, 16
VLAN: Final = b"\x81\x00\x00\x05"
SERVICE_VLAN: Final = b"\x88\xa8\x00\x07"

ROUTER_ALERT: Final = b"\x94\x04\0\0"
"""An IPv4 option (RFC 2113)."""

_CHECKSUM_AT: Final = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}
_ONES: Final = 0xFFFF
_FRAGMENT: Final = 44

EXTENSIONS: Final = (
    (0, b"\x05\x02\0\0\1\0"),
    (60, b"\1\4\0\0\0\0"),
    (43, b"\4\0\0\0\0\0"),
    (_FRAGMENT, b"\0\0\0\0\x12\x34"),
)
"""Hop-by-hop with router alert, destination options with padding, a routing header at its end, an
atomic fragment header: number, and what stands behind next header and length."""


def ethernet(packet: bytes, gateway: bytes, client: bytes, tags: Sequence[bytes] = ()) -> bytes:
    """Return a frame from a client's MAC to the gateway's, tagged or not."""
    ethertype = b"\x08\x00" if packet[0] >> 4 == IPV4 else b"\x86\xdd"
    return gateway + client + b"".join(tags) + ethertype + packet


def ip(
    source: Address,
    destination: Address,
    protocol: int,
    payload: bytes,
    *,
    ttl: int = 64,
    extra: bytes = b"",
    fragment: int = 0,
    identification: int = 0x4242,
    whole: bool = True,
) -> bytes:
    """Return an IP packet. ``extra``: IPv4 options; IPv6: headers as ``extensions`` makes them.

    ``fragment`` is the IPv4 field of flags and offset. ``whole`` False: the payload is a piece of
    something, whose checksum is left alone.
    """
    if whole:
        payload = _summed(source, destination, protocol, payload)
    if source.version != IPV4:
        next_header, extra = (extra[0], extra[1:]) if extra else (protocol, b"")
        head = struct.pack("!IHBB", 0x6ABCDEF0, len(extra) + len(payload), next_header, ttl)
        return head + source.packed + destination.packed + extra + payload
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45 + len(extra) // 4,
        0x10,
        IPV4_BYTES + len(extra) + len(payload),
        identification,
        fragment,
        ttl,
        protocol,
        0,
        source.packed,
        destination.packed,
    )
    checksum = _complement(ones_sum(head + extra))
    return head[:10] + checksum.to_bytes(2) + head[12:] + extra + payload


def _complement(total: int) -> int:
    return _ONES - (total % _ONES or _ONES)


def _summed(source: Address, destination: Address, protocol: int, payload: bytes) -> bytes:
    """Fill in the transport checksum, unless UDP's says that there shall be none."""
    at = _CHECKSUM_AT.get(protocol)
    if at is None or len(payload) < at + 2 or (protocol == UDP and payload[6:8] == b"\0\0"):
        return payload
    blank = payload[:at] + b"\0\0" + payload[at + 2 :]
    total = ones_sum(blank)
    if protocol != ICMP:
        total += ones_sum(source.packed + destination.packed) + protocol + len(payload)
    checksum = _complement(total)
    if protocol == UDP:
        checksum = checksum or _ONES
    return payload[:at] + checksum.to_bytes(2) + payload[at + 2 :]


def extensions(numbers: Sequence[int], protocol: int) -> bytes:
    """Return a chain of IPv6 extension headers, the number of its first one in front.

    ``numbers`` are places in ``EXTENSIONS``.
    """
    chain = [*(EXTENSIONS[n][0] for n in numbers), protocol]
    headers = (bytes([chain[i + 1], 0]) + EXTENSIONS[n][1] for i, n in enumerate(numbers))
    return bytes([chain[0]]) + b"".join(headers)


def fragment_header(protocol: int, offset: int, *, more: bool, identification: int) -> bytes:
    """Return IPv6's, its own number in front; ``offset`` in octets, a multiple of 8."""
    return bytes([_FRAGMENT]) + struct.pack("!BBHI", protocol, 0, offset | more, identification)


def tcp(source: int, destination: int, flags: int, payload: bytes = b"") -> bytes:
    """Return a segment; a SYN has the usual options."""
    options = b"\2\4\5\xb4\4\2\1\1" if flags & SYN else b""
    words = 5 + len(options) // 4
    head = struct.pack("!HHIIBBHHH", source, destination, 7, 9, words << 4, flags, 512, 0, 0)
    return head + options + payload


def udp(source: int, destination: int, payload: bytes = b"", *, checksum: bool = True) -> bytes:
    """Return a datagram, with or without a checksum (RFC 768)."""
    length = 8 + len(payload)
    return struct.pack("!HHHH", source, destination, length, int(checksum)) + payload


def icmp(kind: int, code: int, rest: int, payload: bytes) -> bytes:
    """Return a message of ICMP or ICMPv6; ``rest`` is the header's second word."""
    return struct.pack("!BBHI", kind, code, 0, rest) + payload
