"""The site that the machine tests share: one machine as gateway, clients and backends in the lab.

        client 10.1.0.2-9 ── front 10.1.0.1 ┐              ┌ 10.2.0.1 back ── b1 10.2.0.11, b2, b3
        client-e1000  10.3.0.2 ── e1000     ├ the machine ─┘
        client-plain  10.4.0.2 ── plain     ┘

``front`` and ``back`` are virtio cards with queues enough for native XDP; ``e1000`` has a driver
without XDP, ``plain`` is virtio as VirtualBox has it, without control of the guest's offloads.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.support.gateway import COMMAND
from tests.support.lab import Host, Lab
from tests.support.servers import Nginx
from tests.vm.machine import Card, Machine, cpus

IMAGE, RUN = (os.environ.get(f"LB_XDP_VM_{name}") for name in ("IMAGE", "RUN"))
NAT_VIP, DSR_VIP, IPIP_VIP = "203.0.113.10", "203.0.113.11", "203.0.113.12"
BACKENDS = ("b1", "b2", "b3")
FALLBACKS = {"e1000": "10.3.0", "plain": "10.4.0"}

_PINS = Path("/sys/fs/bpf/lb-xdp-decap")
_QUEUES = 2 * cpus()
CARDS = (
    Card("front", "02:00:00:00:10:01", queues=_QUEUES),
    Card("back", "02:00:00:00:10:02", queues=_QUEUES),
    Card("e1000", "02:00:00:00:10:03", model="e1000"),
    Card("plain", "02:00:00:00:10:04", options=",ctrl_guest_offloads=off"),
)
_PREFIXES = {"front": "10.1.0", "back": "10.2.0", **FALLBACKS}
_NETWORK = "[Match]\nMACAddress={mac}\n[Network]\nAddress={prefix}.1/24\nLinkLocalAddressing=no\n"
_LINK = "[Match]\nMACAddress={mac}\n[Link]\nName={name}\n"


@dataclass(frozen=True, slots=True)
class Site:
    """The machine and who is around it."""

    machine: Machine
    clients: dict[str, Host]
    """By the card of the machine that they are wired to."""
    web: dict[str, Nginx]
    """By the backend's name."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave these tests to scripts/vm-test, which brings an image."""
    if IMAGE is None or RUN is None:
        ours = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """Provide the site, booted once, with addresses but no gateway running."""
    assert IMAGE is not None
    assert RUN is not None
    with Lab() as lab:
        wires = lab.host("wires")
        for card in CARDS:
            _lay_wire(wires, card)
        clients = {"front": _client(lab, wires, "front", range(2, 10))}
        for name in FALLBACKS:
            clients[name] = _client(lab, wires, name, range(2, 3))
        web = {
            name: _backend(lab, wires, name, f"10.2.0.{10 + number}")
            for number, name in enumerate(BACKENDS, start=1)
        }
        start = partial(wires.popen)
        with Machine(Path(IMAGE), Path(RUN, "source"), Path(RUN), start, CARDS) as machine:
            _set_addresses(machine)
            yield Site(machine, clients, web)


def _lay_wire(wires: Host, card: Card) -> None:
    """Make the card's tap, on a bridge of its own."""
    tap, bridge = card.tap, f"br-{card.tap}"
    queues = " multi_queue" if card.queues > 1 else ""
    wires.ip(
        f"link add {bridge} type bridge stp_state 0 forward_delay 0",
        f"tuntap add dev {tap} mode tap{queues}",
        f"link set {tap} master {bridge} up",
        f"link set {bridge} up",
    )


def _plug(lab: Lab, wires: Host, host: Host, wire: str, interface: str = "eth0") -> None:
    port = f"to-{host.name}"[:15]
    lab.cable(host, interface, wires, port)
    wires.ip(f"link set {port} master br-{wire}")


def _client(lab: Lab, wires: Host, wire: str, addresses: range) -> Host:
    client = lab.host("client" if wire == "front" else f"client-{wire}")
    _plug(lab, wires, client, wire)
    prefix = _PREFIXES[wire]
    client.address("eth0", *(f"{prefix}.{last}/24" for last in addresses))
    client.route("default", f"{prefix}.1")
    return client


def _backend(lab: Lab, wires: Host, name: str, address: str) -> Nginx:
    """Make a backend with VIPs on lo, which takes tunnels: its pin has its interface's name."""
    backend, interface = lab.host(name), f"eth-{name}"
    _plug(lab, wires, backend, "back", interface)
    backend.address(interface, f"{address}/24")
    backend.route("default", "10.2.0.1")
    backend.sysctl(conf__all__arp_ignore=1, conf__all__arp_announce=2, conf__all__rp_filter=0)
    backend.sysctl(**{f"conf__{interface}__rp_filter": 0})
    backend.address("lo", f"{DSR_VIP}/32", f"{IPIP_VIP}/32")
    backend.run(
        *(COMMAND, "decap", "attach", interface),
        *("--hook", "tc"),  # beside the lab's XDP_PASS
        *("--trust", "172.16.0.0/16", "--vip", IPIP_VIP),
    )
    lab.on_close.callback(shutil.rmtree, _PINS / interface, ignore_errors=True)
    return Nginx(lab, backend)


def _set_addresses(machine: Machine) -> None:
    """Configure the machine as an operator would, so that a reboot finds it again."""
    for card in CARDS:
        prefix = _PREFIXES[card.tap]
        machine.write(
            f"/etc/systemd/network/10-{card.tap}.network",
            _NETWORK.format(mac=card.mac, prefix=prefix),
        )
        machine.write(
            f"/etc/systemd/network/10-{card.tap}.link", _LINK.format(mac=card.mac, name=card.tap)
        )
    machine.write("/etc/sysctl.d/50-lb-xdp.conf", "net.ipv4.ip_forward=1\n")
    machine.run("systemctl", "restart", "systemd-sysctl")
    for card in CARDS:
        rename = 'ip link set "$(ip -br link | awk -v m="$1" "\\$3==m{print \\$1}")" name "$2"'
        machine.run("sh", "-ec", rename, "sh", card.mac, card.tap)
    machine.run("systemctl", "restart", "systemd-networkd")
    machine.run("/lib/systemd/systemd-networkd-wait-online", "--timeout=60")
