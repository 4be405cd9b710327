"""What parsers of answers make of any octets: an answer or a failure, and never another error."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import patch

import dns.message
import dns.rrset
import h2.config
import h2.connection
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb_xdp.core.check import DnsCheck, HttpCheck, Payload
from lb_xdp.core.health import Target
from lb_xdp.core.model import CheckKind, HealthCheck
from lb_xdp.probes import agent, tls
from lb_xdp.probes import dns as dns_probe
from lb_xdp.probes.attempt import ProbeFailedError
from lb_xdp.probes.kinds import open_exchange
from lb_xdp.probes.tls import Contexts
from tests.support.probing import HERE

QUERY = dns.message.make_query("www.example.net", "A")


class Script:
    """A connection on which these octets come, and then the end."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        self._parts = list(parts)

    async def send(self, data: bytes) -> None:
        """Take no notice."""

    async def receive(self) -> bytes:
        return self._parts.pop(0) if self._parts else b""

    def close(self) -> None:
        """Nothing is open."""


def _grpc_answer() -> bytes:
    client = h2.connection.H2Connection()
    client.initiate_connection()
    headers = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")]
    client.send_headers(1, headers, end_stream=True)
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    server.initiate_connection()
    server.receive_data(client.data_to_send())
    server.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
    server.send_data(1, b"\0\0\0\0\2\x08\1")
    server.send_headers(1, [("grpc-status", "0")], end_stream=True)
    return server.data_to_send()


def _dns_answer(address: str = "192.0.2.1", lasts_s: int = 60) -> bytes:
    response = dns.message.make_response(QUERY)
    response.answer.append(dns.rrset.from_text("www.example.net.", lasts_s, "IN", "A", address))
    response.answer.append(dns.rrset.from_text("www.example.net.", 60, "IN", "MX", "1 a.b."))
    return response.to_wire()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwell\r\n0\r\n\r\n"
GOOD = {
    CheckKind.TCP: b"+PONG\r\n",
    CheckKind.HTTP: CHUNKED,
    CheckKind.GRPC: _grpc_answer(),
    CheckKind.UDP: b"all is well",
    CheckKind.DNS: _dns_answer(),
    CheckKind.AGENT: b"up 75% drain # why not\n",
}
CHECK = HealthCheck(
    CheckKind.TCP,
    payload=Payload(b"x", b"well"),
    http=HttpCheck(expected_body="well"),
    dns=DnsCheck("www.example.net", "A", "192.0.2.1"),
)


@st.composite
def spoiled(draw: st.DrawFn, good: bytes) -> list[bytes]:
    """Draw what is left of an answer after some octets were changed, lost, or put in; in parts."""
    octets = bytearray(good)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(octets)))
        octets[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    cut = draw(st.integers(0, len(octets)))
    return [part for part in (bytes(octets[:cut]), bytes(octets[cut:])) if part]


def ask(kind: CheckKind, parts: Sequence[bytes]) -> None:
    """Have a probe of a kind read this."""

    async def connect(*_place: object) -> Script:
        return Script(parts)

    async def once() -> None:
        exchange = open_exchange(Target(replace(CHECK, kind=kind), HERE, 9), Contexts())
        with (
            patch.object(tls, "connect", connect),
            patch.object(agent, "connect", connect),
            patch.object(dns_probe, "connect", connect),
            patch("lb_xdp.probes.tcp.connect", connect),
            patch("lb_xdp.probes.udp.connect", connect),
        ):
            try:
                answer = await exchange.ask()
            except ProbeFailedError as failure:
                detail = str(failure)
            else:
                detail = answer.detail
        assert detail.isprintable()
        assert 0 < len(detail) < 250

    asyncio.run(once())


@pytest.mark.parametrize("kind", GOOD)
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_any_octets_are_an_answer_or_a_failure(kind: CheckKind, data: st.DataObject) -> None:
    """Good answers with some damage, and noise: one printable line, and no other exception."""
    ask(kind, data.draw(st.one_of(spoiled(GOOD[kind]), st.lists(st.binary(min_size=1)))))


class NameServer(Script):
    """A name server that knows the number of the query, whatever else it says."""

    async def send(self, data: bytes) -> None:
        """Note the number, where it is not behind a length."""
        self._parts = [data[:2] + part for part in self._parts]


def _dns_answers() -> st.SearchStrategy[bytes]:
    """Draw answers but for their number: good ones, with other addresses or times, and damaged."""
    addresses, times_s = st.sampled_from(("192.0.2.1", "192.0.2.2")), st.integers(0, 2)
    good = st.builds(_dns_answer, addresses, times_s)
    truncated = good.map(lambda wire: wire[:2] + bytes((wire[2] | 2,)) + wire[3:])
    damaged = good.flatmap(spoiled).map(b"".join)
    return st.one_of(good, good, truncated, damaged).map(lambda wire: wire[2:])


@given(answers=st.lists(_dns_answers(), min_size=2, max_size=6))
@settings(deadline=None, max_examples=100)
def test_what_a_name_server_said_before_changes_nothing(answers: list[bytes]) -> None:
    """An answer that is good because the last one was is good to a newcomer, too."""
    target = Target(replace(CHECK, kind=CheckKind.DNS), HERE, 9)

    async def hear(asking: dns_probe.DnsExchange, answer: bytes) -> str:
        async def connect(*_place: object) -> Script:
            return NameServer([answer])

        with patch.object(dns_probe, "connect", connect):
            try:
                return (await asking.ask()).detail
            except ProbeFailedError as failure:
                return str(failure)

    async def compare() -> None:
        regular = dns_probe.DnsExchange(target)
        for answer in answers:
            # What is not DNS is quoted, with the number.
            newcomer = dns_probe.DnsExchange(target)
            heard = [await hear(asking, answer) for asking in (regular, newcomer)]
            assert len({"not DNS" if "not DNS" in said else said for said in heard}) == 1

    asyncio.run(compare())
