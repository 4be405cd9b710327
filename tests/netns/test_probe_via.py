"""Probes that go the traffic's way find the backends that clients' packets do not get through to.

Each test shows first that a direct probe calls the same backend up.
"""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_address
from typing import Any

import pytest

from lb_xdp.errors import HostError
from lb_xdp.via import Courier
from tests.support.gateway import COMMAND, HTTP_CHECK, Gateway, config_for, joined
from tests.support.lab import Host, Lab
from tests.support.scenes import Scene, build_network, gateway_on, wait_until, web_on
from tests.support.servers import Echo, Nginx
from tests.support.topologies import TUNNEL_MODES, VIPS

_CASES = [
    pytest.param(mode, family, family, id=f"{mode}-IPv{family}")
    for mode in ("dsr", "ipip", "gue")
    for family in (4, 6)
]
_CASES += [pytest.param("ipip", 4, 6, id="ipip-IPv4-in-IPv6")]
_CHECK = HTTP_CHECK | {"threshold": {"rise": 1, "fall": 2}}
_THROUGH = _CHECK | {"via": "datapath"}
_OURS = 50  # the preference of our rules


def let_answers_in(host: Host) -> None:
    """Turn the reverse path filter off: the gateway has no route to the VIP."""
    names = json.loads(host.run("ip", "-j", "link", "show").stdout)
    each = {f"conf__{link['ifname']}__rp_filter": 0 for link in names}
    host.sysctl(conf__all__rp_filter=0, **each)


def scene_for(lab: Lab, mode: str, family: int, backend_family: int) -> Scene:
    network = build_network(lab, mode, 2, mtu=1600 if mode in TUNNEL_MODES else 1500)
    let_answers_in(network.gateway)
    return web_on(network, mode=mode, family=family, backend_family=backend_family, health=_CHECK)


def through(scene: Scene, **check: Any) -> dict[str, Any]:
    """Return the scene's configuration with probes that go the traffic's way."""
    (pool,) = scene.config["pools"]
    return scene.config | {"pools": [pool | {"health": _THROUGH | check}]}


def detail(gateway: Gateway, name: str) -> str:
    return str(gateway.backends()[name]["detail"])


def rules(host: Host) -> list[Any]:
    found = []
    for family in ("-4", "-6"):
        found += json.loads(host.run("ip", "-j", family, "rule", "list").stdout)
    return [rule for rule in found if rule["priority"] == _OURS]


def devices(host: Host) -> list[str]:
    links = json.loads(host.run("ip", "-j", "link", "show").stdout)
    return [link["ifname"] for link in links if link["ifname"].startswith("lb-probe")]


@pytest.mark.parametrize(("mode", "family", "backend_family"), _CASES)
def test_a_backend_without_the_vip_is_found_out(
    lab: Lab, mode: str, family: int, backend_family: int
) -> None:
    """It is up to a direct probe, down through the datapath, with a hint; and up once it has it."""
    scene = scene_for(lab, mode, family, backend_family)
    bits = {4: 32, 6: 128}[family]
    scene.backend("b2").ip(f"addr del {VIPS[family]}/{bits} dev lo")
    scene.gateway.take(through(scene))
    scene.gateway.wait_until_down("b2")
    said = detail(scene.gateway, "b2")
    assert f"{VIPS[family]} on lo" in said
    assert mode in said
    assert scene.gateway.is_up("b1")
    assert scene.gateway.is_up("b3")
    assert scene.ask().keys() == {"b1", "b3"}
    scene.gateway.take(scene.config)
    scene.gateway.wait_until_up("b2")
    scene.gateway.take(through(scene))
    scene.backend("b2").address("lo", f"{VIPS[family]}/{bits}")
    scene.gateway.wait_until_up("b1", "b2", "b3")
    assert scene.ask().keys() == {"b1", "b2", "b3"}


@pytest.mark.parametrize(("mode", "family"), [("ipip", 4), ("gue", 6)])
def test_a_backend_that_does_not_undo_tunnels_is_found_out(
    lab: Lab, mode: str, family: int
) -> None:
    """It is up to a direct probe, and down through the datapath, with a hint."""
    scene = scene_for(lab, mode, family, family)
    interface = scene.network.backend_interface["b2"]
    scene.backend("b2").run(COMMAND, "decap", "detach", interface)
    scene.gateway.wait_until_up("b2")
    scene.gateway.take(through(scene))
    scene.gateway.wait_until_down("b2")
    assert f"undoes {mode}" in detail(scene.gateway, "b2")
    assert scene.ask().keys() == {"b1", "b3"}


