"""Nothing that runs in the sandbox outlives it, however it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import xdp_pass
from tests.support.lab import Lab

# What a test run that is killed in the middle has going: a lab, a server in the background, an
# attached program, a pin, a daemon's files. It tells what to look for, and hangs.
_INNER = """
import json, os, pathlib, subprocess, sys, time
from tests.support import sandbox, xdp_pass
sandbox.enter()
from tests.support.lab import Lab
lab = Lab()
left, right = lab.host("left"), lab.host("right")
lab.cable(left, "eth0", right, "eth0")
child = right.popen("sh", "-c", sys.argv[1])
pathlib.Path("/sys/fs/bpf/lb-xdp").mkdir()
xdp_pass.pin(pathlib.Path("/sys/fs/bpf/lb-xdp/pin"))
pathlib.Path("/var/lib/lb-xdp/state").touch()
program = left.link("eth0")["xdp"]["prog"]["id"]
spaces = [os.readlink(f"/proc/{who}/ns/net") for who in ("self", child.pid)]
print(json.dumps({"program": program, "namespaces": spaces}), flush=True)
time.sleep(1000)
"""


_WAITS_FOR_CTRL_C = """
import time
try:
    print("up", flush=True)
    time.sleep(1000)
except KeyboardInterrupt:
    exit(7)
"""
_WRAPPER = (sys.executable, "-m", "tests.support.sandbox")


@pytest.mark.parametrize(
    ("wrapper", "server"),
    [
        pytest.param(_WRAPPER, "sleep 1000 & wait", id="scripts-test, grandchildren too"),
        pytest.param((), "exec sleep 1000", id="plain pytest"),
    ],
)
def test_a_killed_run_leaves_nothing_behind(wrapper: tuple[str, ...], server: str) -> None:
    """After SIGKILL in the middle no process, namespace, mount, pin or program of it is left."""
    before = _mounts_and_files()
    command = [*wrapper, sys.executable, "-c", _INNER, server]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        seen = json.loads(run.stdout.readline())
        assert xdp_pass.program_exists(seen["program"])
        assert _processes_in(seen["namespaces"])
        run.send_signal(signal.SIGKILL)
    _wait_until(lambda: not _processes_in(seen["namespaces"]))
    _wait_until(lambda: not xdp_pass.program_exists(seen["program"]))
    assert _mounts_and_files() == before


def test_ctrl_c_and_sigterm_end_the_run_with_its_exit_code() -> None:
    """SIGTERM reaches the command as Ctrl-C would, and its exit code comes back."""
    command = [*_WRAPPER, sys.executable, "-c", _WAITS_FOR_CTRL_C]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        run.stdout.readline()
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=10) == 7


def test_the_machines_interfaces_are_out_of_sight() -> None:
    """A test sees the loopback of its own network namespace, up, and no other interface."""
    links = json.loads(subprocess.check_output(["ip", "-j", "link"]))
    assert [link["ifname"] for link in links] == ["lo"]
    assert "UP" in links[0]["flags"]
    assert _names("/sys/class/net") == ["lo"]


def test_a_lab_takes_everything_with_it() -> None:
    """Closing a lab ends its processes and removes its namespaces and files."""
    with Lab() as lab:
        process = lab.host("one").popen("sleep", "1000")
        folder = lab.directory
    assert process.returncode == -signal.SIGKILL
    assert not folder.exists()
    assert _names("/run/netns") == []


def _names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def _mounts_and_files() -> tuple[list[str], ...]:
    folders = ("/run", "/run/netns", "/sys/fs/bpf", "/var/lib/lb-xdp")
    return (sorted(Path("/proc/mounts").read_text().splitlines()), *map(_names, folders))


def _processes_in(namespaces: list[str]) -> list[str]:
    return [pid for pid in filter(str.isdigit, _names("/proc")) if _net(pid) in namespaces]


def _net(pid: str) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:  # ended meanwhile
        return ""


def _wait_until(holds: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "still there"
        time.sleep(0.02)
