"""One ICMP probe: an echo request and its reply, IPv4 and IPv6 (RFC 792, RFC 4443).

A raw socket, which needs CAP_NET_RAW: the kernel's ping sockets are closed to everybody, root
included, unless net.ipv4.ping_group_range says otherwise. It is connected and filters by type, so
that a thousand probes under way do not each wake up for every reply.
"""

from __future__ import annotations

import secrets
import socket
import struct
from typing import Final

from lb_xdp.core.health import Target
from lb_xdp.core.model import IPV6, Address
from lb_xdp.probes.attempt import Answer, ProbeFailedError
from lb_xdp.probes.connection import PlainConnection
from lb_xdp.probes.dial import open_socket

_REQUEST: Final = {4: 8, 6: 128}
_REPLY: Final = {4: 0, 6: 129}
_ICMP_FILTER: Final = 1  # linux/icmp.h, at the level of raw sockets; a set bit blocks
_ICMP6_FILTER: Final = 1  # linux/icmpv6.h
_IP_RECVERR: Final = 11  # linux/in.h
_IPV6_RECVERR: Final = 25  # linux/in6.h
_TOKEN_BYTES: Final = 16
_SOL_RAW: Final = 255


class IcmpExchange:
    """Sends one echo request and waits for its reply."""

    def __init__(self, target: Target) -> None:
        self._address = target.address
        self._version = target.address.version

    async def ask(self) -> Answer:
        """Send a request that no other probe's reply fits."""
        with _make_socket(self._address) as raw:
            raw.connect((str(self._address), 0))  # at once: nothing is sent
            connection = PlainConnection(raw)
            echo = secrets.token_bytes(4 + _TOKEN_BYTES)  # identifier, sequence number, data
            await connection.send(_message(self._version, echo))
            while not self._answers(await connection.receive(), echo):
                pass
        return Answer("echo reply")

    def close(self) -> None:
        """Nothing is kept."""

    def _answers(self, packet: bytes, echo: bytes) -> bool:
        # IPv4 hands over the whole packet, IPv6 what is behind its headers: raw(7), RFC 3542, 3.
        start = 0 if self._version == IPV6 else (packet[0] & 0x0F) * 4
        kind = packet[start : start + 2]
        return kind == bytes((_REPLY[self._version], 0)) and packet[start + 4 :] == echo


def _make_socket(address: Address) -> socket.socket:
    v6 = address.version == IPV6
    protocol = socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP
    try:
        raw = open_socket(address, socket.SOCK_RAW, protocol)
    except PermissionError as error:
        raise ProbeFailedError("the prober may not send ICMP: CAP_NET_RAW is missing") from error
    block = (1 << 256) - 1 & ~(1 << _REPLY[address.version])
    if v6:
        raw.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, block.to_bytes(32, "little"))
        raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    else:
        raw.setsockopt(_SOL_RAW, _ICMP_FILTER, (block & 0xFFFFFFFF).to_bytes(4, "little"))
        # A router that knows no way fails the probe at once, not at its timeout: ip(7).
        raw.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    return raw


def _message(version: int, echo: bytes) -> bytes:
    """Return an echo request; the kernel fills in the checksum of ICMPv6."""
    checksum = 0 if version == IPV6 else _checksum(bytes((_REQUEST[version], 0, 0, 0)) + echo)
    return struct.pack("!BBH", _REQUEST[version], 0, checksum) + echo


def _checksum(message: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of octets."""
    total: int = sum(struct.unpack(f"!{len(message) // 2}H", message))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
