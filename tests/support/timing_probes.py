"""What probes cost this process, and how late they start: 1,000 backends at one probe a second.

The servers are on another host of a lab, real ones where there are such, with an address for each
backend. The cost is the prober's whole process, split as the kernel does. "System" has more in it
than on a real network: what a veth carries is received, by the other host as well, in the time of
whoever sends it.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

from rich.table import Table

from lb_xdp.core.check import DnsCheck, HttpCheck, Payload, Tls
from lb_xdp.core.health import ProbeResult, Target
from lb_xdp.core.model import CheckKind, HealthCheck
from lb_xdp.native import look_for_cycles_rarely
from lb_xdp.probes import Prober
from tests.support.certificates import Authority
from tests.support.lab import Host, Lab
from tests.support.servers import Echo, wait_for_port

BACKENDS = 1_000
INTERVAL_S = 1.0
_HANDSHAKES = 250  # one server for all is the limit beyond, where each has its own in earnest
_WARM_UP_S = 3.0
_MEASURE_S = 10.0
_FIRST = IPv4Address("10.9.0.1")

_NGINX = """\
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
worker_rlimit_nofile 20000;
events {{ worker_connections 8192; }}
http {{
    access_log off; keepalive_requests 100000000;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    ssl_certificate {certificate}; ssl_certificate_key {key};
    server {{
        listen 8080 backlog=8192;
        listen 8443 ssl backlog=8192;
        location / {{ return 200 "well"; }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A check, the port that it goes to, and how many backends have it."""

    name: str
    check: HealthCheck
    port: int = 8080
    backends: int = BACKENDS


@dataclass(frozen=True, slots=True)
class Figures:
    """What one row came to. Shares are of one core; late is by how much a start missed its time."""

    per_s: float
    user: float
    system: float
    answer_ms: float
    late_p99_ms: float
    late_max_ms: float
    failures: int


def _rows(ca_file: str) -> Sequence[Row]:
    once = HealthCheck(CheckKind.TCP, interval_s=INTERVAL_S, timeout_s=INTERVAL_S, jitter=0.0)
    tls, kept = Tls("www.example.net", ca_file), HttpCheck(reuse=True)
    http = replace(once, kind=CheckKind.HTTP)
    https = replace(http, kind=CheckKind.HTTPS, tls=tls)
    talk = Payload(b"HEAD / HTTP/1.0\r\n\r\n", b"200 OK")
    dns = DnsCheck("www.example.net", "A", "192.0.2.1")
    return (
        Row("tcp", once),
        Row("tcp, send and expect", replace(once, payload=talk)),
        Row("http", http),
        Row("http, reuse", replace(http, http=kept)),
        Row("https", https, 8443, _HANDSHAKES),
        Row("https, reuse", replace(https, http=kept), 8443),
        Row("grpc", replace(once, kind=CheckKind.GRPC), 50051, _HANDSHAKES),
        Row("udp", replace(once, kind=CheckKind.UDP, payload=Payload(b"ask", b"ask")), 7000),
        Row("dns", replace(once, kind=CheckKind.DNS, dns=dns), 5353),
        Row("icmp", replace(once, kind=CheckKind.ICMP)),
        Row("exec", replace(once, kind=CheckKind.EXEC, command=("/bin/true",)), backends=100),
    )


def measure(pattern: str) -> dict[str, Figures]:
    """Return the figures of the rows that ``pattern`` is in."""
    found = {}
    with Lab() as lab:
        here, there = lab.host("here"), lab.host("there")
        lab.cable(here, "eth0", there, "eth0")
        here.address("eth0", "10.8.0.1/24")
        there.address("eth0", "10.8.0.2/24")
        there.ip("route add local 10.9.0.0/16 dev lo")
        here.route("10.9.0.0/16", "10.8.0.2")
        here.sysctl(ip_local_port_range="1024 65535")
        authority = Authority(lab.directory / "ca")
        for row in _rows(str(authority.certificate)):
            if pattern in row.name:
                with _serving(row, there, authority, lab.directory), here.inside():
                    found[row.name] = asyncio.run(_measure(row))
    return found


def table(found: dict[str, Figures]) -> Table:
    """Return the figures as a table."""
    shown = Table("probe", title="probes, one a second of each backend", title_justify="left")
    headings = "a second,user %,system %,us each,answer ms,late p99 ms,max ms,failed"
    for heading in headings.split(","):
        shown.add_column(heading, justify="right")
    for name, f in found.items():
        each_us = 1e6 * (f.user + f.system) / f.per_s
        shares = (f"{100 * f.user:.1f}", f"{100 * f.system:.1f}", f"{each_us:.0f}")
        times = (f"{f.answer_ms:.2f}", f"{f.late_p99_ms:.1f}", f"{f.late_max_ms:.1f}")
        shown.add_row(name, f"{f.per_s:.0f}", *shares, *times, str(f.failures))
    return shown


def as_dicts(found: dict[str, Figures]) -> dict[str, object]:
    """Return the figures for JSON."""
    return {name: asdict(figures) for name, figures in found.items()}


@contextmanager
def _serving(row: Row, host: Host, authority: Authority, folder: Path) -> Iterator[None]:
    process = _start(row, host, authority, folder)
    if row.check.kind not in {CheckKind.ICMP, CheckKind.EXEC, CheckKind.UDP}:
        wait_for_port(host, row.port)
    try:
        yield
    finally:
        if process is not None:
            host.stop(process)


def _start(
    row: Row, host: Host, authority: Authority, folder: Path
) -> subprocess.Popen[str] | None:
    match row.check.kind:
        case CheckKind.GRPC:
            module = "tests.support.grpc_health"
            return host.popen(sys.executable, "-m", module, str(row.port), stdin=subprocess.PIPE)
        case CheckKind.UDP:
            return Echo(host, row.port).process
        case CheckKind.DNS:
            return host.popen("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null",
                              f"--port={row.port}", "--no-resolv", "--no-hosts", "--pid-file=",
                              "--user=root", "--host-record=www.example.net,192.0.2.1")  # fmt: skip
        case CheckKind.ICMP | CheckKind.EXEC:
            return None
        case _:
            certificate, key = authority.sign("server", "DNS:www.example.net")
            text = _NGINX.format(folder=folder, certificate=certificate, key=key)
            (folder / "nginx.conf").write_text(text)
            return host.popen("nginx", "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf")


async def _measure(row: Row) -> Figures:
    took_s: list[float] = []
    late_s: list[float] = []
    failures = Counter[str]()
    starts_s: dict[int, float] = {}

    def note(target: int, result: ProbeResult) -> None:
        started_s = result.at_s - result.duration_s
        if target in starts_s:
            late_s.append(started_s - starts_s[target] - INTERVAL_S)
        starts_s[target] = started_s
        took_s.append(result.duration_s)
        if not result.ok:
            failures[result.detail] += 1

    look_for_cycles_rarely()  # as the daemon does
    async with Prober(note) as prober:
        prober.set_targets(
            {n: Target(row.check, _FIRST + n, row.port) for n in range(row.backends)}
        )
        await asyncio.sleep(_WARM_UP_S)
        for counted in (took_s, late_s, failures):
            counted.clear()
        before, began_s = os.times(), time.monotonic()
        await asyncio.sleep(_MEASURE_S)
        after, lasted_s = os.times(), time.monotonic() - began_s
        probes = len(took_s)
    for detail, count in failures.items():
        sys.stderr.write(f"{row.name}: {count} times {detail}\n")
    # Children are exec's: their cost is their own, but we cause it.
    return Figures(
        per_s=probes / lasted_s,
        user=(after.user + after.children_user - before.user - before.children_user) / lasted_s,
        system=(after.system + after.children_system - before.system - before.children_system)
        / lasted_s,
        answer_ms=1e3 * statistics.median(took_s),
        late_p99_ms=1e3 * statistics.quantiles(late_s, n=100)[98],
        late_max_ms=1e3 * max(late_s),
        failures=failures.total(),
    )
