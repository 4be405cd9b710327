"""The networks that lb_xdp is tried on, ready to use, with their address plans.

Both have a client, a gateway and some backends. The VIP is 203.0.113.10; the client routes it to
the gateway, and no one but DSR backends (on lo) has it as an address.

This module owns cabling and addresses; it refuses to start any server or daemon.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.lab import Host, Lab, Switch

VIP = "203.0.113.10"
CLIENT_ADDRESSES = tuple(f"10.1.0.{last}" for last in range(2, 10))
"""Several, so that many connections in a short time do not run out of source ports."""


@dataclass(frozen=True, slots=True)
class Network:
    """What a test needs to know of a network."""

    lab: Lab
    client: Host
    gateway: Host
    gateway_interfaces: tuple[str, ...]
    switch: Switch
    backends: tuple[Host, ...]
    backend_addresses: tuple[str, ...]
    """In the order of ``backends``."""


def two_armed(lab: Lab, backends: int = 3, *, dsr: bool = False) -> Network:
    """Build a gateway between two networks; replies of backends come back through it.

        client 10.1.0.2-9 ── eth0 10.1.0.1 gateway 10.2.0.1 eth1 ── switch ── b1 10.2.0.11, b2 ...

    With ``dsr`` the backends answer as the VIP, and the gateway's kernel forwards that.
    """
    network = _hosts(lab, backends, ("eth0", "eth1"))
    lab.cable(network.client, "eth0", network.gateway, "eth0")
    network.switch.plug(network.gateway, "eth1")
    network.gateway.address("eth0", "10.1.0.1/24")
    network.gateway.address("eth1", "10.2.0.1/24")
    _plug_backends(network, dsr=dsr)
    _prepare_client(network)
    return network


def one_armed(lab: Lab, backends: int = 3, *, dsr: bool = False) -> Network:
    """Build a gateway with one interface, and everything on one wire.

        switch ─┬─ client 10.1.0.2-9
                ├─ gateway eth0 10.1.0.1, 10.2.0.1
                └─ b1 10.2.0.11, b2 10.2.0.12 ...

    Backends reach the client through the gateway; with ``dsr`` straight over the wire.
    """
    network = _hosts(lab, backends, ("eth0",))
    network.switch.plug(network.gateway, "eth0")
    network.switch.plug(network.client, "eth0")
    network.gateway.address("eth0", "10.1.0.1/24", "10.2.0.1/24")
    _plug_backends(network, dsr=dsr)
    if dsr:
        for backend in network.backends:
            backend.ip("route add 10.1.0.0/24 dev eth0")
    _prepare_client(network)
    return network


def _hosts(lab: Lab, backends: int, interfaces: tuple[str, ...]) -> Network:
    gateway = lab.host("gateway", is_gateway=True)
    gateway.sysctl(ip_forward=1, conf__all__send_redirects=0, conf__default__send_redirects=0)
    return Network(
        lab=lab,
        client=lab.host("client"),
        gateway=gateway,
        gateway_interfaces=interfaces,
        switch=lab.switch(),
        backends=tuple(lab.host(f"b{number}") for number in range(1, backends + 1)),
        backend_addresses=tuple(f"10.2.0.{10 + number}" for number in range(1, backends + 1)),
    )


def _plug_backends(network: Network, *, dsr: bool) -> None:
    for host, address in zip(network.backends, network.backend_addresses, strict=True):
        network.switch.plug(host, "eth0")
        host.address("eth0", f"{address}/24")
        host.route("default", "10.2.0.1")
        if dsr:
            # Without these two the backend would answer ARP for the VIP and bypass the gateway.
            host.sysctl(conf__all__arp_ignore=1, conf__all__arp_announce=2)
            host.address("lo", f"{VIP}/32")


def _prepare_client(network: Network) -> None:
    client = network.client
    client.address("eth0", *(f"{address}/24" for address in CLIENT_ADDRESSES))
    client.route("default", "10.1.0.1")
    client.sysctl(ip_local_port_range="1024 65535", tcp_tw_reuse=1)
