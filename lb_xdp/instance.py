"""The daemon's place on the host: its run directory, its lock, its privilege.

One daemon for a gateway name: the lock is a flock(2) on ``/run/lb-xdp/<name>/lock``, which the
kernel gives back when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lb_xdp.errors import AlreadyRunningError, HostError, PrivilegeError

RUN_DIRECTORY = Path("/run/lb-xdp")
STATE_DIRECTORY = Path("/var/lib/lb-xdp")
"""Has a directory for each gateway, with what must survive a restart."""

_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_PERFMON": 38, "CAP_BPF": 39}
"""What capabilities(7) says that loading and attaching needs, by number; since Linux 5.8."""

_FOLDER_MODE = 0o755
"""Whatever the umask is: the API socket in it has a group, which has to get there."""

_CAP_SYS_ADMIN = 21
"""Stands for CAP_BPF and CAP_PERFMON wherever they are asked for."""


def require_privilege() -> None:
    """Raise PrivilegeError unless this process may load BPF programs and attach them.

    A program that rewrites packets by pointers is checked by the verifier under CAP_PERFMON.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    effective = int(next(x for x in status.splitlines() if x.startswith("CapEff")).split()[1], 16)
    held = {bit for bit in range(64) if effective >> bit & 1}
    if _CAP_SYS_ADMIN in held:
        held |= {_CAPABILITIES["CAP_PERFMON"], _CAPABILITIES["CAP_BPF"]}
    missing = [name for name, bit in _CAPABILITIES.items() if bit not in held]
    if missing:
        raise PrivilegeError(
            f"lb-xdp may not load XDP programs here (missing {', '.join(missing)}): run it as "
            "root, sudo lb-xdp run -c FILE; `lb-xdp check` and `lb-xdp schema` need no privilege"
        )


def raise_limits() -> None:
    """Allow as many open files as this process may have, and maps of any size.

    Each probe under way is a socket. Before Linux 5.11 BPF memory counted as locked memory; there
    the limit would hide the message that says what such a kernel lacks.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with suppress(ValueError, PermissionError):  # without CAP_SYS_RESOURCE; newer kernels need none
        resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)


@contextmanager
def locked(gateway: str) -> Iterator[None]:
    """Hold a gateway's lock, in its run directory. Raises AlreadyRunningError, HostError.

    Both are removed at the end, unless the process is killed; what is left then does no harm.
    """
    folder = RUN_DIRECTORY / gateway
    try:
        lock = _open_lock(folder)
    except OSError as error:
        raise HostError(f"{folder}: cannot be used: {error.strerror}") from error
    try:
        _take(lock, gateway)
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        try:
            yield
        finally:
            (folder / "lock").unlink(missing_ok=True)
            with suppress(OSError):  # somebody else's file is in it
                folder.rmdir()
    finally:
        os.close(lock)


def _open_lock(folder: Path) -> int:
    """Open the lock file, and make sure that it is the one that others will open."""
    while True:
        with suppress(FileExistsError):
            folder.parent.mkdir()
            folder.parent.chmod(_FOLDER_MODE)
        folder.mkdir(exist_ok=True)
        folder.chmod(_FOLDER_MODE)
        try:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # the folder's last user is just removing it
            continue
        return lock


def _take(lock: int, gateway: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        raise AlreadyRunningError(
            f"a daemon of gateway {gateway} runs already (pid {holder}): nothing was changed. "
            f"`lb-xdp --name {gateway} status` shows it; for a second gateway on this host "
            "choose another gateway.name"
        ) from error
    if os.fstat(lock).st_nlink == 0:
        raise AlreadyRunningError(
            f"a daemon of gateway {gateway} was just ending: nothing was changed, try again"
        )
