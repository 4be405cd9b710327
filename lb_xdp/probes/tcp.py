"""TCP probes: whether anything listens there, or whether it says what it should.

A plain one is given up in the middle of its handshake: the answer to our SYN is the news, and
it is answered by RST instead of ACK. So the backend's application never sees a connection, logs
nothing, and spends no thread; a complete connection closed at once would be an "unexpected end of
stream" (FIN) or a "connection reset by peer" (RST) in many a log, each few seconds. HAProxy's plain
TCP check does the same. A process that hangs is noticed once its accept queue is full, as the
kernel answers until then: expect an answer, or use an HTTP probe, where that matters.

A conversation is a complete connection: what is to be sent, and an answer with what is expected
anywhere in it.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from lb_xdp.core.health import Target
from lb_xdp.core.model import Address
from lb_xdp.probes.attempt import Answer, ProbeFailedError, first_words
from lb_xdp.probes.connection import connect, shake_hands
from lb_xdp.probes.dial import open_socket

ANSWER_LIMIT_BYTES: Final = 64 * 1024
"""How much of an answer is searched."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class TcpHandshake:
    """Opens a TCP connection and drops it."""

    def __init__(self, target: Target) -> None:
        self._address = target.address
        self._place = (str(target.address), target.port)

    async def ask(self) -> Answer:
        """Wait for the answer to a SYN."""
        with _make_socket(self._address) as connection:
            await shake_hands(connection, self._place)
        return Answer("connected")

    def close(self) -> None:
        """Nothing is kept."""


def _make_socket(address: Address) -> socket.socket:
    connection = open_socket(address, socket.SOCK_STREAM)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    # Without it Linux sends the handshake's last ACK before we get to close: tcp(7).
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
    return connection


class TcpConversation:
    """Connects, sends, and looks for what is expected."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def ask(self) -> Answer:
        """Send, and read until what is expected has come."""
        payload = self._target.check.payload
        connection = await connect(self._target.address, self._target.port)
        try:
            if payload.send:
                await connection.send(payload.send)
            answer = bytearray()
            while payload.expect and payload.expect not in answer:
                received = await connection.receive()
                if not received or len(answer) > ANSWER_LIMIT_BYTES:
                    raise ProbeFailedError(unexpected(bytes(answer), payload.expect))
                answer += received
        finally:
            connection.close()
        return Answer("answered as expected")

    def close(self) -> None:
        """Nothing is kept."""


def unexpected(answer: bytes, expected: bytes) -> str:
    """Return the words for an answer that lacks what is expected."""
    found = f"answered {first_words(answer)}" if answer else "closed without an answer"
    return f"{found}, expected {first_words(expected)}"
