"""Streams to a backend, in plain text or TLS, on bare sockets.

Owns connecting, sending, receiving and letting go. Refuses to know what is said, and which way it
goes: ``dial`` opens the sockets, ``waits`` says when they can go on. There are no transports
underneath: a connection lives for one exchange of two packets or three, a thousand times a second,
and setting a transport up costs more than that.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from lb_xdp.core.model import Address
from lb_xdp.probes import waits
from lb_xdp.probes.dial import open_socket

_READ_BYTES: Final = 16 * 1024
_T = TypeVar("_T")


class Connection(Protocol):
    """A connected stream. Methods raise OSError, of which ssl.SSLError is one."""

    async def send(self, data: bytes) -> None:
        """Send all of ``data``."""

    async def receive(self) -> bytes:
        """Return what comes next, at most 16 KiB; nothing at the end."""

    def close(self) -> None:
        """Close it at once, without a word more."""


class PlainConnection:
    """A socket, and whatever it carries as it is. Datagram sockets will do."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._waits = waits.here()

    async def send(self, data: bytes) -> None:
        """Send all of ``data``."""
        while True:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                await self._waits.writable(self._socket.fileno())
            if not data:
                return

    async def receive(self) -> bytes:
        """Return what comes next."""
        # It is hardly ever there already: to try would be a system call and an error for nothing.
        while True:
            await self._waits.readable(self._socket.fileno())
            try:
                return self._socket.recv(_READ_BYTES)
            except BlockingIOError:  # a datagram that turned out to be broken: select(2)
                continue

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class TlsConnection:
    """TLS over another connection."""

    def __init__(self, plain: Connection, context: ssl.SSLContext, server_name: str) -> None:
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)

    async def open(self) -> None:
        """Shake hands. Raises ssl.SSLError where the other side is not who it should be."""
        await self._move(self._tls.do_handshake)

    @property
    def protocol(self) -> str | None:
        """Return what ALPN agreed on."""
        return self._tls.selected_alpn_protocol()

    async def send(self, data: bytes) -> None:
        """Send all of ``data``."""
        await self._move(lambda: self._tls.write(data))

    async def receive(self) -> bytes:
        """Return what comes next."""
        try:
            return await self._move(lambda: self._tls.read(_READ_BYTES))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""  # many servers do not say goodbye in TLS

    def close(self) -> None:
        """Close the connection underneath."""
        self._plain.close()

    async def _move(self, action: Callable[[], _T]) -> _T:
        """Do ``action``, fetching what it lacks and delivering what it leaves."""
        while True:
            try:
                done = action()
            except ssl.SSLWantReadError:
                await self._deliver()
                self._take(await self._plain.receive())
            except ssl.SSLError:
                await self._deliver()  # the alert that says why we leave
                raise
            else:
                await self._deliver()
                return done

    def _take(self, data: bytes) -> None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _deliver(self) -> None:
        if self._outgoing.pending:
            await self._plain.send(self._outgoing.read())


async def connect(
    address: Address, port: int, kind: socket.SocketKind = socket.SOCK_STREAM
) -> PlainConnection:
    """Return a connection in plain text; of datagrams, if ``kind`` says so."""
    unconnected = open_socket(address, kind)
    try:
        await shake_hands(unconnected, (str(address), port))
    except BaseException:
        unconnected.close()
        raise
    return PlainConnection(unconnected)


async def shake_hands(unconnected: socket.socket, place: tuple[str, int]) -> None:
    """Connect a socket. Raises OSError.

    The loop's own ``sock_connect`` first makes sure that an address is one, at a tenth of the cost
    of a whole probe.
    """
    error = unconnected.connect_ex(place)
    if error == errno.EINPROGRESS:
        await waits.here().writable(unconnected.fileno())
        error = unconnected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


async def connect_tls(
    address: Address, port: int, context: ssl.SSLContext, server_name: str
) -> TlsConnection:
    """Return a connection in TLS. ``server_name`` may be an address: it is not sent then."""
    plain = await connect(address, port)
    try:
        connection = TlsConnection(plain, context, server_name)
        await connection.open()
    except BaseException:
        plain.close()
        raise
    return connection
