"""`lb-xdp decap` on a backend host: real clients reach real services on the VIP by tunnel."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lb_xdp.datapath import syscall
from lb_xdp.datapath.decap_program import tc_crosses_families
from tests.support import xdp_pass
from tests.support.lab import Host, Lab
from tests.support.tunnel import DEVICE, TunnelSender, Way

VIPS = {4: "203.0.113.10", 6: "2001:db8::10"}
SOURCES = {4: "172.16.3.4", 6: "100::3:4"}
BACKENDS = {4: "10.1.0.11", 6: "2001:db8:1::11"}
CLIENTS = {4: "10.1.0.2", 6: "2001:db8:1::2"}
TRUST = ("--trust", "172.16.0.0/16", "--trust", "100::/64")
PORT = 7000
_GO_ON = struct.pack("=BBhiBBhi", 0xB7, 0, 0, -1, 0x95, 0, 0, 0)  # r0 = TC_ACT_UNSPEC; exit
PINS = Path("/sys/fs/bpf/lb-xdp-decap")
HOOKS = ["xdp", "tc"]
TUNNELS = [
    pytest.param(kind, outer, inner, id=f"{kind} {inner}in{outer}")
    for kind in ("ipip", "gue")
    for outer in (4, 6)
    for inner in (4, 6)
]


@dataclass(frozen=True, slots=True)
class Scene:
    """A client that is its own gateway, and a backend with the VIPs on lo."""

    client: Host
    backend: Host

    def decap(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `lb-xdp decap` on the backend."""
        command = (sys.executable, "-m", "lb_xdp", "decap", *arguments)
        return self.backend.run(*command, check=check)

    def status(self) -> dict[str, Any]:
        """Return what `status` says of the backend's only interface."""
        (shown,) = json.loads(self.decap("status", "-o", "json").stdout)
        found: dict[str, Any] = shown
        return found

    def way(self, kind: str, outer: int) -> Way:
        macs = (self.client.mac("eth0"), self.backend.mac("eth0"))
        return Way(kind, SOURCES[outer], BACKENDS[outer], *macs)

    @contextmanager
    def tunnel(self, kind: str = "ipip", outer: int = 4) -> Iterator[TunnelSender]:
        """Send what the client has for the VIPs through a tunnel."""
        with TunnelSender(self.client, "eth0", self.way(kind, outer)) as sender:
            self.client.ip(*(f"route add {VIPS[v]} dev {DEVICE} src {CLIENTS[v]}" for v in (4, 6)))
            yield sender


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder where the compiled programs are kept: each command would compile anew."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def scene(lab: Lab, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """Provide the two hosts, cabled."""
    monkeypatch.setenv("LB_XDP_COMPILE_CACHE", str(compiled))
    client, backend = lab.host("client"), lab.host("backend", is_gateway=True)
    lab.cable(client, "eth0", backend, "eth0")
    client.sysctl(conf__all__rp_filter=0, conf__eth0__rp_filter=0)
    backend.sysctl(conf__all__arp_ignore=1, conf__all__arp_announce=2)
    for host, addresses in ((client, CLIENTS), (backend, BACKENDS)):
        host.ip(*(
            f"addr add {addresses[v]}/{length} dev eth0 {'nodad' if v == 6 else ''}"
            for v, length in ((4, 24), (6, 64))
        ))  # fmt: skip
    backend.address("lo", f"{VIPS[4]}/32", f"{VIPS[6]}/128")
    built = Scene(client, backend)
    yield built
    # A pin outlives its host for a moment, and the next test's host has an eth0 as well.
    built.decap("detach", "eth0")


def family(version: int) -> socket.AddressFamily:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def server(scene: Scene, version: int, kind: socket.SocketKind) -> socket.socket:
    """Open the service's socket on the VIP."""
    with scene.backend.inside():
        opened = socket.socket(family(version), kind)
    opened.settimeout(5)
    opened.bind((VIPS[version], PORT))
    if kind is socket.SOCK_STREAM:
        opened.listen()
    return opened


def connected(scene: Scene, version: int, kind: socket.SocketKind) -> socket.socket:
    """Open a client's socket to the VIP."""
    with scene.client.inside():
        opened = socket.socket(family(version), kind)
    opened.settimeout(5)
    opened.connect((VIPS[version], PORT))
    return opened


