"""The networks that lb_xdp is tried on, ready to use, with their address plans.

Both have a client, a gateway and some backends, with IPv4 and IPv6 side by side. The VIPs are
203.0.113.10 and 2001:db8::10; the client routes them to the gateway, and no one but the backends
of modes that need it (on lo) has them as addresses.

This module owns cabling and addresses; it refuses to start any server or daemon.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.lab import IPV6, Host, Lab, Switch

VIP = "203.0.113.10"
VIP6 = "2001:db8::10"
VIPS = {4: VIP, 6: VIP6}
CLIENT_ADDRESSES = tuple(f"10.1.0.{last}" for last in range(2, 10))
"""Several, so that many connections in a short time do not run out of source ports."""
CLIENT_ADDRESSES6 = tuple(f"fd00:1::{last}" for last in range(2, 10))
CLIENTS = {4: CLIENT_ADDRESSES, 6: CLIENT_ADDRESSES6}
CLIENT_NETWORKS = {4: "10.1.0.0/24", 6: "fd00:1::/64"}
SNATS = {4: "10.2.0.100", 6: "fd00:2::100"}
"""What fullnat translates clients to: on the gateway's side of the backends' network."""

TUNNEL_MODES = frozenset({"ipip", "gue"})
DIRECT_MODES = TUNNEL_MODES | {"dsr"}
"""Those whose backends have the VIP and answer the client past the gateway's program."""


@dataclass(frozen=True, slots=True)
class Network:
    """What a test needs to know of a network."""

    lab: Lab
    client: Host
    gateway: Host
    gateway_interfaces: tuple[str, ...]
    switch: Switch
    backends: tuple[Host, ...]
    backend_interface: dict[str, str]
    """By the backend's name. Different ones for tunnels, which are pinned by interface."""
    backend_addresses: tuple[str, ...]
    """In the order of ``backends``."""
    backend_addresses6: tuple[str, ...]

    def addresses(self, family: int) -> tuple[str, ...]:
        """Return the backends' addresses of an IP version, in their order."""
        return self.backend_addresses6 if family == IPV6 else self.backend_addresses


def two_armed(lab: Lab, backends: int = 3, *, mode: str = "nat", mtu: int = 1500) -> Network:
    """Build a gateway between two networks; replies of backends come back through it.

        client 10.1.0.2-9 ── eth0 10.1.0.1 gateway 10.2.0.1 eth1 ── switch ── b1 10.2.0.11, b2 ...
             fd00:1::2-9            fd00:1::1      fd00:2::1                    fd00:2::11

    With ``mode`` dsr, ipip or gue the backends answer as the VIP, and the gateway's kernel forwards
    that. ``mtu`` is that of the network behind the gateway.
    """
    network = _hosts(lab, backends, ("eth0", "eth1"), mode)
    lab.cable(network.client, "eth0", network.gateway, "eth0")
    network.switch.plug(network.gateway, "eth1", mtu=mtu)
    network.gateway.address("eth0", "10.1.0.1/24", "fd00:1::1/64")
    network.gateway.address("eth1", "10.2.0.1/24", "fd00:2::1/64")
    _plug_backends(network, mode, mtu)
    for host in network.backends if mtu > 1500 else ():
        # Nobody would tell them: the gateway has no way to the VIP for its packet-too-big.
        host.ip(f"route add {CLIENT_NETWORKS[4]} via 10.2.0.1 mtu 1500",
                f"route add {CLIENT_NETWORKS[6]} via fd00:2::1 mtu 1500")  # fmt: skip
    _prepare(network, mode)
    return network


def one_armed(lab: Lab, backends: int = 3, *, mode: str = "nat", mtu: int = 1500) -> Network:
    """Build a gateway with one interface, and everything on one wire.

        switch ─┬─ client 10.1.0.2-9, fd00:1::2-9
                ├─ gateway eth0 10.1.0.1, 10.2.0.1, fd00:1::1, fd00:2::1
                └─ b1 10.2.0.11, fd00:2::11; b2 10.2.0.12 ...

    Backends reach the client through the gateway; in the modes dsr, ipip and gue straight over the
    wire. ``mtu`` is that of all but the client, whose packets stay at 1500.
    """
    network = _hosts(lab, backends, ("eth0",), mode)
    network.switch.plug(network.gateway, "eth0", mtu=mtu)
    network.switch.plug(network.client, "eth0", mtu=mtu)
    network.gateway.address("eth0", "10.1.0.1/24", "10.2.0.1/24", "fd00:1::1/64", "fd00:2::1/64")
    _plug_backends(network, mode, mtu)
    for host in network.backends if mode in DIRECT_MODES else ():
        interface = network.backend_interface[host.name]
        host.ip(*(f"route add {to} dev {interface} mtu 1500" for to in CLIENT_NETWORKS.values()))
    _prepare(network, mode)
    return network


def _hosts(lab: Lab, backends: int, interfaces: tuple[str, ...], mode: str) -> Network:
    gateway = lab.host("gateway", is_gateway=True)
    gateway.sysctl(ip_forward=1, conf__all__send_redirects=0, conf__default__send_redirects=0)
    gateway.sysctl6(conf__all__forwarding=1)
    names = [f"b{number}" for number in range(1, backends + 1)]
    tunnels = mode in TUNNEL_MODES
    return Network(
        lab=lab,
        client=lab.host("client"),
        gateway=gateway,
        gateway_interfaces=interfaces,
        switch=lab.switch(),
        # What undoes tunnels wants their interfaces for itself.
        backends=tuple(lab.host(name, is_gateway=tunnels) for name in names),
        backend_interface={name: f"eth-{name}" if tunnels else "eth0" for name in names},
        backend_addresses=tuple(f"10.2.0.{10 + number}" for number in range(1, backends + 1)),
        backend_addresses6=tuple(f"fd00:2::{10 + number}" for number in range(1, backends + 1)),
    )


def _plug_backends(network: Network, mode: str, mtu: int) -> None:
    for number, host in enumerate(network.backends):
        interface = network.backend_interface[host.name]
        network.switch.plug(host, interface, mtu=mtu)
        addresses = (network.backend_addresses[number], network.backend_addresses6[number])
        host.address(interface, f"{addresses[0]}/24", f"{addresses[1]}/64")
        host.route("default", "10.2.0.1")
        host.route("default", "fd00:2::1")
        if mode in DIRECT_MODES:
            # Without these two the backend would answer ARP for the VIP and bypass the gateway.
            host.sysctl(conf__all__arp_ignore=1, conf__all__arp_announce=2)
            host.address("lo", f"{VIP}/32", f"{VIP6}/128")
        if mode in TUNNEL_MODES:
            host.sysctl(conf__all__rp_filter=0, **{f"conf__{interface}__rp_filter": 0})


def _prepare(network: Network, mode: str) -> None:
    client = network.client
    addresses = [f"{address}/24" for address in CLIENT_ADDRESSES]
    client.address("eth0", *addresses, *(f"{address}/64" for address in CLIENT_ADDRESSES6))
    client.ip("link set eth0 mtu 1500")
    client.route("default", "10.1.0.1")
    client.route("default", "fd00:1::1")
    client.sysctl(ip_local_port_range="1024 65535", tcp_tw_reuse=1)
    for host in (client, *network.backends):
        host.sysctl6(conf__all__accept_redirects=0)
    if mode == "fullnat":
        inner = network.gateway_interfaces[-1]
        network.gateway.address(inner, f"{SNATS[4]}/32", f"{SNATS[6]}/128")
