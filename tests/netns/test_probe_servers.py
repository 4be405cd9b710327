"""Each kind of probe against a real server on another host: up, hanging, gone, back, and ill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from lb_xdp.core.check import DnsCheck, HttpCheck, Payload, Tls
from lb_xdp.core.health import Advice, Target
from lb_xdp.core.model import CheckKind, HealthCheck
from lb_xdp.core.snapshot import Admin
from lb_xdp.probes import Prober
from tests.support import pace
from tests.support.certificates import Authority
from tests.support.lab import Host, Lab
from tests.support.probing import Latest, probe

BACKEND = IPv4Address("10.0.0.2")
BACKEND6 = IPv6Address("2001:db8::2")
NAME = "www.example.net"
TIMEOUT_S = pace.lasting(1.0)
TIMED_OUT = f"timed out after {TIMEOUT_S:g} s"
REFUSED = "connection refused"

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    ssl_certificate {certificate}; ssl_certificate_key {key};
    server {{
        listen [::]:8080 ipv6only=off;
        listen [::]:8443 ipv6only=off ssl;
        server_name {name};
        location / {{ return 200 "well\\n"; }}
        location /ill {{ return 503 "ill\\n"; }}
    }}
    server {{
        listen [::]:8444 ipv6only=off ssl;
        ssl_client_certificate {ca}; ssl_verify_client on;
        location / {{ return 200 "hello $ssl_client_s_dn\\n"; }}
    }}
}}
"""


@dataclass(frozen=True)
class Site:
    """A host with servers on it, at the other end of a cable."""

    here: Host
    host: Host
    authority: Authority
    folder: Path

    def nginx(self) -> subprocess.Popen[str]:
        """Start nginx for http on 8080, https on 8443 and with client certificates on 8444."""
        certificate, key = self.authority.sign("server", f"DNS:{NAME}")
        (self.folder / "nginx.conf").write_text(
            NGINX.format(
                folder=self.folder,
                certificate=certificate,
                key=key,
                name=NAME,
                ca=self.authority.certificate,
            )
        )
        error_log = str(self.folder / "error.log")
        return self.host.popen("nginx", "-e", error_log, "-c", str(self.folder / "nginx.conf"))

    def grpc(self, *files: Path) -> subprocess.Popen[str]:
        """Start a gRPC server on 50051, and return when it serves."""
        arguments = ("-m", "tests.support.grpc_health", "50051", *map(str, files))
        # Its proxies are for the Internet.
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        process = self.host.popen(sys.executable, *arguments, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, env=environment)  # fmt: skip
        tell(process)
        return process

    def dnsmasq(self) -> subprocess.Popen[str]:
        """Start a name server on 5353 that knows one name, and forwards nothing."""
        return self.host.popen("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null",
                               "--port=5353", "--no-resolv", "--no-hosts", "--pid-file=",
                               "--user=root", f"--host-record={NAME},192.0.2.1,2001:db8::80",
                               f"--txt-record={NAME},all is well")  # fmt: skip

    def socat(self, listener: str, answer: str) -> subprocess.Popen[str]:
        """Start a server of one process for each connection or datagram."""
        return self.host.popen("socat", listener, answer)

    def udp(self) -> subprocess.Popen[str]:
        """Start what sends each datagram back, on 7001."""
        return self.socat("UDP6-RECVFROM:7001,ipv6only=0,fork", "PIPE")

    def agent(self) -> subprocess.Popen[str]:
        """Start an agent on 7002 that says what stands in a file."""
        listener = "TCP6-LISTEN:7002,ipv6only=0,fork,reuseaddr"
        return self.socat(listener, f"SYSTEM:cat {self.folder}/agent")

    def advise(self, line: str) -> None:
        """Have the agent say this."""
        new = self.folder / "agent.new"
        new.write_text(f"{line}\n")
        new.rename(self.folder / "agent")

    def curl(self) -> str:
        """Write a command that asks the backend, and return its path."""
        path = self.folder / "ask"
        url = "http://$LB_XDP_BACKEND_ADDRESS:$LB_XDP_BACKEND_PORT/"
        path.write_text(f"#!/bin/sh\nexec curl -sS --noproxy '*' \"{url}\" 2>&1\n")
        path.chmod(0o755)
        return str(path)


