"""The echo server's process: ``python -m tests.support.echo NAME PORT``.

Answers UDP datagrams and TCP lines on one port of all addresses, IPv4 and IPv6, each with its name
in front, and writes its counts as a line of JSON whenever it reads a line on stdin. It ends when
stdin does.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys

_SO_RCVBUFFORCE = 33
_CONTROL_BYTES = 64
_ADDRESS_BYTES = 16


class _Counts:
    def __init__(self) -> None:
        self.tcp_connections = 0
        self.tcp_lines = 0
        self.tcp_open = 0
        self.udp_datagrams = 0


class _Tcp(asyncio.Protocol):
    def __init__(self, name: bytes, counts: _Counts) -> None:
        self._name = name
        self._counts = counts
        self._rest = b""
        self._transport = asyncio.Transport()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._counts.tcp_connections += 1
        self._counts.tcp_open += 1
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._counts.tcp_lines += len(lines)
        self._transport.write(b"".join(self._name + b" " + line + b"\n" for line in lines))

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._counts.tcp_open -= 1


def _open_udp(port: int) -> socket.socket:
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
    udp.bind(("::", port))
    return udp


def _open_tcp(port: int) -> socket.socket:
    return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)


def _echo_datagrams(udp: socket.socket, name: bytes, counts: _Counts) -> None:
    """Answer all datagrams that wait, each from the address that it was sent to.

    A DSR backend has two addresses; without the control message the kernel would answer from the
    wrong one.
    """
    while True:
        try:
            data, control, _flags, sender = udp.recvmsg(65535, _CONTROL_BYTES)
        except BlockingIOError:
            return
        counts.udp_datagrams += 1
        # struct in6_pktinfo: local address (IPv4 within ::ffff:0:0/96), interface (0: as routed)
        local = control[0][2][:_ADDRESS_BYTES] + b"\0" * 4
        control_out = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, local)]
        udp.sendmsg([name, b" ", data], control_out, 0, sender)


async def _serve(name: bytes, port: int) -> None:
    loop = asyncio.get_running_loop()
    counts = _Counts()
    udp = _open_udp(port)
    loop.add_reader(udp, _echo_datagrams, udp, name, counts)
    await loop.create_server(lambda: _Tcp(name, counts), sock=_open_tcp(port), backlog=4096)
    _say("ready")
    while await loop.run_in_executor(None, sys.stdin.readline):
        _say(json.dumps(vars(counts)))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1].encode(), int(sys.argv[2])))
