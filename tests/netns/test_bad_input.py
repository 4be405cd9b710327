"""Whatever is wrong: one clear message, the right exit code, and what forwards goes on forwarding.

Gateway ``gw1`` is at work on the host where the broken or unlucky ``gw2`` is tried and refused.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.support.gateway import COMMAND, config_for
from tests.support.lab import Host, Lab
from tests.support.scenes import Scene, web_scene
from tests.support.topologies import two_armed

_PINS = Path("/sys/fs/bpf/lb-xdp")
_HIDE_HEADERS = 'mount -t tmpfs none /usr/src && mount -t tmpfs none /lib/modules && exec "$@"'

Edit = Callable[[dict[str, Any]], object]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A gateway ``gw2`` that would start, if it were not for what the test does."""

    host: Host
    config: dict[str, Any]
    path: Path

    def refused(self, *wrapper: str, code: int = 1) -> str:
        """Run it, behind the command ``wrapper`` if given; return what it says on stderr."""
        YAML().dump(self.config, self.path)
        return self.refused_as_written(*wrapper, code=code)

    def refused_as_written(self, *wrapper: str, code: int) -> str:
        """Do the same with what is in the file already."""
        command = (*wrapper, COMMAND, "run", "-c", str(self.path))
        done = self.host.run(*command, check=False)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr


@pytest.fixture(scope="module")
def at_work() -> Iterator[Scene]:
    """Provide a gateway that forwards, to all tests here that do it no harm."""
    with Lab() as lab:
        yield web_scene(lab)


@pytest.fixture
def attempt(at_work: Scene, tmp_path: Path) -> Iterator[Attempt]:
    """Provide the second gateway; afterwards it has left nothing, and the first one is unharmed."""
    programs, pid = at_work.program_ids(), at_work.gateway.status()["pid"]
    config = copy.deepcopy(at_work.config)
    config["gateway"] |= {"name": "gw2", "metrics": {"listen": "127.0.0.1:9465"}}
    yield Attempt(at_work.network.gateway, config, tmp_path / "lb.yaml")
    assert [path.name for path in _PINS.iterdir()] == ["gw1"]
    assert (at_work.program_ids(), at_work.gateway.status()["pid"]) == (programs, pid)
    assert at_work.ask().keys() == {"b1", "b2", "b3"}


def set_unknown_key(config: dict[str, Any]) -> None:
    config["gateway"]["interfaecs"] = config["gateway"]["interfaces"]


def set_negative_weight(config: dict[str, Any]) -> None:
    config["pools"][0]["backends"][1]["weight"] = -1


def set_vip_twice(config: dict[str, Any]) -> None:
    config["services"].append(config["services"][0] | {"name": "again"})


def set_dsr_port(config: dict[str, Any]) -> None:
    config["services"][0]["mode"] = "dsr"
    config["pools"][0]["backends"][0]["port"] = 8080


def set_other_family(config: dict[str, Any]) -> None:
    config["services"][0]["vip"] = "2001:db8::10"


def set_no_source(config: dict[str, Any]) -> None:
    config["services"][0]["mode"] = "fullnat"


def set_untracked(config: dict[str, Any]) -> None:
    config["services"][0] |= {"algorithm": "random", "session": {"flows": "none"}}


def set_no_duration(config: dict[str, Any]) -> None:
    config["pools"][0]["health"]["interval"] = "often"