def tell(process: subprocess.Popen[str], line: str = "") -> None:
    """Change the status of a gRPC server, and return when it is so."""
    assert process.stdin
    assert process.stdout
    if line:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
    assert process.stdout.readline() == "done\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A CA."""
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def site(lab: Lab, authority: Authority) -> Iterator[Site]:
    """A host to probe; the test itself runs at the other end of its cable."""
    here, there = lab.host("here"), lab.host("there")
    lab.cable(here, "eth0", there, "eth0")
    here.address("eth0", "10.0.0.1/24", "2001:db8::1/64")
    there.address("eth0", "10.0.0.2/24", "2001:db8::2/64")
    built = Site(here, there, authority, lab.directory)
    built.advise("up")
    with here.inside():
        yield built


def paced(check: HealthCheck) -> HealthCheck:
    """Return a check that is made ten times a second."""
    return replace(check, interval_s=pace.lasting(0.1), timeout_s=TIMEOUT_S)


TALK = HealthCheck(CheckKind.TCP, payload=Payload(b"HEAD / HTTP/1.0\r\n\r\n", b"200 OK"))
UDP = HealthCheck(CheckKind.UDP, payload=Payload(b"all is well", b"well"))
DNS = HealthCheck(CheckKind.DNS, dns=DnsCheck(NAME, "A", "192.0.2.1"))
BODY = HealthCheck(CheckKind.HTTP, http=HttpCheck(expected_body="^well$"))
REUSE = replace(BODY, http=replace(BODY.http, reuse=True))
INSECURE = HealthCheck(CheckKind.HTTPS, tls=Tls(insecure=True))
KEPT = replace(INSECURE, http=HttpCheck(reuse=True))


@dataclass(frozen=True)
class Case:
    """A check of a server, and what it says when all is well."""

    name: str
    check: HealthCheck
    port: int
    start: Callable[[Site], subprocess.Popen[str]]
    well: str


