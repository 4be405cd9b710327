"""``lb-xdp decap``: the program that undoes tunnels, put on a backend host's interfaces.

    <bpffs>/lb-xdp-decap/<interface>/link        the XDP program's bpf_link

A filter of tc needs no pin. Nothing else is kept: settings and counters are the running program's.
A program is replaced in place, so no packet goes by without one. Another's program is left alone
unless the operator said ``--replace``. Refuses to prepare the host otherwise: the VIP on lo and
sysctls are its owner's (docs/decap.md).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lb_xdp.core.model import XdpMode
from lb_xdp.datapath import decap_tc
from lb_xdp.datapath.attach import Link, NoXdpError, attached, create_links, open_link
from lb_xdp.datapath.bpffs import escape, find_bpffs, unescape
from lb_xdp.datapath.decap_program import (
    Hook,
    Settings,
    loaded,
    read_out,
    tc_crosses_families,
)
from lb_xdp.errors import (
    AttachError,
    DatapathError,
    InterfaceError,
    MapError,
    PrivilegeError,
    StrangerError,
)

_FOLDER = "lb-xdp-decap"
_NOT_CROSSING = (
    "this kernel's tc cannot undo IPv4 in IPv6 nor IPv6 in IPv4 (Linux 6.3 can): such packets "
    "pass, counted as `refused`; --hook xdp undoes them"
)


@dataclass(frozen=True, slots=True)
class Running:
    """A program on an interface. ``mode`` is native or generic, and tc where it is tc's."""

    interface: str
    hook: Hook
    mode: str
    program_id: int
    settings: Settings
    packets: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Interface:
    name: str
    index: int
    mac: bytes


def attach(
    interface: str,
    settings: Settings,
    *,
    hook: Hook = Hook.XDP,
    mode: XdpMode = XdpMode.AUTO,
    replace: bool = False,
) -> tuple[str, ...]:
    """Attach, or put new settings in place of those that run; return what an operator should know.

    ``mode`` is for XDP; ``auto`` keeps that of a program which is there. Raises InterfaceError,
    StrangerError, AttachError, and what ``decap_program.loaded`` raises; then nothing has changed.
    """
    with _kernel_refusals():
        where = _find(interface)
        links, filters = _links(), decap_tc.running()
        with ExitStack() as closing:
            for link in links.values():
                closing.callback(link.close)
            if hook is Hook.XDP:
                _attach_xdp(where, settings, links.get(interface), mode, replace=replace,
                            former=_former(interface, links, filters))  # fmt: skip
                if interface in filters:
                    _detach_tc(where, filters[interface])
                return ()
            _attach_tc(where, settings, replace=replace, program_id=filters.get(interface),
                       former=_former(interface, links, filters))  # fmt: skip
            if interface in links:
                _remove(links[interface])
        return () if tc_crosses_families() else (_NOT_CROSSING,)


def detach(interface: str) -> list[str]:
    """Remove our programs from an interface and return what they were; nobody else's is touched."""
    removed = []
    with _kernel_refusals():
        links, filters = _links(), decap_tc.running()
        for name, link in links.items():
            if name == interface:
                removed.append(f"the XDP program of {name}, {link.mode}, id {link.info.program_id}")
                _remove(link)
            link.close()
        if interface in filters:
            removed.append(f"the tc filter of {interface}, program id {filters[interface]}")
            _detach_tc(_find(interface), filters[interface])
    return removed


def status(interface: str | None = None) -> list[Running]:
    """Return what runs on the interfaces of this network namespace, or on one of them."""
    with _kernel_refusals():
        programs = []
        for name, link in _links().items():
            programs.append((name, Hook.XDP, link.mode, link.info.program_id))
            link.close()
        filters = decap_tc.running().items()
        programs += [(name, Hook.TC, "tc", program_id) for name, program_id in filters]
        wanted = sorted(program for program in programs if interface in {None, program[0]})
        return [_running(*program) for program in wanted]


def _running(interface: str, hook: Hook, mode: str, program_id: int) -> Running:
    said = read_out(program_id)
    return Running(interface, hook, mode, program_id, said.settings, said.packets)


def _former(interface: str, links: Mapping[str, Link], filters: Mapping[str, int]) -> int | None:
    """Return the program whose counters go on."""
    if interface in links:
        return links[interface].info.program_id
    return filters.get(interface)


def _attach_xdp(
    where: _Interface,
    settings: Settings,
    link: Link | None,
    mode: XdpMode,
    *,
    replace: bool,
    former: int | None,
) -> None:
    if link is None:
        _check_stranger(where, replace=replace)
    with loaded(Hook.XDP, settings, where.mac, former=former) as program:
        try:
            if link is None:
                _new_link(where, program.fd, mode)
            elif mode is XdpMode.AUTO or mode.value == link.mode:
                link.run(program.fd)
            else:
                link.change_mode(program.fd, mode).close()
        except NoXdpError as error:
            raise AttachError(
                f"interface {where.name} has no native XDP, as things are: --xdp-mode generic "
                "works everywhere, and --hook tc as well"
            ) from error