def ask_udp(scene: Scene, version: int, *, answered: bool = True) -> None:
    """Send a datagram to the VIP, and demand that it arrives and is answered, or does not."""
    with (
        server(scene, version, socket.SOCK_DGRAM) as service,
        connected(scene, version, socket.SOCK_DGRAM) as client,
    ):
        client.send(b"question")
        if not answered:
            service.settimeout(0.3)
            with pytest.raises(TimeoutError):
                service.recv(100)
            return
        question, sender = service.recvfrom(100)
        assert (question, sender[0]) == (b"question", CLIENTS[version])
        service.sendto(b"answer", sender)
        assert client.recv(100) == b"answer"


def upload(scene: Scene, version: int, octets: int) -> None:
    """Send so much over TCP to the VIP, and get it confirmed."""
    data = bytes(n % 251 for n in range(octets))
    with (
        server(scene, version, socket.SOCK_STREAM) as listener,
        connected(scene, version, socket.SOCK_STREAM) as client,
    ):
        service, sender = listener.accept()
        with service:
            assert sender[0] == CLIENTS[version]
            writer = threading.Thread(target=client.sendall, args=(data,))
            writer.start()
            service.settimeout(20)
            received = bytearray()
            while len(received) < octets:
                received += service.recv(65536)
            writer.join()
            assert received == data
            service.sendall(b"thanks")
            assert client.recv(100) == b"thanks"


def assert_nothing_left(scene: Scene, *programs: int) -> None:
    """Demand that no program, pin, qdisc or XDP of decap is there any more."""
    assert not PINS.exists()
    assert "xdp" not in scene.backend.link("eth0")
    assert "clsact" not in scene.backend.run("tc", "qdisc", "show", "dev", "eth0").stdout
    assert json.loads(scene.decap("status", "-o", "json").stdout) == []
    for program in programs:
        wait_until_gone(program)


def skip_what_tc_cannot(hook: str, outer: int, inner: int) -> None:
    if hook == "tc" and outer != inner and not tc_crosses_families():
        pytest.skip("tc cannot undo a tunnel of two families before Linux 6.3")


def merge_for_a_while(host: Host) -> None:
    """Have GRO hold packets back for 1 ms, as it does by itself when they come in bursts."""
    folder = "/sys/class/net/eth0"  # of that host in `ip netns exec` alone, which mounts a /sys
    script = f"echo 1000000 >{folder}/gro_flush_timeout; echo 100 >{folder}/napi_defer_hard_irqs"
    host.run("ip", "netns", "exec", host.namespace, "sh", "-c", script)


def wait_until_gone(program: int) -> None:
    """Wait for the kernel to free a program, which it does after a grace period."""
    gone = threading.Event()
    for _ in range(100):
        if not xdp_pass.program_exists(program):
            return
        gone.wait(0.05)
    pytest.fail(f"program {program} is still there")


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(("kind", "outer", "inner"), TUNNELS)
def test_a_service_answers_through_a_tunnel(
    scene: Scene, hook: str, kind: str, outer: int, inner: int
) -> None:
    """UDP and TCP to the VIP arrive with the client's address; each packet is counted once."""
    skip_what_tc_cannot(hook, outer, inner)
    scene.decap("attach", "eth0", *TRUST, "--vip", VIPS[inner], "--hook", hook)
    with scene.tunnel(kind, outer) as sender:
        ask_udp(scene, inner)
        upload(scene, inner, 50_000)
    shown = scene.status()
    assert shown["packets"]["decapsulated"] == sender.sent > 30
    assert shown["packets"]["untrusted"] == 0
    assert shown["mode"] == ("native" if hook == "xdp" else "tc")
    scene.decap("detach", "eth0")
    assert_nothing_left(scene, shown["id"])


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(("kind", "outer", "inner"), TUNNELS)
def test_merged_packets_are_undone(
    scene: Scene, hook: str, kind: str, outer: int, inner: int
) -> None:
    """With GRO on, tc sees packets of many segments: an upload arrives all the same."""
    skip_what_tc_cannot(hook, outer, inner)
    scene.decap("attach", "eth0", *TRUST, "--hook", hook)
    scene.backend.run("ethtool", "-K", "eth0", "gro", "on")
    merge_for_a_while(scene.backend)
    with scene.tunnel(kind, outer) as sender:
        upload(scene, inner, 3_000_000)
    seen = scene.status()["packets"]["decapsulated"]
    if (hook, kind) == ("tc", "ipip"):  # GRO merges no gue without a socket of the kernel's
        assert seen < sender.sent / 2
    else:
        assert seen == sender.sent


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_modes_of_xdp(scene: Scene, mode: str) -> None:
    """--xdp-mode says where the program runs, and may be changed."""
    scene.decap("attach", "eth0", *TRUST)
    scene.decap("attach", "eth0", *TRUST, "--xdp-mode", mode)
    assert scene.status()["mode"] == mode
    with scene.tunnel():
        ask_udp(scene, 4)


