"""Frames that a host's kernel would not send: fragments in any order, or replies without a request.

This module owns putting them on a host's wire and taking single ones off it; scapy builds them.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from ipaddress import ip_address

from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.support.lab import IPV6, Host, family_of

_ETH_P_ALL = 0x0003
_FRAGMENT_BYTES = 1400


def udp_fragments(source: tuple[str, int], target: tuple[str, int], data: bytes) -> list[Packet]:
    """Return a datagram as IP packets that carry about 1,400 octets each, in order."""
    datagram = UDP(sport=source[1], dport=target[1]) / Raw(data)
    number = random.getrandbits(16)
    if family_of(target[0]) == IPV6:
        head = IPv6(src=source[0], dst=target[0]) / IPv6ExtHdrFragment(id=number, nh=17)
        return list(fragment6(head / datagram, _FRAGMENT_BYTES))
    whole = IP(bytes(IP(src=source[0], dst=target[0], id=number, ttl=64) / datagram))
    return list(fragment(whole, fragsize=_FRAGMENT_BYTES))


class Wire:
    """One end of a cable, below the host's own network stack."""

    def __init__(self, host: Host, interface: str, next_hop_mac: str) -> None:
        self._head = {"src": host.mac(interface), "dst": next_hop_mac}
        with host.inside():
            self._socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)
            )
        self._socket.bind((interface, _ETH_P_ALL))
        self._socket.settimeout(3)

    def send(self, packets: Iterable[Packet]) -> None:
        """Send IP packets to the next hop."""
        for packet in packets:
            self._socket.send(bytes(Ether(**self._head) / packet))

    def udp_source(self, target: str, port: int) -> tuple[str, int]:
        """Return the source of the next unfragmented datagram that comes in for a target."""
        while True:
            frame = Ether(self._socket.recv(65536))
            ip = frame.payload
            is_wanted = UDP in frame and ip_address(ip.dst) == ip_address(target)
            if is_wanted and frame[UDP].dport == port:
                return str(ip.src), int(frame[UDP].sport)

    def close(self) -> None:
        """Let go of the cable."""
        self._socket.close()
