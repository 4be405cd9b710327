"""Whether what a program did to a packet is in order: a judge with code of its own.

It shares no line with the program or with the reference model, knows no flows and foretells
nothing: it looks at the frame before and after, at the verdict and its reason, and complains. All
sums are residues modulo 65535, which is what one's complement arithmetic is (RFC 1071): a header
with a right checksum has the residue 0, and a rewrite that keeps a checksum right, or as wrong as
it was, keeps the residue.
"""

# ruff: noqa: PLR0911, C901 - a judge is a row of early complaints

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
_ONES = 0xFFFF
_TAGS = (b"\x81\x00", b"\x88\xa8")
_EXTENSIONS = (0, 43, 60)
_FRAGMENT = 44
_MAY_QUOTE = {ICMP, ICMPV6, _FRAGMENT, *_EXTENSIONS}
_CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}
_OUTER_HOPS = 64
_LENGTH = struct.Struct("!H")

MAY_BE_TRANSLATED = frozenset({"no_route", "no_neighbour", "other_egress", "reply_too_big"})
"""Reasons at which a packet passes, and may have been translated for the kernel to send."""

ACTIONS = {"drop": (1,), "pass": (2,), "forward": (3, 4)}


class Ip(NamedTuple):
    """A packet whose headers hold together. Offsets count from the start of the frame."""

    family: int
    l3: int
    l4: int
    end: int
    protocol: int
    later: bool
    first: bool
    source: bytes
    destination: bytes


@dataclass(frozen=True, slots=True)
class World:
    """What a judge must know of the gateway. Addresses and MACs are octets in wire order.

    ``modes`` gives the mode of each VIP, ``verdicts`` the verdict of each reason, both in words.
    ``tunnels`` are the prefixes that outer sources come from.
    """

    modes: Mapping[bytes, str]
    verdicts: Mapping[str, str]
    backends: frozenset[bytes]
    snats: frozenset[bytes]
    macs: frozenset[bytes]
    tunnels: tuple[bytes, ...]
    gue_port: int

    @property
    def translates(self) -> bool:
        return any(mode in {"nat", "fullnat"} for mode in self.modes.values())


def residue(data: bytes) -> int:
    """Return the one's complement sum of 16-bit words."""
    return int.from_bytes(data if len(data) % 2 == 0 else data + b"\0") % _ONES


def place(frame: bytes) -> tuple[int, int]:
    """Return the IP version that the EtherType claims, 0 for none, and where the header begins."""
    at = 12
    while frame[at : at + 2] in _TAGS and at < 20:
        at += 4
    family = {b"\x08\x00": 4, b"\x86\xdd": 6}.get(frame[at : at + 2], 0)
    return family, at + 2


def ends(frame: bytes) -> tuple[bytes, bytes, int] | None:
    """Return source, destination and protocol of whatever has room for an IP header."""
    family, l3 = place(frame)
    if family == 4 and len(frame) >= l3 + 20:
        return frame[l3 + 12 : l3 + 16], frame[l3 + 16 : l3 + 20], frame[l3 + 9]
    if family == 6 and len(frame) >= l3 + 40:
        return frame[l3 + 8 : l3 + 24], frame[l3 + 24 : l3 + 40], frame[l3 + 6]
    return None


def parse(frame: bytes) -> Ip | None:
    """Return a packet that holds together, None for any other."""
    family, l3 = place(frame)
    found = ends(frame)
    if found is None or frame[l3] >> 4 != family:
        return None
    part = _walk4(frame, l3) if family == 4 else _walk6(frame, l3)
    if part is None:
        return None
    l4, end, protocol, later, first = part
    if end > len(frame) or l4 > end:
        return None
    return Ip(family, l3, l4, end, protocol, later, first, found[0], found[1])


def _walk4(frame: bytes, l3: int) -> tuple[int, int, int, bool, bool] | None:
    header = (frame[l3] & 15) * 4
    if header < 20:
        return None
    fragment = frame[l3 + 6] << 8 | frame[l3 + 7]
    later = fragment & 0x1FFF != 0
    end = l3 + (frame[l3 + 2] << 8 | frame[l3 + 3])
    return l3 + header, end, frame[l3 + 9], later, not later and fragment & 0x2000 != 0


