"""One gRPC probe: grpc.health.v1.Health/Check, as gRPC's own health checking asks.

The library h2 owns HTTP/2. The two messages are a string and a number (grpc/health/v1/health.proto,
in doc/health-checking.md of the gRPC project), so protobuf is not needed; nor is grpcio, which
brings threads and a poller of its own and weighs thirty times as much.
"""

from __future__ import annotations

import struct
from typing import Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from lb_xdp.core.endpoint import format_endpoint
from lb_xdp.core.health import Target
from lb_xdp.probes.attempt import Answer, ProbeFailedError, first_words
from lb_xdp.probes.connection import Connection
from lb_xdp.probes.tls import Contexts, Line

_SERVING: Final = 1
_STATUSES: Final = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_CODES: Final = {
    "5": "NOT_FOUND",
    "12": "UNIMPLEMENTED",
    "14": "UNAVAILABLE",
    "16": "UNAUTHENTICATED",
}
_FRAME: Final = struct.Struct("!BI")
_CONTINUED: Final = 0x80  # the bit of an octet that another one follows
_LIMIT_BYTES: Final = 16 * 1024
_CONFIG: Final = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")


class GrpcExchange:
    """Asks one target for the health of one service, on a new connection each time."""

    def __init__(self, target: Target, contexts: Contexts) -> None:
        check = target.check
        tls = check.tls
        self._line = Line(target, contexts, protocols=("h2",))
        self._headers = [
            (":method", "POST"),
            (":scheme", "https" if tls else "http"),
            (":path", "/grpc.health.v1.Health/Check"),
            (
                ":authority",
                (tls and tls.server_name) or format_endpoint(target.address, target.port),
            ),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "lb-xdp-probe"),
        ]
        self._message = _frame(_field(1, check.grpc_service.encode()))

    async def ask(self) -> Answer:
        """Ask once."""
        connection = await self._line.open()
        try:
            reply = _Reply(self._headers, self._message)
            try:
                await reply.read(connection)
            except (h2.exceptions.H2Error, UnicodeDecodeError) as error:
                raise ProbeFailedError(f"not HTTP/2: {first_words(str(error))}") from error
        finally:
            connection.close()
        return reply.judge()

    def close(self) -> None:
        """Nothing is kept."""


class _Reply:
    """One answer: headers, a message in its frame, trailers."""

    def __init__(self, headers: list[tuple[str, str]], message: bytes) -> None:
        self._h2 = h2.connection.H2Connection(_CONFIG)
        self._h2.initiate_connection()
        stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, headers)
        self._h2.send_data(stream, message, end_stream=True)
        self._headers: dict[str, str] = {}
        self._data = bytearray()
        self._ended = False

    async def read(self, connection: Connection) -> None:
        """Read until the stream has ended."""
        while not self._ended:
            if to_send := self._h2.data_to_send():
                await connection.send(to_send)
            received = await connection.receive()
            if not received:
                raise ProbeFailedError("connection closed without an answer")
            for event in self._h2.receive_data(received):
                self._take(event)

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                self._headers |= {str(name): str(value) for name, value in event.headers or ()}
            case h2.events.DataReceived():
                self._data += event.data or b""
                if len(self._data) > _LIMIT_BYTES:
                    raise ProbeFailedError("an answer without end")
            case h2.events.StreamEnded():
                self._ended = True
            case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                raise ProbeFailedError(f"refused by HTTP/2 error {event.error_code}")

    def judge(self) -> Answer:
        """Return the answer if the service is serving."""
        if (status := self._headers.get(":status")) != "200":
            raise ProbeFailedError(f"HTTP status {first_words(status or 'none')}, expected 200")
        code = self._headers.get("grpc-status", "none")
        if code != "0":
            text = first_words(self._headers.get("grpc-message", ""))
            raise ProbeFailedError(
                f"gRPC {_CODES.get(code, first_words(f'status {code}'))}: {text}".rstrip(": ")
            )
        found = _status(bytes(self._data))
        name = _STATUSES[found] if found < len(_STATUSES) else f"status {found}"
        if found != _SERVING:
            raise ProbeFailedError(f"{name}, expected SERVING")
        return Answer(name)


def _frame(message: bytes) -> bytes:
    """Return a message behind its five octets: not compressed, this long."""
    return _FRAME.pack(0, len(message)) + message


def _field(number: int, text: bytes) -> bytes:
    """Return a field of protobuf's wire type 2; an empty one is left out."""
    return bytes((number << 3 | 2,)) + _varint(len(text)) + text if text else b""


def _varint(value: int) -> bytes:
    octets = bytearray()
    while value >= _CONTINUED:
        octets.append(value % _CONTINUED | _CONTINUED)
        value >>= 7
    return bytes((*octets, value))


def _status(data: bytes) -> int:
    """Return the enum of HealthCheckResponse: field 1, a varint, absent where it is 0."""
    message = data[_FRAME.size :]
    if len(data) < _FRAME.size or _FRAME.unpack_from(data) != (0, len(message)):
        raise ProbeFailedError(f"not gRPC: {first_words(data) or 'no message'}")
    if not message:
        return 0
    field, *value = message
    if field != 1 << 3 or len(value) != 1:
        raise ProbeFailedError("not a health answer")
    return value[0]
