"""Files are replaced as a whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lb_xdp import disk
from tests.unit.test_store import no_room

LASTING = pytest.mark.parametrize("lasting", [True, False], ids=["lasting", "a cache"])


@LASTING
def test_a_file_is_replaced(tmp_path: Path, *, lasting: bool) -> None:
    """Its directory is made, nothing is left beside it, and a group may read it at most."""
    path = tmp_path / "gw1" / "state.json"
    before = os.umask(0)
    try:
        for text in ("one", "two"):
            disk.replace(path, text, lasting=lasting)
    finally:
        os.umask(before)
    assert (path.read_text(), list(path.parent.iterdir())) == ("two", [path])
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o640, 0o750)


@LASTING
def test_without_room_the_old_one_stays(tmp_path: Path, *, lasting: bool) -> None:
    """A full disk takes no part of the new one."""
    path = tmp_path / "state.json"
    disk.replace(path, "old", lasting=lasting)
    with no_room(), pytest.raises(OSError, match="too large"):
        disk.replace(path, "new", lasting=lasting)
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])


def test_a_file_is_removed(tmp_path: Path) -> None:
    """Also where there is none, or no directory."""
    path = tmp_path / "state.json"
    path.touch()
    disk.remove(path)
    disk.remove(path)
    disk.remove(tmp_path / "gw1" / "state.json")
    assert not list(tmp_path.iterdir())
