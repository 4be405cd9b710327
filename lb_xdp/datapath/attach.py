"""Programs on interfaces: one pinned bpf_link each, replaced atomically, never detached first.

A link is ours if it is pinned under our gateway's folder *and* runs on the interface that this
network namespace knows by that name. Whatever else sits on an interface is a stranger, and stays
unless the operator said ``--replace``.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lb_xdp.core.model import XdpMode
from lb_xdp.datapath import syscall
from lb_xdp.datapath.syscall import XdpFlag
from lb_xdp.errors import AttachError, StrangerError

_log = logging.getLogger(__name__)
_KERNEL_MODES = {1: "native", 2: "generic", 3: "offload"}
_HARD_ERRORS = {errno.EBUSY, errno.EPERM, errno.ENODEV, errno.EEXIST}


@dataclass(frozen=True, slots=True)
class Attached:
    """What the kernel says is on an interface. ``mode`` is native, generic or offload."""

    program_id: int
    program_name: str
    mode: str


def attached(interface: str) -> Attached | None:
    """Return the XDP program on an interface of this network namespace, if any."""
    done = subprocess.run(
        ["ip", "-json", "-details", "link", "show", "dev", interface],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise AttachError(f"interface {interface}: {done.stderr.strip()}")
    found = json.loads(done.stdout)[0].get("xdp")
    if not found or not found.get("prog"):
        return None
    program = found["prog"]
    mode = _KERNEL_MODES.get(found["mode"], str(found["mode"]))
    return Attached(program["id"], program.get("name", "unnamed"), mode)


class Link:
    """One pinned link. ``mode`` is native or generic, as the kernel said when it was attached."""

    def __init__(self, interface: str, path: Path, fd: int, mode: str = "") -> None:
        self.interface = interface
        self.path = path
        self.fd = fd
        self.mode = mode

    @property
    def info(self) -> syscall.LinkInfo:
        """Return which program it runs; ``ifindex`` 0 if its interface is gone."""
        return syscall.link_info(self.fd)

    def run(self, program_fd: int) -> None:
        """Put another program in place, atomically. Raises AttachError."""
        try:
            syscall.link_update(self.fd, program_fd)
        except OSError as error:
            raise AttachError(
                f"interface {self.interface}: the program cannot be replaced: {error.strerror}"
            ) from error

    def remove(self) -> None:
        """Take the program off the interface, and the pin away."""
        try:
            syscall.link_detach(self.fd)
        except OSError as error:
            if error.errno != errno.ENOLINK:  # its interface is gone
                raise AttachError(f"interface {self.interface}: {error.strerror}") from error
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the descriptor; safe to repeat."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_link(interface: str, path: Path) -> Link | None:
    """Open a pinned link, or None if there is none. Its interface may be gone."""
    try:
        return Link(interface, path, syscall.open_pin(str(path)))
    except FileNotFoundError:
        return None


def create_link(
    interface: str, ifindex: int, program_fd: int, mode: XdpMode, path: Path, *, replace: bool
) -> Link:
    """Attach a program by a new link, and pin it. Raises StrangerError, AttachError."""
    there = attached(interface)
    if there is not None:
        if not replace:
            raise _stranger(interface, there)
        _log.warning("replacing program=%s id=%d interface=%s", there.program_name,
                     there.program_id, interface)  # fmt: skip
        _evict(interface, ifindex, there)
    link = Link(interface, path, _attach(interface, ifindex, program_fd, mode))
    try:
        path.unlink(missing_ok=True)
        syscall.pin(link.fd, str(path))
    except OSError as error:
        link.close()
        raise AttachError(f"{path}: cannot be pinned: {error.strerror}") from error
    there = attached(interface)
    link.mode = there.mode if there else ""
    return link


def _attach(interface: str, ifindex: int, program_fd: int, mode: XdpMode) -> int:
    wanted = XdpFlag.GENERIC if mode is XdpMode.GENERIC else XdpFlag.NATIVE
    try:
        return syscall.link_create(program_fd, ifindex, wanted)
    except OSError as error:
        if mode is not XdpMode.AUTO or error.errno in _HARD_ERRORS:
            raise _refusal(interface, wanted, error) from error
        _log.warning(
            "interface=%s has no native XDP here (%s): running in generic mode, which is slower",
            interface,
            error.strerror,
        )
    try:
        return syscall.link_create(program_fd, ifindex, XdpFlag.GENERIC)
    except OSError as error:
        raise _refusal(interface, XdpFlag.GENERIC, error) from error


def _refusal(interface: str, flag: XdpFlag, error: OSError) -> AttachError:
    hint = ""
    if flag is XdpFlag.NATIVE and error.errno not in _HARD_ERRORS:
        hint = (
            "; its driver may lack XDP, or an MTU or an offload forbids it: "
            "set gateway.xdp_mode to auto or generic"
        )
    mode = (flag.name or "").lower()
    return AttachError(f"interface {interface}: no {mode} XDP: {error.strerror}{hint}")


def _stranger(interface: str, there: Attached) -> StrangerError:
    kin = " (another gateway of lb_xdp?)" if there.program_name.startswith("lb_") else ""
    return StrangerError(
        f"interface {interface} runs an XDP program that is not ours: {there.program_name}, "
        f"id {there.program_id}, {there.mode}{kin}. Nothing was changed. "
        f"See `bpftool prog show id {there.program_id}`; `lb-xdp run --replace` takes its place"
    )


def _evict(interface: str, ifindex: int, there: Attached) -> None:
    """Remove a stranger: its link if it came by one, else what netlink attached."""
    for link_id in syscall.link_ids():
        fd = syscall.link_open(link_id)
        try:
            info = syscall.link_info(fd)
            if (info.type, info.ifindex) == (syscall.LINK_TYPE_XDP, ifindex) and (
                info.program_id == there.program_id
            ):
                syscall.link_detach(fd)
                return
        finally:
            os.close(fd)
    for kind in ("xdpdrv", "xdpgeneric", "xdp"):
        subprocess.run(
            ["ip", "link", "set", "dev", interface, kind, "off"], capture_output=True, check=False
        )
    if attached(interface) is not None:
        raise AttachError(f"interface {interface}: {there.program_name} could not be removed")
