"""A stock kernel and real drivers: the daemon in a machine forwards for real clients outside."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.lab import Host
from tests.support.scenes import wait_until
from tests.vm.conftest import BACKENDS, DSR_VIP, FALLBACKS, IPIP_VIP, NAT_VIP, Site
from tests.vm.machine import Machine

_CONFIG = "/etc/lb-xdp/gw1.yaml"
_UNIT = Path(__file__).parents[2] / "docs" / "lb-xdp@.service"
_REQUESTS = 30
_TRANSFER_BYTES = 5_000_000
_CURL = ("-sS", "--fail", "--max-time", "120")
_START_S = 180
"""A compilation takes half a minute where the machine is emulated, and 15 s more if it is busy."""


def config(interfaces: Sequence[str]) -> str:
    """Return a configuration file: nat, dsr and ipip on a VIP each, three backends."""
    backends = [
        {"name": name, "host": f"10.2.0.{10 + number}", "port": 80}
        for number, name in enumerate(BACKENDS, start=1)
    ]
    check = {"type": "http", "path": "/healthz", "interval": "1s", "timeout": "900ms"}
    services = [
        {"name": mode, "vip": vip, "port": 80, "protocol": "tcp", "mode": mode, "pool": "web"}
        for mode, vip in (("nat", NAT_VIP), ("dsr", DSR_VIP), ("ipip", IPIP_VIP))
    ]
    document = {
        "gateway": {"name": "gw1", "interfaces": list(interfaces)},
        "pools": [{"name": "web", "backends": backends, "health": check}],
        "services": services,
    }
    return json.dumps(document)


class Daemon:
    """lb-xdp@gw1 in the machine, by its unit."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.write("/etc/systemd/system/lb-xdp@.service", _UNIT.read_text())
        # Where this is set, a second start of the same program does not compile it again.
        machine.write(
            "/etc/systemd/system/lb-xdp@.service.d/cache.conf",
            "[Service]\nEnvironment=LB_XDP_COMPILE_CACHE=/tmp/compiled\n",
        )
        machine.run("systemctl", "daemon-reload")

    def start(self, *interfaces: str) -> None:
        """Start it, and return when systemd heard that it forwards."""
        self.machine.write(_CONFIG, config(interfaces))
        start = ("systemctl", "start", "lb-xdp@gw1")
        started = self.machine.run(*start, check=False, timeout_s=_START_S)
        assert started.returncode == 0, self.log()

    def remove(self) -> None:
        """Stop it, and take the program off."""
        self.machine.run("systemctl", "disable", "--now", "lb-xdp@gw1")
        self.machine.run("lb-xdp", "--name", "gw1", "detach", "--yes", check=False)

    def status(self) -> dict[str, Any]:
        """Return its status, as soon as its last probe has decided about each backend."""
        shown = self.machine.run("lb-xdp", "--name", "gw1", "status", "-o", "json").stdout
        status: dict[str, Any] = json.loads(shown)
        return status

    def modes(self) -> dict[str, str]:
        """Return native or generic for each interface."""
        programs = self.status()["datapath"]["programs"]
        return {program["interface"]: program["mode"] for program in programs}

    def log(self) -> str:
        """Return its journal of this boot."""
        return self.machine.run("journalctl", "-b", "-o", "cat", "-u", "lb-xdp@gw1").stdout


@pytest.fixture
def daemon(site: Site) -> Iterator[Daemon]:
    """Provide the daemon, not running; afterwards nothing of it is left."""
    daemon = Daemon(site.machine)
    yield daemon
    daemon.remove()


def ask(client: Host, vip: str, count: int = _REQUESTS) -> Counter[str]:
    """Return which backends answer ``count`` requests, each on a connection of its own."""
    options = ("-sS", "--max-time", "3", "--fail-early", "-H", "Connection: close")
    done = client.run("curl", *options, f"http://{vip}/?[1-{count}]", check=False, timeout_s=120)
    return Counter(done.stdout.split())