def _walk6(frame: bytes, l3: int) -> tuple[int, int, int, bool, bool] | None:
    at, protocol = l3 + 40, frame[l3 + 6]
    end = at + (frame[l3 + 4] << 8 | frame[l3 + 5])
    later = first = False
    while (protocol in _EXTENSIONS or protocol == _FRAGMENT) and not later:
        if at + 8 > min(end, len(frame)):
            return None
        step = 8
        if protocol == _FRAGMENT:
            field = frame[at + 2] << 8 | frame[at + 3]
            later, first = field >> 3 != 0, field >> 3 == 0 and field & 1 == 1
        else:
            step = (frame[at + 1] + 1) * 8
        protocol, at = frame[at], at + step
    return at, end, protocol, later, first


def header_right(frame: bytes, ip: Ip) -> bool:
    """Say whether an IPv4 header's checksum is right; IPv6 has none."""
    return ip.family == 6 or residue(frame[ip.l3 : ip.l3 + (frame[ip.l3] & 15) * 4]) == 0


def transport_right(frame: bytes, ip: Ip) -> bool | None:
    """Say whether the transport checksum is right; None where there is none to be judged."""
    at = _CHECKSUM_AT.get(ip.protocol)
    end = ip.end
    if at is None or ip.later or ip.first or end < ip.l4 + at + 2:
        return None
    if ip.protocol == UDP:
        if frame[ip.l4 + 6 : ip.l4 + 8] == b"\0\0":
            return None
        end = ip.l4 + _LENGTH.unpack_from(frame, ip.l4 + 4)[0]
        if end > ip.end or end < ip.l4 + 8:
            return None
    return (residue(frame[ip.l4 : end]) + _pseudo(ip, end)) % _ONES == 0


def _pseudo(ip: Ip, end: int) -> int:
    """Return the sum of the pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1); ICMP has none."""
    if ip.protocol == ICMP:
        return 0
    return residue(ip.source) + residue(ip.destination) + end - ip.l4 + ip.protocol


def repair(frame: bytearray) -> None:
    """Make all checksums of a frame right that can be; UDP's 0, for none, stays."""
    ip = parse(bytes(frame))
    if ip is None:
        return
    if ip.family == 4:
        frame[ip.l3 + 10 : ip.l3 + 12] = b"\0\0"
        header = bytes(frame[ip.l3 : ip.l3 + (frame[ip.l3] & 15) * 4])
        _LENGTH.pack_into(frame, ip.l3 + 10, _ONES - (residue(header) or _ONES))
    right = transport_right(bytes(frame), ip)
    if right is not False:
        return
    at, end = ip.l4 + _CHECKSUM_AT[ip.protocol], ip.end
    if ip.protocol == UDP:
        end = ip.l4 + _LENGTH.unpack_from(frame, ip.l4 + 4)[0]
    frame[at : at + 2] = b"\0\0"
    total = (residue(bytes(frame[ip.l4 : end])) + _pseudo(ip, end)) % _ONES
    _LENGTH.pack_into(frame, at, (_ONES - (total or _ONES)) or _ONES)


def judge(world: World, before: bytes, reason: str, action: int, after: bytes) -> str:
    """Return a complaint, or nothing."""
    verdict = world.verdicts[reason]
    if action not in ACTIONS[verdict]:
        return f"reason {reason} is a {verdict}, but the action was {action}"
    if reason == "internal":
        return "the program's own tables contradict each other"
    if verdict == "pass":
        if after == before:
            return ""
        if reason not in MAY_BE_TRANSLATED:
            return "passed, but not untouched"
        found = ends(before)
        if found is not None and found[2] in _MAY_QUOTE:
            return _error(world, before, after)
        return _reply(world, before, after, hops=0)
    if not _concerns(world, before):
        return f"{verdict}, though it is nobody's"
    if verdict == "drop":
        return ""
    return _JUDGES[reason](world, before, after)


def _concerns(world: World, frame: bytes) -> bool:
    """Say whether the gateway may do anything to a frame but let it pass."""
    found = ends(frame)
    if found is None:
        return False
    source, destination, protocol = found
    if destination in world.modes or destination in world.snats:
        return True
    if any(destination.startswith(prefix) for prefix in world.tunnels):
        return True
    if not world.translates:
        return False
    if source in world.backends:
        return True
    # An ICMP error may quote a translated packet, whoever it is from and to.
    return protocol in _MAY_QUOTE


def _forwarded(world: World, before: bytes, after: bytes) -> str:
    ip = parse(before)
    if ip is None:
        return "forwarded, though its headers do not hold together"
    if after[:6] not in world.macs:
        return "sent to a MAC that is no backend's"
    mode = world.modes.get(ip.destination)
    if mode is None:
        return "forwarded as to a VIP, which it is not"
    if mode == "dsr":
        return "" if after[12:] == before[12:] else "dsr changed more than the MACs"
    if mode in {"ipip", "gue"}:
        return _tunnelled(world, before, ip, after, gue=mode == "gue")
    sources = world.snats if mode == "fullnat" else frozenset({ip.source})
    return _translated(before, ip, after, sources, world.backends, hops=1)


