"""Which way a probe's sockets go, and what this host must not do to their answers."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from pathlib import Path

from lb_xdp.core.model import (
    CheckKind,
    HealthCheck,
    Mode,
    Pool,
    Protocol,
    Service,
    ServiceName,
    Via,
)
from lb_xdp.netlink.host import probe_obstacles
from lb_xdp.probes import dial

VIP = ip_address("127.0.0.2")  # there is a route to it on every host
LOOPBACK = ip_address("127.0.0.1")


class Noting:
    """A way that notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def open(
        self, family: socket.AddressFamily, kind: socket.SocketKind, protocol: int
    ) -> socket.socket:
        self.asked.append((family, kind, protocol))
        return dial.Direct().open(family, kind, protocol)

    def explain(self, port: int, detail: str) -> str:
        return f"{detail} by {port}"


async def test_a_task_s_way_is_its_own_and_its_childrens() -> None:
    """Tasks side by side do not see each other's; libraries' tasks go the way of their parent."""
    way = Noting()

    async def child() -> None:
        dial.open_socket(ip_address("::1"), socket.SOCK_STREAM).close()

    async def probe() -> str:
        dial.use(way)
        dial.open_socket(LOOPBACK, socket.SOCK_DGRAM).close()
        await asyncio.create_task(child())
        return dial.explain(80, "timed out")

    assert await asyncio.create_task(probe()) == "timed out by 80"
    assert way.asked == [
        (socket.AF_INET, socket.SOCK_DGRAM, 0),
        (socket.AF_INET6, socket.SOCK_STREAM, 0),
    ]
    assert dial.explain(80, "timed out") == "timed out"


def service(via: Via, vip: str = str(VIP)) -> Service:
    pool = Pool("p", (), HealthCheck(CheckKind.TCP, via=via))
    return Service(ServiceName("s"), ip_address(vip), 80, Protocol.TCP, Mode.DSR, pool)


def filters(folder: Path, **values: int) -> Path:
    for name, value in {"all": 0, **values}.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "rp_filter").write_text(str(value))
    return folder


def test_filters_that_drop_answers_are_told_with_the_remedy(tmp_path: Path) -> None:
    """Strict always; loose where no route leads to the VIP; never for IPv6 or direct probes."""
    through = [service(Via.DATAPATH)]
    off, strict = filters(tmp_path / "off", eth0=0), filters(tmp_path / "strict", eth0=1)
    loose = filters(tmp_path / "loose", eth0=2)
    assert probe_obstacles(through, ["eth0"], (), conf=off) == []
    (said,) = probe_obstacles(through, ["eth0"], (), conf=strict)
    assert "as 127.0.0.2: sysctl -w net.ipv4.conf.eth0.rp_filter=0" in said
    assert probe_obstacles(through, ["eth0"], (), conf=loose) == []
    assert probe_obstacles([service(Via.DIRECT)], ["eth0"], [VIP], conf=strict) == []
    assert probe_obstacles([service(Via.DATAPATH, "2001:db8::1")], ["eth0"], (), conf=strict) == []
    (own,) = probe_obstacles(through, ["eth0"], [VIP], conf=off)
    assert own.startswith("`via: datapath` cannot ask 127.0.0.2, which is an address of this host")