def test_tcp_probes_go_the_same_way_on_one_arm(lab: Lab) -> None:
    """A tcp probe through dsr sees a closed port as such, and a server that starts."""
    network = build_network(lab, "dsr", 1)
    let_answers_in(network.gateway)
    check = {key: value for key, value in _THROUGH.items() if key != "path"} | {"type": "tcp"}
    scene = web_on(network, mode="dsr", health=check)
    scene.web["b3"].stop()
    scene.gateway.wait_until_down("b3")
    assert "connection refused" in detail(scene.gateway, "b3")
    scene.web["b3"].start()
    scene.gateway.wait_until_up("b3")


def test_two_services_of_a_pool_are_asked_each_in_its_way(lab: Lab) -> None:
    """A backend without the second VIP is down there, and stays up for the first."""
    network = build_network(lab, "dsr", 2)
    let_answers_in(network.gateway)
    for host in network.backends[:2]:
        host.address("lo", "203.0.113.11/32")
    web = {host.name: Nginx(lab, host, 80) for host in network.backends}
    config = config_for(network, mode="dsr", health=_THROUGH)
    other = config["services"][0] | {"name": "other", "vip": "203.0.113.11"}
    scene = gateway_on(network, config | {"services": [*config["services"], other]}, web)

    def up(service: str) -> set[str]:
        services = scene.gateway.status()["services"]
        (found,) = (entry for entry in services if entry["name"] == service)
        return {b["name"] for b in found["backends"] if b["state"] == "up"}

    wait_until(lambda: up("web") == {"b1", "b2", "b3"}, "all have the first VIP")
    wait_until(lambda: up("other") == {"b1", "b2"}, "two have the second VIP")


def test_device_and_rules_go_with_the_daemon(lab: Lab) -> None:
    """They are there while probes need them; a killed daemon's rules are the next one's to remove.

    A daemon that ends by itself leaves nothing.
    """
    scene = scene_for(lab, "dsr", 4, 4)
    host = scene.network.gateway
    assert (devices(host), rules(host)) == ([], [])
    scene.gateway.take(through(scene))
    assert len(devices(host)) == len(rules(host)) == 1
    scene.gateway.kill()
    assert (devices(host), len(rules(host))) == ([], 1)
    scene.gateway.start()
    scene.gateway.wait_until_up("b1", "b2", "b3")
    assert len(devices(host)) == len(rules(host)) == 1
    scene.gateway.terminate()
    assert (devices(host), rules(host)) == ([], [])
    scene.gateway.start()
    scene.gateway.take(scene.config)
    wait_until(lambda: (devices(host), rules(host)) == ([], []), "nothing is left")
    assert scene.ask().keys() == {"b1", "b2", "b3"}


def test_a_gateway_that_would_drop_the_answers_refuses(lab: Lab) -> None:
    """rp_filter, or a VIP of its own: a reload is refused with the remedy, and nothing changes."""
    scene = scene_for(lab, "dsr", 4, 4)
    host = scene.network.gateway
    host.sysctl(conf__eth1__rp_filter=1)
    with pytest.raises(ValueError, match=r"sysctl -w net\.ipv4\.conf\.eth1\.rp_filter=0"):
        scene.gateway.take(through(scene))
    let_answers_in(host)
    host.address("lo", "203.0.113.10/32")
    with pytest.raises(ValueError, match="an address of this host"):
        scene.gateway.take(through(scene))
    host.ip("addr del 203.0.113.10/32 dev lo")
    scene.gateway.take(through(scene))
    scene.gateway.wait_until_up("b1", "b2", "b3")
    host.address("lo", "203.0.113.10/32")
    wait_until(lambda: "by now" in " ".join(scene.gateway.status()["notices"]), "it is told")
    scene.web["b2"].stop()
    host.ip("addr del 203.0.113.10/32 dev lo")
    scene.gateway.wait_until_down("b2")
    assert scene.gateway.is_up("b1")


