"""Each kind of probe against servers that answer well, badly, with garbage, and not at all.

The servers are scripts of a few lines on loopback; tests/netns/test_probe_servers.py has real ones.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from lb_xdp.core.check import DnsCheck, HttpCheck, Payload, Tls
from lb_xdp.core.health import Advice, Names, Target
from lb_xdp.core.model import CheckKind, HealthCheck
from lb_xdp.core.snapshot import Admin
from lb_xdp.probes import exec as exec_probe
from lb_xdp.probes.agent import read_line
from lb_xdp.probes.attempt import ProbeFailedError, attempt
from lb_xdp.probes.kinds import open_exchange
from lb_xdp.probes.tls import Contexts, name_in
from lb_xdp.probes.waits import Waits, use
from tests.support import pace
from tests.support.probing import HERE, probe

TALK = HealthCheck(CheckKind.TCP, payload=Payload(b"PING\r\n", b"+PONG"))
HTTP = HealthCheck(CheckKind.HTTP)
HTTPS = HealthCheck(CheckKind.HTTPS, tls=Tls(insecure=True))
GRPC = HealthCheck(CheckKind.GRPC)
AGENT = HealthCheck(CheckKind.AGENT)
UDP = HealthCheck(CheckKind.UDP, payload=Payload(b"ask", b"well"))
DNS = HealthCheck(CheckKind.DNS, dns=DnsCheck("www.example.net"))
EXEC = HealthCheck(CheckKind.EXEC)

STREAMS = [TALK, HTTP, HTTPS, GRPC, AGENT]
DATAGRAMS = [UDP, DNS]


def kind_of(check: HealthCheck) -> str:
    """Name a case."""
    return str(check.kind)


def unused_port(kind: socket.SocketKind) -> int:
    """Return a port that nothing listens on."""
    with socket.socket(socket.AF_INET, kind) as held:
        held.bind((str(HERE), 0))
        return int(held.getsockname()[1])


@asynccontextmanager
async def saying(answer: bytes | None, *, close: bool = True) -> AsyncIterator[int]:
    """Answer whatever comes first on a stream; None: with nothing, and stay."""
    served: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if answer is not None:
                writer.write(answer)
                await writer.drain()
                if close:
                    writer.write_eof()
            while await reader.read(4096):
                pass
        except ConnectionError:
            pass
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.create_task(serve(reader, writer)))

    async with await asyncio.start_server(accept, str(HERE), 0) as server:
        yield server.sockets[0].getsockname()[1]
    for task in served:
        task.cancel()
    await asyncio.gather(*served, return_exceptions=True)


class Datagrams(asyncio.DatagramProtocol):
    """Answers each datagram with what a function makes of it."""

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self._answer = answer
        self._transport = asyncio.DatagramTransport()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str | int, int]) -> None:
        if (answer := self._answer(data)) is not None:
            self._transport.sendto(answer, addr)


@asynccontextmanager
async def answering(answer: Callable[[bytes], bytes | None]) -> AsyncIterator[int]:
    """Serve datagrams on a free port."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: Datagrams(answer), local_addr=(str(HERE), 0)
    )
    with closing(transport):
        yield transport.get_extra_info("sockname")[1]


@pytest.mark.parametrize("check", STREAMS, ids=kind_of)
async def test_a_closed_port_is_refused(check: HealthCheck) -> None:
    """Every kind over TCP has the same words for a port that nobody listens on."""
    result = await probe(check, unused_port(socket.SOCK_STREAM))
    assert (result.ok, result.detail) == (False, "connection refused")


@pytest.mark.parametrize("check", DATAGRAMS, ids=kind_of)
async def test_a_port_unreachable_fails_a_datagram_at_once(check: HealthCheck) -> None:
    """The ICMP error ends the probe, not its timeout."""
    patient = replace(check, timeout_s=30.0)
    result = await probe(patient, unused_port(socket.SOCK_DGRAM))
    assert (result.ok, result.detail) == (False, "connection refused")
    assert result.duration_s < 5


@pytest.mark.parametrize("check", STREAMS, ids=kind_of)
async def test_a_silent_server_times_out(check: HealthCheck) -> None:
    """A server that takes the connection and says nothing fails each kind in time."""
    async with saying(None) as port:
        result = await probe(replace(check, timeout_s=0.05), port)
    assert (result.ok, result.detail) == (False, "timed out after 0.05 s")


