"""Reads the kernel's per-interface switches that decide whether it forwards what we hand it.

Owns /proc/sys/net/ipv4 and ipv6 of the current network namespace, reading only, and the sentences
that tell an operator what to change. Refuses to change a switch itself: that is the host's owner's.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from lb_xdp.core.model import IPV4, IPV6, Address, Service, Via
from lb_xdp.errors import InterfaceError

CONF: Final = Path("/proc/sys/net/ipv4/conf")
CONF6: Final = Path("/proc/sys/net/ipv6/conf")

STRICT: Final = 1
"""``rp_filter``: a source must be routed out of the interface that it came in by (RFC 3704)."""


def forwarding_enabled(interface: str, *, conf: Path = CONF) -> bool:
    """Say whether the kernel routes packets that come in by ``interface``.

    Raises ``InterfaceError`` where there is no such interface.
    """
    return _read(conf, interface, "forwarding") != 0


def ipv6_forwarding_enabled(*, conf: Path = CONF6) -> bool:
    """Say whether the kernel routes IPv6 packets.

    Unlike IPv4 it has one switch for all interfaces: the others only make each act as a router's
    (ip6_forward() in net/ipv6/ip6_output.c reads ``all``). False without IPv6 in the kernel.
    """
    try:
        return _read(conf, "all", "forwarding") != 0
    except InterfaceError:
        return False


def accept_local(interface: str, *, conf: Path = CONF) -> bool:
    """Say whether packets whose source is an address of this host may come in by ``interface``.

    The setting for all interfaces counts as well. Raises ``InterfaceError``.
    """
    settings = (_read(conf, name, "accept_local") for name in ("all", interface))
    return any(setting != 0 for setting in settings)


def rp_filter(interface: str, *, conf: Path = CONF) -> int:
    """Return the reverse path filter in force on ``interface``: 0 off, 1 strict, 2 loose.

    It is the larger one of the interface's own and that for all. Raises ``InterfaceError``.
    """
    return max(_read(conf, name, "rp_filter") for name in ("all", interface))


def forwarding_remedy(interface: str) -> str:
    """Return the command that switches forwarding on."""
    return _sysctl(interface, "forwarding", 1)


def forwarding_obstacles(
    services: Iterable[Service],
    interfaces: Iterable[str],
    *,
    conf: Path = CONF,
    conf6: Path = CONF6,
) -> list[str]:
    """Return what keeps the kernel from routing the replies of ``services``, each with its remedy.

    Only nat and fullnat are concerned: the replies that the program has translated are sent by the
    kernel's routing. Raises ``InterfaceError`` where one of ``interfaces`` does not exist.
    """
    modes = {service.vip.version: service.mode for service in services if service.mode.translates}
    obstacles = [
        f"mode: {modes[IPV4]} needs IPv4 forwarding on {interface}: {forwarding_remedy(interface)}"
        for interface in interfaces
        if IPV4 in modes and not forwarding_enabled(interface, conf=conf)
    ]
    if IPV6 in modes and not ipv6_forwarding_enabled(conf=conf6):
        obstacles.append(
            f"mode: {modes[IPV6]} needs IPv6 forwarding: sysctl -w net.ipv6.conf.all.forwarding=1 "
            "(and accept_ra=2 on interfaces whose routes come from router advertisements)"
        )
    return obstacles


def probe_obstacles(
    services: Iterable[Service],
    interfaces: Iterable[str],
    local_addresses: Collection[Address],
    *,
    conf: Path = CONF,
) -> list[str]:
    """Return what keeps answers to probes with ``via: datapath`` from us, each with its remedy.

    A backend that is well would be taken for dead. Raises ``InterfaceError`` where one of
    ``interfaces`` does not exist.
    """
    vips = {s.vip for s in services if s.pool.health.via is Via.DATAPATH}
    obstacles = [
        f"`via: datapath` cannot ask {vip}, which is an address of this host: give it to the "
        "backends alone, or use `via: direct`"
        for vip in sorted(vips & set(local_addresses), key=str)
    ]
    # fib_validate_source(): loose, some route must lead to the source; strict, one by the interface
    # that the packet came in by, which is rarely where the way to a VIP lies. IPv6 has no filter.
    vips4 = sorted((vip for vip in vips if vip.version == IPV4), key=int)
    for interface in interfaces if vips4 else ():
        found = rp_filter(interface, conf=conf)
        lost = [str(vip) for vip in vips4 if found == STRICT or (found and not _has_route(vip))]
        if lost:
            obstacles.append(
                f"rp_filter on {interface} drops what backends answer to probes with "
                f"`via: datapath`, as {', '.join(lost)}: {_sysctl(interface, 'rp_filter', 0)} "
                "(the larger of this and net.ipv4.conf.all.rp_filter counts)"
            )
    return obstacles


def _has_route(address: Address) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        return asked.connect_ex((str(address), 9)) == 0


def host_notices(
    services: Iterable[Service],
    interfaces: Collection[str],
    local_addresses: Collection[Address],
    *,
    conf: Path = CONF,
) -> tuple[str, ...]:
    """Return what on this host stands in the way of ``services``, each with its remedy.

    Only nat and fullnat of IPv4 are concerned: there, replies whose source has become the VIP pass
    the kernel's source address checks (fib_validate_source() in net/ipv4/fib_frontend.c) when it
    routes them. IPv6 has no such checks.
    Raises ``InterfaceError`` where one of ``interfaces`` does not exist.
    """
    vips = sorted(
        {s.vip for s in services if s.mode.translates and s.vip.version == IPV4},
        key=int,
    )
    if not vips:
        return ()
    local_vips = [str(vip) for vip in vips if vip in local_addresses]
    notices: list[str] = []
    for interface in interfaces:
        if local_vips and not accept_local(interface, conf=conf):
            notices.append(_local_vip_notice(interface, local_vips))
        if rp_filter(interface, conf=conf) == STRICT:
            notices.append(_strict_filter_notice(interface))
    return tuple(notices)


def _local_vip_notice(interface: str, vips: list[str]) -> str:
    return (
        f"{', '.join(vips)} is an address of this host, and the kernel drops replies with it as "
        f"their source that come in by {interface}: {_sysctl(interface, 'accept_local', 1)}"
    )


def _strict_filter_notice(interface: str) -> str:
    return (
        f"rp_filter is strict on {interface}, and the kernel drops replies of backends there once "
        f"they carry the VIP as their source: {_sysctl(interface, 'rp_filter', 2)}"
    )


def _sysctl(interface: str, setting: str, value: int) -> str:
    # sysctl separates by dots; a dot within a name (eth0.100) is written as a slash, sysctl(8).
    return f"sysctl -w net.ipv4.conf.{interface.replace('.', '/')}.{setting}={value}"


def _read(conf: Path, interface: str, setting: str) -> int:
    path = conf / interface / setting
    try:
        return int(path.read_text())
    except FileNotFoundError as error:
        raise InterfaceError(
            f"no interface {interface} on this host ({path} is missing)"
        ) from error
