"""The daemon's own life: killed, stopped, started again, detached, and who else is there."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lb_xdp.datapath import syscall
from tests.support import pace, xdp_pass
from tests.support.clients import broken
from tests.support.gateway import Gateway, config_for
from tests.support.lab import Lab
from tests.support.scenes import Scene, Slots, build_network, undisturbed, wait_until, web_scene

_PINS = Path("/sys/fs/bpf/lb-xdp/gw1")
_STRANGER_PIN = Path("/sys/fs/bpf/stranger")
_ALONE_S = 10
"""How long a killed controller stays away."""


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "arms", "alone_s"), [("nat", 2, _ALONE_S), ("dsr", 1, 1)])
def test_a_killed_controller_is_not_missed(lab: Lab, mode: str, arms: int, alone_s: float) -> None:
    """kill -9, seconds alone, a new start: nothing fails, counters go on, same program."""
    scene = web_scene(lab, mode, arms)
    programs = scene.program_ids()
    with undisturbed(scene):
        before = scene.counters()
        scene.gateway.kill()
        time.sleep(alone_s)
        assert scene.program_ids() == programs
        scene.gateway.start()
    after = scene.counters()
    assert len(programs) == len(scene.network.gateway_interfaces)
    assert scene.program_ids() == programs
    for name, (packets, flows) in before.items():
        assert after[name][0] >= packets + pace.rate(100) * alone_s
        assert after[name][1] > flows


def test_sigterm_leaves_forwarding_on(lab: Lab) -> None:
    """SIGTERM ends the daemon with 0; traffic goes on, status finds nobody, a restart is unseen."""
    scene = web_scene(lab)
    programs = scene.program_ids()
    with undisturbed(scene):
        assert scene.gateway.terminate() == 0
        assert scene.gateway.command("status", check=False).returncode == 4
        time.sleep(0.5)
        scene.gateway.start()
    assert scene.program_ids() == programs


def test_a_restart_remembers_who_was_down(lab: Lab) -> None:
    """A new controller sends nothing to a backend that was down before it has answered a probe."""
    scene = web_scene(lab)
    scene.web["b3"].stop()
    scene.gateway.wait_until_down("b3")
    with undisturbed(scene):
        scene.gateway.kill()
        scene.gateway.start()
    assert not scene.gateway.is_up("b3")


def test_a_restart_takes_a_changed_file(lab: Lab) -> None:
    """What was changed in the file while no controller ran is there after the start."""
    scene = web_scene(lab)
    scene.gateway.kill()
    config = copy.deepcopy(scene.config)
    config["pools"][0]["backends"][0]["weight"] = 0
    scene.gateway.write(config)
    slots = Slots(scene.config)
    with scene.held() as held:
        scene.gateway.start()
        scene.gateway.wait_until_up("b2", "b3")
    assert {slots.owner(one.source) for one in broken(held)} <= {"b1"}
    assert scene.ask().keys() == {"b2", "b3"}


@pytest.mark.parametrize("running", [True, False], ids=["running", "killed"])
def test_detach_removes_program_and_pins(lab: Lab, running: bool) -> None:  # noqa: FBT001 - a case
    """After detach no program, pin or daemon is left, whether or not one was running."""
    scene = web_scene(lab)
    programs = scene.program_ids()
    if not running:
        scene.gateway.kill()
    said = scene.gateway.command("detach", "--yes")
    assert "removed" in said.stdout
    if running:
        assert scene.gateway.wait() == 0
    assert scene.program_ids() == {}
    assert not _PINS.exists()
    ids = set(programs.values())
    wait_until(lambda: not any(map(xdp_pass.program_exists, ids)), "the program is freed")
    assert scene.gateway.command("status", check=False).returncode == 4


def test_a_second_daemon_of_the_same_name_is_refused(lab: Lab) -> None:
    """It names the first one's pid and ends with 1; the first one goes on undisturbed."""
    scene = web_scene(lab)
    with undisturbed(scene):
        refused = scene.gateway.command("run", "-c", str(scene.gateway.config_path), check=False)
    assert refused.returncode == 1
    assert f"pid {scene.gateway.pid}" in refused.stderr
    assert scene.gateway.status()["pid"] == scene.gateway.pid


def test_a_second_gateway_on_the_same_interface_is_refused(lab: Lab) -> None:
    """Another name on the same interface is a stranger; it leaves neither pin nor change."""
    scene = web_scene(lab)
    programs = scene.program_ids()
    config = copy.deepcopy(scene.config)
    config["gateway"] |= {"name": "gw2", "metrics": {"listen": "127.0.0.1:9465"}}
    second = Gateway(scene.network, config)
    with undisturbed(scene):
        refused = second.command("run", "-c", str(second.config_path), check=False)
    assert refused.returncode == 1
    assert "--replace" in refused.stderr
    assert str(programs["eth0"]) in refused.stderr
    assert not _PINS.with_name("gw2").exists()
    assert scene.program_ids() == programs


def attach_by_netlink(scene_gateway: Gateway, interface: str) -> int:
    scene_gateway.host.ip(f"link set {interface} xdpdrv pinned {_STRANGER_PIN}")
    return -1


def attach_by_link(scene_gateway: Gateway, interface: str) -> int:
    index = int(scene_gateway.host.link(interface)["ifindex"])
    program = syscall.open_pin(str(_STRANGER_PIN))
    with scene_gateway.host.inside():
        link = syscall.link_create(program, index, syscall.XdpFlag.NATIVE)
    os.close(program)
    return link


@pytest.fixture
def stranger() -> Iterator[None]:
    xdp_pass.pin(_STRANGER_PIN)
    yield
    _STRANGER_PIN.unlink()


@pytest.mark.usefixtures("stranger")
@pytest.mark.parametrize("attach", [attach_by_netlink, attach_by_link])
def test_a_strangers_program_stays_unless_told_to_replace_it(lab: Lab, attach: Any) -> None:
    """`run` names it, changes nothing and ends with 1; with --replace it takes the place."""
    network = build_network(lab, "nat", 2)
    config = config_for(network, health="none")
    gateway = Gateway(network, config)
    scene = Scene(network, gateway, config, {})
    link = attach(gateway, "eth1")
    program = scene.program_ids()
    refused = gateway.command("run", "-c", str(gateway.config_path), check=False)
    assert refused.returncode == 1
    assert "eth1 runs an XDP program that is not ours" in refused.stderr
    assert f"id {program['eth1']}" in refused.stderr
    assert "--replace" in refused.stderr
    assert scene.program_ids() == program
    assert not _PINS.exists()
    gateway.start("--replace")
    assert scene.program_ids().keys() == {"eth0", "eth1"}
    assert program["eth1"] not in scene.program_ids().values()
    if link >= 0:
        os.close(link)
