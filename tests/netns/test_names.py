"""Backends by name: the gateway follows a real name server, and doubts it where it should."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import pace
from tests.support.clients import broken
from tests.support.dns_server import DOMAIN, DnsServer
from tests.support.gateway import PATIENT_CHECK, config_for, joined
from tests.support.lab import Lab
from tests.support.scenes import Scene, build_network, gateway_on, wait_until
from tests.support.servers import Nginx
from tests.support.topologies import CLIENT_ADDRESSES, VIPS, Network

_CHECK = PATIENT_CHECK | {"interval": "200ms", "timeout": "200ms"}
_HOST = f"web.{DOMAIN}"
_ADDRESS = {"b1": "10.2.0.11", "b2": "10.2.0.12", "b3": "10.2.0.13"}


@pytest.fixture
def network(lab: Lab) -> Network:
    return build_network(lab, "nat", 2)


@pytest.fixture
def dns(network: Network) -> Iterator[DnsServer]:
    """A name server on the client's host, which the gateway asks."""
    server = DnsServer(network.lab, network.client, CLIENT_ADDRESSES[0])
    server.say({"web": list(_ADDRESS.values())[:2]})
    server.start()
    yield server
    server.stop()


def by_name(config: dict[str, Any], static: Sequence[str] = (), **dns: Any) -> dict[str, Any]:
    """Return a configuration whose backends are those of the name, and some by address."""
    gateway = config["gateway"] | {"dns": {"resolver": CLIENT_ADDRESSES[0], **dns}}
    pools = [pool | {"backends": _named(pool, static)} for pool in config["pools"]]
    return config | {"gateway": gateway, "pools": pools}


def _named(pool: dict[str, Any], static: Sequence[str]) -> list[dict[str, Any]]:
    kept = [backend for backend in pool["backends"] if backend["name"] in static]
    return [{"name": "web", "host": _HOST, "port": pool["backends"][0]["port"]}, *kept]


def scene_on(network: Network, config: dict[str, Any]) -> Scene:
    web = {host.name: Nginx(network.lab, host, 80) for host in network.backends}
    return gateway_on(network, config, web)


def scene_of(network: Network, *static: str, **dns: Any) -> Scene:
    config = config_for(network, mode="nat", backend_port=80, health=_CHECK)
    return scene_on(network, by_name(config, static, **dns))


def up(scene: Scene) -> set[str]:
    """Return the addresses of all backends that are up, and get new flows."""
    entries = (b for s in scene.gateway.status()["services"] for b in s["backends"])
    return {
        entry["address"].rpartition(":")[0].strip("[]")
        for entry in entries
        if entry["state"] == "up" and entry["weight"]
    }


def serving(scene: Scene, *names: str) -> None:
    """Wait until exactly these are up, and see that they answer."""
    wanted = {_ADDRESS[name] for name in names}
    wait_until(lambda: up(scene) == wanted, f"{wanted} are up", timeout_s=20)
    assert scene.ask().keys() == set(names)


def test_addresses_that_come_and_go_are_followed(network: Network, dns: DnsServer) -> None:
    """One more gets traffic; one less gets no new flows, and keeps those that it has.

    Each of several has a name of its own.
    """
    scene = scene_of(network)
    serving(scene, "b1", "b2")
    assert scene.gateway.backends().keys() == {"web@10.2.0.11", "web@10.2.0.12"}
    dns.say({"web": list(_ADDRESS.values())})
    serving(scene, "b1", "b2", "b3")
    with scene.held() as held:
        dns.say({"web": [_ADDRESS["b2"], _ADDRESS["b3"]]})
        serving(scene, "b2", "b3")
    assert {one.backend for one in held} == {"b1", "b2", "b3"}
    assert not broken(held)
    assert scene.gateway.backends()["web@10.2.0.11"]["state"] == "drain"
    assert scene.gateway.notices() == ""
    assert f"{_HOST}: resolved 10.2.0.11, 10.2.0.12 -> " in scene.gateway.log()


def test_a_great_loss_is_held_back_until_it_is_confirmed(network: Network, dns: DnsServer) -> None:
    """Two of three vanish: all go on, loudly; a new address counts meanwhile; at last it is so."""
    dns.say({"web": [_ADDRESS["b1"], _ADDRESS["b2"]]})
    scene = scene_of(network, confirm=100)
    serving(scene, "b1", "b2")
    dns.say({"web": [_ADDRESS["b3"]]})
    serving(scene, "b1", "b2", "b3")
    assert "takes away 2 of 2 addresses, more than 50%" in scene.gateway.notices()
    scene.gateway.take(by_name(scene.config, confirm=2))
    serving(scene, "b3")
    assert scene.gateway.notices() == ""
    assert scene.gateway.backends()["web"]["state"] == "up"