def test_an_interface_without_native_xdp(scene: Scene) -> None:
    """Native mode is refused with what works instead, and auto falls back to generic."""
    scene.backend.ip("link add br0 type bridge")
    refused = scene.decap("attach", "br0", *TRUST, "--xdp-mode", "native", check=False)
    assert refused.returncode == 1
    assert "--xdp-mode generic" in refused.stderr
    assert_nothing_left(scene)
    scene.decap("attach", "br0", *TRUST)
    assert scene.status()["mode"] == "generic"
    scene.decap("detach", "br0")
    assert_nothing_left(scene)


@pytest.mark.parametrize("hook", HOOKS)
def test_new_settings_take_the_place_of_old_ones(scene: Scene, hook: str) -> None:
    """Untrusted tunnels are left to the kernel, until the next attach trusts them; counts go on."""
    scene.decap("attach", "eth0", "--trust", "10.99.0.0/16", "--hook", hook)
    former = scene.status()
    with scene.tunnel():
        ask_udp(scene, 4, answered=False)
        scene.decap("attach", "eth0", *TRUST, "--hook", hook, "--vip", VIPS[4], "--gue-port", "99")
        ask_udp(scene, 4)
    shown = scene.status()
    assert (shown["packets"]["untrusted"], shown["packets"]["decapsulated"]) == (1, 1)
    assert shown["trust"] == ["172.16.0.0/16", "100::/64"]
    assert (shown["vips"], shown["gue_port"]) == ([VIPS[4]], 99)
    assert shown["id"] != former["id"]
    wait_until_gone(former["id"])
    table = scene.decap("status").stdout
    assert "172.16.0.0/16, 100::/64" in table
    assert "untrusted" in table


@pytest.mark.parametrize("hook", HOOKS)
def test_no_packet_goes_by_while_the_program_is_replaced(scene: Scene, hook: str) -> None:
    """Every datagram of a steady stream arrives, while settings are replaced five times."""
    scene.decap("attach", "eth0", *TRUST, "--hook", hook)
    done, sent = threading.Event(), 0
    with scene.tunnel(), server(scene, 4, socket.SOCK_DGRAM) as service:
        service.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        replacing = threading.Thread(target=_replace, args=(scene, hook, done))
        replacing.start()
        with connected(scene, 4, socket.SOCK_DGRAM) as client:
            while not done.wait(0.001):
                client.send(b"x")
                sent += 1
        replacing.join()
        for _ in range(sent):
            service.recv(10)
    assert scene.status()["packets"]["decapsulated"] == sent > 500


def _replace(scene: Scene, hook: str, done: threading.Event) -> None:
    try:
        for number in range(5):
            more = ("--trust", f"10.{number}.0.0/16", "--hook", hook)
            scene.decap("attach", "eth0", *TRUST, *more)
    finally:
        done.set()


def test_from_one_hook_to_the_other(scene: Scene) -> None:
    """Another --hook moves the program, with its counters, and leaves nothing at the former."""
    scene.decap("attach", "eth0", *TRUST)
    with scene.tunnel():
        ask_udp(scene, 4)
        scene.decap("attach", "eth0", *TRUST, "--hook", "tc")
        assert "xdp" not in scene.backend.link("eth0")
        assert not PINS.exists()
        ask_udp(scene, 4)
        assert scene.status()["packets"]["decapsulated"] == 2
        scene.decap("attach", "eth0", *TRUST)
        ask_udp(scene, 4)
    shown = scene.status()
    assert (shown["hook"], shown["packets"]["decapsulated"]) == ("xdp", 3)
    scene.decap("detach", "eth0")
    assert_nothing_left(scene, shown["id"])