@pytest.mark.parametrize("check", DATAGRAMS, ids=kind_of)
async def test_a_lost_datagram_times_out(check: HealthCheck) -> None:
    """The same without a connection."""
    async with answering(lambda _: None) as port:
        result = await probe(replace(check, timeout_s=0.05), port)
    assert (result.ok, result.detail) == (False, "timed out after 0.05 s")


@pytest.mark.parametrize("check", STREAMS, ids=kind_of)
async def test_a_server_that_hangs_up_fails(check: HealthCheck) -> None:
    """A connection that ends before an answer is a failure in words."""
    async with saying(b"") as port:
        result = await probe(check, port)
    assert not result.ok
    assert "clos" in result.detail or result.detail == "connection reset by peer"


@pytest.mark.parametrize("check", STREAMS, ids=kind_of)
@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\0\xa5\x01\0\0" * 8,
        b"\0" * 70_000,
        os.urandom(999),
    ],
    ids=["ssh", "tls", "zeros", "noise"],
)
async def test_garbage_fails_in_one_printable_line(check: HealthCheck, garbage: bytes) -> None:
    """Whatever a stream brings, the probe fails, says so shortly, and raises nothing."""
    async with saying(garbage) as port:
        result = await probe(check, port)
    assert not result.ok
    assert result.detail.isprintable()
    assert 0 < len(result.detail) < 200


@pytest.mark.parametrize("check", DATAGRAMS, ids=kind_of)
@pytest.mark.parametrize("garbage", [b"", b"x", b"\0" * 64, os.urandom(500)])
async def test_a_garbled_datagram_fails(check: HealthCheck, garbage: bytes) -> None:
    """The same for datagrams, empty ones included."""
    async with answering(lambda _: garbage) as port:
        result = await probe(check, port)
    assert not result.ok
    assert result.detail.isprintable()


# tcp and udp.


async def test_a_conversation_finds_what_it_expects_in_pieces() -> None:
    """The answer may come in parts, and have more before and after."""
    async with saying(b"-hello\r\n+PO", close=False) as port:
        assert not (await probe(replace(TALK, timeout_s=0.05), port)).ok
    async with saying(b"-hello\r\n+PONG\r\nmore", close=False) as port:
        result = await probe(TALK, port)
    assert (result.ok, result.detail) == (True, "answered as expected")


async def test_a_conversation_may_only_listen() -> None:
    """A banner is expected without a word from us."""
    banner = replace(TALK, payload=Payload(None, b"SSH-2.0"))
    async with saying(b"SSH-2.0-x\r\n", close=False) as port:
        assert (await probe(banner, port)).ok


async def test_a_wrong_answer_is_shown_beside_the_right_one() -> None:
    """An operator reads what came and what should have."""
    async with saying(b"-ERR\r\n") as port:
        result = await probe(TALK, port)
    assert result.detail == "answered -ERR, expected +PONG"
    async with answering(lambda _: b"ill") as port:
        result = await probe(UDP, port)
    assert result.detail == "answered ill, expected well"


async def test_udp_takes_what_it_sent_for_and_any_answer_if_none_is_expected() -> None:
    """The payload arrives as it is."""
    async with answering(lambda data: b"all is well" if data == b"ask" else None) as port:
        assert (await probe(UDP, port)).detail == "answered as expected"
        anything = replace(UDP, payload=Payload(b"ask"))
        assert (await probe(anything, port)).detail == "answered"


# http.


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def page(body: str, *headers: str, status: str = "200 OK") -> bytes:
    """Return an answer of HTTP/1.1 that is complete."""
    head = (f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers)
    return ("\r\n".join(head) + "\r\n\r\n" + body).encode()


@pytest.mark.parametrize(
    ("answer", "ok"),
    [
        (page("status: ready"), True),
        (page("status: starting"), False),
        (page(""), False),
        (CHUNKED + b"3\r\nrea\r\n2\r\ndy\r\n0\r\n\r\n", True),
        (b"HTTP/1.0 200 OK\r\n\r\nready", True),
        (page("ready", status="503 Busy"), False),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + page("ready"), True),
    ],
    ids=["found", "missing", "empty", "chunked", "until the end", "status first", "interim"],
)
async def test_the_body_is_searched(answer: bytes, *, ok: bool) -> None:
    """A pattern is found however the body comes, and only under an expected status."""
    check = replace(HTTP, http=HttpCheck(expected_body=r"\bready$"))
    async with saying(answer) as port:
        result = await probe(check, port)
    assert result.ok is ok, result.detail


