"""What traffic tells: backends that leave clients unanswered, and connections of dead ones."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support import pace
from tests.support.clients import broken
from tests.support.flood import flood
from tests.support.gateway import PATIENT_CHECK
from tests.support.lab import Host, Lab
from tests.support.scenes import Scene, web_scene
from tests.support.topologies import VIP

RARE = {"type": "tcp", "interval": "60s", "timeout": "500ms", "threshold": {"rise": 1, "fall": 1}}
"""Probes that find nothing out by themselves while a test lasts."""

DETECT = {"interval": "2s", "min_flows": 10, "base_time": "2s"}


def detecting_scene(lab: Lab, mode: str = "nat", **options: Any) -> Scene:
    """Build a scene whose backends are watched."""
    detect = DETECT | options.pop("detect", {})
    arms = 1 if mode == "dsr" else 2
    health = options.pop("health", PATIENT_CHECK)
    scene = web_scene(lab, mode, arms, health=health, weights=(100, 100, 100), **options)
    scene.config["pools"][0]["detect"] = detect
    scene.gateway.take(scene.config)
    return scene


@contextmanager
def deaf(host: Host, *sources: str) -> Iterator[None]:
    """Have a backend drop what these addresses, or all, send to its port 80."""
    only = f"ip saddr {{ {', '.join(sources)} }} " if sources else ""
    hook = "type filter hook prerouting priority -400;"
    text = f"table inet deaf {{\nchain deaf {{\n{hook}\n{only}tcp dport 80 drop\n}}\n}}\n"
    host.run("nft", "-f", "-", stdin=text)
    yield
    host.run("nft", "delete", "table", "inet", "deaf")


def events(scene: Scene, name: str = "b3") -> list[str]:
    """Return what was said of a backend, in order."""
    return re.findall(rf"web/{name}: (suspected|ejected|returned): ", scene.gateway.log())


def handshakes(scene: Scene, what: str = "handshakes", **labels: str) -> float:
    return scene.gateway.metric(f"lb_xdp_backend_{what}_total", **labels)


@pytest.mark.parametrize("mode", ["nat", "dsr"])
def test_a_backend_that_answers_nobody_is_probed_at_once(lab: Lab, mode: str) -> None:
    """Down long before its next probe is due; and that is the probe's word, not the traffic's."""
    scene = detecting_scene(lab, mode, health=RARE)
    load = scene.load(timeout_s=0.5)
    with deaf(scene.backend("b3")):
        scene.gateway.wait_until_down("b3", timeout_s=20)
        detail = scene.gateway.backends()["b3"]["detail"]
    load.stop()
    assert "timed out" in detail
    assert events(scene) == ["suspected"]
    assert scene.gateway.metric("lb_xdp_backend_ejected") == 0


def test_without_eject_probes_have_the_last_word(lab: Lab) -> None:
    """A backend that answers probes and no client is suspected, shown, and left in service."""
    scene = detecting_scene(lab)
    load = scene.load(timeout_s=0.5)
    with deaf(scene.backend("b3"), *scene.sources):
        scene.gateway.wait_until(lambda: events(scene) == ["suspected"])
        time.sleep(pace.lasting(2))
        assert scene.gateway.is_up("b3")
    load.stop()
    unanswered = handshakes(scene, backend="b3") - handshakes(
        scene, "handshakes_answered", backend="b3"
    )
    assert unanswered > 10


def test_with_eject_it_is_out_until_its_time_is_over(lab: Lab) -> None:
    """It gets no client meanwhile, says why, and pays for the second time with twice the time."""
    scene = detecting_scene(lab, detect={"eject": True})
    load = scene.load(timeout_s=0.5)
    with deaf(scene.backend("b3"), *scene.sources):
        scene.gateway.wait_until_down("b3")
        shown = scene.gateway.backends()["b3"]
        assert (shown["state"], shown["ejected"]) == ("down", True)
        assert shown["detail"].startswith("ejected: ")
        assert "handshakes unanswered in" in shown["detail"]
        scene.gateway.wait_until_up("b3")
        scene.gateway.wait_until_down("b3")
    scene.gateway.wait_until_up("b3", timeout_s=20)
    result = load.stop()
    assert events(scene) == ["suspected", "ejected", "returned"] * 2
    assert scene.ask().keys() == {"b1", "b2", "b3"}
    assert not [f for f in result.failures if "refused" in f.error or "reset" in f.error]


@pytest.mark.parametrize("mode", ["nat", "dsr"])
def test_a_flood_ejects_nobody(lab: Lab, mode: str) -> None:
    """Half a million SYNs that nobody meant: none is suspected, and clients are served."""
    scene = detecting_scene(lab, mode, detect={"eject": True})
    mac = scene.network.gateway.mac("eth0")
    load = scene.load(rate_per_s=pace.rate(100))
    flood(scene.client, "eth0", mac, (VIP, 80), count=500_000)
    assert handshakes(scene) > 400_000
    time.sleep(pace.lasting(4))
    load.stop()
    assert not [word for name in ("b1", "b2", "b3") for word in events(scene, name)]
    assert all(scene.gateway.is_up(name) for name in ("b1", "b2", "b3"))


def test_how_long_backends_take_is_a_histogram(lab: Lab) -> None:
    """Every answered handshake is in it, beside the counters."""
    scene = detecting_scene(lab)
    scene.ask(count=300)
    name = "lb_xdp_backend_handshake_duration_seconds"
    answered = handshakes(scene, "handshakes_answered")
    assert answered >= 300
    assert scene.gateway.metric(f"{name}_count") == answered
    assert scene.gateway.metric(f"{name}_bucket", le="+Inf") == answered
    assert 0 < scene.gateway.metric(f"{name}_sum") < answered
    assert handshakes(scene) - answered < 5  # the probes' own do not pass here


@pytest.mark.parametrize("mode", ["nat", "dsr", "fullnat"])
def test_connections_of_a_dead_backend_are_reset(lab: Lab, mode: str) -> None:
    """By the gateway, once for each; those to others, and new ones on its slots, live on."""
    arms = 1 if mode == "dsr" else 2
    scene = web_scene(lab, mode, arms, service={"on_backend_down": "reset"})
    with scene.held(interval_s=0.1, timeout_s=5) as held:
        time.sleep(pace.lasting(0.5))
        scene.backend("b3").ip("link set eth0 down")
        scene.gateway.wait_until_down("b3")
        with scene.held(interval_s=0.1, timeout_s=5) as later:
            time.sleep(pace.lasting(1))
        scene.backend("b3").ip("link set eth0 up")
        scene.gateway.wait_until_up("b3")
        time.sleep(pace.lasting(0.5))
    assert {one.backend for one in held} == {"b1", "b2", "b3"}
    assert {one.backend for one in broken(held)} == {"b3"}
    assert len(broken(held)) == sum(one.backend == "b3" for one in held)
    assert {one.backend for one in later} == {"b1", "b2"}
    assert not broken(later)
    resets = scene.gateway.metric("lb_xdp_packets_total", reason="reset")
    assert resets >= len(broken(held))
