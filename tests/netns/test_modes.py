"""Every mode and IP version carries requests, large files and datagrams to real backends."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import PATIENT_CHECK, config_for, joined
from tests.support.lab import Lab, family_of
from tests.support.scenes import WEIGHTS, Scene, build_network, gateway_on, udp_ask, wait_until
from tests.support.servers import Echo, Nginx
from tests.support.topologies import CLIENTS, DIRECT_MODES, VIPS, Network

_FILE_BYTES = 100_000_000
_DATAGRAMS = 100
_MODES = ("dsr", "ipip", "gue", "nat", "fullnat")
_CROSSING = [("ipip", 4, 6), ("ipip", 6, 4)]
_SAME_FAMILY = [(mode, family, family) for mode in _MODES for family in (4, 6)]
_TWO_ARMED = [
    pytest.param(*case, id="{}, IPv{}, backends IPv{}".format(*case))
    for case in _SAME_FAMILY + _CROSSING
]
_TUNNEL_MTU = {"ipip": 1600, "gue": 1600}
"""Behind the gateway. How less does is test_mtu's subject."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a large file, and its hash."""
    path = tmp_path_factory.mktemp("noise") / "noise"
    path.write_bytes(os.urandom(_FILE_BYTES))
    return path, hash_of(path)


def hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def services(
    network: Network, mode: str, family: int, backend_family: int, suffix: str = ""
) -> dict[str, Any]:
    """Return a configuration of web on TCP and echo on UDP, ports translated where they can be."""
    translates = mode not in DIRECT_MODES
    options: dict[str, Any] = {"mode": mode, "family": family, "backend_family": backend_family}
    web = config_for(
        network,
        backend_port=8080 if translates else 80,
        health=PATIENT_CHECK,
        service={"name": f"web{suffix}"},
        **options,
    )
    echo = config_for(
        network,
        protocol="udp",
        port=7000,
        backend_port=7001 if translates else 7000,
        health="none",
        service={"name": f"echo{suffix}"},
        **options,
    )
    return joined(web, echo)


def serve(network: Network, config: dict[str, Any], mode: str) -> tuple[Scene, dict[str, Echo]]:
    """Start what the services need, and the gateway; return when all backends are up."""
    web_port, echo_port = (80, 7000) if mode in DIRECT_MODES else (8080, 7001)
    web = {host.name: Nginx(network.lab, host, web_port) for host in network.backends}
    echoes = {host.name: Echo(host, echo_port) for host in network.backends}
    scene = gateway_on(network, config, web)
    scene.gateway.wait_until_up(*WEIGHTS)
    wait_until(lambda: all_up(scene), "every service has all backends")
    return scene, echoes


def all_up(scene: Scene) -> bool:
    services = scene.gateway.status()["services"]
    return all(b["state"] == "up" for service in services for b in service["backends"])


def curl(scene: Scene, vip: str, *arguments: str) -> str:
    command = ("curl", "-g", "--silent", "--show-error", "--fail", "--max-time", "60")
    host = f"[{vip}]" if family_of(vip) == 6 else vip
    return scene.client.run(*command, *arguments, f"http://{host}/files/large").stdout


def assert_transfers(scene: Scene, vip: str, noise: tuple[Path, str]) -> None:
    """A file comes down from a backend and goes up to one, each byte of it."""
    path, wanted = noise
    for web in scene.web.values():
        (web.files / "large").hardlink_to(path)
    got = scene.network.lab.directory / "got"
    curl(scene, vip, "--output", str(got))
    assert hash_of(got) == wanted
    got.unlink()
    for web in scene.web.values():
        (web.files / "large").unlink()
    curl(scene, vip, "--upload-file", str(path))
    (arrived,) = (f for web in scene.web.values() if (f := web.files / "large").exists())
    assert hash_of(arrived) == wanted
    arrived.unlink()


def counted(scene: Scene, service: str) -> dict[str, dict[str, Any]]:
    (found,) = (one for one in scene.gateway.status()["services"] if one["name"] == service)
    return {backend["name"]: backend for backend in found["backends"]}


def syns_repeated(scene: Scene) -> int:
    """Return how many SYNs the client's kernel has sent again."""
    shown = scene.client.run("nstat", "-asz", "TcpExtTCPSynRetrans").stdout
    return int(shown.splitlines()[-1].split()[1])


def assert_answers(scene: Scene, vip: str, echoes: dict[str, Echo], suffix: str = "") -> None:
    """Each backend answers requests and datagrams, and status counts each of them."""
    before = {name: entry["flows"] for name, entry in counted(scene, f"web{suffix}").items()}
    before_udp = {name: echo.stats()["udp_datagrams"] for name, echo in echoes.items()}
    sources = CLIENTS[family_of(vip)]
    repeated = syns_repeated(scene)
    asked = scene.ask(count=90, vip=vip, sources=sources)
    assert asked.keys() == WEIGHTS.keys()
    flows = {name: entry["flows"] for name, entry in counted(scene, f"web{suffix}").items()}
    more = Counter({name: n - before[name] - asked[name] for name, n in flows.items()})
    # A SYN that a busy machine lost, or had no answer in time, is repeated, and counts again.
    assert min(more.values()) >= 0, (asked, more)
    assert more.total() <= syns_repeated(scene) - repeated, (asked, more)
    answers = Counter(udp_ask(scene.client, [(vip, 7000)] * _DATAGRAMS, source=sources[1]))
    assert answers.keys() == WEIGHTS.keys()
    got = {name: echo.stats()["udp_datagrams"] - before_udp[name] for name, echo in echoes.items()}
    shown = counted(scene, f"echo{suffix}")
    assert answers == got == {name: entry["packets"] for name, entry in shown.items()}
    through = scene.config["services"][0]["mode"] not in DIRECT_MODES
    replies = {name: entry["reply_packets"] for name, entry in shown.items()}
    assert replies == (got if through else dict.fromkeys(got, 0))


@pytest.mark.parametrize(("mode", "family", "backend_family"), _TWO_ARMED)
def test_two_armed(
    lab: Lab, mode: str, family: int, backend_family: int, noise: tuple[Path, str]
) -> None:
    """Requests and datagrams to each of three backends, a file each way, and the counters agree."""
    network = build_network(lab, mode, 2, mtu=_TUNNEL_MTU.get(mode, 1500))
    scene, echoes = serve(network, services(network, mode, family, backend_family), mode)
    assert_answers(scene, VIPS[family], echoes)
    assert_transfers(scene, VIPS[family], noise)
    assert {family_of(service["vip"]) for service in scene.config["services"]} == {family}


@pytest.mark.parametrize("mode", _MODES)
def test_one_armed(lab: Lab, mode: str, noise: tuple[Path, str]) -> None:
    """The same through a gateway with one interface, with both IP versions side by side."""
    network = build_network(lab, mode, 1, mtu=_TUNNEL_MTU.get(mode, 1500))
    config = joined(services(network, mode, 4, 4), services(network, mode, 6, 6, "6"))
    scene, echoes = serve(network, config, mode)
    for family, suffix in ((4, ""), (6, "6")):
        assert_answers(scene, VIPS[family], echoes, suffix)
        assert_transfers(scene, VIPS[family], noise)
