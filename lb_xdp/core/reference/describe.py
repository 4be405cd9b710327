"""A frame in one line, for whoever must see at a glance what two programs disagree about."""

from __future__ import annotations

from lb_xdp.core.endpoint import format_endpoint
from lb_xdp.core.model import GUE_PORT, IPV4, IPV6
from lb_xdp.core.reference.packet import (
    ETHERNET_BYTES,
    FAMILIES,
    TAG_BYTES,
    TCP,
    UDP,
    UDP_BYTES,
    Envelope,
    Inside,
    Part,
    UnclearError,
    look_inside,
    number,
    open_envelope,
    payload_of,
)

_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")
_NAMES = {1: "icmp", 4: "ipip", 6: "tcp", 17: "udp", 41: "ipv6", 58: "icmpv6"}
_INNER = {4: IPV4, 41: IPV6}
_MAX_INNER = 2


def describe(frame: bytes) -> str:
    """Return MACs, tags, addresses, ports and lengths of a frame; of a tunnel's, both packets."""
    if len(frame) < ETHERNET_BYTES:
        return f"{len(frame)} octets: {frame.hex()}"
    macs = f"{frame[6:12].hex(':')} > {frame[:6].hex(':')}"
    try:
        ethertype, l3 = payload_of(frame)
    except UnclearError:
        return f"{macs}, cut in a tag, {len(frame)} octets"
    tags = "".join(f", vlan {number(frame, at + 2) & 0xFFF}" for at in range(12, l3 - 2, TAG_BYTES))
    family = FAMILIES.get(ethertype)
    packet = f"ethertype {ethertype:#06x}" if family is None else _packet(frame, family, l3)
    return f"{macs}{tags}, {packet}, {len(frame)} octets in all"


def _packet(frame: bytes, family: int, l3: int, depth: int = 0) -> str:
    try:
        envelope = open_envelope(frame, family, l3)
    except UnclearError:
        return f"IPv{family}, cut in the header"
    outside = f"IPv{family} ttl {envelope.hops} length {envelope.l3_bytes}"
    try:
        inside = look_inside(envelope)
    except UnclearError as unclear:
        return f"{outside} {envelope.source} > {envelope.destination} ({unclear.reason})"
    text = f"{outside} {_transport(envelope, inside)}"
    inner = _inner_family(frame, inside)
    at = inside.l4 + (UDP_BYTES if inside.protocol == UDP else 0)
    if inner is None or depth == _MAX_INNER or len(frame) <= at:
        return text
    return f"{text} [{_packet(frame, inner, at, depth + 1)}]"


def _transport(envelope: Envelope, inside: Inside) -> str:
    name = _NAMES.get(inside.protocol, f"protocol {inside.protocol}")
    part = "" if inside.part is Part.WHOLE else f" {inside.part.value} fragment"
    if inside.ports is None:
        kind = ""
        if name.startswith("icmp") and inside.part is not Part.LATER:
            kind = f" type {number(envelope.frame, inside.l4, 1)}"
        return f"{envelope.source} > {envelope.destination} {name}{kind}{part}"
    source = format_endpoint(envelope.source, inside.ports[0])
    destination = format_endpoint(envelope.destination, inside.ports[1])
    flags = ""
    if inside.protocol == TCP:
        bits = number(envelope.frame, inside.l4 + 13, 1)
        flags = " " + (",".join(n for i, n in enumerate(_FLAGS) if bits >> i & 1) or "no flags")
    return f"{source} > {destination} {name}{flags}{part}"


def _inner_family(frame: bytes, inside: Inside) -> int | None:
    """Return the version of a packet inside, in ipip and, by its usual port alone, in gue."""
    if inside.protocol == UDP and inside.ports is not None and inside.ports[1] == GUE_PORT:
        version = number(frame, inside.l4 + UDP_BYTES, 1) >> 4
        return version if version in FAMILIES.values() else None
    return _INNER.get(inside.protocol)
