"""The program that undoes tunnels on a backend host: compiled, its maps filled, read back.

Owns what ``bpf/lb_decap.h`` declares. Nothing is pinned here and no interface is touched: a program
keeps its maps alive, and its settings and counters are read from those that it really uses, so what
`lb-xdp decap status` shows is what runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network

import numpy as np

from lb_xdp.datapath import syscall
from lb_xdp.datapath.compile import compile_source
from lb_xdp.datapath.layout import Layout, parse_layout, source_dir
from lb_xdp.datapath.load import Program, load_program
from lb_xdp.datapath.maps import BpfMap, MapSpec
from lb_xdp.datapath.syscall import MapType
from lb_xdp.errors import MapError

Network = IPv4Network | IPv6Network

NAME = "lb_decap"
"""Of the C function, of the loaded program, and of tc's filter."""

PREFIXES = 1024
_NO_PREALLOC = 1
_PLACEHOLDER = 0x4C42_4400
_VERSION_BITS = 32  # of a prefix's key, in front of the address
_MAP_NAMES = ("trust", "vips", "host", "counts")

# Ethernet to no one, IPv6, IPv4 without payload: the shortest tunnel of two families.
_IPV4_IN_IPV6 = (
    bytes(12)
    + bytes.fromhex("86dd 6000 0000 0014 04 40".replace(" ", ""))
    + bytes(32)
    + bytes.fromhex("4500 0014 0000 0000 40 11 0000".replace(" ", ""))
    + bytes(8)
)
_IPV4_TYPE = bytes.fromhex("0800")


class Hook(StrEnum):
    """Where the program sits."""

    XDP = "xdp"
    TC = "tc"


@dataclass(frozen=True, slots=True)
class Settings:
    """What is let out of tunnels. No ``vips`` means any inner destination."""

    trust: tuple[Network, ...]
    vips: tuple[Network, ...]
    gue_port: int


@dataclass(frozen=True, slots=True)
class Readout:
    """What a running program says. ``packets`` counts by reason, since the first attach."""

    settings: Settings
    own_qdisc: bool
    packets: Mapping[str, int]


@cache
def layout() -> Layout:
    """Return the structs, constants and reasons of ``bpf/lb_decap.h``."""
    text = (source_dir() / "lb_decap.h").read_text(encoding="utf-8")
    return parse_layout(text, text)


@cache
def _specs() -> Mapping[str, MapSpec]:
    structs, u32 = layout().structs, np.dtype(np.uint32)
    prefix, host = structs["lb_decap_prefix"], structs["lb_decap_host"]
    u64, reasons = np.dtype(np.uint64), len(layout().reasons)
    return {
        "trust": MapSpec("decap_trust", MapType.LPM_TRIE, prefix, u32, PREFIXES, _NO_PREALLOC),
        "vips": MapSpec("decap_vips", MapType.LPM_TRIE, prefix, u32, PREFIXES, _NO_PREALLOC),
        "host": MapSpec("decap_host", MapType.ARRAY, u32, host, 1),
        "counts": MapSpec("decap_counts", MapType.PERCPU_ARRAY, u32, u64, reasons),
    }


def _placeholder(name: str) -> int:
    return _PLACEHOLDER + _MAP_NAMES.index(name)


@cache
def _code(hook: Hook) -> bytes:
    folder = source_dir()
    flags = [f"-I{folder}", f"-DLB_DECAP_TC={int(hook is Hook.TC)}"]
    flags += [f"-DLB_FD_{name}={_placeholder(name)}" for name in _MAP_NAMES]
    return compile_source(folder / "lb_decap.c", flags, NAME)


@contextmanager
def loaded(
    hook: Hook, settings: Settings, mac: bytes, *, own_qdisc: bool = False, former: int | None
) -> Iterator[Program]:
    """Compile, fill new maps, and load. The descriptors are closed at the end of the block.

    ``mac`` is the interface's, ``former`` the id of the program whose counters go on, if any.
    Raises CompileError, MapError, VerifierError, PrivilegeError, UnsupportedError.
    """
    code = _code(hook)
    with ExitStack() as closing:
        maps = {
            name: closing.enter_context(BpfMap.create(_specs()[name]))
            for name in ("trust", "vips", "host")
        }
        maps["counts"] = closing.enter_context(_counts_of(former))
        _fill(maps, settings, mac, own_qdisc=own_qdisc)
        xdp = hook is Hook.XDP
        program = load_program(
            code,
            {_placeholder(name): opened.fd for name, opened in maps.items()},
            NAME,
            flags=syscall.PROG_FLAG_FRAGS if xdp else 0,
            kind=syscall.PROG_TYPE_XDP if xdp else syscall.PROG_TYPE_TC,
        )
        closing.callback(os.close, program.fd)
        yield program


