"""SIGHUP under load: what is refused changes nothing, what is taken moves as little as it can."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support import pace
from tests.support.clients import Held, ShortResult, broken, short_connections
from tests.support.lab import Lab
from tests.support.scenes import Scene, Slots, web_scene
from tests.support.topologies import CLIENT_ADDRESSES

_RING_SLOTS = 65_537


@contextmanager
def watched(scene: Scene) -> Iterator[tuple[list[Held], list[ShortResult]]]:
    """Hold connections and send 1,000 requests per second; what became of them comes after."""
    results: list[ShortResult] = []
    with scene.held(interval_s=0.05) as held:
        load = scene.load()
        time.sleep(pace.lasting(0.3))
        yield held, results
        time.sleep(pace.lasting(0.3))
        results.append(load.stop())


def reload(scene: Scene, config: dict[str, Any] | str, *, success: bool = True) -> None:
    """Write the file, send SIGHUP, and return when the daemon has judged it."""
    stamp = "lb_xdp_config_last_reload_timestamp_seconds"
    before = scene.gateway.metric(stamp)
    scene.gateway.write(config)
    scene.gateway.reload()
    scene.gateway.wait_until(lambda: scene.gateway.metric(stamp) != before)
    assert scene.gateway.metric("lb_xdp_config_last_reload_success") == success


def changed(scene: Scene, edit: Any) -> dict[str, Any]:
    """Return the scene's configuration after ``edit`` has been at it."""
    config = copy.deepcopy(scene.config)
    edit(config)
    return config


def slots_of(scene: Scene) -> dict[str, int]:
    return {name: entry["slots"] for name, entry in scene.gateway.backends().items()}


def moved(before: Slots, after: Slots, held: list[Held], results: list[ShortResult]) -> None:
    """Assert that only connections whose slot has moved broke."""
    sources = [one.source for one in broken(held)]
    sources += [failure.source for result in results for failure in result.failures]
    stayed = [source for source in sources if before.owner(source) == after.owner(source)]
    assert not stayed, f"{len(stayed)} broke without need"
    assert any(before.owner(one.source) == after.owner(one.source) for one in held)


def test_a_broken_file_is_refused_and_nothing_changes(lab: Lab) -> None:
    """The messages are in log, status and metrics; program, ring and traffic are as before."""
    scene = web_scene(lab)
    programs, slots = scene.program_ids(), slots_of(scene)
    refused = changed(scene, lambda config: config["pools"][0]["backends"][0].update(weight=-1))
    with watched(scene) as (held, results):
        reload(scene, refused, success=False)
        (message,) = scene.gateway.status()["last_reload"]["errors"]
        reload(scene, "gateway: {name: [\n", success=False)
    assert re.search(r"lb\.yaml:\d+:\d+: pools\[0\]\.backends\[0\]\.weight: .*-1", message)
    assert "weight" in scene.gateway.log()
    assert (scene.program_ids(), slots_of(scene)) == (programs, slots)
    assert not results[0].failures
    assert not broken(held)
    reload(scene, scene.config)
    assert scene.program_ids() == programs


def test_a_fourth_backend_takes_no_more_than_its_share(lab: Lab) -> None:
    """At most its fair share and 2% of the slots move; connections on all other slots live on."""
    scene = web_scene(lab, backends=4)
    fourth = {"name": "b4", "host": "10.2.0.14", "port": 80, "weight": 200}
    config = changed(scene, lambda config: config["pools"][0]["backends"].append(fourth))
    slots = slots_of(scene)
    with watched(scene) as (held, results):
        reload(scene, config)
        scene.gateway.wait_until_up("b4")
    after = slots_of(scene)
    assert sum(after.values()) == _RING_SLOTS
    found = re.findall(r"(\d+) slots moved", scene.gateway.log())
    assert after["b4"] / _RING_SLOTS == pytest.approx(200 / 800, abs=0.001)
    assert max(map(int, found)) / _RING_SLOTS <= 200 / 800 + 0.02
    assert all(after[name] < count for name, count in slots.items())
    moved(Slots(scene.config), Slots(config), held, results)
    assert scene.ask().keys() == {"b1", "b2", "b3", "b4"}


def test_a_backend_that_leaves_the_file_gives_up_its_slots_alone(lab: Lab) -> None:
    """Taking a line out moves that backend's slots, and no connection to another one breaks."""
    scene = web_scene(lab)
    config = changed(scene, lambda config: config["pools"][0]["backends"].pop(0))
    with watched(scene) as (held, results):
        reload(scene, config)
    moved(Slots(scene.config), Slots(config), held, results)
    assert scene.ask().keys() == {"b2", "b3"}
    assert scene.gateway.backends()["b1"]["state"] == "drain"


def test_new_weights_are_written_in_place(lab: Lab) -> None:
    """Another weight changes the ring but not the program, and moves no slot without need."""
    scene = web_scene(lab)
    programs = scene.program_ids()
    config = changed(scene, lambda config: config["pools"][0]["backends"][0].update(weight=500))
    with watched(scene) as (held, results):
        reload(scene, config)
    assert scene.program_ids() == programs
    assert slots_of(scene)["b1"] / _RING_SLOTS == pytest.approx(0.5, abs=0.001)
    moved(Slots(scene.config), Slots(config), held, results)


@pytest.mark.parametrize("mode", ["nat", "dsr"])
def test_a_new_service_does_not_disturb_the_first(lab: Lab, mode: str) -> None:
    """Another VIP is served after SIGHUP, and on the first one no request fails."""
    scene = web_scene(lab, mode)
    second = {
        "name": "second",
        "vip": "203.0.113.11",
        "port": 80,
        "protocol": "tcp",
        "mode": mode,
        "pool": "web",
    }
    config = changed(scene, lambda config: config["services"].append(second))
    for host in scene.network.backends if mode == "dsr" else ():
        host.address("lo", "203.0.113.11/32")
    before = scene.gateway.backends()
    with watched(scene) as (held, results):
        reload(scene, config)
        there = short_connections(
            scene.client, "203.0.113.11", count=300, sources=CLIENT_ADDRESSES
        ).wait()
    assert not there.failures
    assert there.backends.keys() == {"b1", "b2", "b3"}
    assert not results[0].failures
    assert not broken(held)
    first = {b["name"]: b["packets"] for b in scene.gateway.status()["services"][0]["backends"]}
    assert all(first[name] > entry["packets"] for name, entry in before.items())


def test_a_reload_that_meets_a_stranger_changes_nothing(lab: Lab) -> None:
    """A new interface with someone else's program on it refuses the whole reload."""
    scene = web_scene(lab, backends=4)
    scene.gateway.host.ip("link add other type veth peer name rehto", "link set other up")
    stranger = "/sys/fs/bpf/lab-xdp-pass"
    scene.gateway.host.ip(f"link set other xdpdrv pinned {stranger}")
    programs, slots = scene.program_ids(), slots_of(scene)

    def edit(config: dict[str, Any]) -> None:
        config["gateway"]["interfaces"].append("other")
        config["pools"][0]["backends"].pop(0)
        config["pools"][0]["backends"].append({"name": "b4", "host": "10.2.0.14", "port": 80})

    with watched(scene) as (held, results):
        reload(scene, changed(scene, edit), success=False)
    assert not results[0].failures
    assert not broken(held)
    assert (scene.program_ids(), slots_of(scene)) == (programs, slots)
    scene.web["b1"].stop()
    scene.gateway.wait_until_down("b1")
    assert scene.ask().keys() == {"b2", "b3"}
