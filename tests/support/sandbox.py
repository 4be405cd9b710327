"""A private corner of the machine: whatever is made in it vanishes with its last process.

This module owns the isolation, on two levels:

- `enter` moves the calling process into mount and network namespaces of its own, with a private
  /run, /var/lib, /sys, bpffs and TMPDIR. Interfaces, named namespaces, pins and temporary files
  that are made there are out of the machine's sight, and the kernel frees them when the last
  process ends, however it ends.
- ``python -m tests.support.sandbox COMMAND...`` runs a command in a process namespace as well, so
  that a SIGKILL of this one process ends all of its descendants.

It refuses to know what runs inside.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Sequence
from fcntl import ioctl
from pathlib import Path
from types import FrameType
from typing import NoReturn

_CLONE_NEWNS = 0x00020000
_CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
_PR_SET_PDEATHSIG = 1
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1

_MARK = Path("/run/lb-xdp-sandbox")
_VAR_LIB = _MARK / "var-lib"
_TMP = _MARK / "tmp"

_libc = ctypes.CDLL(None, use_errno=True)


class SandboxError(Exception):
    """The sandbox cannot be made; the message says why and what helps."""


def is_inside() -> bool:
    """Say whether this process lives in a sandbox."""
    return _MARK.is_dir() and _MARK.is_mount()


def enter() -> None:
    """Move this process, and every child that it starts from now on, into a sandbox.

    A sandbox within a sandbox shares the temporary files of the outer one, and nothing else that
    is made from then on.

    Call it before any thread is started: threads that exist already stay outside. The working
    directory must not be below /run or /var/lib, which the sandbox replaces.

    Raises `SandboxError` without root, or where the kernel or a container forbids namespaces.
    """
    if os.geteuid() != 0:
        raise SandboxError("network namespaces and BPF need root: run this again with sudo")
    here = Path.cwd()
    if here.is_relative_to("/run") or here.is_relative_to("/var/lib"):
        raise SandboxError(f"{here} is hidden inside the sandbox: move the checkout elsewhere")
    try:
        _check(_libc.unshare(_CLONE_NEWNS | CLONE_NEWNET), "unshare")
        _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
        _replace_file_systems()
        _loopback_up()
    except OSError as error:
        raise SandboxError(
            f"no private namespaces here ({error}): inside a container, start it privileged"
        ) from error
    os.environ["TMPDIR"] = tempfile.tempdir = str(_TMP)
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # a root shell by plain su lacks them


def set_namespace(descriptor: int, kind: int) -> None:
    """Move the calling thread into the namespace behind ``descriptor`` (Python 3.11: no setns)."""
    _check(_libc.setns(descriptor, kind), "setns")


def die_with_parent() -> None:
    """Have the kernel end this process when the thread that forked it ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0), "prctl")


def _replace_file_systems() -> None:
    """Mount what must be private: a /run and /var/lib to write in, a /sys of this network."""
    outer = os.open(_TMP, os.O_PATH) if is_inside() else None
    _mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
    _MARK.mkdir()
    _mount("tmpfs", str(_MARK), "tmpfs", 0, "mode=755")
    _TMP.mkdir(mode=0o1777)
    if outer is not None:
        _mount(f"/proc/self/fd/{outer}", str(_TMP), None, _MS_BIND)
        os.close(outer)
    _hide_behind_links(Path("/var/lib"), _VAR_LIB)
    for folder in ("/run/netns", "/run/lb-xdp", "/var/lib/lb-xdp"):
        Path(folder).mkdir(exist_ok=True)
    _mount("sysfs", "/sys", "sysfs")
    _mount("bpf", "/sys/fs/bpf", "bpf")


def _hide_behind_links(folder: Path, behind: Path) -> None:
    """Let new entries of ``folder`` be private, while the present ones stay reachable.

    Mounting over /var/lib/lb-xdp alone would first have to make that directory on the machine.
    """
    behind.mkdir()
    _mount(str(folder), str(behind), None, _MS_BIND)
    _mount("tmpfs", str(folder), "tmpfs", 0, "mode=755")
    for entry in behind.iterdir():
        if entry.name != "lb-xdp":
            (folder / entry.name).symlink_to(entry)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def _mount(
    source: str | None, target: str, kind: str | None, flags: int = 0, data: str = ""
) -> None:
    arguments = [None if text is None else text.encode() for text in (source, target, kind)]
    status = _libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() or None)
    _check(status, f"mount {target}")


def _check(status: int, what: str) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def run(command: Sequence[str]) -> int:
    """Run ``command`` in a process namespace of its own; return its exit code.

    SIGTERM and SIGHUP reach it as SIGINT, so that it can say what it was doing; the terminal's
    Ctrl-C reaches it anyway. Whatever it started ends with it.
    """
    if os.geteuid() != 0:
        raise SandboxError("namespaces need root: run this again with sudo")
    _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWPID), "unshare")
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    init = os.fork()
    if init == 0:
        die_with_parent()
        os._exit(_be_init(command))
    _pass_on_signals(init, signal.SIGTERM)
    return _exit_code(os.waitpid(init, 0)[1])


def _be_init(command: Sequence[str]) -> int:
    """Be process 1 of the new namespace: start the command, reap orphans, end with the command."""
    _mount("proc", "/proc", "proc")
    child = os.fork()
    if child == 0:
        _become(command)
    _pass_on_signals(child, signal.SIGINT)
    while True:
        ended, status = os.wait()
        if ended == child:
            return _exit_code(status)


def _become(command: Sequence[str]) -> NoReturn:
    # A shell starts background commands deaf to Ctrl-C, which is how we ask this one to stop.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        sys.stderr.write(f"sandbox: {command[0]}: {error.strerror}\n")
        os._exit(127)


def _pass_on_signals(child: int, number: signal.Signals) -> None:
    """Tell ``child`` with ``number`` of a request to stop; leave Ctrl-C to the command itself."""

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        os.kill(child, number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for request in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(request, pass_on)


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("usage: python -m tests.support.sandbox COMMAND [ARGUMENT...]")
    try:
        sys.exit(run(sys.argv[1:]))
    except SandboxError as problem:
        sys.exit(f"sandbox: {problem}")