def _fill(maps: Mapping[str, BpfMap], settings: Settings, mac: bytes, *, own_qdisc: bool) -> None:
    for name, prefixes in (("trust", settings.trust), ("vips", settings.vips)):
        for prefix in prefixes:
            maps[name].write(_key(prefix), 1)
    constants = layout().constants
    flags = constants["LB_DECAP_LIMIT_VIPS"] if settings.vips else 0
    flags |= constants["LB_DECAP_OWN_QDISC"] if own_qdisc else 0
    maps["host"].write(0, np.array((tuple(mac), settings.gue_port, flags), _host_dtype()))


def _host_dtype() -> np.dtype[np.void]:
    return layout().structs["lb_decap_host"]


def _key(prefix: Network) -> object:
    address = prefix.network_address.packed.ljust(16, b"\0")
    return (_VERSION_BITS + prefix.prefixlen, prefix.version, (0, 0, 0), tuple(address))


def _prefixes(opened: BpfMap) -> tuple[Network, ...]:
    keys, _ = opened.read_all()
    networks = []
    for bits, version, _, address in keys.tolist():
        octets = bytes(address)[: 4 if version == 4 else 16]  # noqa: PLR2004 - IPv4
        networks.append(ip_network((octets, bits - _VERSION_BITS)))
    return tuple(sorted(networks, key=lambda n: (n.version, int(n.network_address), n.prefixlen)))


def _counts_of(former: int | None) -> BpfMap:
    """Return the counters of a running program, or new ones if it has none of this shape."""
    if former is not None:
        with _opened_maps(former) as maps:
            found = maps.get("counts")
            if found is not None:
                return BpfMap(found.spec, os.dup(found.fd))
    return BpfMap.create(_specs()["counts"])


@contextmanager
def _opened_maps(program_id: int) -> Iterator[Mapping[str, BpfMap]]:
    """Open the maps that a program uses and that are of this version's shape."""
    kernel_names = {f"lb_{spec.name}": name for name, spec in _specs().items()}
    program = syscall.program_open(program_id)
    try:
        map_ids = syscall.program_info(program).map_ids
    finally:
        os.close(program)
    with ExitStack() as closing:
        found = {}
        for map_id in map_ids:
            fd = syscall.map_open(map_id)
            closing.callback(os.close, fd)
            info = syscall.map_info(fd)
            name = kernel_names.get(info.name)
            if name is not None and _fits(info, _specs()[name]):
                found[name] = BpfMap(_specs()[name], fd)
        yield found


def _fits(info: syscall.MapInfo, spec: MapSpec) -> bool:
    found = (info.type, info.key_size, info.value_size, info.max_entries)
    return found == (spec.kind, spec.key.itemsize, spec.value.itemsize, spec.max_entries)


def read_out(program_id: int) -> Readout:
    """Return settings and counters of a running program. Raises MapError for another version's."""
    with _opened_maps(program_id) as maps:
        if maps.keys() != set(_MAP_NAMES):
            raise MapError(
                f"the decap program {program_id} is of another version of lb-xdp: it goes on; "
                "`lb-xdp decap attach` puts this version's in its place"
            )
        host = maps["host"].read(0)
        _, counts = maps["counts"].read_all()
        settings = (_prefixes(maps["trust"]), _prefixes(maps["vips"]))
    if host is None:
        raise MapError(f"the decap program {program_id} has lost its settings")
    totals = counts.sum(axis=1).tolist()
    own_qdisc = int(host["flags"][0]) & layout().constants["LB_DECAP_OWN_QDISC"]
    return Readout(
        Settings(*settings, gue_port=int(host["gue_port"][0])),
        bool(own_qdisc),
        {reason.name: totals[reason.index] for reason in layout().reasons},
    )


def tc_crosses_families() -> bool:
    """Say whether this kernel's tc can undo IPv4 in IPv6, by trying: Linux 6.3 and later can."""
    anyone = Settings((ip_network("::/0"),), (), gue_port=1)
    with loaded(Hook.TC, anyone, bytes(6), former=None) as trial:
        left = syscall.program_test_run(trial.fd, _IPV4_IN_IPV6, ifindex=None).packet
    return left[12:14] == _IPV4_TYPE