CASES = [
    Case("tcp", TALK, 8080, Site.nginx, "answered as expected"),
    Case("http", BODY, 8080, Site.nginx, "200 OK"),
    Case("http kept", REUSE, 8080, Site.nginx, "200 OK"),
    Case("https", INSECURE, 8443, Site.nginx, "200 OK"),
    Case("https kept", KEPT, 8443, Site.nginx, "200 OK"),
    Case("grpc", HealthCheck(CheckKind.GRPC), 50051, Site.grpc, "SERVING"),
    Case("udp", UDP, 7001, Site.udp, "answered as expected"),
    Case("dns", DNS, 5353, Site.dnsmasq, "1 A record"),
    Case("agent", HealthCheck(CheckKind.AGENT), 7002, Site.agent, "agent: up"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("address", [BACKEND, BACKEND6], ids=["IPv4", "IPv6"])
async def test_a_server_that_hangs_ends_and_returns(
    site: Site, case: Case, address: IPv4Address | IPv6Address
) -> None:
    """Each kind tells a real server that serves from one that is frozen, and one that is gone."""
    latest = Latest()
    async with Prober(latest) as prober:
        prober.set_targets({"it": Target(paced(case.check), address, case.port)})
        await latest.until(it=REFUSED)
        server = case.start(site)
        await latest.until(it=case.well)
        server.send_signal(signal.SIGSTOP)
        await latest.until(it=TIMED_OUT)
        server.send_signal(signal.SIGCONT)
        await latest.until(it=case.well)
        site.host.stop(server)
        await latest.until(it=REFUSED)
        case.start(site)
        await latest.until(it=case.well)


@pytest.mark.parametrize("address", [BACKEND, BACKEND6], ids=["IPv4", "IPv6"])
async def test_icmp_finds_a_host_without_any_server(
    site: Site, address: IPv4Address | IPv6Address
) -> None:
    """An echo is answered by the kernel, and not by a cable that is unplugged."""
    latest = Latest()
    check = paced(HealthCheck(CheckKind.ICMP))
    async with Prober(latest) as prober:
        prober.set_targets({"it": Target(check, address, 0)})
        await latest.until(it="echo reply")
        site.host.ip("link set eth0 down")
        await latest.until(it=TIMED_OUT)


async def test_icmp_believes_a_router_that_knows_no_way(site: Site) -> None:
    """An unreachable fails the probe long before its timeout, in the words of the system."""
    site.host.sysctl(ip_forward=1)
    site.host.sysctl6(conf__all__forwarding=1)
    site.host.ip("route add unreachable 192.0.2.0/24", "route add unreachable 2001:db8:9::/64")
    here = site.here
    here.route("192.0.2.0/24", str(BACKEND))
    here.route("2001:db8:9::/64", str(BACKEND6))
    check = HealthCheck(CheckKind.ICMP, timeout_s=60.0)
    for address, told in (
        (IPv4Address("192.0.2.1"), "no route to host"),
        (IPv6Address("2001:db8:9::1"), "network is unreachable"),
    ):
        result = await probe(check, 0, address)
        assert (result.ok, result.detail) == (False, told)


async def test_exec_runs_the_operators_own_client(site: Site) -> None:
    """curl in a script: its words are the detail, its exit code the judgement."""
    latest = Latest()
    check = paced(HealthCheck(CheckKind.EXEC, command=(site.curl(),)))
    async with Prober(latest) as prober:
        prober.set_targets({"it": Target(check, BACKEND, 8080)})
        while "curl: (7)" not in latest.detail("it"):
            await latest.news()
        assert latest.detail("it").startswith("exit 7: curl: (7) Failed to connect")
        server = site.nginx()
        await latest.until(it="well")
        server.send_signal(signal.SIGSTOP)
        await latest.until(it=TIMED_OUT)


async def test_bad_answers_of_real_servers_have_words(site: Site) -> None:
    """A page that is ill, a name that is not there, a service nobody knows: each says so."""
    site.nginx()
    site.dnsmasq()
    site.udp()
    grpc = site.grpc()
    tell(grpc, "a.Ill NOT_SERVING")
    ill = HttpCheck(path="/ill")
    cases = {
        "page": (replace(BODY, http=ill), 8080),
        "body": (replace(BODY, http=HttpCheck(expected_body="^ill")), 8080),
        "plain": (HealthCheck(CheckKind.HTTP), 8443),
        "tls": (INSECURE, 8080),
        "record": (replace(DNS, dns=DnsCheck(NAME, "A", "192.0.2.9")), 5353),
        "kind": (replace(DNS, dns=DnsCheck(NAME, "MX")), 5353),
        "name": (replace(DNS, dns=DnsCheck("nobody.example")), 5353),
        "udp": (replace(UDP, payload=Payload(b"all is well", b"better")), 7001),
        "service": (HealthCheck(CheckKind.GRPC, grpc_service="a.Ill"), 50051),
        "nobody": (HealthCheck(CheckKind.GRPC, grpc_service="no.Such"), 50051),
        "http": (HealthCheck(CheckKind.GRPC), 8080),
    }
    latest = Latest()
    async with Prober(latest) as prober:
        prober.set_targets(
            {name: Target(paced(check), BACKEND, port) for name, (check, port) in cases.items()}
        )
        await latest.until(
            page="503 Service Unavailable, expected 200-399",
            body="200 OK, but the body is not as expected: well",
            plain="400 Bad Request, expected 200-399",
            tls="TLS: wrong version number",
            record="answered 192.0.2.1, expected 192.0.2.9",
            kind=f"REFUSED for {NAME} MX",
            name="REFUSED for nobody.example A",
            udp="answered all is well, expected better",
            service="NOT_SERVING, expected SERVING",
            nobody="gRPC NOT_FOUND",
            http="connection closed without an answer",
        )
        tell(grpc, "a.Ill SERVING")
        await latest.until(service="SERVING")


async def test_https_trusts_whom_it_is_told_to(site: Site, tmp_path: Path) -> None:
    """The CA, the name and the date must fit; ``insecure`` takes what comes."""
    site.nginx()
    ca, stranger = str(site.authority.certificate), Authority(tmp_path, "stranger").certificate
    named = Tls(NAME, ca)
    cases = {
        "trusted": Tls(NAME, ca),
        "by_header": Tls(ca_file=ca),
        "insecure": Tls(insecure=True),
        "system": Tls(NAME),
        "stranger": Tls(NAME, str(stranger)),
        "other_name": Tls("other.example", ca),
        "address": Tls(ca_file=ca),
    }
    latest = Latest()
    async with Prober(latest) as prober:
        targets = {
            name: Target(paced(replace(INSECURE, tls=tls)), BACKEND, 8443)
            for name, tls in cases.items()
        }
        headed = HttpCheck(host_header=f"{NAME}:8443")
        check = replace(targets["by_header"].check, http=headed)
        targets["by_header"] = replace(targets["by_header"], check=check)
        prober.set_targets(targets)
        untrusted = "TLS: unable to get local issuer certificate"
        await latest.until(
            trusted="200 OK",
            by_header="200 OK",
            insecure="200 OK",
            system=untrusted,
            stranger=untrusted,
            other_name="TLS: Hostname mismatch, certificate is not valid for 'other.example'",
            address="TLS: IP address mismatch, certificate is not valid for '10.0.0.2'",
        )
    assert named == cases["trusted"]


async def test_a_client_certificate_is_shown_and_renewed(site: Site, tmp_path: Path) -> None:
    """Without one, and with one of another CA, nginx refuses; a renewed file is taken by itself."""
    site.nginx()
    ca = str(site.authority.certificate)
    certificate, key = site.authority.sign("client", "DNS:client.example")
    foreign = Authority(tmp_path, "foreign").sign("client", "DNS:foreign.example")
    mine, my_key = tmp_path / "mine.pem", tmp_path / "mine.key"
    mine.write_bytes(foreign[0].read_bytes())
    my_key.write_bytes(foreign[1].read_bytes())
    shown = HttpCheck(expected_body="hello CN=client")

    def showing(certificate: Path | None, key: Path | None) -> Target:
        files = (str(certificate), str(key)) if certificate and key else (None, None)
        tls = Tls(NAME, ca, insecure=False, certificate=files[0], private_key=files[1])
        return Target(paced(replace(INSECURE, tls=tls, http=shown)), BACKEND, 8444)

    latest = Latest()
    async with Prober(latest) as prober:
        prober.set_targets(
            {
                "right": showing(certificate, key),
                "none": showing(None, None),
                "mine": showing(mine, my_key),
            }
        )
        refused = "400 Bad Request, expected 200-399"
        await latest.until(right="200 OK", none=refused, mine=refused)
        mine.write_text("half of a certificate")
        my_key.write_bytes(key.read_bytes())
        mine.write_bytes(certificate.read_bytes())
        await latest.until(right="200 OK", none=refused, mine="200 OK")


async def test_grpc_goes_over_tls(site: Site) -> None:
    """With the CA and the name that the certificate has."""
    certificate, key = site.authority.sign("grpc", "DNS:grpc.example")
    tell(site.grpc(certificate, key), "a.B SERVING")
    ca = str(site.authority.certificate)
    check = HealthCheck(CheckKind.GRPC, grpc_service="a.B", tls=Tls("grpc.example", ca))
    result = await probe(replace(check, timeout_s=pace.lasting(10)), 50051, BACKEND)
    assert (result.ok, result.detail) == (True, "SERVING")
    wrong = replace(check, tls=Tls("other.example", ca), timeout_s=pace.lasting(10))
    assert (await probe(wrong, 50051, BACKEND)).detail.startswith("TLS: Hostname mismatch")
    plain = replace(check, tls=None, timeout_s=pace.lasting(10))
    assert not (await probe(plain, 50051, BACKEND)).ok


async def test_dns_answers_of_every_sort_from_a_real_server(site: Site) -> None:
    """IPv6 addresses and texts, too."""
    site.dnsmasq()
    latest = Latest()
    wanted = {
        "aaaa": DnsCheck(NAME, "AAAA", "2001:DB8::80"),
        "txt": DnsCheck(NAME, "TXT", '"all is well"'),
    }
    async with Prober(latest) as prober:
        prober.set_targets(
            {k: Target(paced(replace(DNS, dns=d)), BACKEND, 5353) for k, d in wanted.items()}
        )
        await latest.until(aaaa="1 AAAA record", txt="1 TXT record")


async def test_an_agent_changes_its_mind(site: Site) -> None:
    """Weight, drain, maint and down arrive as they are said."""
    site.agent()
    latest = Latest()
    async with Prober(latest) as prober:
        target = Target(paced(HealthCheck(CheckKind.AGENT)), BACKEND, 7002)
        prober.set_targets({"it": target})
        for line, ok, advice in (
            ("75%", True, Advice(0.75)),
            ("drain", True, Advice(None, Admin.DRAIN)),
            ("maint 10%", True, Advice(0.1, Admin.MAINT)),
            ("down # disk full", False, Advice()),
            ("ready up", True, Advice(None, Admin.READY)),
        ):
            site.advise(line)
            said = line.replace("# disk full", "(disk full)")
            await latest.until(it=f"agent: {said}")
            assert (latest.results["it"].ok, latest.results["it"].advice) == (ok, advice)