def _reply(world: World, before: bytes, after: bytes, *, hops: int = 1) -> str:
    ip = parse(before)
    if ip is None:
        return "translated, though its headers do not hold together"
    if ip.source not in world.backends:
        return "translated as a reply, but not from a backend"
    anybody = None if ip.destination in world.snats else frozenset({ip.destination})
    return _translated(before, ip, after, frozenset(world.modes), anybody, hops=hops)


def _translated(
    before: bytes,
    ip: Ip,
    after: bytes,
    sources: frozenset[bytes],
    destinations: frozenset[bytes] | None,
    *,
    hops: int,
) -> str:
    """Compare a translated packet with what it was; ``hops``: how many it lost."""
    now = parse(after)
    if now is None or (now.l3, now.l4, now.end, len(after)) != (ip.l3, ip.l4, ip.end, len(before)):
        return "translated into another shape"
    if now.source not in sources:
        return "has a source that it may not have"
    if destinations is not None and now.destination not in destinations:
        return "has a destination that it may not have"
    hops_at = ip.l3 + (8 if ip.family == 4 else 7)
    if after[hops_at] != before[hops_at] - hops:
        return f"lost {before[hops_at] - after[hops_at]} hops"
    return _other_octets(before, ip, after, now) or _sums_kept(before, ip, after, now)


def _other_octets(before: bytes, ip: Ip, after: bytes, now: Ip) -> str:
    expected = bytearray(before)
    kept = [(0, 12)]
    if ip.family == 4:
        kept += [(ip.l3 + 8, ip.l3 + 9), (ip.l3 + 10, ip.l3 + 20)]
    else:
        kept += [(ip.l3 + 7, ip.l3 + 40)]
    if not ip.later:
        at = ip.l4 + _CHECKSUM_AT[now.protocol]
        kept += [(ip.l4, ip.l4 + 4), (at, at + 2)]
    for start, end in kept:
        expected[start:end] = after[start:end]
    return "" if expected == after else "octets changed that no translation touches"


def _sums_kept(before: bytes, ip: Ip, after: bytes, now: Ip) -> str:
    header = ip.l3 + (before[ip.l3] & 15) * 4
    if ip.family == 4 and residue(before[ip.l3 : header]) != residue(after[ip.l3 : header]):
        return "the IP checksum does not follow"
    if ip.later:
        return ""
    at = ip.l4 + _CHECKSUM_AT[ip.protocol]
    was, is_now = before[at : at + 2], after[at : at + 2]
    if ip.protocol == UDP and (was == b"\0\0" or is_now == b"\0\0"):
        return "" if was == is_now else "UDP without a checksum got one, or lost it"
    if _covered(before, ip, was) != _covered(after, now, is_now):
        return "the transport checksum does not follow"
    if transport_right(before, ip) and not transport_right(after, now):
        return "the transport checksum was right and is not"
    return ""


def _covered(frame: bytes, ip: Ip, checksum: bytes) -> int:
    ports = frame[ip.l4 : ip.l4 + 4]
    return residue(ip.source + ip.destination + ports + checksum)


def _tunnelled(world: World, before: bytes, ip: Ip, after: bytes, *, gue: bool) -> str:
    outer = _outer(after)
    if outer is None or outer.l3 != ip.l3 or before[12 : ip.l3 - 2] != after[12 : ip.l3 - 2]:
        return "the outer header does not hold together"
    if outer.destination not in world.backends:
        return "the tunnel leads to no backend"
    if not any(outer.source.startswith(prefix) for prefix in world.tunnels):
        return "the outer source is none of tunnel_sources"
    if not header_right(after, outer):
        return "the outer checksum is wrong"
    if after[outer.l3 + (8 if outer.family == 4 else 7)] != _OUTER_HOPS:
        return "the outer TTL is not 64"
    if _traffic_class(after, outer) != _traffic_class(before, ip):
        return "the traffic class was not copied"
    inner_at = outer.l4 + (8 if gue else 0)
    if outer.end - inner_at != ip.end - ip.l3:
        return "the outer length is not the inner one's and its own"
    if gue:
        complaint = _gue(world, after, outer)
        if complaint:
            return complaint
    elif outer.protocol != (4 if ip.family == 4 else 41):
        return f"the outer protocol is {outer.protocol}"
    return _inner(before, ip, after[inner_at:])


