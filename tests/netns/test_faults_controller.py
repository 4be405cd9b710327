"""Faults of the controller and of its host, under load: traffic does not notice.

One network for all: each test mends what it broke. ``--faults-table FILE`` keeps what each cost.
"""

from __future__ import annotations

import copy
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import pace
from tests.support.clock import WallClock
from tests.support.faults import Cost, full_disk, mended, read_kernel, suffered
from tests.support.gateway import reweighted
from tests.support.lab import Lab
from tests.support.scenes import Scene, web_scene

_STOPPED_S = 10
_HOUR_S = 3600
_ROUTES = 20_000
"""Their notices, of half a kilobyte each and more in the kernel's books, overrun 4 MB."""


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        yield web_scene(lab)


@pytest.fixture(autouse=True)
def well(scene: Scene) -> Iterator[None]:
    """Begin and end with all backends up, and the kernel as the file asks."""
    with mended(scene):
        yield


def assert_free(cost: Cost) -> None:
    """The fault cost nothing: no request failed, no connection broke."""
    assert cost.requests > pace.rate(300)
    assert not cost.failures, cost.failures[:3]
    assert not cost.broken, cost.broken[:3]


def test_a_reload(scene: Scene, faults_table: Path | None) -> None:
    """Another weight, another structure, and back: nobody notices."""
    with suffered(scene, "reload: a weight, a service more, and back", faults_table) as cost:
        scene.gateway.take(reweighted(scene.config, 50))
        more = copy.deepcopy(scene.config)
        more["services"].append(more["services"][0] | {"name": "more", "port": 81})
        scene.gateway.take(more)
        scene.gateway.take(scene.config)
    assert_free(cost)


def test_a_controller_that_is_killed(scene: Scene, faults_table: Path | None) -> None:
    """kill -9, a second without, and a new start: nobody notices."""
    programs = scene.program_ids()
    with suffered(scene, "controller: kill -9, started again after 1 s", faults_table) as cost:
        scene.gateway.kill()
        time.sleep(pace.lasting(1))
        scene.gateway.start()
    assert_free(cost)
    assert scene.program_ids() == programs


@pytest.mark.slow
def test_a_controller_that_stands_still(scene: Scene, faults_table: Path | None) -> None:
    """SIGSTOP for ten seconds: nobody notices, and its late probes take no backend down."""
    failovers = scene.gateway.metric("lb_xdp_failovers_total")
    with suffered(scene, f"controller: SIGSTOP for {_STOPPED_S} s", faults_table) as cost:
        os.kill(scene.gateway.pid, signal.SIGSTOP)
        time.sleep(_STOPPED_S)
        os.kill(scene.gateway.pid, signal.SIGCONT)
        assert scene.gateway.get("/readyz")[0] == 200
    assert_free(cost)
    assert scene.gateway.metric("lb_xdp_failovers_total") == failovers


def test_a_controller_that_loses_notices(scene: Scene, faults_table: Path | None) -> None:
    """More changes than its socket holds: it says so, reads all anew and knows the last state."""
    gateway, host = scene.gateway, scene.gateway.host
    routes = [f"10.{64 + n // 250}.{n % 250}.0/28" for n in range(_ROUTES // 2)]
    with suffered(
        scene, f"controller: stopped while {_ROUTES} routes change", faults_table
    ) as cost:
        os.kill(gateway.pid, signal.SIGSTOP)
        host.ip(*(f"route add {route} via 10.1.0.2" for route in routes),
                *(f"route del {route}" for route in routes),
                "link set eth1 mtu 1400")  # fmt: skip
        os.kill(gateway.pid, signal.SIGCONT)
        gateway.wait_until(lambda: "netlink overrun" in gateway.log())
        gateway.wait_until(lambda: mtus(scene) == {1400})
    assert_free(cost)
    host.ip("link set eth1 mtu 1500")
    gateway.wait_until(lambda: mtus(scene) == {1500})


def mtus(scene: Scene) -> set[int]:
    """Return the MTUs in the kernel's records of the backends."""
    return {record.mtu for record in read_kernel(scene).records.values()}


def test_a_clock_that_is_set_back(scene: Scene, faults_table: Path | None) -> None:
    """An hour back: nobody notices, probes and failover go on at their pace, ages stay sane."""
    clock = WallClock(scene.network.lab.directory)
    scene.gateway.terminate()
    scene.gateway.start(program=clock.command)
    scene.gateway.wait_until_up("b1", "b2", "b3")
    began_s = scene.gateway.status()["timestamp_s"]
    with suffered(scene, "wall clock set back an hour", faults_table) as cost:
        clock.set_back(_HOUR_S)
        scene.gateway.wait_until(lambda: scene.gateway.status()["timestamp_s"] < began_s)
        time.sleep(pace.lasting(0.5))
    assert_free(cost)
    scene.web["b3"].stop()
    harmed_at_s = time.monotonic()
    scene.gateway.wait_until_down("b3")
    assert time.monotonic() - harmed_at_s < pace.lasting(2)
    scene.web["b3"].start()
    scene.gateway.wait_until_up("b3")
    status = scene.gateway.status()
    for backend in scene.gateway.backends().values():
        assert 0 <= status["timestamp_s"] - backend["since_timestamp_s"] < 60
    scene.gateway.terminate()
    scene.gateway.start()


def test_a_disk_that_is_full(scene: Scene, faults_table: Path | None) -> None:
    """What has to be kept cannot be: the change is made and traffic goes on, and status says so.

    Once there is room, the next cycle keeps it.
    """
    gateway = scene.gateway
    state = Path("/var/lib/lb-xdp", gateway.name)
    less = copy.deepcopy(scene.config)
    less["pools"][0]["backends"].pop()
    with full_disk(state) as ballast:
        with suffered(scene, "disk full; a backend is removed", faults_table) as cost:
            gateway.take(less)
            gateway.wait_until(lambda: "cannot be written" in scene.gateway.notices())
        assert_free(cost)
        ballast.unlink()
        gateway.take(reweighted(less, 50))
        gateway.wait_until(lambda: "cannot be written" not in scene.gateway.notices())
        assert "10.2.0.13" in (state / "state.json").read_text()
    gateway.take(scene.config)