FIVE_MISTAKES = (set_unknown_key, set_negative_weight, set_vip_twice, set_dsr_port, set_no_duration)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (set_unknown_key, r"gateway\.interfaecs: .*interfaces"),
        (set_negative_weight, r"pools\[0\]\.backends\[1\]\.weight: .*-1"),
        (set_vip_twice, r"services\[1\].*203\.0\.113\.10"),
        (set_dsr_port, r"8080.*nat"),
        (set_other_family, r"not of the family of 2001:db8::10.*ipip.*gue"),
        (set_no_source, r"services\[0\]\.mode: fullnat.*gateway\.snat_addresses"),
        (set_untracked, r"services\[0\]\.session\.flows: .*random.*maglev"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_place(
    attempt: Attempt, edit: Edit, said: str
) -> None:
    """Exit code 3, and a line that begins with file:line:col and says what and what instead."""
    edit(attempt.config)
    message = attempt.refused(code=3)
    assert re.search(rf"^{re.escape(str(attempt.path))}:\d+:\d+: .*{said}", message, re.MULTILINE)


def test_broken_yaml_is_refused_with_its_place(attempt: Attempt) -> None:
    """Exit code 3, and the line and column where it stops being YAML."""
    attempt.path.write_text("gateway:\n  name: gw2\n  interfaces: [eth0\nservices: []\n")
    assert re.match(rf"{re.escape(str(attempt.path))}:3:15: ", attempt.refused_as_written(code=3))


def test_check_prints_a_line_for_each_of_five_mistakes(attempt: Attempt) -> None:
    """One run of `check` shows all mistakes, sorted by place, and exits with 3."""
    for edit in FIVE_MISTAKES:
        edit(attempt.config)
    YAML().dump(attempt.config, attempt.path)
    done = attempt.host.run(COMMAND, "check", str(attempt.path), check=False)
    assert done.returncode == 3
    lines = done.stderr.splitlines()
    assert len(lines) == 5, done.stderr
    places = [tuple(map(int, line.split(":")[1:3])) for line in lines]
    assert places == sorted(places)


def test_an_interface_that_does_not_exist(attempt: Attempt) -> None:
    """The message names it, and those that exist."""
    attempt.config["gateway"]["interfaces"] = ["eth0", "eth7"]
    assert re.search(r"no interface eth7 .*eth0, eth1", attempt.refused())


def test_no_bcc(attempt: Attempt, tmp_path: Path) -> None:
    """Without bcc the message says which package has it."""
    without_cache = ("env", "--unset=LB_XDP_COMPILE_CACHE")
    (tmp_path / "bcc.py").write_text("raise ImportError('no module named bcc')\n")
    assert "python3-bpfcc" in attempt.refused(*without_cache, f"PYTHONPATH={tmp_path}")


def test_no_kernel_headers(attempt: Attempt) -> None:
    """Without kernel headers the message says where they were looked for, and which package."""
    said = attempt.refused("unshare", "-m", "sh", "-c", _HIDE_HEADERS, "sh")
    assert "/usr/src" in said
    assert "apt install linux-headers" in said


def test_no_privilege(attempt: Attempt) -> None:
    """Without the capabilities of root the message says to use sudo."""
    assert "sudo" in attempt.refused("setpriv", "--bounding-set", "-all")


def test_a_metrics_port_in_use(attempt: Attempt) -> None:
    """The message names the address that is taken, and the key that sets it."""
    attempt.config["gateway"]["metrics"] = {"listen": "127.0.0.1:9464"}
    said = attempt.refused()
    assert "127.0.0.1:9464" in said
    assert "metrics.listen" in said


def test_an_api_socket_of_a_live_daemon(attempt: Attempt) -> None:
    """The socket of another daemon is not taken away from it."""
    attempt.config["gateway"]["api"] = {"socket": "/run/lb-xdp/gw1/api.sock"}
    assert "/run/lb-xdp/gw1/api.sock" in attempt.refused()


def test_nat_without_ip_forwarding(lab: Lab, tmp_path: Path) -> None:
    """The kernel sends the replies, so nat is refused with the sysctl that lets it."""
    network = two_armed(lab)
    network.gateway.sysctl(ip_forward=0)
    attempt = Attempt(network.gateway, config_for(network, name="gw3"), tmp_path / "lb.yaml")
    assert re.search(r"sysctl -w net\.ipv4\.\S*forward\S*=1", attempt.refused())


def test_nat_of_ipv6_without_forwarding(lab: Lab, tmp_path: Path) -> None:
    """IPv6 has a switch of its own; that of IPv4 does not do."""
    network = two_armed(lab)
    network.gateway.sysctl6(conf__all__forwarding=0)
    config = config_for(network, name="gw3")
    config["services"][0]["vip"] = "2001:db8::10"
    for number, backend in enumerate(config["pools"][0]["backends"]):
        backend["host"] = f"2001:db8:2::{number + 11}"
    attempt = Attempt(network.gateway, config, tmp_path / "lb.yaml")
    assert "sysctl -w net.ipv6.conf.all.forwarding=1" in attempt.refused()
