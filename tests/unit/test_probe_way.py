"""How probes through the datapath are carried, and whose health they decide about."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from lb_xdp.core.model import (
    Backend,
    BackendName,
    CheckKind,
    Config,
    Gateway,
    HealthCheck,
    Mode,
    Pool,
    Protocol,
    Service,
    ServiceName,
    Via,
    XdpMode,
)
from lb_xdp.core.probe_way import ProbeWay, explain, frame_of, probe_ways, sender_of
from lb_xdp.core.targets import TargetId, target_of
from lb_xdp.core.topology import Interface, NextHop, Topology

VIPS = {4: ip_address("203.0.113.10"), 6: ip_address("2001:db8::10")}
HOSTS = {4: ip_address("10.0.0.11"), 6: ip_address("2001:db8::11")}
OURS = {4: "10.0.0.2", 6: "2001:db8::2"}
OUR_MAC, THEIR_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
MACS = [bytes.fromhex(mac.replace(":", "")) for mac in (OUR_MAC, THEIR_MAC)]
TOPOLOGY = Topology(
    {"eth0": Interface("eth0", 7, MACS[0], 1500, up=True)},
    {host: NextHop(7, MACS[0], MACS[1], None, on_link=True) for host in HOSTS.values()},
)


def service(mode: Mode, family: int = 4, outer: int = 4, via: Via = Via.DATAPATH) -> Service:
    backend = Backend(BackendName("b1"), HOSTS[outer], 80)
    pool = Pool("web", (backend,), HealthCheck(CheckKind.TCP, via=via))
    return Service(ServiceName("web"), VIPS[family], 80, Protocol.TCP, mode, pool)


def config(*services: Service) -> Config:
    return Config(Gateway("gw1", ("eth0",), XdpMode.AUTO, "/run/api.sock", None), services)


def way(mode: Mode, family: int = 4, outer: int = 4, topology: Topology = TOPOLOGY) -> ProbeWay:
    (found,) = probe_ways(config(service(mode, family, outer)), topology, {}).values()
    return found


def packet(family: int, hops: int) -> Any:
    vip = str(VIPS[family])
    head = IPv6(src=OURS[6], dst=vip, hlim=hops) if family == 6 else IP(
        src=OURS[4], dst=vip, ttl=hops, flags="DF")  # fmt: skip
    return head / TCP(sport=40_000, dport=80, flags="S")


@pytest.mark.parametrize("family", [4, 6])
def test_dsr_changes_nothing_but_the_macs(family: int) -> None:
    """The frame is the packet with the backend's MAC, and arrives with one hop left."""
    found = way(Mode.DSR, family, family)
    sent = bytes(packet(family, found.hops))
    assert frame_of(sent, found) == bytes(Ether(src=OUR_MAC, dst=THEIR_MAC)) [:12] + (
        b"\x86\xdd" if family == 6 else b"\x08\x00"
    ) + sent  # fmt: skip
    assert found.hops == 1


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("mode", [Mode.IPIP, Mode.GUE])
def test_a_tunnel_carries_it_whole_with_one_hop_left(mode: Mode, family: int, outer: int) -> None:
    """The inner packet is what was sent but for its hops; the outer one is as the program's."""
    found = way(mode, family, outer)
    frame = Ether(frame_of(bytes(packet(family, found.hops)), found))
    head = frame.payload
    assert (frame.src, frame.dst) == (OUR_MAC, THEIR_MAC)
    assert head.dst == str(HOSTS[outer])
    assert head.src.startswith("172.16." if outer == 4 else "100:")
    inner = bytes(head.payload.payload if mode is Mode.GUE else head.payload)
    assert inner == bytes(packet(family, 1))
    if mode is Mode.GUE:
        assert head[UDP].dport == 6080


def test_a_sender_is_known_by_version_protocol_and_port() -> None:
    """Ports of TCP and UDP are read; what has none, or is nonsense, is nobody's."""
    assert sender_of(bytes(packet(4, 1))) == (4, 6, 40_000)
    assert sender_of(bytes(packet(6, 1))) == (6, 6, 40_000)
    assert sender_of(bytes(IP(dst="10.0.0.1") / UDP(sport=53))) == (4, 17, 53)
    assert sender_of(b"") is None
    assert sender_of(b"\x45" + bytes(10)) is None
    assert sender_of(b"\xf5" + bytes(60)) is None
    assert sender_of(bytes(IPv6(dst="ff02::2", nh=58)) + bytes(8)) is None


def test_a_backend_without_a_way_has_none() -> None:
    """No route, no MAC or (dsr) a router on the way: the interface is 0, and a detail says so."""
    for topology in (
        replace(TOPOLOGY, next_hops={}),
        replace(TOPOLOGY, next_hops={HOSTS[4]: NextHop(7, MACS[0], None, None, on_link=True)}),
    ):
        assert way(Mode.IPIP, topology=topology).ifindex == 0
    router = NextHop(7, MACS[0], MACS[1], ip_address("10.0.0.1"), on_link=False)
    routed = replace(TOPOLOGY, next_hops={HOSTS[4]: router})
    assert way(Mode.IPIP, topology=routed).ifindex == 7
    assert way(Mode.DSR, topology=routed).ifindex == 0
    said = explain(way(Mode.DSR, topology=routed), 80, "timed out after 1 s")
    assert said == "timed out after 1 s; no way to 10.0.0.11 is known by dsr"


def test_a_failure_says_where_to_look() -> None:
    """The detail names the VIP, the mode and what the backend needs for it."""
    said = explain(way(Mode.DSR), 80, "timed out after 1 s")
    assert said == (
        "timed out after 1 s, asked as 203.0.113.10:80 by dsr: see whether 10.0.0.11 has "
        "203.0.113.10 on lo"
    )
    assert "see whether 10.0.0.11 undoes gue and has " in explain(way(Mode.GUE), 80, "")


def test_each_service_of_a_pool_has_a_health_of_its_own_through_the_datapath() -> None:
    """Directly one probe speaks for all services; through the datapath each VIP is a way."""
    first, second = service(Mode.DSR), replace(service(Mode.DSR), vip=ip_address("203.0.113.11"))
    (backend,) = first.pool.backends
    assert target_of(first, backend) == TargetId("web", backend.key, first.key)
    assert len(probe_ways(config(first, second), TOPOLOGY, {})) == 2
    direct = service(Mode.DSR, via=Via.DIRECT)
    assert target_of(direct, backend) == TargetId("web", backend.key)
    assert probe_ways(config(direct), TOPOLOGY, {}) == {}