async def test_a_body_that_does_not_fit_is_shown() -> None:
    """The detail has the beginning of what came instead."""
    check = replace(HTTP, http=HttpCheck(expected_body="ready"))
    async with saying(page("database is gone\n")) as port:
        result = await probe(check, port)
    assert result.detail == "200 OK, but the body is not as expected: database is gone"


async def test_head_waits_for_no_body() -> None:
    """The answer to HEAD names a length and ends with its headers."""
    check = replace(HTTP, http=HttpCheck(method="HEAD"))
    async with saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", close=False) as port:
        assert (await probe(check, port)).detail == "200 OK"


class Pages:
    """A server that keeps connections, as many requests each as it is told, and counts both."""

    def __init__(self, requests_each: int = 1_000) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self._each = requests_each
        self._tasks: list[asyncio.Task[None]] = []

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._tasks.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for _ in range(self._each):
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(page("well"))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def end(self) -> None:
        await asyncio.gather(*self._tasks)


@pytest.mark.parametrize(
    ("reuse", "requests_each", "connections"),
    [(False, 1_000, 4), (True, 1_000, 1), (True, 2, 2)],
    ids=["never", "always", "closed by the server in between"],
)
async def test_connections_are_kept_only_if_asked(
    *, reuse: bool, requests_each: int, connections: int
) -> None:
    """Four probes take four connections, or one, or as many as the server makes necessary."""
    pages = Pages(requests_each)
    check = replace(HTTP, http=HttpCheck(reuse=reuse))
    async with await asyncio.start_server(pages.accept, str(HERE), 0) as server:
        target = Target(check, HERE, server.sockets[0].getsockname()[1])
        exchange = open_exchange(target, Contexts())
        with closing(exchange), Waits() as waits:
            use(waits)
            for _ in range(4):
                result = await attempt(1.0, asyncio.get_running_loop().time, exchange)
                assert result.ok, result.detail
        await pages.end()
    assert (pages.connections, len(pages.requests)) == (connections, 4)


async def test_headers_go_out_as_given_and_replace_ours() -> None:
    """Further headers are added; one of ours that is given again is not sent twice."""
    pages = Pages()
    headers = (("X-Token", "a b"), ("user-agent", "me"))
    check = replace(HTTP, http=HttpCheck(method="POST", path="/x", headers=headers))
    async with await asyncio.start_server(pages.accept, str(HERE), 0) as server:
        assert (await probe(check, server.sockets[0].getsockname()[1])).ok
        await pages.end()
    request, *lines = pages.requests[0].decode().split("\r\n")
    assert request == "POST /x HTTP/1.1"
    assert {"X-Token: a b", "user-agent: me", "Content-Length: 0"} < set(lines)
    assert sum(line.lower().startswith("user-agent") for line in lines) == 1


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("www.example.net", "www.example.net"),
        ("www.example.net:8443", "www.example.net"),
        ("10.0.0.1:80", ""),
        ("[2001:db8::1]:443", ""),
        ("", ""),
        ("a..b", ""),
        ("*!", ""),
        (f"{'a' * 64}.example", ""),
    ],
)
def test_a_host_header_gives_the_name_for_tls(header: str, name: str) -> None:
    """Ports are left away, and addresses are no names."""
    assert name_in(header) == name


# agent.


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        (b"75%\n", Advice(0.75)),
        (b"0%\r\n", Advice(0.0)),
        (b"150%", Advice(1.5)),
        (b"up\n", Advice()),
        (b"ready\n", Advice(None, Admin.READY)),
        (b"drain\n", Advice(None, Admin.DRAIN)),
        (b"maint # since noon\n", Advice(None, Admin.MAINT)),
        (b"UP READY 50%\nmore", Advice(0.5, Admin.READY)),
        (b"up,30%\tmaxconn:7\n", Advice(0.3)),
    ],
)
def test_an_agents_good_words_are_advice(line: bytes, advice: Advice) -> None:
    """Words of HAProxy's agents, alone and together; comments are for people."""
    assert read_line(line).advice == advice


@pytest.mark.parametrize("word", ["down", "fail", "failed", "stopped", "DOWN"])
def test_an_agents_bad_words_fail(word: str) -> None:
    """They fail the probe with the reason given, and what else was advised still counts."""
    with pytest.raises(ProbeFailedError, match="disk full") as caught:
        read_line(f"{word} 10% # disk full\n".encode())
    assert caught.value.advice == Advice(0.1)


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"  \n", b"hello\n", b"75\n", b"\xff\xfe\n", b"99999%\n"]
)
def test_what_no_agent_says_fails(line: bytes) -> None:
    """A word that is none fails the probe without advice: the former one holds."""
    with pytest.raises(ProbeFailedError) as caught:
        read_line(line)
    assert caught.value.advice is None


