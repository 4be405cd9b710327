"""Overrides by the commands that an operator types, on a real gateway with real flows."""

from __future__ import annotations

import json
import subprocess

from tests.support import pace
from tests.support.gateway import COMMAND
from tests.support.lab import Lab
from tests.support.scenes import Line, Scene, echo_scene

_BY_ROOT = "root (uid 0)"


def tracked_scene(lab: Lab) -> Scene:
    """Return a scene of a service that records every flow, so that none can hide."""
    scene, _ = echo_scene(
        lab,
        "nat",
        2,
        protocol="tcp",
        service={"algorithm": "least_connections"},
        gateway={"flow_table": {"settle": "1s", "tcp_closing": "1s"}},
    )
    return scene


def line_to(scene: Scene, backend: str) -> Line:
    """Open connections until one is to the backend, and return that; the others stay."""
    for _ in range(100):
        line = scene.line()
        if line.ask() == backend:
            return line
    raise AssertionError(f"no new flow goes to {backend}")


def test_drain_waits_for_the_last_connection(lab: Lab) -> None:
    """The command says what is left and ends when that does; too slow is exit 1, still drained."""
    scene = tracked_scene(lab)
    gateway = scene.gateway
    old = line_to(scene, "b1")
    drain = ("backend", "drain", "web/b1", "--reason", "new disks", "--wait")
    late = gateway.command(*drain, "--timeout", "100ms", check=False)
    assert (late.returncode, late.stdout.splitlines()[0]) == (1, "web/b1: drain")
    assert "after 100ms" in late.stderr
    assert "it stays drained" in late.stderr
    patient = (*drain, "--timeout", f"{pace.lasting(60):g}s")
    waiting = scene.network.gateway.popen(
        COMMAND, "--name", gateway.name, *patient, stdout=subprocess.PIPE
    )
    assert waiting.stdout is not None
    shown = iter(waiting.stdout.readline, "")
    assert any(line == "web/b1: 1 recorded flow, 1 connection left\n" for line in shown)
    assert old.ask() == "b1"
    assert waiting.poll() is None
    old.close()
    assert list(shown)[-1] == "web/b1: no flow is left\n"
    assert waiting.wait() == 0
    assert gateway.backends()["b1"]["state"] == "drain"


def test_an_operators_day(lab: Lab) -> None:
    """Weight, maint, cut, list, show and clear; everybody sees who asked for what, and why."""
    scene = tracked_scene(lab)
    assert scene.said("override", "list") == "no overrides: the file holds\n"
    asked = ("--reason", "slow today", "--expires", "1h")
    assert scene.said("backend", "weight", "web/b1", "50", *asked) == "web/b1: ready, weight 50\n"
    assert scene.said("backend", "disable", "web/b1") == "web/b1: maint, weight 50\n"
    assert scene.said("backend", "disable", "--cut", "web/b2") == "web/b2: down\n"
    assert {scene.line().ask() for _ in range(20)} == {"b3"}

    listed = json.loads(scene.said("override", "list", "-o", "json"))
    assert [(o["backend"], o["kind"], o["value"], o["author"]) for o in listed] == [
        ("b1", "admin", "maint", _BY_ROOT),
        ("b1", "weight", "50", _BY_ROOT),
        ("b2", "admin", "down", _BY_ROOT),
    ]
    for command in (("override", "list"), ("backend", "show", "web/b1")):
        assert _BY_ROOT in scene.said(*command)
    assert "slow today" in scene.said("override", "list")
    events = scene.said("events", "--kind", "override_set", "-o", "json").splitlines()
    assert [json.loads(event)["author"] for event in events] == [_BY_ROOT] * 3
    assert scene.said("reload") == "1 service; 0 slots moved\n"

    assert scene.said("backend", "enable", "web/b1") == "web/b1: ready, weight 50\n"
    assert scene.gateway.backends()["b1"]["weight"] == 50
    scene.said("backend", "weight", "web/b1", "default")
    assert scene.gateway.backends()["b1"]["weight"] == 100
    assert scene.said("override", "clear", "--all") == "web/b2: down is cleared\n"
    for name in ("b1", "b2"):
        line_to(scene, name)

    for name, words in (
        ("web/b9", "service web has no backend b9; backends: b1, b2, b3"),
        ("wbe/b1", "there is no service wbe; did you mean web? services: web"),
    ):
        refused = scene.gateway.command("backend", "drain", name, check=False)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr == f"error: {words}\n"
    heavy = scene.gateway.command("backend", "weight", "web/b1", "65536", check=False)
    assert (heavy.returncode, "0 to 65535" in heavy.stderr) == (1, True)
