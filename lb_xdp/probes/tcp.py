"""One TCP probe: whether anything listens there.

The connection is given up in the middle of its handshake: the answer to our SYN is the news, and
it is answered by RST instead of ACK. So the backend's application never sees a connection, logs
nothing, and spends no thread; a complete connection closed at once would be an "unexpected end of
stream" (FIN) or a "connection reset by peer" (RST) in many a log, each few seconds. HAProxy's plain
TCP check does the same. A process that hangs is noticed once its accept queue is full, as the
kernel answers until then: use an HTTP probe where that matters.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final

from lb_xdp.core.health import ProbeResult
from lb_xdp.core.model import Address, HealthCheck
from lb_xdp.probes.attempt import Clock, attempt
from lb_xdp.probes.dial import open_socket

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


async def probe_tcp(check: HealthCheck, address: Address, port: int, clock: Clock) -> ProbeResult:
    """Open a TCP connection and drop it. Raises nothing for reasons of the network."""

    async def exchange() -> str:
        with _make_socket(address) as connection:
            await asyncio.get_running_loop().sock_connect(connection, (str(address), port))
        return "connected"

    return await attempt(check, clock, exchange)


def _make_socket(address: Address) -> socket.socket:
    connection = open_socket(address, socket.SOCK_STREAM)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    # Without it Linux sends the handshake's last ACK before we get to close: tcp(7).
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
    return connection