async def test_an_agent_is_sent_what_the_check_has_for_it() -> None:
    """One agent can speak for several backends, told apart by what is sent."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readline())
        writer.write(b"drain 5%\n")
        writer.close()

    async with await asyncio.start_server(serve, str(HERE), 0) as server:
        check = replace(AGENT, payload=Payload(b"web1\n"))
        result = await probe(check, server.sockets[0].getsockname()[1])
    assert heard == [b"web1\n"]
    assert (result.ok, result.detail) == (True, "agent: drain 5%")
    assert result.advice == Advice(0.05, Admin.DRAIN)


# dns.


def dns_server(
    *records: str, rcode: dns.rcode.Rcode = dns.rcode.NOERROR
) -> Callable[[bytes], bytes]:
    """Return a server that answers every query with these."""

    def answer(wire: bytes) -> bytes:
        response = dns.message.make_response(dns.message.from_wire(wire))
        response.set_rcode(rcode)
        for record in records:
            name, kind, text = record.split(" ", 2)
            response.answer.append(dns.rrset.from_text(name, 60, "IN", kind, text))
        return response.to_wire()

    return answer


@pytest.mark.parametrize(
    ("records", "how", "detail"),
    [
        (["www. A 192.0.2.1"], DnsCheck("www."), "1 A record"),
        (
            ["www. A 192.0.2.1", "www. A 192.0.2.2"],
            DnsCheck("www.", "A", "192.0.2.2"),
            "2 A records",
        ),
        (["w. AAAA 2001:db8::1"], DnsCheck("w.", "AAAA", "2001:DB8:0::1"), "1 AAAA record"),
        (["e. MX 10 mail.e."], DnsCheck("e", "MX", "10 mail.E"), "1 MX record"),
        (['e. TXT "v=x y"'], DnsCheck("e", "TXT", '"v=x y"'), "1 TXT record"),
        (["w. CNAME x.", "x. A 192.0.2.1"], DnsCheck("w"), "1 A record"),
    ],
)
async def test_dns_finds_its_record(records: list[str], how: DnsCheck, detail: str) -> None:
    """Records are compared by what they mean, not by how they are written."""
    async with answering(dns_server(*records)) as port:
        result = await probe(replace(DNS, dns=how), port)
    assert (result.ok, result.detail) == (True, detail)


@pytest.mark.parametrize(
    ("server", "detail"),
    [
        (dns_server(), "no A record of w"),
        (dns_server("w. AAAA 2001:db8::1"), "no A record of w"),
        (dns_server(rcode=dns.rcode.NXDOMAIN), "NXDOMAIN for w A"),
        (dns_server(rcode=dns.rcode.SERVFAIL), "SERVFAIL for w A"),
        (dns_server("w. A 192.0.2.7"), "answered 192.0.2.7, expected 192.0.2.1"),
        (
            lambda wire: bytes((wire[0] ^ 1,)) + dns_server("w. A 192.0.2.1")(wire)[1:],
            "answered another question",
        ),
        (lambda wire: wire, "answered another question"),
    ],
    ids=["nothing", "other type", "no name", "ill", "other record", "other number", "echo"],
)
async def test_dns_says_what_is_wrong(server: Callable[[bytes], bytes], detail: str) -> None:
    """Each kind of bad answer has its words."""
    async with answering(server) as port:
        result = await probe(replace(DNS, dns=DnsCheck("w", "A", "192.0.2.1")), port)
    assert (result.ok, result.detail) == (False, detail)


async def test_dns_asks_again_by_tcp_where_the_answer_did_not_fit() -> None:
    """A truncated answer is no answer yet."""

    def truncated(wire: bytes) -> bytes:
        response = dns.message.make_response(dns.message.from_wire(wire))
        response.flags |= dns.flags.TC
        return response.to_wire()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2), "big")
        answer = dns_server("w. A 192.0.2.1")(await reader.readexactly(size))
        for part in (
            len(answer).to_bytes(2, "big")[:1],
            len(answer).to_bytes(2, "big")[1:],
            answer,
        ):
            writer.write(part)
            await writer.drain()
        writer.close()

    async with answering(truncated) as port, await asyncio.start_server(serve, str(HERE), port):
        result = await probe(replace(DNS, dns=DnsCheck("w")), port)
    assert (result.ok, result.detail) == (True, "1 A record")


# exec.


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], HealthCheck]:
    """Make a check of a shell script."""

    def make(body: str) -> HealthCheck:
        path = tmp_path / "probe"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return replace(EXEC, command=(str(path), "an $argument", "*"))

    return make


Script = Callable[[str], HealthCheck]


@pytest.mark.parametrize(
    ("body", "ok", "detail"),
    [
        ("echo well; echo more", True, "well"),
        ("true", True, "exit 0"),
        ("echo too slow; exit 3", False, "exit 3: too slow"),
        ("echo to stderr >&2; exit 1", False, "exit 1: to stderr"),
        ("false", False, "exit 1"),
        ("kill -9 $$", False, "killed by signal 9"),
        ('printf "%s|" "$@"', True, "an $argument|*|"),
        ("head -c 1000000 /dev/zero | tr '\\0' x; exit 1", False, f"exit 1: {'x' * 100}..."),
    ],
)
async def test_a_command_is_judged_by_its_exit_code(
    script: Script, body: str, *, ok: bool, detail: str
) -> None:
    """The first line is the detail, arguments see no shell, and all output is taken."""
    result = await probe(replace(script(body), timeout_s=20.0), 80)
    assert (result.ok, result.detail) == (ok, detail)


async def test_a_command_knows_about_whom_it_is_asked(script: Script, tmp_path: Path) -> None:
    """Its environment is the path and what concerns the backend, and nothing of the daemon's."""
    check = script(f'env > "{tmp_path}/env"')
    names = Names("pool", "web1", ("web", "api"))
    assert (await probe(replace(check, timeout_s=20.0), 8080, names=names)).ok
    seen = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    ours = {"LB_XDP_BACKEND_ADDRESS": "127.0.0.1", "LB_XDP_BACKEND_PORT": "8080",
            "LB_XDP_BACKEND_NAME": "web1", "LB_XDP_BACKEND_POOL": "pool",
            "LB_XDP_BACKEND_SERVICE": "web,api", "LB_XDP_TIMEOUT_S": "20"}  # fmt: skip
    assert {name: value for name, value in seen.items() if name.startswith("LB_XDP")} == ours
    assert set(seen) - set(ours) <= {"PATH", "PWD", "OLDPWD", "SHLVL", "_"}


