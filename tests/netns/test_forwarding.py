"""Real clients reach real backends: spread by weight, counted to the packet, in every topology."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import pytest

from tests.support.gateway import config_for
from tests.support.lab import Lab, PacketCounter
from tests.support.scenes import (
    WEIGHTS,
    Scene,
    build_network,
    echo_scene,
    gateway_on,
    udp_ask,
    wait_until,
    web_on,
    web_scene,
)
from tests.support.servers import Nginx
from tests.support.topologies import VIP

_log = logging.getLogger(__name__)

COMBINATIONS = [
    pytest.param(mode, arms, id=f"{mode}, {arms} interfaces")
    for mode in ("nat", "dsr")
    for arms in (2, 1)
]
_NEW_MAC = "02:00:00:00:99:01"
_CONNECTIONS = 60_000
_FIRST_PORT = 10_000
"""Clients' ports count up from here: every run has the same flows, so the same spread."""


def spread_error(answers: Mapping[str, int]) -> dict[str, float]:
    """Return by what part of its fair share each backend is off."""
    total = sum(answers.values())
    share = {name: total * weight / sum(WEIGHTS.values()) for name, weight in WEIGHTS.items()}
    return {name: answers[name] / share[name] - 1 for name in WEIGHTS}


def count_arrivals(scene: Scene, protocol: str, port: int) -> dict[str, PacketCounter]:
    """Count what clients send, at the backends, by addresses that no probe has."""
    return {
        host.name: host.count_packets(protocol, port, source="10.1.0.0/24")
        for host in scene.network.backends
    }


def assert_counters_agree(scene: Scene, arrivals: Mapping[str, PacketCounter]) -> None:
    """Compare backends, ``status`` and ``/metrics`` once nothing is under way any more."""

    def at_backends() -> dict[str, int]:
        return {name: counter.read() for name, counter in arrivals.items()}

    while (seen := at_backends()) != at_backends():
        pass
    in_status = {name: entry["packets"] for name, entry in scene.gateway.backends().items()}
    in_metrics = {
        name: scene.gateway.metric("lb_xdp_backend_packets_total", service="web", backend=name)
        for name in arrivals
    }
    assert min(seen.values()) > 0
    assert in_status == seen
    assert in_metrics == seen


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "arms"), COMBINATIONS)
def test_connections_spread_by_weight_and_every_packet_is_counted(
    lab: Lab, mode: str, arms: int
) -> None:
    """60,000 connections keep within 3% of the weights; backends, status and metrics agree."""
    scene = web_scene(lab, mode, arms)
    arrivals = count_arrivals(scene, "tcp", 80)
    result = scene.load(count=_CONNECTIONS, rate_per_s=0, first_port=_FIRST_PORT).wait()
    assert not result.failures, result.failures[:3]
    errors = spread_error(result.backends)
    _log.info("%s, %d: %.1f s, off by %s", mode, arms, result.elapsed_s, errors)
    assert max(map(abs, errors.values())) <= 0.03, errors
    assert_counters_agree(scene, arrivals)
    flows = {name: entry["flows"] for name, entry in scene.gateway.backends().items()}
    assert flows == result.backends


@pytest.mark.parametrize(("mode", "arms"), COMBINATIONS)
def test_datagrams_come_back_from_the_vip(lab: Lab, mode: str, arms: int) -> None:
    """UDP goes to every backend and back, ports translated in nat, and every packet is counted."""
    port = 7001 if mode == "nat" else 7000
    scene, echoes = echo_scene(lab, mode, arms, backend_port=port)
    arrivals = count_arrivals(scene, "udp", port)
    answers = udp_ask(scene.client, [(VIP, 7000)] * 300)
    received = {name: echo.stats()["udp_datagrams"] for name, echo in echoes.items()}
    assert {name: answers.count(name) for name in echoes} == received
    assert_counters_agree(scene, arrivals)


def test_nat_translates_tcp_ports(lab: Lab) -> None:
    """A service on port 80 is answered by backends on port 8080."""
    scene = web_scene(lab, "nat", 1, port=8080)
    assert scene.ask().keys() == WEIGHTS.keys()


def test_a_backends_own_address_works_beside_the_vip(lab: Lab) -> None:
    """Long-lived TCP and UDP straight to a nat backend live on beside those through the VIP."""
    scene, _ = echo_scene(lab, "nat", 2, protocol="tcp", backend_port=7001)
    addresses = dict(zip(WEIGHTS, scene.network.backend_addresses, strict=True))
    through = [scene.line() for _ in range(30)]
    owners = [line.ask() for line in through]
    direct = {name: scene.line(addresses[name], 7001) for name in WEIGHTS}
    later = [scene.line() for _ in range(30)]
    later_owners = [line.ask() for line in later]
    assert {*owners} == {*later_owners} == WEIGHTS.keys()
    for _ in range(20):
        assert {name: line.ask() for name, line in direct.items()} == {n: n for n in WEIGHTS}
        assert [line.ask() for line in through + later] == owners + later_owners
        assert udp_ask(scene.client, [(addresses["b2"], 7001)]) == ["b2"]


def test_traffic_follows_an_announced_mac(lab: Lab) -> None:
    """Connections to a backend live on when its card is changed and it says so."""
    scene, _ = echo_scene(lab, "dsr", 2, protocol="tcp")
    backend = scene.backend("b1")
    backend.sysctl(conf__all__arp_notify=1)
    lines = [scene.line() for _ in range(60)]
    owners = [line.ask() for line in lines]
    backend.ip(f"link set eth0 address {_NEW_MAC}")
    assert backend.mac("eth0") == _NEW_MAC
    assert [line.ask() for line in lines] == owners


def test_traffic_follows_a_silent_mac(lab: Lab) -> None:
    """A backend that changes its MAC without a word gets its traffic again after ARP finds it."""
    network = build_network(lab, "nat", 2)
    settings = ("delay_first_probe_time=1", "base_reachable_time_ms=1000")  # half a minute else
    names = [f"net.ipv4.neigh.eth1.{setting}" for setting in settings]
    network.gateway.run("sysctl", "-qw", *names)
    scene = web_on(network)
    scene.backend("b1").ip(f"link set eth0 address {_NEW_MAC}")
    scene.gateway.wait_until_down("b1")
    scene.gateway.wait_until_up("b1", timeout_s=20)
    assert scene.ask().keys() == WEIGHTS.keys()


def test_traffic_follows_a_route(lab: Lab) -> None:
    """When the route to a backend gets another next hop, packets take it at once."""
    network = build_network(lab, "nat", 2)
    for host in network.backends:
        Nginx(lab, host)
        host.address("lo", "10.9.0.1/32")
    network.gateway.route("10.9.0.1", "10.2.0.11")
    config = config_for(network, health="none", weights=[100])
    config["pools"][0]["backends"][0]["host"] = "10.9.0.1"
    scene = gateway_on(network, config)
    assert scene.ask() == {"b1": 60}
    network.gateway.route("10.9.0.1", "10.2.0.12")
    wait_until(lambda: scene.ask(count=10) == {"b2": 10}, "the new route is taken", timeout_s=2)
    assert scene.ask() == {"b2": 60}
