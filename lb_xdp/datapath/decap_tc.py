"""tc's side of ``decap``: one direct-action filter at ingress, replaced in place.

A filter is ours if it has our name, preference and handle. Everything else on the interface stays,
the clsact qdisc included, unless we made it and nobody uses it any more. Reading goes through
``tc -json``, because pyroute2 does not decode a filter's program id; writing through pyroute2, by
descriptor, so that tc needs neither a pin nor an ELF file.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from lb_xdp.datapath.decap_program import NAME
from lb_xdp.errors import AttachError, StrangerError

PREFERENCE = 10
"""Early: whoever filters by inner addresses comes after us."""

_HANDLE = 0x6C62
_INGRESS = 0xFFFF_FFF2  # TC_H_CLSACT, TC_H_MIN_INGRESS
_WITH_INGRESS = {"clsact", "ingress"}

Filter = Mapping[str, Any]


def _tc(*arguments: str) -> list[Filter]:
    done = subprocess.run(["tc", "-json", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AttachError(f"tc {' '.join(arguments)}: {done.stderr.strip()}")
    shown: list[Filter] = json.loads(done.stdout or "[]")
    return shown


@contextmanager
def _netlink(interface: str) -> Iterator[Callable[..., object]]:
    try:
        with IPRoute() as route:
            yield route.tc
    except NetlinkError as error:
        raise AttachError(f"interface {interface}: tc refuses: {error}") from error


def _filters(interface: str, direction: str = "ingress") -> list[Filter]:
    """Return the filters that have a handle; tc lists each preference once more without."""
    shown = _tc("filter", "show", "dev", interface, direction)
    return [entry for entry in shown if "handle" in entry.get("options", {})]


def _at_our_place(entry: Filter) -> bool:
    handle = int(str(entry["options"]["handle"]), 0)
    return bool(entry["pref"] == PREFERENCE and handle == _HANDLE)


def _program_id(entry: Filter) -> int | None:
    if not _at_our_place(entry) or entry["options"].get("bpf_name") != NAME:
        return None
    return int(entry["options"]["prog"]["id"])


def running() -> dict[str, int]:
    """Return the program id of our filter on each interface of this network namespace."""
    interfaces = {q["dev"] for q in _tc("qdisc", "show") if q["kind"] in _WITH_INGRESS}
    found = {}
    for interface in sorted(interfaces):
        for entry in _filters(interface):
            program_id = _program_id(entry)
            if program_id is not None:
                found[interface] = program_id
    return found


def prepare(interface: str, index: int, *, replace: bool) -> bool:
    """Give the interface clsact if it has no ingress yet, and say whether that was needed.

    Raises StrangerError where another's filter has our place and ``replace`` is not given.
    """
    kinds = {q["kind"] for q in _tc("qdisc", "show", "dev", interface)}
    if not kinds & _WITH_INGRESS:
        with _netlink(interface) as tc:
            tc("add", "clsact", index)
        return True
    for entry in _filters(interface):
        if _at_our_place(entry) and _program_id(entry) is None and not replace:
            name = entry["options"].get("bpf_name", entry["kind"])
            raise StrangerError(
                f"interface {interface} has a tc filter that is not ours at preference "
                f"{PREFERENCE}, handle {_HANDLE:#x}: {name}. Nothing was changed. See `tc filter "
                f"show dev {interface} ingress`; `lb-xdp decap attach --replace` takes its place"
            )
    return False


def attach(interface: str, index: int, program_fd: int) -> None:
    """Put the program in place, atomically where there was one. Raises AttachError."""
    with _netlink(interface) as tc:
        tc(
            "replace-filter",
            "bpf",
            index,
            handle=_HANDLE,
            parent=_INGRESS,
            prio=PREFERENCE,
            fd=program_fd,
            name=NAME,
            direct_action=True,
        )


def detach(interface: str, index: int) -> None:
    """Remove our filter. Raises AttachError."""
    with _netlink(interface) as tc:
        tc("del-filter", "bpf", index, handle=_HANDLE, parent=_INGRESS, prio=PREFERENCE)


def remove_qdisc(interface: str, index: int) -> bool:
    """Remove clsact if no filter is on it in either direction, and say whether that was so."""
    if _filters(interface) or _filters(interface, "egress"):
        return False
    with _netlink(interface) as tc:
        tc("del", "clsact", index)
    return True
