"""A gateway of one service, as values: its configuration, and a host that knows its backends."""

from __future__ import annotations

from ipaddress import IPv4Address

from lb_xdp.core.model import (
    Address,
    Backend,
    CheckKind,
    Config,
    Gateway,
    HealthCheck,
    Mode,
    Pool,
    Protocol,
    Service,
    ServiceName,
    XdpMode,
)
from lb_xdp.core.topology import Interface, NextHop, Topology

MAC = b"\2\0\0\0\0\1"
VIP = IPv4Address("203.0.113.10")
_UNPROBED = HealthCheck(CheckKind.NONE)


def config_of(*backends: Backend, mode: Mode = Mode.NAT, check: HealthCheck = _UNPROBED) -> Config:
    """Return the configuration of a service ``web`` on eth0 with these backends."""
    pool = Pool("web", backends, check)
    service = Service(ServiceName("web"), VIP, 80, Protocol.TCP, mode, pool)
    return Config(Gateway("gw1", ("eth0",), XdpMode.AUTO, "/run/api.sock", None), (service,))


def topology_of(*addresses: Address) -> Topology:
    """Return a host whose eth0, interface 1, leads straight to these addresses."""
    return Topology(
        {"eth0": Interface("eth0", 1, MAC, 1500, up=True)},
        {address: NextHop(1, MAC, MAC, None, on_link=True) for address in addresses},
    )
