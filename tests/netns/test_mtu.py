"""Tunnels over an MTU of 1,500 on both sides: packet-too-big tells clients what fits."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.gateway import config_for, joined
from tests.support.lab import Lab, family_of
from tests.support.scenes import Scene, build_network, gateway_on, path_mtu
from tests.support.servers import Nginx, wait_for_port

pytestmark = pytest.mark.slow

_IPERF_PORT = 5201
_UPLOAD_BYTES = 10_000_000
_TUNNELS = [
    pytest.param(("ipip", 4, 4), 1480, id="IPv4 in IPv4"),
    pytest.param(("ipip", 6, 6), 1460, id="IPv6 in IPv6"),
    pytest.param(("ipip", 4, 6), 1460, id="IPv4 in IPv6"),
    pytest.param(("gue", 4, 4), 1472, id="gue over IPv4"),
    pytest.param(("gue", 6, 6), 1452, id="gue over IPv6"),
]


def build(lab: Lab, mode: str, family: int, backend_family: int) -> Scene:
    """Build a service of nginx and one of iperf3 on one backend."""
    network = build_network(lab, mode, 2, backends=1)
    (backend,) = network.backends
    web = Nginx(lab, backend)
    backend.popen("iperf3", "--server", stdout=subprocess.DEVNULL)
    wait_for_port(backend, _IPERF_PORT)
    configs = (
        config_for(
            network,
            mode=mode,
            port=port,
            backend_port=port,
            family=family,
            backend_family=backend_family,
            health="none",
            service={"name": name},
        )
        for name, port in (("web", 80), ("iperf", _IPERF_PORT))
    )
    return gateway_on(network, joined(*configs), {"b1": web})


def iperf_upload(scene: Scene) -> float:
    """Return the bits per second at which iperf3 got 20 MB to the backend."""
    command = ("iperf3", "--client", scene.vip, "--bytes", "20M", "--json", "--connect-timeout")
    done = scene.client.run(*command, "3000", timeout_s=30)
    received = json.loads(done.stdout)["end"]["sum_received"]
    assert received["bytes"] > 10e6  # what is under way at the end is not counted
    return float(received["bits_per_second"])


def curl_upload(scene: Scene, folder: Path) -> None:
    data = os.urandom(_UPLOAD_BYTES)
    (folder / "sent").write_bytes(data)
    host = f"[{scene.vip}]" if family_of(scene.vip) == 6 else scene.vip
    url = f"http://{host}/files/large"
    curl = ("curl", "-g", "--silent", "--show-error", "--fail", "--max-time", "20")
    scene.client.run(*curl, "--upload-file", str(folder / "sent"), url)
    arrived = (scene.web["b1"].files / "large").read_bytes()
    assert hashlib.sha256(arrived).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize(("tunnel", "mtu"), _TUNNELS)
def test_uploads_do_not_vanish(
    lab: Lab, tmp_path: Path, tunnel: tuple[str, int, int], mtu: int
) -> None:
    """The client learns the MTU from the gateway, and uploads go on at once, and fast."""
    scene = build(lab, *tunnel)
    assert path_mtu(scene.client, scene.vip) == 1500
    curl_upload(scene, tmp_path)
    assert path_mtu(scene.client, scene.vip) == mtu
    assert iperf_upload(scene) > 20e6
    assert scene.gateway.metric("lb_xdp_packets_total", reason="too_big", verdict="forward") > 0


def test_a_larger_mtu_behind_the_gateway_needs_no_answer(lab: Lab, tmp_path: Path) -> None:
    """With 1,600 octets between gateway and backends nothing is too big."""
    network = build_network(lab, "ipip", 2, backends=1, mtu=1600)
    web = Nginx(lab, network.backends[0])
    scene = gateway_on(network, config_for(network, mode="ipip", health="none"), {"b1": web})
    curl_upload(scene, tmp_path)
    assert path_mtu(scene.client, scene.vip) == 1500
    assert scene.gateway.metric("lb_xdp_packets_total", reason="too_big") == 0
