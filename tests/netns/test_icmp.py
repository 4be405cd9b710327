"""What ping, traceroute and tracepath see of a VIP; errors find the backend they are for."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any

import pytest

from tests.support.decap import attach_decap
from tests.support.gateway import config_for, joined
from tests.support.lab import Host, Lab, family_of
from tests.support.scenes import Scene, build_network, gateway_on, path_mtu
from tests.support.servers import Nginx
from tests.support.topologies import DIRECT_MODES, VIP, VIP6, VIPS, Network, two_armed

pytestmark = pytest.mark.slow

_GATEWAYS = {VIP: "10.1.0.1", VIP6: "fd00:1::1"}
_MODES = ["dsr", "ipip", "gue", "nat", "fullnat"]
_DNS_PORT = 53
_DOWNLOAD_BYTES = 10_000_000
_UPLOAD_BYTES = 1_000_000
_NARROW_MTU = 1400


def build(lab: Lab, mode: str, *, backends: int = 3) -> Scene:
    """Build web services of both IP versions, and UDP on any port, where nobody listens.

    In fullnat, where any port cannot be had, UDP is on one.
    """
    network = build_network(lab, mode, 2, backends=backends, mtu=1600)
    # A gateway has a way to everywhere: a hop at which a TTL ends says so only if there is one.
    network.gateway.route("default", "10.1.0.2")
    network.gateway.route("default", "fd00:1::2")
    for host in (network.gateway, *network.backends):
        host.sysctl(icmp_ratelimit=0)
        host.sysctl6(icmp__ratelimit=0)
    port = 80 if mode in DIRECT_MODES else 8080
    udp_port = _DNS_PORT if mode == "fullnat" else "any"
    web = {host.name: Nginx(lab, host, port) for host in network.backends}
    configs = (
        config_for(
            network,
            mode=mode,
            family=family,
            protocol=protocol,
            port=80 if protocol == "tcp" else udp_port,
            backend_port=port if protocol == "tcp" else None if udp_port == "any" else _DNS_PORT,
            health="none",
            service={"name": f"{protocol}{family}"},
        )
        for family in (4, 6)
        for protocol in ("tcp", "udp")
    )
    return gateway_on(network, joined(*configs), web)


def counted(scene: Scene, reason: str) -> float:
    return scene.gateway.metric("lb_xdp_packets_total", reason=reason)


def traceroute(host: Host, *arguments: str) -> list[str]:
    """Return who answered at each hop."""
    command = ("traceroute", "-n", "-q", "1", "-N", "1", "-w", "2", "-m", "5", *arguments)
    lines = host.run(*command).stdout.splitlines()[1:]
    return [line.split()[1] for line in lines]


def tracepath(host: Host, vip: str) -> str:
    return host.run("tracepath", "-n", "-m", "5", vip).stdout


def assert_pinged(scene: Scene, vip: str) -> None:
    """The gateway itself answers, whatever the size that a frame takes."""
    before = counted(scene, "echo")
    for octets in (0, 56, 1400):
        ping = ("ping", "-n", "-c", "2", "-i", "0.1", "-W", "2", "-s", str(octets), vip)
        answered = scene.client.run(*ping).stdout
        assert " 0% packet loss" in answered, answered
        assert len(re.findall(r"ttl=64", answered)) == 2
    assert counted(scene, "echo") == before + 6


def assert_traced(scene: Scene, vip: str) -> None:
    """A gateway that routes is a hop; in dsr it is none. The last hop is the VIP."""
    hops = [vip] if scene.config["services"][0]["mode"] == "dsr" else [_GATEWAYS[vip], vip]
    assert traceroute(scene.client, "-T", "-p", "80", vip) == hops
    assert traceroute(scene.client, "-U", "-p", str(_DNS_PORT), vip) == hops
    if scene.config["services"][0]["mode"] == "fullnat":
        return  # tracepath's ports count up
    shown = tracepath(scene.client, vip)
    assert "reached" in shown, shown
    found = re.findall(r"^ ?(\d+):\s+([0-9a-f.:]+)\s+[\d.]+ms", shown, re.MULTILINE)
    assert [address for _, address in sorted(set(found))] == hops, shown


def put_far_client(network: Network) -> Host:
    """Put a host behind the client, which routes, and whose way there is narrow."""
    far = network.lab.host("far")
    network.lab.cable(network.client, "eth1", far, "eth0")
    network.client.ip(f"link set eth1 mtu {_NARROW_MTU}")
    network.client.sysctl(ip_forward=1)
    network.client.sysctl6(conf__all__forwarding=1)
    network.client.address("eth1", "10.3.0.1/24", "fd00:3::1/64")
    far.address("eth0", "10.3.0.2/24", "fd00:3::2/64")
    far.route("default", "10.3.0.1")
    far.route("default", "fd00:3::1")
    return far


def download(scene: Scene, far: Host, vip: str) -> None:
    """Fetch 10 MB: the server's segments are too large for the last link until it is told."""
    got = scene.network.lab.directory / "got"
    options = ("-g", "--silent", "--show-error", "--fail", "--max-time", "20", "--output", str(got))
    far.run("curl", *options, url_of(vip))
    assert got.read_bytes() == (scene.web["b1"].files / "large").read_bytes()