def test_a_name_that_is_gone_or_a_dead_server_takes_nothing_away(
    network: Network, dns: DnsServer
) -> None:
    """The last good answer counts, and the next daemon knows it from the disk."""
    scene = scene_of(network, confirm=1)
    serving(scene, "b1", "b2")
    dns.say({})
    wait_until(lambda: "there is no such name" in scene.gateway.notices(), "it is told")
    serving(scene, "b1", "b2")
    dns.stop()
    wait_until(lambda: "no such name" not in scene.gateway.notices(), "it is told", timeout_s=20)
    assert "the last good answer counts (2)" in scene.gateway.notices()
    before = scene.gateway.status()["datapath"]["generation"]
    scene.gateway.kill()
    scene.gateway.start()
    serving(scene, "b1", "b2")
    assert scene.gateway.status()["datapath"]["generation"] == before
    dns.say({"web": list(_ADDRESS.values())})
    dns.start()
    serving(scene, "b1", "b2", "b3")


def test_a_first_start_without_an_answer_goes_on_with_what_it_has(
    network: Network, dns: DnsServer
) -> None:
    """Backends by address serve, status says what is missing, and the name joins when it can."""
    dns.stop()
    scene = scene_of(network, "b3")
    serving(scene, "b3")
    wait_until(
        lambda: f"from {CLIENT_ADDRESSES[0]}" in scene.gateway.notices(), "it is told", timeout_s=20
    )
    dns.start()
    serving(scene, "b1", "b2", "b3")
    assert scene.gateway.notices() == ""


def test_a_service_whose_only_name_has_no_answer_starts_empty(
    network: Network, dns: DnsServer
) -> None:
    """No backend at all: the daemon is ready, says so, and serves once there is an answer."""
    dns.say({})
    scene = scene_of(network)
    assert up(scene) == set()
    assert _HOST in scene.gateway.notices()
    assert len(scene.load(count=2, timeout_s=0.2).wait().failures) == 2
    dns.say({"web": [_ADDRESS["b1"]]})
    serving(scene, "b1")


def test_a_reload_brings_names_and_takes_them_away(network: Network, dns: DnsServer) -> None:
    """A name is asked when the file has it, and what was known of it goes with it."""
    dns.say({"web": [_ADDRESS["b1"], _ADDRESS["b2"]]})
    plain = config_for(network, mode="nat", backend_port=80, health=_CHECK)
    scene = scene_on(network, plain)
    scene.gateway.take(by_name(plain))
    serving(scene, "b1", "b2")
    kept = Path("/var/lib/lb-xdp/gw1/names.json")
    assert json.loads(kept.read_text())["names"][0]["host"] == _HOST
    scene.gateway.take(plain)
    serving(scene, "b1", "b2", "b3")
    assert json.loads(kept.read_text())["names"] == []


def test_answers_that_flap_break_nothing(network: Network, dns: DnsServer) -> None:
    """While a name server cannot make up its mind, who comes and goes keeps its connections."""
    scene = scene_of(network)
    serving(scene, "b1", "b2")
    answers = itertools.cycle([["b1", "b3"], ["b1", "b2"]])
    with scene.held() as held:
        for _ in range(6):
            dns.say({"web": [_ADDRESS[name] for name in next(answers)]})
            time.sleep(pace.lasting(1.2))  # the answers' TTL is over: each is seen
    assert not broken(held)
    serving(scene, "b1", "b2")


def test_each_service_gets_the_addresses_of_its_ip_version(
    network: Network, dns: DnsServer
) -> None:
    """One name, one pool: the IPv4 VIP leads to A records, the IPv6 VIP to AAAA records."""
    dns.say({"web": [_ADDRESS["b1"], _ADDRESS["b2"], "fd00:2::13"]})
    options: dict[str, Any] = {"mode": "nat", "backend_port": 80, "health": _CHECK}
    four = config_for(network, **options)
    six = config_for(network, family=6, service={"name": "web6"}, **options)
    scene = scene_on(network, by_name(joined(four, six)))
    wait_until(lambda: up(scene) == {"10.2.0.11", "10.2.0.12", "fd00:2::13"}, "all are up")
    assert scene.ask().keys() == {"b1", "b2"}
    assert scene.ask(vip=VIPS[6], sources=["fd00:1::2"]).keys() == {"b3"}


def test_a_tunnel_takes_what_the_name_has(lab: Lab) -> None:
    """An IPv4 VIP by ipip reaches a name that has only IPv6 addresses."""
    network = build_network(lab, "ipip", 2, mtu=1600)
    server = DnsServer(lab, network.client, CLIENT_ADDRESSES[0])
    server.say({"web": ["fd00:2::11", "fd00:2::12"]})
    server.start()
    config = config_for(network, mode="ipip", health=_CHECK)
    scene = scene_on(network, by_name(config))
    wait_until(lambda: up(scene) == {"fd00:2::11", "fd00:2::12"}, "both are up")
    assert scene.ask().keys() == {"b1", "b2"}
    assert scene.gateway.notices() == ""