def test_a_strangers_program_stays(scene: Scene) -> None:
    """Another XDP program is named and left alone; tc goes beside it; --replace takes its place."""
    pin = Path("/sys/fs/bpf/decap-stranger")
    xdp_pass.pin(pin)
    scene.backend.ip(f"link set eth0 xdpdrv pinned {pin}")
    pin.unlink()
    stranger = scene.backend.link("eth0")["xdp"]["prog"]["id"]
    refused = scene.decap("attach", "eth0", *TRUST, check=False)
    assert refused.returncode == 1
    assert f"id {stranger}" in refused.stderr
    assert "--replace" in refused.stderr
    assert scene.backend.link("eth0")["xdp"]["prog"]["id"] == stranger
    assert "nothing to detach" in scene.decap("detach", "eth0").stdout
    scene.decap("attach", "eth0", *TRUST, "--hook", "tc")
    assert scene.backend.link("eth0")["xdp"]["prog"]["id"] == stranger
    scene.decap("attach", "eth0", *TRUST, "--replace")
    shown = scene.status()
    assert scene.backend.link("eth0")["xdp"]["prog"]["id"] == shown["id"] != stranger
    scene.decap("detach", "eth0")
    assert_nothing_left(scene, shown["id"], stranger)


def test_a_strangers_filters_stay(scene: Scene) -> None:
    """Filters and a clsact that were there before us, or came after us, are there when we go."""
    pin = Path("/sys/fs/bpf/decap-filter")
    program, _ = syscall.program_load(_GO_ON, "stranger", kind=syscall.PROG_TYPE_TC)
    syscall.pin(program, str(pin))
    os.close(program)
    keep = ("filter", "add", "dev", "eth0", "egress", "pref", "7", "bpf", "da", "object-pinned")
    scene.decap("attach", "eth0", *TRUST, "--hook", "tc")
    scene.backend.run("tc", *keep, str(pin))
    pin.unlink()
    scene.decap("attach", "eth0", *TRUST, "--hook", "tc")
    scene.decap("detach", "eth0")
    assert "pref 7" in scene.backend.run("tc", "filter", "show", "dev", "eth0", "egress").stdout
    assert not scene.backend.run("tc", "filter", "show", "dev", "eth0", "ingress").stdout
    scene.backend.run("tc", "qdisc", "del", "dev", "eth0", "clsact")
    scene.backend.run("tc", "qdisc", "add", "dev", "eth0", "ingress")
    scene.decap("attach", "eth0", *TRUST, "--hook", "tc")
    with scene.tunnel():
        ask_udp(scene, 4)
    scene.decap("detach", "eth0")
    assert "ingress" in scene.backend.run("tc", "qdisc", "show", "dev", "eth0").stdout


def test_an_interface_that_goes_takes_its_pin_along(scene: Scene) -> None:
    """The next command finds a link whose interface is gone, and removes the pin."""
    scene.decap("attach", "eth0", *TRUST)
    scene.backend.ip("link delete eth0")
    assert json.loads(scene.decap("status", "-o", "json").stdout) == []
    assert not PINS.exists()


def test_an_interface_that_is_renamed_keeps_its_program(scene: Scene) -> None:
    """The pin follows the name, and the program does not stop."""
    scene.decap("attach", "eth0", *TRUST)
    scene.backend.ip("link set eth0 name uplink")
    assert scene.status()["interface"] == "uplink"
    scene.decap("attach", "uplink", *TRUST, "--vip", VIPS[4])
    assert scene.status()["vips"] == [VIPS[4]]
    scene.decap("detach", "uplink")
    assert not PINS.exists()


def test_a_pin_of_another_namespace_is_left_alone(scene: Scene, lab: Lab) -> None:
    """Of two namespaces with an interface of one name the second is refused, the first goes on."""
    scene.decap("attach", "eth0", *TRUST)
    other = Scene(scene.client, lab.host("other", is_gateway=True))
    lab.cable(other.backend, "eth0", lab.host("peer"), "eth0")
    assert json.loads(other.decap("status", "-o", "json").stdout) == []
    refused = other.decap("attach", "eth0", *TRUST, check=False)
    assert refused.returncode == 1
    assert "another network namespace" in refused.stderr
    assert "nothing to detach" in other.decap("detach", "eth0").stdout
    with scene.tunnel():
        ask_udp(scene, 4)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("attach", "eth0"), 2, "--trust"),
        (("attach", "eth0", "--trust", "172.16.0.1/16"), 2, "host bits set"),
        (("attach", "eth7", *TRUST), 1, "no interface eth7"),
        (("attach", "lo", *TRUST), 1, "type loopback"),
        (("attach", "eth0", *TRUST, "--gue-port", "0"), 2, "--gue-port"),
        (("detach", "eth7"), 0, ""),
    ],
)
def test_mistakes(scene: Scene, arguments: tuple[str, ...], code: int, says: str) -> None:
    """What cannot be done is said, with the usual exit codes, and nothing is attached."""
    done = scene.decap(*arguments, check=False)
    assert done.returncode == code
    assert says in done.stderr
    assert_nothing_left(scene)
