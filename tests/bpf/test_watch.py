"""Handshakes that are watched: what counts as begun, repeated, answered, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from lb_xdp.core.model import Address, Algorithm, Detect, Mode, Service
from lb_xdp.datapath.counters import WatchCount
from tests.support.program import (
    CLIENT,
    CLIENT6,
    CLIENT_MAC,
    GATEWAY_MAC,
    INNER,
    VIP,
    VIP6,
    LoadedProgram,
    Outcome,
    Wire,
    backend_mac,
    service,
)

ISN = 0xFFFF_FFFF
"""The number after it is 0: the sums wrap around."""


def segment(flags: str, port: int = 4000, *, seq: int = ISN, vip: Address = VIP) -> Ether:
    """Return a client's packet."""
    mine = CLIENT if vip.version == 4 else CLIENT6
    header = (IP if vip.version == 4 else IPv6)(src=str(mine), dst=str(vip))
    tcp = TCP(sport=port, dport=80, flags=flags, seq=seq & 0xFFFF_FFFF)
    return Ether(src=CLIENT_MAC, dst=GATEWAY_MAC) / header / tcp


def answer(sent: Outcome, flags: str = "SA", *, ack: int = ISN + 1) -> Ether:
    """Return the backend's packet to one that was sent to it."""
    there = sent.packet
    header = there.getlayer(IP) or there.getlayer(IPv6)
    back = type(header)(src=header.dst, dst=header.src)
    ports = {"sport": there[TCP].dport, "dport": there[TCP].sport}
    tcp = TCP(**ports, flags=flags, seq=77, ack=ack & 0xFFFF_FFFF)
    return Ether(src=backend_mac(1).hex(":"), dst=GATEWAY_MAC) / back / tcp


BOTH_SIDES = {
    "nat": service(Mode.NAT, backends=[1], backend_port=8080, detect=Detect()),
    "nat by source": service(
        Mode.NAT, backends=[1], algorithm=Algorithm.SOURCE_HASH, detect=Detect()
    ),
    "nat6": service(Mode.NAT, backends=[1], vip=VIP6, detect=Detect()),
    "counted": service(
        Mode.NAT, backends=[1], algorithm=Algorithm.LEAST_CONNECTIONS, detect=Detect()
    ),
    "fullnat": service(Mode.FULLNAT, backends=[1], backend_port=8080, detect=Detect()),
    "fullnat6": service(Mode.FULLNAT, backends=[1], vip=VIP6, detect=Detect()),
}
ONE_SIDE = {
    "dsr": service(Mode.DSR, backends=[1], detect=Detect()),
    "ipip": service(Mode.IPIP, backends=[1], detect=Detect()),
    "gue6": service(Mode.GUE, backends=[1], vip=VIP6, detect=Detect()),
    "dsr by source": service(
        Mode.DSR, backends=[1], algorithm=Algorithm.SOURCE_HASH, detect=Detect()
    ),
}


