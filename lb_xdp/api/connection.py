"""Where a daemon answers: a socket file of this host, or an address with TLS and a token.

Owns making connections, and what is said when nobody answers. It refuses to know what is asked.
``http.client`` serves instead of aiohttp because a command must start fast: aiohttp alone takes
several times as long to import.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from lb_xdp.errors import DaemonUnreachableError, LbError

HTTPS_PORT = 443


class Place(Protocol):
    """Where a daemon answers; its text is what messages call it."""

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """Return a connection that is made by its first request. Raises LbError."""
        ...

    def headers(self) -> dict[str, str]:
        """Return what goes along with every request. Raises LbError."""
        ...

    def unreachable(self, cause: Exception) -> DaemonUnreachableError:
        """Return the error for no answer, with the remedy that fits the cause."""
        ...


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection to a socket file."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        """Connect to the socket file; raises OSError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(os.fspath(self._path))

    def peer_pid(self) -> int:
        """Return the daemon's pid as our pid namespace sees it, 0 if it does not (unix(7))."""
        credentials = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid: int = struct.unpack("=iII", credentials)[0]
        return pid


@dataclass(frozen=True, slots=True)
class SocketFile:
    """The socket of a daemon on this host; its mode says who may ask."""

    path: Path

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)

    def connection(self, timeout_s: float) -> UnixConnection:
        """Return a connection to the file."""
        return UnixConnection(self.path, timeout_s)

    def headers(self) -> dict[str, str]:
        """Return nothing: the kernel says who asks."""
        return {}

    def unreachable(self, cause: Exception) -> DaemonUnreachableError:
        """Return the error for a socket that does not answer."""
        match cause:
            case PermissionError():
                words = f"no permission for {self}: run the command with sudo, or be in its group"
            case TimeoutError():
                words = f"the daemon on {self} did not answer in time: journalctl -u 'lb-xdp@*'"
            case FileNotFoundError() | ConnectionRefusedError():
                words = f"no daemon answers on {self}: {self._remedy()}"
            case _:
                words = f"no answer on {self} ({cause}): {self._remedy()}"
        return DaemonUnreachableError(words)

    def _remedy(self) -> str:
        """Return how to see whether the daemon runs and how to start it."""
        name = self.path.parent.name or "NAME"
        return f"is it running? systemctl status lb-xdp@{name}; start it with: lb-xdp run -c FILE"


@dataclass(frozen=True, slots=True)
class Remote:
    """A daemon's address over TCP. ``token_file`` holds the token, ``authority`` who may vouch.

    Without ``authority`` those count that this host trusts anyway.
    """

    url: str
    token_file: Path
    authority: Path | None = None

    def __str__(self) -> str:
        """Return the address."""
        return self.url

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """Return a connection, with TLS unless it stays on this host. Raises LbError."""
        secure, host, port = _parts(self.url)
        if not secure:
            return http.client.HTTPConnection(host, port, timeout=timeout_s)
        try:
            trust = ssl.create_default_context(cafile=self.authority)
        except OSError as error:  # SSLError is one
            raise LbError(f"{self.authority} cannot be used as --ca: {error}") from error
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=trust)

    def headers(self) -> dict[str, str]:
        """Return the token."""
        try:
            token = self.token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise LbError(f"{self.token_file} cannot be read as --token-file: {error}") from error
        if not token or not token.isprintable():
            raise LbError(f"{self.token_file} has no token: one line of text is wanted")
        return {"Authorization": f"Bearer {token}"}

    def unreachable(self, cause: Exception) -> DaemonUnreachableError:
        """Return the error for an address that does not answer."""
        if isinstance(cause, ssl.SSLCertVerificationError):
            words = f"{self}: {cause.verify_message}: give its authority with --ca FILE"
        elif isinstance(cause, TimeoutError):
            words = f"{self} did not answer in time"
        else:
            words = f"no daemon answers on {self} ({cause}): gateway.api.listen is where it listens"
        return DaemonUnreachableError(words)


def _parts(url: str) -> tuple[bool, str, int]:
    """Return whether there is TLS, host and port. Raises LbError for what no token is sent to."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise LbError(f"{url} is no address of a daemon: {error}") from error
    if parts.scheme not in {"http", "https"} or not host or parts.path not in {"", "/"}:
        raise LbError(f"{url} is no address of a daemon, such as https://gw1.example.net:8443")
    if parts.scheme == "https":
        return True, host, port or HTTPS_PORT
    if not _is_loopback(host):
        raise LbError(f"{url}: without TLS everybody on the way reads the token; use https://")
    return False, host, port or http.client.HTTP_PORT


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
