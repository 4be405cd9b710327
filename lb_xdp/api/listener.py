"""Where the API listens: the unix socket's file, and TCP with TLS.

Owns the socket file, its mode and group, and the certificate. It refuses to know HTTP.
"""

from __future__ import annotations

import errno
import grp
import os
import socket
import ssl
import stat
from pathlib import Path

from lb_xdp.api.callers import refuse_open_file
from lb_xdp.core.model import ApiListener
from lb_xdp.errors import AddressInUseError, AlreadyRunningError, HostError

SOCKET_MODE = 0o660
BACKLOG = 128
PATH_BYTES_MAX = 107  # sun_path of unix(7) is 108 bytes with its NUL


def open_socket(path: Path, group: str | None = None) -> socket.socket:
    """Return a socket that listens at ``path`` with mode 0660, of ``group`` if one is given.

    Raises AlreadyRunningError when a live daemon answers there, HostError when the socket cannot be
    made or there is no such group.
    """
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise HostError(
            f"the API socket path {path} is longer than {PATH_BYTES_MAX} bytes: "
            "choose a shorter gateway.name or set gateway.api.socket"
        )
    gid = _group_id(group)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)  # noqa: FBT003 - the socket module takes no keyword here
    try:
        listener.bind(os.fspath(path))
        # Before listen(): until then nobody can connect, whatever the umask has left open.
        path.chmod(SOCKET_MODE)
        os.chown(path, -1, gid)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise HostError(
            f"cannot create the API socket {path}: {error.strerror}: "
            "see that its directory exists and is writable, or set gateway.api.socket"
        ) from error
    return listener


def _group_id(group: str | None) -> int:
    """Return the number of a group, -1 for none."""
    try:
        return -1 if group is None else grp.getgrnam(group).gr_gid
    except KeyError:
        raise HostError(
            f"gateway.api.group: this host has no group {group}: groupadd --system {group}"
        ) from None


def remove_socket(path: Path) -> None:
    """Remove the name first: a command then sees no daemon rather than one that does not answer."""
    path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Remove the socket file of a dead daemon. A live daemon, and a file of another kind, stay."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # nothing there, or the directory is missing: bind() says which
    if not stat.S_ISSOCK(mode):
        raise HostError(
            f"{path} exists and is not a socket: remove it, or set gateway.api.socket elsewhere"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        # A daemon too busy to accept (a full backlog, a timeout) is alive as well.
        if probe.connect_ex(os.fspath(path)) != errno.ECONNREFUSED:
            raise AlreadyRunningError(
                f"another lb-xdp daemon answers on {path}: stop that one first, or give this "
                "gateway another gateway.name"
            )
    remove_socket(path)


def tls(remote: ApiListener) -> ssl.SSLContext | None:
    """Return what TLS is done with, None without a certificate. Raises HostError."""
    if remote.certificate is None or remote.key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        refuse_open_file("gateway.api.key", Path(remote.key), Path(remote.key).stat())
        context.load_cert_chain(remote.certificate, remote.key, password=lambda: b"")
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise HostError(
            f"gateway.api: {remote.certificate} and {remote.key} cannot be used for TLS: {error}"
        ) from error
    return context


def not_listening(remote: ApiListener, error: OSError) -> HostError | AddressInUseError:
    """Return the error for an address that cannot be listened on."""
    place = f"gateway.api.listen: cannot listen on {remote.listen}"
    if error.errno == errno.EADDRINUSE:
        return AddressInUseError(
            f"{place}: the address is in use: choose another port, or see who holds it with: "
            f"ss -ltnp 'sport = :{remote.listen.port}'"
        )
    return HostError(f"{place}: {error.strerror}: give an address of this host")