def url_of(vip: str) -> str:
    return f"http://[{vip}]/files/large" if family_of(vip) == 6 else f"http://{vip}/files/large"


def assert_too_big_is_heard(scene: Scene, far: Host, vip: str) -> None:
    """Each backend learns of the narrow link near the client."""
    before = counted(scene, "icmp_error")
    for _ in range(6):
        download(scene, far, vip)
    assert counted(scene, "icmp_error") > before


@pytest.mark.parametrize("mode", _MODES)
def test_the_way_to_a_vip_shows_and_mends_itself(lab: Lab, mode: str) -> None:
    """Echo requests are answered by the gateway, traces end at the VIP, errors find backends."""
    scene = build(lab, mode)
    far = put_far_client(scene.network)
    data = os.urandom(_DOWNLOAD_BYTES)
    for web in scene.web.values():
        (web.files / "large").write_bytes(data)
    for vip in VIPS.values():
        assert_pinged(scene, vip)
        assert_traced(scene, vip)
        assert_too_big_is_heard(scene, far, vip)


def behind_a_router(lab: Lab) -> Network:
    """Build a network whose one backend is behind a router, on a link narrower than the tunnel."""
    network = two_armed(lab, 1, mode="ipip", mtu=1600)
    (backend,), router = network.backends, lab.host("router")
    network.switch.plug(router, "eth0", mtu=1600)
    lab.cable(router, "eth1", backend, "inner", mtu=_NARROW_MTU)
    router.sysctl(ip_forward=1)
    router.sysctl6(conf__all__forwarding=1)
    router.address("eth0", "10.2.0.254/24", "fd00:2::254/64")
    router.address("eth1", "10.4.0.1/24", "fd00:4::1/64")
    backend.address("inner", "10.4.0.11/24", "fd00:4::11/64")
    backend.sysctl(conf__inner__rp_filter=0)
    for gateway, towards in (("10.2.0.1", "10.1.0.0/24"), ("10.2.0.1", "172.16.0.0/16")):
        router.route(towards, gateway)
    for gateway, towards in (("fd00:2::1", "fd00:1::/64"), ("fd00:2::1", "100::/64")):
        router.route(towards, gateway)
    for host, via in ((network.gateway, "2"), (backend, "4")):
        last = "254" if host is network.gateway else "1"
        for family, dot in ((4, "10.{}.0."), (6, "fd00:{}::")):
            to = "default" if host is backend else {4: "10.4.0.0/24", 6: "fd00:4::/64"}[family]
            host.route(to, dot.format(via) + last)
    return replace(
        network,
        backend_interface={"b1": "inner"},
        backend_addresses=("10.4.0.11",),
        backend_addresses6=("fd00:4::11",),
    )


@pytest.mark.parametrize("mode", ["ipip", "gue"])
def test_a_router_between_gateway_and_backend_is_heard(lab: Lab, mode: str) -> None:
    """Its packet-too-big about a tunnel comes to the client, with what the tunnel leaves."""
    network = behind_a_router(lab)
    attach_decap(network)
    web = {"b1": Nginx(lab, network.backends[0])}
    options: dict[str, Any] = {"mode": mode, "health": "none"}
    configs = (
        config_for(network, family=family, service={"name": f"web{family}"}, **options)
        for family in (4, 6)
    )
    scene = gateway_on(network, joined(*configs), web)
    for family, vip in VIPS.items():
        upload(scene, vip)
        tunnel = {4: 20, 6: 40}[family] + (8 if mode == "gue" else 0)
        assert path_mtu(scene.client, vip) == _NARROW_MTU - tunnel


def upload(scene: Scene, vip: str) -> None:
    sent = scene.network.lab.directory / "sent"
    sent.write_bytes(os.urandom(_UPLOAD_BYTES))
    curl = ("curl", "-g", "--silent", "--show-error", "--fail", "--max-time", "20")
    scene.client.run(*curl, "--upload-file", str(sent), url_of(vip))
    arrived = scene.web["b1"].files / "large"
    assert arrived.read_bytes() == sent.read_bytes()
