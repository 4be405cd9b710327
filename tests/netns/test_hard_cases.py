"""Cases found by reading the code with fresh eyes: each of them went wrong once."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support import pace, xdp_pass
from tests.support.gateway import Gateway, config_for
from tests.support.lab import Host, Lab
from tests.support.scenes import Scene, undisturbed, web_scene
from tests.support.servers import Nginx
from tests.support.topologies import VIP, two_armed

_STAMP = "lb_xdp_config_last_reload_timestamp_seconds"


def occupied(scene: Scene, name: str) -> None:
    """Give the gateway one more interface, on which a stranger's program runs."""
    side = scene.network.lab.host("side")
    scene.network.lab.cable(side, "eth0", scene.network.gateway, name)
    program = Path("/sys/fs/bpf/stranger")
    xdp_pass.pin(program)
    scene.network.gateway.run("ip", "link", "set", name, "xdp", "pinned", str(program))


def reload(gateway: Gateway, config: dict[str, Any]) -> bool:
    """Reload, and say whether the new file was taken."""
    before = gateway.metric(_STAMP)
    gateway.write(config)
    gateway.reload()
    gateway.wait_until(lambda: gateway.metric(_STAMP) != before)
    return gateway.metric("lb_xdp_config_last_reload_success") == 1


def served(client: Host, port: int = 80) -> bool:
    limit = f"{pace.lasting(1):g}"
    return client.run("curl", "-sSm", limit, f"http://{VIP}:{port}/", check=False).returncode == 0


def test_a_reload_that_cannot_attach_changes_nothing(lab: Lab) -> None:
    """Another structure and an interface that is taken: refused, and the old one goes on."""
    scene = web_scene(lab, "nat", 2)
    occupied(scene, "eth9")
    wanted = copy.deepcopy(scene.config)
    wanted["gateway"]["interfaces"].append("eth9")
    wanted["services"][0]["port"] = 81
    programs = scene.program_ids()
    with undisturbed(scene):
        assert not reload(scene.gateway, wanted)
        time.sleep(0.3)
    assert scene.program_ids() == programs
    assert served(scene.client)
    assert not served(scene.client, 81)
    scene.web["b1"].stop()
    scene.gateway.wait_until_down("b1")
    assert served(scene.client)


def test_a_refused_reload_does_not_judge_by_its_own_checks(lab: Lab) -> None:
    """The present check goes on deciding about live backends while a new file is tried."""
    scene = web_scene(lab, "nat", 2)
    occupied(scene, "eth9")
    wanted = copy.deepcopy(scene.config)
    wanted["gateway"]["interfaces"].append("eth9")
    wanted["pools"][0]["health"]["expected_status"] = 418
    wanted["pools"][0]["backends"].append({"name": "b9", "host": "10.2.0.99", "port": 80})
    with undisturbed(scene):
        assert not reload(scene.gateway, wanted)
    assert scene.gateway.metric("lb_xdp_failovers_total") == 0


def test_a_failover_does_not_wait_for_a_reload(lab: Lab) -> None:
    """While a reload waits for a silent new backend, a dead one still loses its slots."""
    scene = web_scene(lab, "nat", 2)
    wanted = copy.deepcopy(scene.config)
    wanted["pools"][0]["backends"].append({"name": "b9", "host": "10.2.0.99", "port": 80})
    before = scene.gateway.metric(_STAMP)
    scene.gateway.write(wanted)
    scene.gateway.reload()
    time.sleep(0.2)
    scene.web["b1"].stop()
    scene.gateway.wait_until(lambda: scene.gateway.backends()["b1"]["slots"] == 0)
    assert scene.gateway.metric(_STAMP) == before, "the reload was over: nothing is shown"
    scene.gateway.wait_until(lambda: "b9" in scene.gateway.backends())


def test_one_interface_without_native_xdp_makes_all_generic(lab: Lab) -> None:
    """A native program cannot redirect to a bridge, so auto takes generic mode for all."""
    network = two_armed(lab)
    for backend in network.backends:
        Nginx(lab, backend)
    gateway_host = network.gateway
    gateway_host.ip("link add br0 type bridge", "link set eth1 master br0", "link set br0 up")
    gateway_host.ip("address flush dev eth1")
    gateway_host.address("br0", "10.2.0.1/24")
    gateway_host.sysctl(conf__br0__forwarding=1)
    config = config_for(network)
    config["gateway"]["interfaces"] = ["eth0", "br0"]
    gateway = Gateway(network, config)
    gateway.start()
    gateway.wait_until_up("b1", "b2", "b3")
    modes = {p["interface"]: p["mode"] for p in gateway.status()["datapath"]["programs"]}
    assert modes == {"eth0": "generic", "br0": "generic"}
    assert "generic mode, which is slower" in gateway.log()
    assert served(network.client)


def test_a_renamed_interface_keeps_its_program(lab: Lab) -> None:
    """After a rename and a restart the link is found on the interface, under its new name."""
    scene = web_scene(lab, "nat", 2)
    programs = scene.program_ids()
    scene.gateway.kill()
    for line in ("set eth1 down", "set eth1 name lan1", "set lan1 up"):
        scene.network.gateway.ip(f"link {line}")
    renamed = copy.deepcopy(scene.config)
    renamed["gateway"]["interfaces"] = ["eth0", "lan1"]
    scene.gateway.write(renamed)
    scene.gateway.start()
    scene.gateway.wait_until_up("b1", "b2", "b3")
    found = scene.gateway.status()["datapath"]["programs"]
    assert {program["interface"]: program["id"] for program in found} == {
        "eth0": programs["eth0"],
        "lan1": programs["eth1"],
    }
    assert served(scene.client)


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_restart_in_another_mode(lab: Lab, mode: str) -> None:
    """A restart with another xdp_mode attaches anew in that mode, and forwards."""
    scene = web_scene(lab, "dsr", 1)
    scene.gateway.terminate()
    other = copy.deepcopy(scene.config)
    other["gateway"]["xdp_mode"] = mode
    scene.gateway.write(other)
    scene.gateway.start()
    modes = {p["mode"] for p in scene.gateway.status()["datapath"]["programs"]}
    assert modes == {mode}
    assert served(scene.client)


def test_ctrl_c_while_it_starts_leaves_nothing(lab: Lab) -> None:
    """Stopped before it was ready, the daemon attaches nothing and leaves no pin."""
    network = two_armed(lab)
    gateway = Gateway(network, config_for(network))
    gateway.start(wait_s=0)
    socket = Path("/run/lb-xdp/gw1/api.sock")
    gateway.wait_until(socket.exists)
    assert gateway.terminate() == 0
    assert not Path("/sys/fs/bpf/lb-xdp/gw1").exists()
    assert not Path("/run/lb-xdp/gw1").exists()
    assert "xdp" not in network.gateway.link("eth0")
