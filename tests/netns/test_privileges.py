"""The daemon with no more privileges than its unit gives it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support import pace
from tests.support.gateway import Gateway, config_for
from tests.support.lab import Lab
from tests.support.scenes import Scene, build_network
from tests.support.servers import Nginx
from tests.support.unit_file import confined, directive

_PR_SET_MDWE = 65


def prepared(lab: Lab) -> Scene:
    """Return a scene whose daemon is not started yet."""
    network = build_network(lab, "nat", 2)
    config = config_for(network, backend_port=80)
    web = {host.name: Nginx(lab, host, 80) for host in network.backends}
    return Scene(network, Gateway(network, config), config, web)


def capabilities(pid: int) -> int:
    """Return the effective ones as a bit mask."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"CapEff:\s+([0-9a-f]+)", text)[0], 16)


def works(scene: Scene) -> None:
    """Start, forward, fail over, reload to another program, survive a kill, and detach."""
    gateway = scene.gateway
    gateway.wait_until_up("b1", "b2", "b3")
    assert set(scene.ask()) == {"b1", "b2", "b3"}
    scene.web["b1"].stop()
    gateway.wait_until_down("b1")
    gateway.take(
        scene.config | {"services": [scene.config["services"][0] | {"no_backend": "reject"}]}
    )
    assert set(scene.ask()) == {"b2", "b3"}


def test_capabilities_of_the_unit_are_enough(lab: Lab) -> None:
    """Root with the unit's capabilities alone does all that full root does."""
    scene = prepared(lab)
    scene.gateway.start(by=confined())
    assert capabilities(scene.gateway.pid).bit_count() == len(directive("CapabilityBoundingSet"))
    works(scene)
    scene.gateway.kill()
    scene.gateway.start(by=confined())
    assert set(scene.ask()) == {"b2", "b3"}
    scene.gateway.command("detach")
    assert not scene.program_ids()


def test_another_user_is_enough_where_files_are_its_own(lab: Lab) -> None:
    """With ambient capabilities it need not even be root by name, given a bpffs that it may use."""
    scene = prepared(lab)
    lab.directory.chmod(0o755)
    for path in (lab.directory, *lab.directory.rglob("gateway-*")):
        path.chmod(0o755)
    places = ("/sys/fs/bpf", "/run/lb-xdp", "/var/lib/lb-xdp", str(_compiled()))
    subprocess.run(["chown", "-R", "nobody:nogroup", *places], check=True)
    lab.on_close.callback(subprocess.run, ["chown", "-R", "0:0", *places], check=True)
    scene.gateway.start(by=confined("--reuid=nobody", "--regid=nogroup", "--clear-groups"))
    works(scene)


def _compiled() -> Path:
    folder = Path(tempfile.gettempdir(), "compiled")
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("missing", ["bpf", "perfmon", "net_admin"])
def test_missing_capability_is_named(lab: Lab, missing: str) -> None:
    """Without one that it needs the daemon refuses to start and names it."""
    scene = prepared(lab)
    scene.gateway.start(
        by=(*confined()[:2], "--bounding-set", f"-all,{_others(missing)}"), wait_s=0
    )
    assert scene.gateway.wait() == 1
    assert f"CAP_{missing.upper()}" in scene.gateway.log()


def _others(missing: str) -> str:
    names = ("bpf", "perfmon", "net_admin")
    return ",".join(f"+{name}" for name in names if name != missing)


def test_watchdog_is_answered_by_the_loop_that_decides(lab: Lab) -> None:
    """systemd hears of a start and then, again and again, of life; a stopped process is silent."""
    scene = prepared(lab)
    path = lab.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(path))
        channel.settimeout(pace.lasting(30))
        settings = (f"NOTIFY_SOCKET={path}", "WATCHDOG_USEC=400000")
        scene.gateway.start(by=("env", *settings))
        said = [channel.recv(256).decode() for _ in range(4)]
    assert said[0].startswith("READY=1")
    assert said[1:] == ["WATCHDOG=1"] * 3


def test_memory_is_never_both_written_and_executed(lab: Lab) -> None:
    """MemoryDenyWriteExecute holds for the daemon and for the compiler in its child process."""
    code = f"import ctypes, os, sys; assert not ctypes.CDLL(None).prctl({_PR_SET_MDWE}, 1, 0, 0, 0)"
    if subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode:
        pytest.skip("prctl(PR_SET_MDWE) is there since Linux 6.3")
    scene = prepared(lab)
    start = (sys.executable, "-c", f"{code}; os.execvp(sys.argv[1], sys.argv[1:])")
    scene.gateway.start(by=(*start, "env", "LB_XDP_COMPILE_CACHE="))
    works(scene)
