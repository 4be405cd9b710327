"""Backends that die and come back under 1,000 new connections per second."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest

from tests.support import pace
from tests.support.clients import Failure, broken
from tests.support.lab import Lab
from tests.support.scenes import Scene, Slots, web_scene

_log = logging.getLogger(__name__)

_NOTICED_S = pace.lasting(1.0)
"""Probes every 100 ms, fall 2: 0.3 s when nothing else runs; the rest is for a busy machine."""

Harm = Callable[[Scene], None]


def stop(scene: Scene) -> None:
    scene.web["b3"].stop()


def freeze(scene: Scene) -> None:
    scene.web["b3"].freeze()


def unplug(scene: Scene) -> None:
    scene.backend("b3").ip("link set eth0 down")


def last_s(failures: list[Failure], since_s: float) -> float:
    """Return how long after a moment the last request that failed was begun."""
    return max((failure.at_s - since_s for failure in failures), default=0.0)


@pytest.mark.parametrize(
    ("mode", "arms", "harm"),
    [("nat", 2, stop), ("nat", 2, freeze), ("nat", 2, unplug), ("dsr", 1, freeze)],
)
def test_a_dead_backend_costs_a_moment_of_its_own_requests(
    lab: Lab, mode: str, arms: int, harm: Harm
) -> None:
    """Only its requests fail, only until two probes have; open connections to others live on."""
    scene = web_scene(lab, mode, arms)
    slots = Slots(scene.config)
    with scene.held(interval_s=0.05) as held:
        load = scene.load(timeout_s=1)
        time.sleep(pace.lasting(0.5))
        harmed_at_s = time.monotonic()
        harm(scene)
        time.sleep(pace.lasting(1.5))
        result = load.stop()
    noticed_s = last_s(result.failures, harmed_at_s)
    _log.info(
        "%s %s: %d failed, the last at %.3f s", mode, harm.__name__, len(result.failures), noticed_s
    )
    assert {slots.owner(failure.source) for failure in result.failures} <= {"b3"}
    assert noticed_s < _NOTICED_S
    assert {one.backend for one in held} == {"b1", "b2", "b3"}
    assert {one.backend for one in broken(held)} <= {"b3"}
    assert scene.ask().keys() == {"b1", "b2"}


def test_a_backend_comes_back_to_its_slots(lab: Lab) -> None:
    """The same connections reach it as before; those that are open elsewhere stay unless theirs."""
    scene = web_scene(lab)
    slots = Slots(scene.config)
    scene.client.sysctl(ip_local_reserved_ports="20000-20099")
    before = scene.ask(count=600, first_port=20_000)
    scene.web["b3"].stop()
    scene.gateway.wait_until_down("b3")
    with scene.held(interval_s=0.05) as held:
        load = scene.load()
        time.sleep(pace.lasting(0.3))
        scene.web["b3"].start()
        scene.gateway.wait_until_up("b3")
        time.sleep(pace.lasting(0.3))
        result = load.stop()
    assert {slots.owner(one.source) for one in broken(held)} <= {"b3"}
    assert {slots.owner(failure.source) for failure in result.failures} <= {"b3"}
    assert any(slots.owner(one.source) != "b3" for one in held)
    assert scene.ask(count=600, first_port=20_000) == before
    assert scene.gateway.metric("lb_xdp_failovers_total") == 1


def test_a_service_without_backends_says_so_and_comes_back(lab: Lab) -> None:
    """With all backends down packets are dropped and counted; status tells, and it mends itself."""
    scene = web_scene(lab)
    for web in scene.web.values():
        web.stop()
    scene.gateway.wait_until_down("b1", "b2", "b3")
    lost = scene.load(count=10, timeout_s=0.2).wait()
    assert len(lost.failures) == 10
    assert scene.gateway.metric("lb_xdp_packets_total", reason="no_backend", verdict="drop") >= 10
    assert "web" in " ".join(scene.gateway.status()["notices"])
    for web in scene.web.values():
        web.start()
    scene.gateway.wait_until_up("b1", "b2", "b3")
    assert scene.ask().keys() == {"b1", "b2", "b3"}
