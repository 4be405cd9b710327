"""Large files through nat, byte for byte."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests.support import pace
from tests.support.lab import Lab
from tests.support.scenes import Scene, web_scene
from tests.support.topologies import VIP

_FILE_BYTES = 100_000_000
_URL = f"http://{VIP}/files/large"


@pytest.fixture
def scene(lab: Lab) -> Scene:
    return web_scene(lab, weights=[100])


def hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_noise(path: Path) -> str:
    """Fill a file with random bytes; return their hash."""
    path.write_bytes(os.urandom(_FILE_BYTES))
    return hash_of(path)


def curl(scene: Scene, *arguments: str) -> None:
    command = ("curl", "--silent", "--show-error", "--fail", "--max-time", f"{pace.lasting(60):g}")
    scene.client.run(*command, *arguments, timeout_s=70)


def test_a_download_comes_through_byte_for_byte(scene: Scene, tmp_path: Path) -> None:
    """100 MB from a backend to the client are the same on arrival."""
    wanted = write_noise(scene.web["b1"].files / "large")
    curl(scene, "--output", str(tmp_path / "got"), _URL)
    assert hash_of(tmp_path / "got") == wanted


def test_an_upload_comes_through_byte_for_byte(scene: Scene, tmp_path: Path) -> None:
    """100 MB from the client to a backend are the same on arrival."""
    wanted = write_noise(tmp_path / "sent")
    curl(scene, "--upload-file", str(tmp_path / "sent"), _URL)
    assert hash_of(scene.web["b1"].files / "large") == wanted
