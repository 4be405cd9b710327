"""What the daemon does when an interface of its gateway goes away, comes back, or goes down."""

from __future__ import annotations

from tests.support import pace
from tests.support.gateway import Gateway
from tests.support.lab import Host, Lab
from tests.support.scenes import web_scene
from tests.support.topologies import VIP


def answers(client: Host) -> bool:
    """Say whether the VIP serves a request."""
    limit = f"{pace.lasting(1):g}"
    done = client.run("curl", "-sS", "-m", limit, f"http://{VIP}/", check=False)
    return done.returncode == 0


def attached(gateway: Gateway) -> set[str]:
    return {program["interface"] for program in gateway.status()["datapath"]["programs"]}


def test_an_interface_that_is_made_anew_is_attached_again(lab: Lab) -> None:
    """A removed interface takes its backends down; its successor is attached and forwards."""
    scene = web_scene(lab)
    network, gateway = scene.network, scene.gateway
    assert answers(network.client)
    network.gateway.ip("link delete eth1")
    gateway.wait_until_down("b1", "b2", "b3")
    gateway.wait_until(lambda: attached(gateway) == {"eth0"})
    network.switch.plug(network.gateway, "eth1")
    network.gateway.address("eth1", "10.2.0.1/24")
    gateway.wait_until_up("b1", "b2", "b3")
    assert attached(gateway) == {"eth0", "eth1"}
    gateway.wait_until(lambda: answers(network.client))
    assert "severed" not in gateway.log()


def test_an_interface_that_was_down_forwards_when_it_is_up(lab: Lab) -> None:
    """Link down takes down the backends behind it and says why; link up brings them back."""
    scene = web_scene(lab)
    network, gateway = scene.network, scene.gateway
    network.gateway.ip("link set eth1 down")
    gateway.wait_until_down("b1", "b2", "b3")
    assert "10.2.0.11" in gateway.backends()["b1"]["detail"]
    network.gateway.ip("link set eth1 up")
    gateway.wait_until_up("b1", "b2", "b3")
    assert answers(network.client)