def _outer(frame: bytes) -> Ip | None:
    """Parse an outer header, which has neither options nor extension headers."""
    ip = parse(frame)
    return ip if ip and ip.l4 == ip.l3 + (20 if ip.family == 4 else 40) else None


def _traffic_class(frame: bytes, ip: Ip) -> int:
    if ip.family == 4:
        return frame[ip.l3 + 1]
    return (frame[ip.l3] << 8 | frame[ip.l3 + 1]) >> 4 & 0xFF


def _gue(world: World, after: bytes, outer: Ip) -> str:
    source, destination, length, checksum = struct.unpack_from("!4H", after, outer.l4)
    if outer.protocol != UDP or source < 0xC000 or destination != world.gue_port:
        return "not what gue sends"
    if length != outer.end - outer.l4 or checksum:
        return "the outer UDP length or checksum is wrong"
    return ""


def _inner(before: bytes, ip: Ip, inner: bytes) -> str:
    """Compare the packet inside with what it was; it is one hop further."""
    expected = bytearray(before[ip.l3 :])
    hops_at = 8 if ip.family == 4 else 7
    if len(inner) != len(expected) or inner[hops_at] != expected[hops_at] - 1:
        return "the inner packet is not one hop further"
    expected[hops_at] = inner[hops_at]
    if ip.family == 4:
        header = (before[ip.l3] & 15) * 4
        if residue(bytes(before[ip.l3 : ip.l3 + header])) != residue(inner[:header]):
            return "the inner checksum does not follow"
        expected[10:12] = inner[10:12]
    return "" if expected == inner else "the inner packet was changed"


def _echo(_: World, before: bytes, after: bytes) -> str:
    ip = parse(before)
    now = parse(after)
    if ip is None or now is None or len(before) != len(after):
        return "an echo reply of another shape"
    if (now.source, now.destination) != (ip.destination, ip.source):
        return "an echo reply whose ends are not swapped"
    if (after[:6], after[6:12]) != (before[6:12], before[:6]):
        return "an echo reply whose MACs are not swapped"
    if after[ip.l4] != (0 if ip.family == 4 else 129) or after[now.l4 + 4 :] != before[ip.l4 + 4 :]:
        return "an echo reply with another content"
    if header_right(before, ip) and not header_right(after, now):
        return "an echo reply with a wrong IP checksum"
    if transport_right(before, ip) and not transport_right(after, now):
        return "an echo reply with a wrong ICMP checksum"
    return ""


def _own(_: World, before: bytes, after: bytes) -> str:
    """What the gateway itself says: RST, unreachable, packet-too-big."""
    now, asked = parse(after), ends(before)
    if now is None or asked is None:
        return "the gateway's own packet does not hold together"
    if (now.source, now.destination) != (asked[1], asked[0]):
        return "the gateway's own packet is not from the VIP to the client"
    if (after[:6], after[6:12]) != (before[6:12], before[:6]):
        return "the gateway's own packet does not go back where it came from"
    if not header_right(after, now) or not transport_right(after, now):
        return "the gateway's own packet has a wrong checksum"
    if now.protocol == TCP:
        return "" if after[now.l4 + 13] & 4 else "the gateway's own TCP packet is no RST"
    quoted, packet = after[now.l4 + 8 : now.end], before[place(before)[1] :]
    if not packet.startswith(quoted) or len(quoted) < 28:
        return "an ICMP error that does not quote the packet"
    return ""


def _error(world: World, before: bytes, after: bytes) -> str:
    """An ICMP error, sent on to whom it concerns."""
    ip, now = parse(before), parse(after)
    if ip is None or now is None:
        return "an ICMP error that does not hold together"
    mode = world.modes.get(ip.destination)
    if mode == "dsr":
        return "" if after[12:] == before[12:] else "dsr changed more than the MACs"
    if mode in {"ipip", "gue"}:
        return _tunnelled(world, before, ip, after, gue=mode == "gue")
    fresh = any(ip.destination.startswith(prefix) for prefix in world.tunnels)
    if not header_right(after, now) and (fresh or header_right(before, ip)):
        return "an ICMP error with a wrong IP checksum"
    was = transport_right(before, ip)
    if not transport_right(after, now) and (fresh or was):
        return "an ICMP error with a wrong ICMP checksum"
    if transport_right(after, now) and was is False and not fresh:
        return "a wrong ICMP checksum was made right"
    return ""


_JUDGES: Mapping[str, Callable[[World, bytes, bytes], str]] = {
    "forwarded": _forwarded,
    "replied": _reply,
    "icmp_error": _error,
    "echo": _echo,
    "refused": _own,
    "reset": _own,
    "too_big": _own,
}
