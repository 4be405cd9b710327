"""Faults of backends and of the network, under load: who fails, for how long, and nobody else.

One network for all: each test mends what it broke. ``--faults-table FILE`` keeps what each cost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import pace
from tests.support.faults import Cost, SlowDoor, blackholed, mended, suffered, went_down
from tests.support.lab import Lab
from tests.support.scenes import Scene, Slots, web_scene

_NOTICED_S = pace.lasting(1.0)
"""Probes every 100 ms, fall 2: 0.3 s when nothing else runs; the rest is for a busy machine."""

_FLAPS = 3


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        yield web_scene(lab)


@pytest.fixture(autouse=True)
def well(scene: Scene) -> Iterator[None]:
    """Begin and end with all backends up, and the kernel as the file asks; all answer."""
    with mended(scene):
        yield
    assert scene.ask().keys() == {"b1", "b2", "b3"}


def assert_only_b3(scene: Scene, cost: Cost, mended_at_s: float) -> None:
    """Requests and connections on b3's slots failed, for a moment; nothing once all was well.

    On a machine so busy that a healthy backend answers no probe for 200 ms, that one is taken out
    with all of its connections, as it is to be; that is said first.
    """
    others = went_down(scene, cost) - {"b3"}
    assert not others, "a healthy backend answered its probes too late: the machine is too busy"
    assert cost.owners(Slots(scene.config)) <= {"b3"}
    assert cost.requests > pace.rate(500)
    assert not cost.failed_since(mended_at_s)
    assert {one.backend for one in cost.held} == {"b1", "b2", "b3"}


def test_a_backend_that_refuses(scene: Scene, faults_table: Path | None) -> None:
    """Its process is killed: its requests fail until two probes have, its connections break."""
    with suffered(scene, "backend killed: connections refused", faults_table) as cost:
        scene.web["b3"].stop()
        scene.gateway.wait_until_down("b3")
        time.sleep(pace.lasting(0.3))
        scene.web["b3"].start()
        scene.gateway.wait_until_up("b3")
        mended_at_s = time.monotonic()
    assert_only_b3(scene, cost, mended_at_s)
    assert cost.last_failed_s < _NOTICED_S


def test_a_backend_in_a_black_hole(scene: Scene, faults_table: Path | None) -> None:
    """It answers nothing and refuses nothing: the same, a probe's timeout later."""
    with suffered(scene, "backend drops every packet", faults_table) as cost:
        with blackholed(scene.backend("b3")):
            scene.gateway.wait_until_down("b3")
            time.sleep(pace.lasting(0.3))
        scene.gateway.wait_until_up("b3")
        mended_at_s = time.monotonic()
    assert_only_b3(scene, cost, mended_at_s)
    assert cost.last_failed_s < _NOTICED_S


def test_a_backend_that_is_slow(scene: Scene, faults_table: Path | None) -> None:
    """Slower than a probe's timeout it is down, as if it were dead; within it, it is up."""
    door = SlowDoor(scene.backend("b3"))
    door.delay(pace.lasting(0.4))
    with suffered(scene, "backend answers 400 ms late, then 20 ms", faults_table) as cost:
        door.open()
        scene.gateway.wait_until_down("b3")
        door.delay(0.02)
        scene.gateway.wait_until_up("b3")
        mended_at_s = time.monotonic()
        time.sleep(pace.lasting(0.5))
        assert scene.gateway.is_up("b3")
    door.close()
    assert_only_b3(scene, cost, mended_at_s)


def test_a_backend_that_flaps(scene: Scene, faults_table: Path | None) -> None:
    """Down and up again and again: only its own slots are touched, each time."""
    with suffered(scene, f"backend dies and comes back {_FLAPS} times", faults_table) as cost:
        for _ in range(_FLAPS):
            scene.web["b3"].stop()
            scene.gateway.wait_until_down("b3")
            scene.web["b3"].start()
            scene.gateway.wait_until_up("b3")
        mended_at_s = time.monotonic()
    assert_only_b3(scene, cost, mended_at_s)


def test_a_backend_that_gets_another_mac(scene: Scene, faults_table: Path | None) -> None:
    """A replaced card that tells its new address by ARP, as cards do, is followed."""
    host = scene.backend("b3")
    host.sysctl(conf__eth0__arp_notify=1)
    before = host.mac("eth0")
    with suffered(scene, "backend's MAC address changes", faults_table) as cost:
        host.ip("link set eth0 address 02:00:00:00:03:99")
        scene.gateway.wait_until(lambda: mac_is(scene, "02:00:00:00:03:99"))
        scene.gateway.wait_until_up("b3")
        mended_at_s = time.monotonic()
    assert_only_b3(scene, cost, mended_at_s)
    host.ip(f"link set eth0 address {before}")
    scene.gateway.wait_until(lambda: mac_is(scene, before))


def mac_is(scene: Scene, mac: str) -> bool:
    """Say whether the gateway's kernel knows b3 by a MAC address."""
    neighbour = scene.gateway.host.run("ip", "neigh", "show", "10.2.0.13").stdout
    return mac in neighbour


def test_an_interface_of_the_gateway_goes_down_and_comes_back(
    scene: Scene, faults_table: Path | None
) -> None:
    """Everything behind it waits meanwhile; no connection breaks, and nothing fails after that.

    Of the backends nothing is known while there is no way to them, so what was known still holds.
    """
    gateway = scene.gateway
    failovers = gateway.metric("lb_xdp_failovers_total")
    with suffered(scene, "gateway's inner interface down for 0.5 s", faults_table) as cost:
        gateway.host.ip("link set eth1 down")
        gateway.wait_until_down("b1", "b2", "b3")
        time.sleep(pace.lasting(0.5))
        gateway.host.ip("link set eth1 up", "addr replace fd00:2::1/64 dev eth1 nodad")
        gateway.wait_until_up("b1", "b2", "b3")
        mended_at_s = time.monotonic()
    assert not cost.failed_since(mended_at_s)
    assert not cost.broken, cost.broken[:3]
    assert gateway.metric("lb_xdp_failovers_total") == failovers
