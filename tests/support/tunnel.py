"""A gateway for `lb-xdp decap`'s tests: whatever is routed into a TUN device leaves in a tunnel.

This module owns encapsulation by hand, independent of the program under test, and the thread that
does it. It refuses to balance anything: there is one backend.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from dataclasses import dataclass
from fcntl import ioctl
from ipaddress import ip_address
from types import TracebackType
from typing import Self

from tests.support.lab import Host

GUE_PORT = 6080
DEVICE = "tun0"

_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_TYPES = {4: 0x0800, 6: 0x86DD}
_INNER_PROTOCOLS = {4: 4, 6: 41}
_UDP = 17


@dataclass(frozen=True, slots=True)
class Way:
    """How packets leave: the kind of tunnel, outer addresses, and the two MACs."""

    kind: str
    source: str
    destination: str
    source_mac: str
    destination_mac: str


def checksum(data: bytes) -> int:
    """Return the Internet checksum of an even number of octets (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def encapsulate(way: Way, inner: bytes) -> bytes:
    """Return the frame that carries an IP packet."""
    protocol = _INNER_PROTOCOLS[inner[0] >> 4]
    if way.kind == "gue":
        protocol = _UDP
        inner = struct.pack("!HHHH", 50_000, GUE_PORT, 8 + len(inner), 0) + inner
    source, destination = ip_address(way.source), ip_address(way.destination)
    if source.version == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(inner), 0, 0x4000, 64, protocol, 0)
        head += source.packed + destination.packed
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    else:
        head = struct.pack("!IHBB", 6 << 28, len(inner), protocol, 64)
        head += source.packed + destination.packed
    macs = bytes.fromhex((way.destination_mac + way.source_mac).replace(":", ""))
    return macs + struct.pack("!H", _TYPES[source.version]) + head + inner


class TunnelSender:
    """Encapsulates on a host what its routes send to ``DEVICE``; ``sent`` counts packets."""

    def __init__(self, host: Host, interface: str, way: Way) -> None:
        self.sent = 0
        self.way = way
        with host.inside():
            self._tun = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            ioctl(
                self._tun,
                _TUNSETIFF,
                struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI),
            )
            self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._wire.bind((interface, 0))
        # Without router solicitations, which would be packets that no test sent.
        host.run("sysctl", "-q", "-w", f"net.ipv6.conf.{DEVICE}.disable_ipv6=0",
                 f"net.ipv6.conf.{DEVICE}.addr_gen_mode=1",
                 f"net.ipv6.conf.{DEVICE}.router_solicitations=0")  # fmt: skip
        host.ip(f"link set {DEVICE} mtu 1400 up")
        self._ended, self._end = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _where: TracebackType | None,
    ) -> None:
        os.close(self._end)
        self._thread.join()
        os.close(self._ended)
        os.close(self._tun)
        self._wire.close()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._tun, self._ended], [], [])
            if self._ended in ready:
                return
            self._wire.send(encapsulate(self.way, os.read(self._tun, 65536)))
            self.sent += 1
