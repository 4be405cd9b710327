"""One UDP probe: a datagram, and whether what comes back is what is expected.

An ICMP port unreachable fails it at once; silence, at its timeout. A server that never answers
cannot be told from a lost datagram or a host that is gone, so there is no probe for it: choose
another of its ports.
"""

from __future__ import annotations

import socket

from lb_xdp.core.health import Target
from lb_xdp.probes.attempt import Answer, ProbeFailedError
from lb_xdp.probes.connection import connect
from lb_xdp.probes.tcp import unexpected


class UdpExchange:
    """Sends one datagram and takes one."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def ask(self) -> Answer:
        """Send from a new port, so that a late answer to an earlier question is not taken."""
        target, payload = self._target, self._target.check.payload
        connection = await connect(target.address, target.port, socket.SOCK_DGRAM)
        try:
            await connection.send(payload.send or b"")
            answer = await connection.receive()
        finally:
            connection.close()
        if payload.expect is None:
            return Answer("answered")
        if payload.expect not in answer:
            raise ProbeFailedError(unexpected(answer, payload.expect))
        return Answer("answered as expected")

    def close(self) -> None:
        """Nothing is kept."""
