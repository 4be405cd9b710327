"""Pins that this version did not make: gone on with where they mean the same, refused elsewhere."""

from __future__ import annotations

import copy
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.maps import BpfMap, MapSpec
from lb_xdp.datapath.syscall import MapType
from tests.support.lab import Lab
from tests.support.scenes import undisturbed, wait_until, web_scene

_PINS = Path("/sys/fs/bpf/lb-xdp/gw1")
_PRESENT = f"v{layout().version}"


def other_layout() -> None:
    """Have the pins be those of a version that did not say what its maps mean."""
    shutil.rmtree(_PINS / _PRESENT / "formats")
    (_PINS / _PRESENT).rename(_PINS / "v0")


def other_counters() -> None:
    """Put a map of another shape where the counters are pinned."""
    path = _PINS / _PRESENT / "maps/counts"
    path.unlink()
    u32 = np.dtype(np.uint32)
    with BpfMap.create(MapSpec("counts", MapType.ARRAY, u32, u32, 4)) as stranger:
        stranger.pin(path)


@pytest.mark.parametrize("disguise", [other_layout, other_counters])
def test_pins_of_another_layout(lab: Lab, disguise: Callable[[], None]) -> None:
    """`run` refuses and says what to do, --replace takes over, and no request is lost."""
    scene = web_scene(lab)
    scene.gateway.kill()
    disguise()
    programs = scene.program_ids()
    with undisturbed(scene):
        refused = scene.gateway.command("run", "-c", str(scene.gateway.config_path), check=False)
        assert refused.returncode == 1
        assert "of another layout" in refused.stderr
        assert "--replace" in refused.stderr
        assert scene.program_ids() == programs
        scene.gateway.start("--replace")
    wait_until(lambda: not (_PINS / "v0").exists(), "the old pins are removed")
    assert scene.program_ids().keys() == programs.keys()


def test_a_takeover_that_fails_leaves_forwarding_on(lab: Lab) -> None:
    """--replace over pins of another layout with a port in use changes nothing."""
    scene = web_scene(lab)
    scene.gateway.kill()
    other_layout()
    programs = scene.program_ids()
    config = copy.deepcopy(scene.config)
    config["gateway"]["metrics"]["listen"] = "127.0.0.1:9999"
    scene.gateway.write(config)
    with scene.gateway.host.inside():
        taken = socket.create_server(("127.0.0.1", 9999))
    with taken, undisturbed(scene):
        arguments = ("run", "-c", str(scene.gateway.config_path), "--replace")
        refused = scene.gateway.command(*arguments, check=False)
        assert refused.returncode == 1
        assert scene.program_ids() == programs