async def test_a_late_command_is_killed_with_its_children(script: Script, tmp_path: Path) -> None:
    """At the timeout nothing of the process group is left."""
    check = script(f'sleep 600 & echo $! $$ > "{tmp_path}/pids"; wait')
    result = await probe(replace(check, timeout_s=2.0), 80)
    assert (result.ok, result.detail) == (False, "timed out after 2 s")
    assert gone((tmp_path / "pids").read_text().split())


async def test_a_command_that_takes_its_time_to_die_is_waited_for(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves no zombie, even if nobody probes its target any more."""
    monkeypatch.setattr(exec_probe, "_DEATH_S", 0.0)
    check = script(f'echo $$ > "{tmp_path}/pid"; sleep 600')
    result = await probe(replace(check, timeout_s=2.0), 80)
    assert (result.ok, result.detail) == (False, "timed out after 2 s")
    pid = int((tmp_path / "pid").read_text())
    for waiting in threading.enumerate():
        if waiting.name == f"end of {pid}":
            waiting.join(pace.lasting(10))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_command_leaves_no_child_behind(script: Script, tmp_path: Path) -> None:
    """What a command starts and forgets ends with it, and does not hold the probe up."""
    check = script(f'sleep 600 & echo $! > "{tmp_path}/pids"; echo well')
    result = await probe(replace(check, timeout_s=60.0), 80)
    assert (result.ok, result.detail) == (True, "well")
    assert result.duration_s < 30
    assert gone((tmp_path / "pids").read_text().split())


def gone(pids: list[str]) -> bool:
    """Wait until processes have ended."""
    return all(map(_ends, pids))


def _ends(pid: str) -> bool:
    try:
        process = os.pidfd_open(int(pid))
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], 10)[0])
    finally:
        os.close(process)


async def test_a_command_that_is_gone_fails_in_words(tmp_path: Path) -> None:
    """It may vanish after the configuration was read."""
    result = await probe(replace(EXEC, command=(str(tmp_path / "gone"),)), 80)
    assert result.detail == f"{tmp_path / 'gone'} cannot be run: no such file or directory"
