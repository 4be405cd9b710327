"""The journal of a real gateway: what happened, why, and for how much of the time all was well."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support import pace
from tests.support.gateway import HTTP_CHECK
from tests.support.lab import Lab
from tests.support.scenes import Scene, wait_until, web_scene


def events(scene: Scene, *arguments: str) -> list[dict[str, Any]]:
    """Return what ``lb-xdp events -o json`` prints."""
    shown = scene.gateway.command("events", "-o", "json", *arguments).stdout
    return [json.loads(line) for line in shown.splitlines()]


def states(scene: Scene, backend: str) -> list[str]:
    """Return the states that a backend has had."""
    return [e["after"] for e in events(scene, "--backend", backend, "--kind", "backend_state")]


def test_death_of_a_backend_is_told_with_its_cause(lab: Lab) -> None:
    """Who, from what to what, what the probe was answered and how long it took; share of time."""
    scene = web_scene(lab)
    scene.web["b1"].stop()
    scene.gateway.wait_until_down("b1")
    wait_until(lambda: states(scene, "b1") == ["up", "down"], "it is in the journal")
    (died,) = events(scene, "--backend", "b1", "-n", "1")
    assert (died["service"], died["before"], died["after"]) == ("web", "up", "down")
    assert "refused" in died["cause"]
    assert 0 <= died["duration_s"] < pace.lasting(1)
    scene.web["b1"].start()
    scene.gateway.wait_until_up("b1")
    hour = {name: b["availability"]["1h"] for name, b in scene.gateway.backends().items()}
    assert 0 < hour["b1"]["up"] < 1
    assert hour["b2"]["up"] == 1
    ratio = "lb_xdp_backend_availability_ratio"
    assert scene.gateway.metric(ratio, backend="b2", window="24h") == 1
    assert 0 < scene.gateway.metric(ratio, backend="b1", window="30d") < 1


def test_journal_goes_on_after_kill(lab: Lab) -> None:
    """After kill -9 in the middle of a line the next daemon reads it all and never counts anew."""
    scene = web_scene(lab)
    wait_until(lambda: states(scene, "b1") == ["up"], "the first states are in the journal")
    before = events(scene)
    scene.gateway.kill()
    path = Path("/var/lib/lb-xdp/gw1/events.jsonl")
    with path.open("a") as file:
        file.write('{"number": 99, "timest')
    scene.gateway.start()
    wait_until(lambda: events(scene)[-1]["number"] > before[-1]["number"], "it goes on")
    after = events(scene)
    assert after[: len(before)] == before
    numbers = [event["number"] for event in after]
    assert numbers == sorted(set(numbers))
    assert [e["number"] for e in events(scene, "--since", str(before[-1]["number"]))] == numbers[
        len(before) :
    ]


def test_events_are_followed(lab: Lab) -> None:
    """``events --follow`` prints what happens while it happens."""
    scene = web_scene(lab)
    gateway = scene.gateway
    wait_until(lambda: states(scene, "b2") == ["up"], "the first states are in the journal")
    process = gateway.follow("events", "--follow", "-n", "1", "--backend", "b2", "-o", "json")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["after"] == "up"
    scene.web["b2"].stop()
    event = json.loads(process.stdout.readline())
    assert (event["kind"], event["backend"], event["after"]) == ("backend_state", "b2", "down")


def test_full_disk_costs_nothing_but_a_notice(lab: Lab) -> None:
    """With no room for events the gateway decides as before and says so; later all are written."""
    folder = Path("/var/lib/lb-xdp/gw1")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)
    lab.on_close.callback(lambda: subprocess.run(["umount", "-l", folder], check=True))
    scene = web_scene(lab)
    wait_until(lambda: states(scene, "b1") == ["up"], "the first states are in the journal")
    filler = folder / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(os.urandom(1 << 20))
    before = (folder / "events.jsonl").read_bytes()
    (folder / "events.jsonl").write_bytes(before)  # its last page has room for no more
    scene.web["b1"].stop()
    scene.gateway.wait_until_down("b1")
    for _ in range(60):  # refused reloads are events as well
        scene.gateway.write("nonsense")
        scene.gateway.command("reload", check=False)
        if any("events cannot be written" in n for n in scene.gateway.status()["notices"]):
            break
    else:
        raise AssertionError("the disk did not become full")
    assert scene.ask(count=20)["b1"] == 0
    filler.unlink()
    wait_until(
        lambda: not any("cannot be written" in n for n in scene.gateway.status()["notices"]),
        "there is room again",
    )
    kept = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [e["number"] for e in kept] == [e["number"] for e in events(scene, "-n", "1000")]


def test_flapping_backend_is_held_down(lab: Lab) -> None:
    """A backend that comes and goes stays away for a while although its probes succeed again."""
    damping = {"changes": 4, "within": "1h", "hold": "1h", "max_hold": "1h"}
    check = HTTP_CHECK | {"threshold": 1}
    scene = web_scene(lab, health=check)
    pool = scene.config["pools"][0] | {"damping": damping}
    scene.gateway.take(scene.config | {"pools": [pool]})
    for _ in range(2):
        scene.web["b1"].stop()
        scene.gateway.wait_until_down("b1")
        scene.web["b1"].start()
        wait_until(
            lambda: scene.gateway.is_up("b1") or events(scene, "--kind", "flapping") != [],
            "it is up again, or held",
        )
    (flapping,) = events(scene, "--kind", "flapping")
    assert flapping["backend"] == "b1"
    assert "held down" in flapping["cause"]
    backend = scene.gateway.backends()["b1"]
    assert backend["state"] == "down"
    assert "flapping" in backend["detail"]
    assert scene.ask(count=20)["b1"] == 0
