"""The systemd unit: what systemd itself says of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.unit_file import UNIT

EXPOSURE_MAX = 3.2

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing"
)


def analyze(tmp_path: Path, *arguments: str) -> str:
    """Return what systemd-analyze says of an instance of the unit."""
    unit = tmp_path / "lb-xdp@gw1.service"
    unit.write_text(UNIT.read_text())
    command = ["systemd-analyze", *arguments, str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@needs_systemd
def test_exposure_is_low(tmp_path: Path) -> None:
    """``systemd-analyze security`` gives no more than the documented score."""
    said = analyze(tmp_path, "security", "--offline=true", "--no-pager")
    if "overall exposure" not in said.lower():
        pytest.skip(f"this systemd-analyze knows no offline mode: {said[:200]}")
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", said)
    assert found is not None
    assert float(found[1]) <= EXPOSURE_MAX


@needs_systemd
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    """No directive is misspelled or misplaced; that the command is not installed is no matter."""
    said = analyze(tmp_path, "verify", "--man=no")
    assert not [line for line in said.splitlines() if str(tmp_path) in line], said