def _new_link(where: _Interface, program_fd: int, mode: XdpMode) -> None:
    path = _pin_made(where.name)
    if path.exists():
        raise AttachError(
            f"{path}: that pin is of the interface {where.name} of another network namespace, and "
            "there is one name for both: give this interface another one"
        )
    try:
        with ExitStack() as undo:
            (link,) = create_links(
                {where.name: where.index}, program_fd, mode, _pin, undo, replace=True
            )
            undo.pop_all()
            link.close()
    finally:
        _tidy(path)


def _check_stranger(where: _Interface, *, replace: bool) -> None:
    there = attached(where.name)
    if there is None or replace:
        return
    raise StrangerError(
        f"interface {where.name} runs an XDP program that is not ours: {there.program_name}, "
        f"id {there.program_id}, {there.mode}. Nothing was changed. See `bpftool prog show id "
        f"{there.program_id}`; --hook tc goes beside it, `lb-xdp decap attach --replace` takes "
        "its place"
    )


def _attach_tc(
    where: _Interface,
    settings: Settings,
    *,
    replace: bool,
    program_id: int | None,
    former: int | None,
) -> None:
    made = decap_tc.prepare(where.name, where.index, replace=replace)
    with ExitStack() as undo:
        if made:
            undo.callback(decap_tc.remove_qdisc, where.name, where.index)
        own = made or (program_id is not None and _owns_qdisc(program_id))
        with loaded(Hook.TC, settings, where.mac, own_qdisc=own, former=former) as program:
            decap_tc.attach(where.name, where.index, program.fd)
        undo.pop_all()


def _detach_tc(where: _Interface, program_id: int) -> None:
    own_qdisc = _owns_qdisc(program_id)
    decap_tc.detach(where.name, where.index)
    if own_qdisc:
        decap_tc.remove_qdisc(where.name, where.index)


def _owns_qdisc(program_id: int) -> bool:
    """Say whether clsact is ours; of another version's program that is not known."""
    try:
        return read_out(program_id).own_qdisc
    except MapError:
        return False


def _remove(link: Link) -> None:
    path = link.path
    link.remove()
    _tidy(path)


def _pin(interface: str) -> Path:
    return find_bpffs() / _FOLDER / escape(interface) / "link"


def _tidy(path: Path) -> None:
    """Remove the folders of a pin that is gone."""
    with suppress(OSError):  # not empty: another interface's, or the pin is there
        path.parent.rmdir()
        path.parent.parent.rmdir()


def _links() -> dict[str, Link]:
    """Return our links on interfaces of this network namespace; those of gone ones are removed."""
    found = {}
    root = find_bpffs() / _FOLDER
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        link = open_link(unescape(folder.name), folder / "link")
        if link is None:
            _tidy(folder / "link")
        elif not link.info.ifindex:
            _remove(link)
        elif _is_here(link):
            _tidy(folder / "link")  # its interface was renamed, and the pin with it
            found[link.interface] = link
        else:
            link.close()
    return found


def _is_here(link: Link) -> bool:
    """Say whether a link is of this network namespace."""
    try:
        link.find(_pin_made)
    except AttachError:
        return False
    return True


def _pin_made(interface: str) -> Path:
    path = _pin(interface)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _find(interface: str) -> _Interface:
    done = subprocess.run(
        ["ip", "-json", "link", "show", "dev", interface],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        there = ", ".join(name for _, name in socket.if_nameindex())
        raise InterfaceError(f"no interface {interface} on this host; there are {there}")
    shown = json.loads(done.stdout)[0]
    mac = bytes.fromhex(shown.get("address", "").replace(":", ""))
    if shown["link_type"] != "ether":
        raise InterfaceError(
            f"interface {interface} is of type {shown['link_type']}: decap reads Ethernet frames"
        )
    return _Interface(interface, int(shown["ifindex"]), mac)


@contextmanager
def _alone() -> Iterator[None]:
    """Hold bpffs's root: units of several interfaces attach at once when a host boots."""
    root = os.open(find_bpffs(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(root, fcntl.LOCK_EX)
        yield
    finally:
        os.close(root)


@contextmanager
def _kernel_refusals() -> Iterator[None]:
    """Turn the kernel's errno into our errors; one process at a time, so that pins stay whole."""
    try:
        with _alone():
            yield
    except PermissionError as error:
        raise PrivilegeError(
            "may not look at or change BPF programs: run lb-xdp as root"
        ) from error
    except OSError as error:
        raise DatapathError(
            f"{error.filename or 'the kernel'}: {os.strerror(error.errno or 0)}"
        ) from error
