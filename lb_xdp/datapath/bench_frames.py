"""Frames to time a program with, and the flows that take turns in them.

Owns how such a frame looks: the shortest of its kind, correct in itself for the addresses that it
is made with. It refuses to know who gets it; ``bench.py`` puts the flows in while it times.
Addresses and ports are host-order values of ``ipaddress`` and ``int``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from ipaddress import IPv4Address, IPv6Address

import numpy as np
from numpy.typing import NDArray

from lb_xdp.core.model import IPV4, Address
from lb_xdp.datapath.layout import Layout, parse_layout, source_dir

CLIENTS4 = IPv4Address("198.18.0.0")
"""The first client: of the block for benchmarks (RFC 2544, appendix C.2.2)."""

CLIENTS6 = IPv6Address("2001:2::")
"""The first client: of the block for benchmarks (RFC 5180, section 8)."""

CLIENT_PORT = 49_152
"""The first of each client's ports."""

_PORTS_EACH = 16
_TTL = 64
_ICMP, _TCP, _UDP, _ICMPV6 = 1, 6, 17, 58
_SYN, _ACK = 0x02, 0x10
_PAYLOAD = bytes(18)
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}


class Kind(Enum):
    """What a frame carries."""

    ESTABLISHED = "established"
    SYN = "syn"
    UDP = "udp"
    ECHO = "echo"


Flows = NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Traffic:
    """A frame of ``family`` and the flows to put into it, at least one.

    Checksums of the transport header are those of the frame, whatever the flow: nobody looks.
    """

    frame: bytes
    family: int
    flows: Flows


@cache
def bench_layout() -> Layout:
    """Return the structs of ``bpf/lb_bench.c``."""
    return parse_layout((source_dir() / "lb_bench.c").read_text(encoding="utf-8"), "")


def to_service(
    kind: Kind, destination: Address, port: int, mac: bytes, flows: int, *, seed: int = 1
) -> Traffic:
    """Return packets of clients, sixteen flows each, in random order, to an address and port.

    ``mac`` is the gateway's. The same ``seed`` gives the same order.
    """
    client: Address = CLIENTS4 if destination.version == IPV4 else CLIENTS6
    frame = build_frame(kind, client, destination, (CLIENT_PORT, port), mac)
    order = np.random.default_rng(seed).permutation(flows)
    value = np.zeros(flows, bench_layout().structs["lb_bench_flow"])
    value["source"] = _last_word(client) + order // _PORTS_EACH
    value["destination"] = _last_word(destination)
    # What stands there of ICMP is its type and checksum, which are the same for every flow.
    plain = kind is not Kind.ECHO
    at = 34 if client.version == IPV4 else 54
    first, second = struct.unpack_from("!HH", frame, at)
    value["source_port"] = first + (order % _PORTS_EACH if plain else 0)
    value["destination_port"] = second
    return Traffic(frame, client.version, value)


def beginning(traffic: Traffic) -> Traffic:
    """Return the first packets of the same flows: of TCP, SYNs."""
    at, header = (23, 34) if traffic.family == IPV4 else (20, 54)
    if traffic.frame[at] != _TCP:
        return traffic
    flags = header + 13
    frame = traffic.frame[:flags] + bytes([_SYN]) + traffic.frame[flags + 1 :]
    return replace(traffic, frame=frame)


def ip_checksums(traffic: Traffic) -> NDArray[np.uint16]:
    """Return the checksum of the IPv4 header for each flow, in host order."""
    header = np.frombuffer(traffic.frame[14:34], ">u2").astype(np.uint32)
    total = np.full(len(traffic.flows), header[[0, 1, 2, 3, 4]].sum(), np.uint32)
    for name in ("source", "destination"):
        address = traffic.flows[name].astype(np.uint32)
        total += (address >> 16) + (address & 0xFFFF)
    for _ in range(2):
        total = (total & 0xFFFF) + (total >> 16)
    checks: NDArray[np.uint16] = (~total & 0xFFFF).astype(np.uint16)
    return checks


def _last_word(address: Address) -> int:
    return int(address) & 0xFFFF_FFFF


def build_frame(
    kind: Kind, source: Address, destination: Address, ports: tuple[int, int], mac: bytes
) -> bytes:
    """Return a frame to ``mac``; ports mean nothing to an echo request."""
    version = source.version
    ends = source.packed + destination.packed
    protocol, l4 = _transport(kind, version, ends, ports)
    ethernet = mac + bytes([2, 0, 0, 0, 0xBE, 1]) + struct.pack("!H", _ETHERTYPES[version])
    if version != IPV4:
        head = struct.pack("!IHBB", 6 << 28, len(l4), protocol, _TTL)
        return ethernet + head + ends + l4
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(l4), 1, 0x4000, _TTL, protocol, 0)
    check = _checksum(head + ends)
    return ethernet + head[:10] + check + ends + l4


def _transport(kind: Kind, version: int, ends: bytes, ports: tuple[int, int]) -> tuple[int, bytes]:
    """Return the protocol's number, and its header with a little payload."""
    if kind is Kind.ECHO:
        protocol, request = (_ICMP, 8) if version == IPV4 else (_ICMPV6, 128)
        head, at = struct.pack("!BBHHH", request, 0, 0, 1, 1), 2
    elif kind is Kind.UDP:
        protocol, at = _UDP, 6
        head = struct.pack("!HHHH", *ports, 8 + len(_PAYLOAD), 0)
    else:
        protocol, at = _TCP, 16
        flags = _SYN if kind is Kind.SYN else _ACK
        head = struct.pack("!HHIIBBHHH", *ports, 1, 1, 0x50, flags, 0xFFFF, 0, 0)
    l4 = head + _PAYLOAD
    pseudo = b"" if protocol == _ICMP else ends + struct.pack("!II", len(l4), protocol)
    return protocol, l4[:at] + _checksum(pseudo + l4) + l4[at + 2 :]


def _checksum(octets: bytes) -> bytes:
    """Return the Internet checksum of an even number of octets (RFC 1071)."""
    total = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
