"""The TUN device that probes for VIPs leave by, and the routing that leads them there.

A socket with our mark finds one default route, through the device. The device and its route are
gone with the process, however that ends. The rules stay behind a SIGKILL: they then lead to a table
that is empty, so they change nothing, and whoever opens a device next removes them. They are known
by a protocol number of our own (FRA_PROTOCOL), and by the index of their device, which is part of
the mark and of the table's number.

Owns device, routes and rules of the network namespace that the process is in. Refuses to know what
goes through.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError as KernelError

from lb_xdp.core.model import IPV6
from lb_xdp.errors import HostError

NAME_PREFIX: Final = "lb-probe-"
RULE_PROTOCOL: Final = 0x4C
"""``ip rule list protocol 76``: no number of /etc/iproute2/rt_protos."""

MTU_BYTES: Final = 1280
"""The least that IPv6 allows: with any tunnel's headers it passes wherever clients' packets do."""

_NUMBERS: Final = 0x4C00_0000  # of marks and tables; the device's index is added
_PREFERENCE: Final = 50  # before the rules of others; behind 0, this host's own addresses
_QUEUE_PACKETS: Final = 10_000  # a thousand probes may start at once
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


class Device:
    """An open TUN device. ``mark`` is what leads a socket's packets into it."""

    def __init__(self, fd: int, name: str, index: int) -> None:
        self.fd = fd
        self.name = name
        self.mark = _NUMBERS | index & 0xFF_FFFF
        self._index = index
        self._families: frozenset[int] = frozenset()

    @classmethod
    async def open(cls) -> Self:
        """Make a device without any route to it yet. Raises HostError."""
        fd = _open_tun()
        try:
            request = struct.pack("16sH22x", f"{NAME_PREFIX}%d".encode(), _IFF_TUN | _IFF_NO_PI)
            answer = fcntl.ioctl(fd, _TUNSETIFF, request)
            name = answer[:16].rstrip(b"\0").decode()
            device = cls(fd, name, socket.if_nametoindex(name))
            with _translated("setting it up"):
                await device._set_up()
        except OSError as error:
            os.close(fd)
            raise HostError(f"no device for probes through the datapath: {error}") from error
        except HostError:
            os.close(fd)
            raise
        return device

    async def _set_up(self) -> None:
        # It needs no address of its own, and nobody there would answer to one.
        self._set_ipv6("addr_gen_mode", 1)
        async with AsyncIPRoute() as route:
            await _remove_stale_rules(route)
            await route.link(
                "set", index=self._index, mtu=MTU_BYTES, txqlen=_QUEUE_PACKETS, state="up"
            )

    async def lead(self, families: frozenset[int]) -> None:
        """Lead marked packets of these IP versions here, and of no others.

        Raises HostError; then those of the versions before are led here.
        """
        before = self._families
        try:
            await self._lead(families)
        except HostError:
            with suppress(HostError):
                await self._lead(before)
            raise

    async def _lead(self, families: frozenset[int]) -> None:
        with _translated("leading probes to it"):
            async with AsyncIPRoute() as route:
                for family in families - self._families:
                    await self._lead_family(route, family)
                    self._families |= {family}
                for family in self._families - families:
                    with _allowed(errno.ENOENT):  # somebody took it away
                        await route.rule("del", **self._rule(family))
                    self._families -= {family}

    async def lead_again(self) -> None:
        """Put back what somebody took away, as systemd-networkd does with rules not its own.

        Raises HostError.
        """
        families, self._families = self._families, frozenset()
        try:
            await self._lead(families)
        finally:
            self._families = families

    async def _lead_family(self, route: Any, family: int) -> None:
        if family == IPV6:
            self._set_ipv6("disable_ipv6", 0)
        everywhere = "::/0" if family == IPV6 else "0.0.0.0/0"
        await route.route(
            "replace",
            family=_FAMILIES[family],
            dst=everywhere,
            oif=self._index,
            table=self.mark,
        )
        with _allowed(errno.EEXIST):
            await route.rule("add", **self._rule(family))

    def _set_ipv6(self, setting: str, value: int) -> None:
        # Nothing depends on it where the host's defaults are left alone and has IPv6 at all.
        with suppress(OSError):
            Path(f"/proc/sys/net/ipv6/conf/{self.name}/{setting}").write_text(str(value))

    def _rule(self, family: int) -> dict[str, Any]:
        return {
            "family": _FAMILIES[family],
            "priority": _PREFERENCE,
            "fwmark": self.mark,
            "fwmask": 0xFFFF_FFFF,
            "table": self.mark,
            "protocol": RULE_PROTOCOL,
        }

    async def close(self) -> None:
        """Remove rules, then the device and its routes."""
        try:
            with suppress(HostError):  # what is left is removed by the next to open one
                await self.lead(frozenset())
        finally:
            os.close(self.fd)


def _open_tun() -> int:
    path = "/dev/net/tun"
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        message = f"`via: datapath` needs {path}: {os.strerror(error.errno or 0)}"
        raise HostError(f"{message} (modprobe tun; DeviceAllow=/dev/net/tun rw)") from error


async def _remove_stale_rules(route: Any) -> None:
    """Remove rules of ours whose device is gone: of a process that was killed."""
    links = [link async for link in await route.link("dump")]
    alive = {
        _NUMBERS | link["index"] & 0xFF_FFFF
        for link in links
        if str(link.get("ifname")).startswith(NAME_PREFIX)
    }
    for family in _FAMILIES.values():
        rules = [rule async for rule in await route.rule("dump", family=family)]
        for rule in rules:
            number = rule.get("table")
            if rule.get("protocol") == RULE_PROTOCOL and number not in alive:
                await route.rule(
                    "del",
                    family=family,
                    priority=rule.get("priority"),
                    fwmark=rule.get("fwmark"),
                    table=number,
                    protocol=RULE_PROTOCOL,
                )


@contextmanager
def _allowed(code: int) -> Iterator[None]:
    """Let one answer of the kernel's pass."""
    try:
        yield
    except KernelError as error:
        if abs(error.code) != code:
            raise


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except (KernelError, OSError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise HostError(f"the device for probes through the datapath, {what}: {text}") from error