class Watched:
    """A program, a service of one backend, and a client of it."""

    def __init__(self, loaded: LoadedProgram, web: Service) -> None:
        self.loaded = loaded
        self.web = web

    def send(self, flags: str, port: int = 4000, *, seq: int = ISN) -> Outcome:
        outcome = self.loaded.run(segment(flags, port, seq=seq, vip=self.web.vip))
        assert outcome.reason == "forwarded"
        return outcome

    def answer(self, sent: Outcome, flags: str = "SA", *, ack: int = ISN + 1) -> None:
        frame = answer(sent, flags, ack=ack)
        assert self.loaded.run(frame, ingress=INNER).reason == "replied"

    @property
    def seen(self) -> WatchCount:
        return self.loaded.watched(self.web, 1)

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Return begun, answered, repeated and resets."""
        seen = self.seen
        return seen.begun, seen.answered, seen.repeated, seen.resets


@pytest.fixture(params=list(BOTH_SIDES.values()), ids=list(BOTH_SIDES))
def both(request: pytest.FixtureRequest, wire: Wire) -> Iterator[Watched]:
    """Provide a service of each sort whose replies pass through the gateway."""
    with LoadedProgram(wire, request.param) as loaded:
        yield Watched(loaded, request.param)


@pytest.fixture(params=list(ONE_SIDE.values()), ids=list(ONE_SIDE))
def one(request: pytest.FixtureRequest, wire: Wire) -> Iterator[Watched]:
    """Provide a service of each sort whose replies take another way."""
    with LoadedProgram(wire, request.param) as loaded:
        yield Watched(loaded, request.param)


def test_a_syn_ack_is_the_answer(both: Watched) -> None:
    """Once for each handshake; what acknowledges another number is none."""
    sent = both.send("S")
    assert both.counts == (1, 0, 0, 0)
    both.answer(sent, ack=ISN + 2)
    both.answer(sent, "A")
    assert both.counts == (1, 0, 0, 0)
    for _ in range(2):
        both.answer(sent)
    both.send("A", seq=ISN + 1)
    assert both.counts == (1, 1, 0, 0)
    assert sum(both.seen.durations) == 1


def test_a_repeated_syn_is_no_other_handshake(both: Watched) -> None:
    """The same number again is the same one, and another number, or port, another one."""
    for _ in range(3):
        sent = both.send("S")
    both.send("S", 4001)
    assert both.counts == (2, 0, 2, 0)
    both.answer(sent)
    both.send("S", seq=5)
    assert both.counts == (3, 1, 2, 0)


def test_resets_of_the_backend_are_counted(both: Watched) -> None:
    """A refused handshake is not answered; resets of clients do not count."""
    sent = both.send("S")
    both.answer(sent, "RA")
    both.send("R")
    assert both.counts == (1, 0, 0, 1)
    assert sum(both.seen.durations) == 0


def test_how_long_an_answer_took(wire: Wire) -> None:
    """From SYN to SYN-ACK, in its place of the histogram and in the sum."""
    web = BOTH_SIDES["nat"]
    with LoadedProgram(wire, web) as loaded:
        watched = Watched(loaded, web)
        begun_ns = time.monotonic_ns()
        sent = watched.send("S")
        sent_ns = time.monotonic_ns()
        time.sleep(0.02)
        answered_ns = time.monotonic_ns()
        watched.answer(sent)
        least_us = (answered_ns - sent_ns) // 1000
        most_us = (time.monotonic_ns() - begun_ns) // 1000
        seen = watched.seen
    assert least_us <= seen.duration_us <= most_us
    (place,) = (n for n, count in enumerate(seen.durations) if count)
    assert 16 << place - 1 < seen.duration_us <= 16 << place


def test_the_clients_next_packet_tells_of_an_answer(one: Watched) -> None:
    """Where replies take another way: its number is the SYN's plus one."""
    for _ in range(2):
        one.send("S")
    one.send("A", seq=ISN + 7)
    one.send("R", seq=ISN + 1)
    assert one.counts == (1, 0, 1, 0)
    one.send("A", seq=ISN + 1)
    one.send("PA", seq=ISN + 1)
    assert one.counts == (1, 1, 1, 0)
    one.send("S", 4001)
    assert one.counts == (2, 1, 1, 0)
    assert sum(one.seen.durations) == 0


def test_who_is_not_watched_has_no_counters(wire: Wire) -> None:
    """Beside a watched service, another one costs no memory, and is not counted."""
    web, other = BOTH_SIDES["nat"], service(Mode.NAT, 443, backends=[2], name="other")
    with LoadedProgram(wire, web, other) as loaded:
        frame = segment("S")
        frame[TCP].dport = 443
        loaded.run(frame)
        assert len(loaded.maps["watched"].read_all()[0]) == 1
        assert loaded.watched(web, 1).begun == 0


def test_few_handshakes_share_a_place(wire: Wire) -> None:
    """Of 3,000 handshakes in 65,536 places few meet; the answers to the others are told apart."""
    web = BOTH_SIDES["nat"]
    with LoadedProgram(wire, web) as loaded:
        watched = Watched(loaded, web)
        sent = {port: watched.send("S", port) for port in range(1024, 4024)}
        assert watched.counts == (3000, 0, 0, 0)
        for outcome in list(sent.values())[-500:]:
            watched.answer(outcome)
        assert watched.counts[1] > 480
