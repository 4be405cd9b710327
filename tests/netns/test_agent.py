"""Backends that speak for themselves: the real daemon, with an agent on each backend."""

from __future__ import annotations

from pathlib import Path

from tests.support import pace
from tests.support.clients import broken
from tests.support.gateway import config_for
from tests.support.lab import Host, Lab
from tests.support.scenes import Scene, build_network, gateway_on
from tests.support.servers import Nginx

PORT = 7002


class Agents:
    """What each backend says, by a socat that reads it from a file for every probe."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self, host: Host) -> None:
        """Have an agent on a host; it is up."""
        self.say(host.name, "up")
        listener = f"TCP-LISTEN:{PORT},fork,reuseaddr"
        host.popen("socat", listener, f"SYSTEM:cat {self._folder}/{host.name}")

    def say(self, name: str, line: str) -> None:
        """Change what a backend says."""
        new = self._folder / "new"
        new.write_text(f"{line}\n")
        new.rename(self._folder / name)


def scene_with(lab: Lab, agents: Agents) -> Scene:
    """Build a gateway whose backends have nginx and an agent, and return when all are up."""
    network = build_network(lab, "nat", 2)
    for host in network.backends:
        agents.start(host)
    web = {host.name: Nginx(lab, host) for host in network.backends}
    check = {"type": "agent", "port": PORT, "interval": pace.lasting(0.1), "threshold": 2}
    scene = gateway_on(network, config_for(network, health=check), web)
    scene.gateway.wait_until_up(*web)
    return scene


def test_a_backend_drains_and_returns_by_its_own_word(lab: Lab, tmp_path: Path) -> None:
    """No new connection while it says drain, none that is open breaks, and ready ends it."""
    agents = Agents(tmp_path)
    scene = scene_with(lab, agents)
    gateway = scene.gateway

    def wait_for(name: str, **wanted: object) -> None:
        gateway.wait_until(lambda: wanted.items() <= gateway.backends()[name].items())

    assert set(scene.ask()) == {"b1", "b2", "b3"}
    with scene.held() as outcome:
        for word in ("drain", "maint"):
            agents.say("b1", f"{word} # disks")
            wait_for("b1", state=word, health="up", weight=0)
            assert f"{word} by its agent" in gateway.backends()["b1"]["detail"]
            assert set(scene.ask()) == {"b2", "b3"}
        agents.say("b1", "ready 50%")
        wait_for("b1", state="up", weight=50)
        assert set(scene.ask()) == {"b1", "b2", "b3"}
    assert not broken(outcome)


def test_a_backend_that_says_down_is_down(lab: Lab, tmp_path: Path) -> None:
    """It is cut as if it had failed, with its reason in the status; a dead agent is no better."""
    agents = Agents(tmp_path)
    scene = scene_with(lab, agents)
    gateway = scene.gateway
    agents.say("b2", "down # out of memory")
    gateway.wait_until_down("b2")
    assert "down (out of memory)" in gateway.backends()["b2"]["detail"]
    assert set(scene.ask()) == {"b1", "b3"}
    agents.say("b2", "up")
    gateway.wait_until_up("b2")
    assert set(scene.ask()) == {"b1", "b2", "b3"}
