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
import socket
import subprocess
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from lb_xdp.core.model import XdpMode
from lb_xdp.datapath import syscall
from lb_xdp.datapath.load import Program
from lb_xdp.datapath.syscall import XdpFlag
from lb_xdp.errors import AttachError, StrangerError

_log = logging.getLogger(__name__)
_KERNEL_MODES = {1: "native", 2: "generic", 3: "offload"}
_HARD_ERRORS = {errno.EBUSY, errno.EPERM, errno.ENODEV, errno.EEXIST}


class NoXdpError(AttachError):
    """The interface has no native XDP, as things are."""


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
    """One pinned link. ``mode`` is native or generic; empty as long as nobody asked the kernel."""

    def __init__(self, interface: str, path: Path, fd: int, mode: str = "") -> None:
        self.interface = interface
        self.path = path
        self.fd = fd
        self.mode = mode

    @property
    def info(self) -> syscall.LinkInfo:
        """Return which program it runs; ``ifindex`` 0 if its interface is gone."""
        return syscall.link_info(self.fd)

    def in_place(self) -> bool:
        """Say whether the interface that it runs on still has its name."""
        try:
            return socket.if_indextoname(self.info.ifindex) == self.interface
        except OSError:
            return False

    def find(self, path_of: Callable[[str], Path]) -> None:
        """Find the interface that it runs on, which may have been renamed, and its mode.

        Raises AttachError where the interface is another network namespace's.
        """
        info = self.info
        with suppress(OSError):
            name = socket.if_indextoname(info.ifindex)
            there = attached(name)
            if there is not None and there.program_id == info.program_id:
                if name != self.interface:
                    self.path = self.path.rename(path_of(name))
                self.interface, self.mode = name, there.mode
                return
        raise AttachError(
            f"{self.path}: its program {info.program_id} runs on {self.interface} of another "
            "network namespace: choose another gateway.name here, or run lb-xdp there"
        )

    def run(self, program_fd: int) -> None:
        """Put another program in place, atomically. Raises AttachError."""
        try:
            syscall.link_update(self.fd, program_fd)
        except OSError as error:
            raise AttachError(
                f"interface {self.interface}: the program cannot be replaced: {error.strerror}"
            ) from error

    def go_back(self, program_id: int, held: Program | None = None) -> None:
        """Put a former program in place again; if that fails too, the present one stays.

        ``held`` is one that is open: opening another by its id takes CAP_SYS_ADMIN.
        """
        try:
            ours = held is not None and held.id == program_id
            fd = os.dup(held.fd) if held and ours else syscall.program_open(program_id)
        except OSError as error:
            _log.error("interface %s: program %d is gone: %s", self.interface, program_id, error)
            return
        try:
            self.run(fd)
        except AttachError as error:
            _log.error("%s", error)
        finally:
            os.close(fd)

    def change_mode(self, program_fd: int, mode: XdpMode) -> Link:
        """Take the place of this link by one of another mode; if it is refused, by one of its own.

        A link keeps its mode for life, so the interface is without program for a moment.
        """
        _log.warning(
            "interface %s changes from %s to %s mode: unattached for a moment",
            self.interface,
            self.mode,
            mode,
        )
        info, former = self.info, XdpMode(self.mode)
        before = syscall.program_open(info.program_id)
        try:
            self.remove()
            return _make_link(self.interface, info.ifindex, program_fd, mode, self.path)
        except NoXdpError:
            _make_link(self.interface, info.ifindex, before, former, self.path).close()
            raise
        finally:
            os.close(before)

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


def create_links(
    interfaces: Mapping[str, int],
    program_fd: int,
    mode: XdpMode,
    path_of: Callable[[str], Path],
    undo: ExitStack,
    *,
    replace: bool,
) -> list[Link]:
    """Attach a program to interfaces, given with their indices. Raises StrangerError, AttachError.

    ``auto`` means native if all of them can, else generic: native programs cannot redirect to an
    interface without it. ``undo`` gets what takes the links away again.
    """
    for interface, ifindex in interfaces.items():
        _make_room(interface, ifindex, replace=replace)
    if mode is XdpMode.AUTO:
        try:
            with ExitStack() as attempt:
                links = _make_links(interfaces, program_fd, XdpMode.NATIVE, path_of, attempt)
                undo.push(attempt.pop_all())
        except NoXdpError as error:
            _log.warning("%s: all interfaces run in generic mode, which is slower", error)
            mode = XdpMode.GENERIC
        else:
            return links
    return _make_links(interfaces, program_fd, mode, path_of, undo)


def _make_links(
    interfaces: Mapping[str, int],
    program_fd: int,
    mode: XdpMode,
    path_of: Callable[[str], Path],
    undo: ExitStack,
) -> list[Link]:
    links = []
    for interface, ifindex in interfaces.items():
        links.append(_make_link(interface, ifindex, program_fd, mode, path_of(interface)))
        undo.callback(links[-1].remove)
    return links


def _make_link(interface: str, ifindex: int, program_fd: int, mode: XdpMode, path: Path) -> Link:
    flag = XdpFlag.GENERIC if mode is XdpMode.GENERIC else XdpFlag.NATIVE
    try:
        fd = syscall.link_create(program_fd, ifindex, flag)
    except OSError as error:
        raise _refusal(interface, mode, error) from error
    link = Link(interface, path, fd, mode.value)
    try:
        path.unlink(missing_ok=True)
        syscall.pin(link.fd, str(path))
    except OSError as error:
        link.close()
        raise AttachError(f"{path}: cannot be pinned: {error.strerror}") from error
    return link


def _make_room(interface: str, ifindex: int, *, replace: bool) -> None:
    there = attached(interface)
    if there is None:
        return
    if not replace:
        raise _stranger(interface, there)
    _log.warning("interface %s: removing the program %s, id %d", interface, there.program_name,
                 there.program_id)  # fmt: skip
    _evict(interface, ifindex, there)


def _refusal(interface: str, mode: XdpMode, error: OSError) -> AttachError:
    """Return NoXdpError where another mode may be possible, AttachError elsewhere."""
    said = f"interface {interface} refuses {mode} XDP: {error.strerror}"
    if mode is XdpMode.GENERIC or error.errno in _HARD_ERRORS:
        return AttachError(said)
    return NoXdpError(
        f"{said} (its driver lacks it, or an MTU or an offload forbids it; gateway.xdp_mode: "
        "generic works everywhere, and must then be every interface's)"
    )


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