def test_what_stands_beside_does_not_hide(lab: Lab) -> None:
    """Direct probes of a nat service and probes through ipip of another live side by side."""
    network = build_network(lab, "ipip", 2, mtu=1600)
    let_answers_in(network.gateway)
    web = {host.name: Nginx(lab, host, 80, also=(8080,)) for host in network.backends}
    tunnel = config_for(network, mode="ipip", health=_THROUGH)
    nat = config_for(network, mode="nat", port=81, backend_port=8080, service={"name": "nat"})
    scene = gateway_on(network, joined(tunnel, nat), web)
    services = scene.gateway.status()["services"]
    assert {b["state"] for service in services for b in service["backends"]} == {"up"}


def test_what_somebody_takes_away_is_put_back(lab: Lab) -> None:
    """Without our rule, or our device, probes decide nothing: nobody goes down for it."""
    scene = scene_for(lab, "dsr", 4, 4)
    host = scene.network.gateway
    # Five in a row: a busy machine lets two probes of 100 ms time out now and then.
    scene.gateway.take(through(scene, threshold={"rise": 1, "fall": 5}))
    scene.gateway.wait_until_up("b1", "b2", "b3")
    host.ip(f"rule del pref {_OURS}")
    wait_until(lambda: len(rules(host)) == 1, "the rule is back")
    (device,) = devices(host)
    host.ip(f"link del {device}")
    wait_until(lambda: len(devices(host)) == 1, "there is a device again")
    scene.web["b2"].stop()
    scene.gateway.wait_until_down("b2")
    scene.web["b2"].start()
    scene.gateway.wait_until_up("b1", "b2", "b3")
    assert scene.gateway.metric("lb_xdp_failovers_total") == 1
    assert len(rules(host)) == 1


def test_what_cannot_be_served_leaves_things_as_they_were(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a device that nobody asked for, nor half of the rules; then it works all the same."""
    host, vips = lab.host("gateway"), {n: ip_address(vip) for n, vip in VIPS.items()}

    def rules_and_devices() -> tuple[list[str], int]:
        return sorted(rule["fwmark"] for rule in rules(host)), len(devices(host))

    async def serve_by_turns() -> None:
        courier = Courier()
        with monkeypatch.context() as narrow:
            narrow.setattr("lb_xdp.via.device.MTU_BYTES", 1000)  # too small for IPv6
            with pytest.raises(HostError, match="leading probes"):
                await courier.serve(vips.values())
        assert rules_and_devices() == ([], 0)
        await courier.serve([vips[4]])
        before = rules_and_devices()
        assert (len(before[0]), before[1]) == (1, 1)
        (device,) = devices(host)
        host.ip(f"link set {device} mtu 1000")
        for wanted in (vips.values(), [vips[6]]):
            with pytest.raises(HostError):
                await courier.serve(wanted)
            assert rules_and_devices() == before
        host.ip(f"link set {device} mtu 1280")
        await courier.serve(vips.values())
        assert len(rules(host)) == 2
        host.ip(f"rule del pref {_OURS}")
        await courier.serve([vips[6]])
        assert len(rules(host)) == 1
        await courier.serve([])
        assert rules_and_devices() == ([], 0)

    with host.inside():
        asyncio.run(serve_by_turns())


@pytest.mark.parametrize("kind", ["udp", "tcp"])
@pytest.mark.parametrize("mode", ["dsr", "gue"])
def test_kinds_that_talk_go_the_same_way(lab: Lab, mode: str, kind: str) -> None:
    """A datagram or a line to the VIP is answered, and by nobody once the VIP is gone there."""
    network = build_network(lab, mode, 2, mtu=1600 if mode in TUNNEL_MODES else 1500)
    let_answers_in(network.gateway)
    for host in network.backends:
        Echo(host, 7000)
    talk = {"send": "up", "expect": "up"} if kind == "udp" else {"send": "up\n", "expect": "up"}
    check = {"type": kind, "port": 7000, "via": "datapath", "interval": "200ms", **talk}
    scene = gateway_on(network, config_for(network, mode=mode, health=check))
    scene.gateway.wait_until_up("b1", "b2", "b3")
    scene.backend("b2").ip("addr del 203.0.113.10/32 dev lo")
    scene.gateway.wait_until_down("b2")
    assert "203.0.113.10 on lo" in detail(scene.gateway, "b2")