def wait_until_all_answer(client: Host, vip: str, *, timeout_s: float = 30) -> None:
    """Return when every backend has answered: probes have found them, the program forwards."""
    wait_until(
        lambda: ask(client, vip, 1).total() == 1 and ask(client, vip).keys() == {*BACKENDS},
        f"every backend answers at {vip}",
        timeout_s=timeout_s,
    )


@pytest.mark.timeout(900)
def test_virtio_forwards_natively_and_again_after_a_reboot(site: Site, daemon: Daemon) -> None:
    """Through virtio cards with many queues both modes reach every backend, after a reboot too."""
    client = site.clients["front"]
    daemon.start("front", "back")
    assert daemon.modes() == {"front": "native", "back": "native"}
    for vip in (NAT_VIP, DSR_VIP):
        wait_until_all_answer(client, vip)
        assert ask(client, vip).total() == _REQUESTS
    site.machine.run("systemctl", "enable", "lb-xdp@gw1")
    site.machine.reboot()
    for vip in (NAT_VIP, DSR_VIP):
        wait_until_all_answer(client, vip, timeout_s=_START_S)
    assert daemon.modes() == {"front": "native", "back": "native"}


@pytest.mark.timeout(600)
def test_transfers_through_native_virtio(site: Site, daemon: Daemon, tmp_path: Path) -> None:
    """5 MB each way through nat and ipip arrive as they were sent, tunnel overhead and all."""
    client = site.clients["front"]
    daemon.start("front", "back")
    assert daemon.modes() == {"front": "native", "back": "native"}
    sent = tmp_path / "sent"
    sent.write_bytes(os.urandom(_TRANSFER_BYTES))
    for vip in (NAT_VIP, IPIP_VIP):
        wait_until_all_answer(client, vip)
        for nginx in site.web.values():
            shutil.copy(sent, nginx.files / "down")
        url = f"http://{vip}/files"
        client.run("curl", *_CURL, "-o", str(tmp_path / "got"), f"{url}/down", timeout_s=130)
        assert (tmp_path / "got").read_bytes() == sent.read_bytes()
        client.run("curl", *_CURL, "-T", str(sent), f"{url}/{vip}", timeout_s=130)
        arrived = [n.files / vip for n in site.web.values() if (n.files / vip).exists()]
        assert [path.read_bytes() == sent.read_bytes() for path in arrived] == [True]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("card", FALLBACKS)
def test_without_native_xdp_it_says_so_and_works(site: Site, daemon: Daemon, card: str) -> None:
    """If a driver takes no XDP program, all cards get one in generic mode, with a clear notice."""
    daemon.start(card, "back")
    assert daemon.modes() == {card: "generic", "back": "generic"}
    notices = [line for line in daemon.log().splitlines() if "run in generic mode" in line]
    assert f"interface {card} refuses native XDP" in notices[-1]
    for vip in (NAT_VIP, DSR_VIP):
        wait_until_all_answer(site.clients[card], vip)


@pytest.mark.timeout(600)
def test_the_command_line_from_check_to_detach(site: Site, daemon: Daemon) -> None:
    """check, run, status and detach do on the stock kernel what they promise."""
    machine = site.machine
    daemon.start("front", "back")
    assert "ok, 3 services, 3 backends" in machine.run("lb-xdp", "check", _CONFIG).stdout
    wait_until_all_answer(site.clients["front"], NAT_VIP)
    assert NAT_VIP in machine.run("lb-xdp", "--name", "gw1", "status").stdout
    machine.run("systemctl", "stop", "lb-xdp@gw1")
    assert ask(site.clients["front"], NAT_VIP).total() == _REQUESTS
    machine.run("lb-xdp", "--name", "gw1", "detach", "--yes")
    assert "xdp" not in machine.run("ip", "link").stdout
    assert ask(site.clients["front"], NAT_VIP, 1).total() == 0


@pytest.mark.timeout(300)
def test_set_up_finds_nothing_left_to_do(site: Site) -> None:
    """What scripts/setup made on a fresh Debian is complete on its own kernel."""
    done = site.machine.run("scripts/setup")
    assert done.stdout.splitlines() == ["setup: ready: .venv/bin/lb-xdp"]
