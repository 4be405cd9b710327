"""The prober against a real nginx on another host: how each way to fail reads, and punctuality."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from lb_xdp.core.check import HttpCheck
from lb_xdp.core.health import ProbeResult, Target
from lb_xdp.core.model import CheckKind, HealthCheck
from lb_xdp.probes import Prober
from tests.support import pace
from tests.support.lab import Host, Lab
from tests.support.probing import Latest

BACKEND = IPv4Address("10.0.0.2")
BACKEND6 = IPv6Address("2001:db8::2")
ABSENT = IPv4Address("10.0.0.77")
PORT = 8080
HTTP = HealthCheck(
    CheckKind.HTTP, interval_s=0.1, timeout_s=0.3, jitter=0.1, http=HttpCheck(path="/healthz")
)
TCP = HealthCheck(CheckKind.TCP, interval_s=0.1, timeout_s=0.3, jitter=0.1)

NGINX = """
daemon off; master_process off; pid {directory}/pid; error_log {directory}/error.log info;
events {{ worker_connections 1024; }}
http {{
    access_log {directory}/access.log;
    client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
    uwsgi_temp_path {directory}; scgi_temp_path {directory};
    server {{
        listen 8080 backlog=1024;
        listen [::]:8080 backlog=1024;
        location /healthz {{ return 200 "well"; }}
        location /busy {{ return 503; }}
    }}
}}
"""


class Backend:
    """A host with nginx on it, whose check page is well."""

    def __init__(self, lab: Lab, host: Host) -> None:
        self.host = host
        self.directory = lab.directory
        self._configuration = lab.directory / "nginx.conf"
        self._configuration.write_text(NGINX.format(directory=lab.directory))
        self.nginx = self.start()

    def start(self) -> subprocess.Popen[str]:
        """Start nginx; it may take a moment until it listens."""
        command = ("nginx", "-p", str(self.directory), "-c", str(self._configuration))
        self.nginx = self.host.popen(*command, stderr=subprocess.DEVNULL)
        return self.nginx

    def stop(self) -> None:
        self.host.stop(self.nginx)


@pytest.fixture
def backend() -> Iterator[Backend]:
    """A backend at one end of a cable; the test itself runs at the other."""
    with Lab() as lab:
        here, there = lab.host("here"), lab.host("there")
        lab.cable(here, "eth0", there, "eth0")
        here.address("eth0", "10.0.0.1/24")
        there.address("eth0", "10.0.0.2/24")
        here.address("eth0", "2001:db8::1/64 nodad")
        there.address("eth0", "2001:db8::2/64 nodad")
        with here.inside():
            yield Backend(lab, there)


async def test_tells_apart_how_a_backend_fails(backend: Backend) -> None:
    """Up, frozen, stopped, started again, unplugged: each state of a real nginx has its words."""
    latest = Latest()
    async with Prober(latest) as prober:
        prober.set_targets({"http": Target(HTTP, BACKEND, PORT), "tcp": Target(TCP, BACKEND, PORT)})
        await latest.until(http="200 OK", tcp="connected")
        # Frozen, its kernel goes on to complete handshakes, so only HTTP sees that.
        backend.nginx.send_signal(signal.SIGSTOP)
        await latest.until(http="timed out after 0.3 s", tcp="connected")
        backend.nginx.send_signal(signal.SIGCONT)
        await latest.until(http="200 OK", tcp="connected")
        backend.stop()
        await latest.until(http="connection refused", tcp="connection refused")
        backend.start()
        await latest.until(http="200 OK", tcp="connected")
        backend.host.ip("link set eth0 down")
        await latest.until(http="timed out after 0.3 s", tcp="timed out after 0.3 s")


async def test_reaches_a_backend_by_ipv6(backend: Backend) -> None:
    """Both probes take an IPv6 address, and tell a closed port from an open one."""
    latest = Latest()
    checks = {"http": HTTP, "tcp": TCP}
    async with Prober(latest) as prober:
        prober.set_targets(
            {name: Target(check, BACKEND6, PORT) for name, check in checks.items()}
            | {f"no_{name}": Target(check, BACKEND6, PORT + 1) for name, check in checks.items()}
        )
        refused = "connection refused"
        await latest.until(http="200 OK", tcp="connected", no_http=refused, no_tcp=refused)
    assert backend.nginx.poll() is None


async def test_a_bad_target_disturbs_no_other(backend: Backend) -> None:
    """Statuses, an absent host and a missing route are told beside a backend that stays well."""
    latest = Latest()
    elsewhere = IPv4Address("192.0.2.1")
    patient = replace(TCP, timeout_s=6.0)
    async with Prober(latest) as prober:
        prober.set_targets(
            {
                "well": Target(HTTP, BACKEND, PORT),
                "busy": Target(replace(HTTP, http=HttpCheck(path="/busy")), BACKEND, PORT),
                "missing": Target(replace(HTTP, http=HttpCheck(path="/nowhere")), BACKEND, PORT),
                "absent": Target(HTTP, ABSENT, PORT),
                "unanswered": Target(patient, ABSENT, PORT),
                "unrouted": Target(HTTP, elsewhere, PORT),
            }
        )
        await latest.until(
            well="200 OK",
            busy="503 Service Unavailable, expected 200-399",
            missing="404 Not Found, expected 200-399",
            absent="timed out after 0.3 s",
            unanswered="no route to host",
            unrouted="network is unreachable",
        )
    assert backend.nginx.poll() is None


async def test_tcp_probes_leave_no_trace_in_the_backends_logs(backend: Backend) -> None:
    """nginx, logging at info level, has nothing to say about TCP probes."""
    latest = Latest()
    async with Prober(latest) as prober:
        prober.set_targets({"tcp": Target(TCP, BACKEND, PORT)})
        await latest.until(tcp="connected")
        for number in range(5):
            name = f"again {number}"
            prober.set_targets({name: Target(TCP, BACKEND, PORT)})
            await latest.until(**{name: "connected"})
    backend.stop()
    assert (backend.directory / "access.log").read_text() == ""
    assert "client" not in (backend.directory / "error.log").read_text()


@pytest.mark.parametrize("check", [HTTP, TCP], ids=["http", "tcp"])
async def test_a_hundred_targets_are_probed_on_time(backend: Backend, check: HealthCheck) -> None:
    """Every 100 ms each, every target starts when its turn is, within the jitter."""
    latest = Latest()
    async with Prober(latest) as prober:
        prober.set_targets({"first": Target(TCP, BACKEND, PORT)})
        await latest.until(first="connected")
    assert backend.nginx.poll() is None

    interval_s = pace.lasting(check.interval_s)
    patient = replace(check, interval_s=interval_s, timeout_s=pace.lasting(2.0))
    starts_s: defaultdict[int, list[float]] = defaultdict(list)
    enough = asyncio.Event()

    def note(target_id: int, result: ProbeResult) -> None:
        assert result.ok, result.detail
        starts_s[target_id].append(result.at_s - result.duration_s)
        if len(starts_s[target_id]) == 20:
            enough.set()

    async with asyncio.timeout(pace.lasting(10)), Prober(note) as many:
        many.set_targets(dict.fromkeys(range(100), Target(patient, BACKEND, PORT)))
        await enough.wait()
    assert len(starts_s) == 100
    for starts in starts_s.values():
        assert len(starts) >= 15
        # The drawn gaps' own mean is within 3% of the interval; the rest is for a busy machine.
        mean_s = (starts[-1] - starts[0]) / (len(starts) - 1)
        assert 0.9 * interval_s <= mean_s <= 1.3 * interval_s
