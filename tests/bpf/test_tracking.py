"""Flows with records: whom they follow, when they end, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from lb_xdp.core.collect import CLIENT_FIN, CLOSED, COUNTED, OPENING
from lb_xdp.core.model import Algorithm, Mode, NoBackend, OnBackendDown, Protocol, Service
from lb_xdp.core.settle import MARKED, SETTLED, SEVERED, UNSETTLED, current_of, pack
from tests.support.program import (
    CLIENT,
    CLIENT_MAC,
    GATEWAY_MAC,
    INNER,
    VIP,
    LoadedProgram,
    Outcome,
    Wire,
    assert_same,
    backend_address,
    backend_mac,
    service,
)


def request(flags: str, sport: int = 4000) -> Ether:
    header = IP(src=str(CLIENT), dst=str(VIP))
    return Ether(src=CLIENT_MAC, dst=GATEWAY_MAC) / header / TCP(sport=sport, dport=80, flags=flags)


def reply(number: int, to: str, sport: int, dport: int, flags: str) -> Ether:
    frame = Ether(src=backend_mac(number).hex(":"), dst=GATEWAY_MAC)
    header = IP(src=str(backend_address(number)), dst=to)
    return frame / header / TCP(sport=sport, dport=dport, flags=flags)


def number_of(outcome: Outcome) -> int:
    """Return which backend a forwarded packet went to, by its MAC."""
    return int(outcome.packet.dst.rsplit(":", 1)[-1], 16) - 10


@pytest.fixture
def turns(wire: Wire) -> Iterator[LoadedProgram]:
    """Provide a round_robin service over three backends of one weight."""
    with LoadedProgram(wire, service(Mode.DSR, algorithm=Algorithm.ROUND_ROBIN)) as loaded:
        yield loaded


def test_round_robin_takes_backends_in_turn(turns: LoadedProgram) -> None:
    """Each new flow goes to the next backend, and stays there; a retried SYN is no new flow."""
    first = [number_of(turns.run(request("S", 5000 + n))) for n in range(9)]
    assert first[:3] == first[3:6] == first[6:]
    assert sorted(first[:3]) == [1, 2, 3]
    for flags in ("S", "A", "PA"):
        assert [number_of(turns.run(request(flags, 5000 + n))) for n in range(9)] == first


def test_a_port_used_again_is_a_new_flow(turns: LoadedProgram) -> None:
    """A SYN on an established flow's addresses and ports begins another flow."""
    seen = []
    for _ in range(6):
        seen.append(number_of(turns.run(request("S"))))
        turns.run(request("A"))
        turns.run(request("R"))
    assert Counter(seen) == {1: 2, 2: 2, 3: 2}


def test_fullnat_ports_are_given_back_to_the_same_flow(wire: Wire) -> None:
    """Client and port again and again, each time ended by RST: no port is lost."""
    with LoadedProgram(wire, service(Mode.FULLNAT)) as loaded:
        for _ in range(100):
            for flags in ("S", "R"):
                assert loaded.run(request(flags)).reason == "forwarded"
        keys, _ = loaded.maps["returns"].read_all()
        assert len(keys) <= 3


@pytest.mark.parametrize("mode", [Mode.NAT, Mode.FULLNAT])
@pytest.mark.parametrize("end", ["FIN", "RST"])
def test_max_connections_is_exact(wire: Wire, mode: Mode, end: str) -> None:
    """Where both directions pass, exactly so many flows are let in, and each end lets one more."""
    web = service(mode, backends=[1], max_connections=3)
    with LoadedProgram(wire, web) as loaded:
        ports = range(6000, 6003)
        sent = [loaded.run(request("S", port)) for port in ports]
        assert [outcome.reason for outcome in sent] == ["forwarded"] * 3
        assert loaded.run(request("S", 6003)).reason == "backends_full"
        assert loaded.run(request("A", 6001)).reason == "forwarded"
        assert loaded.counts(web, 1).connections == 3
        there = sent[1].packet[IP]
        back = reply(1, there.src, 80, there[TCP].sport, "FA" if end == "FIN" else "RA")
        assert loaded.run(back, ingress=INNER).reason == "replied"
        if end == "FIN":
            assert loaded.counts(web, 1).connections == 3
            assert loaded.run(request("FA", 6001)).reason == "forwarded"
        assert loaded.counts(web, 1).connections == 2
        assert loaded.run(request("S", 6004)).reason == "forwarded"
        assert loaded.run(request("S", 6005)).reason == "backends_full"


def test_max_connections_of_dsr_wavers_not(wire: Wire) -> None:
    """Where the client's side alone is seen, a full backend waits until it has room to spare."""
    web = service(Mode.DSR, backends=[1], max_connections=100)
    with LoadedProgram(wire, web) as loaded:
        for port in range(7000, 7100):
            assert loaded.run(request("S", port)).reason == "forwarded"
        assert loaded.run(request("S", 7100)).reason == "backends_full"
        for port in range(7000, 7004):
            loaded.run(request("FA", port))
            assert loaded.run(request("S", 7200)).reason == "backends_full"
        for port in range(7004, 7007):
            loaded.run(request("FA", port))
        assert loaded.run(request("S", 7200)).reason == "forwarded"


def test_a_full_service_refuses_if_it_is_told_to(wire: Wire) -> None:
    """no_backend: reject answers a flow that finds every backend full."""
    web = service(Mode.NAT, backends=[1], max_connections=1, no_backend=NoBackend.REJECT)
    with LoadedProgram(wire, web) as loaded:
        loaded.run(request("S", 8000))
        outcome = loaded.run(request("S", 8001))
        assert (outcome.action, outcome.reason) == ("tx", "refused")
        assert outcome.packet[TCP].flags == "RA"


def put(loaded: LoadedProgram, web: Service, former: int, state: int) -> None:
    """Have backend 1 hold all slots, and another (1 to 3) have held them before."""
    image = loaded.plan.rings[web.key]
    at = {n: np.uint32(loaded.plan.indices[loaded.identity(web, n)]) for n in (1, 2, 3)}
    present = np.full_like(current_of(image.slots), at[1])
    slots = pack(present, at[former] if former else np.uint32(0), np.uint32(state))
    loaded.generation.write_ring(web.key, image._replace(held=slots))


@pytest.mark.parametrize("mode", [Mode.DSR, Mode.NAT])
def test_slots_and_records(wire: Wire, mode: Mode) -> None:
    """Settled, unsettled and marked slots place recorded and unrecorded flows as 0009 says."""
    web = service(mode)
    with LoadedProgram(wire, web) as loaded:
        put(loaded, web, 2, UNSETTLED)
        assert number_of(loaded.run(request("A", 1))) == 2
        assert number_of(loaded.run(request("S", 2))) == 1
        put(loaded, web, 0, MARKED)
        assert number_of(loaded.run(request("A", 1))) == 2
        assert number_of(loaded.run(request("A", 2))) == 1
        assert number_of(loaded.run(request("A", 3))) == 1
        assert number_of(loaded.run(request("S", 1))) == 1
        assert number_of(loaded.run(request("A", 1))) == 1
        keys, _ = loaded.maps["flows"].read_all()
        assert keys["source_port"].tolist() == [2]
        put(loaded, web, 0, SETTLED)
        for port in range(100, 200):
            loaded.run(request("S", port))
        assert len(loaded.maps["flows"].read_all()[0]) == 1


def test_udp_on_an_unsettled_slot_stays_where_it_was(wire: Wire) -> None:
    """UDP has no beginning: flows without a record are taken for old ones, and recorded."""
    web = service(Mode.DSR, 53, protocol=Protocol.UDP)
    with LoadedProgram(wire, web) as loaded:
        put(loaded, web, 2, UNSETTLED)
        header = Ether(src=CLIENT_MAC, dst=GATEWAY_MAC) / IP(src=str(CLIENT), dst=str(VIP))
        assert number_of(loaded.run(header / UDP(sport=9, dport=53) / b"x")) == 2
        put(loaded, web, 0, MARKED)
        assert number_of(loaded.run(header / UDP(sport=9, dport=53) / b"x")) == 2
        assert number_of(loaded.run(header / UDP(sport=10, dport=53) / b"x")) == 1


def test_flows_older_than_the_tracking_of_their_service(wire: Wire) -> None:
    """When a service begins to record all flows, those it had stay with the slot's former backend.

    A new flow is scheduled; one that lost its record goes by the ring.
    """
    web = service(Mode.DSR, algorithm=Algorithm.ROUND_ROBIN)
    with LoadedProgram(wire, web) as loaded:
        put(loaded, web, 2, UNSETTLED)
        assert [number_of(loaded.run(request("A", port))) for port in range(5)] == [2] * 5
        assert [number_of(loaded.run(request("S", port))) for port in range(10, 15)] == [1] * 5
        put(loaded, web, 0, SETTLED)
        assert [number_of(loaded.run(request("A", port))) for port in range(5)] == [2] * 5
        assert number_of(loaded.run(request("A", 99))) == 1


def test_a_full_table_sends_new_flows_by_the_ring(wire: Wire) -> None:
    """Nothing is evicted: flows without room go where the ring says; fullnat drops them."""
    web, full = service(Mode.DSR, algorithm=Algorithm.RANDOM), service(Mode.FULLNAT)
    with LoadedProgram(wire, web, flow_entries=64) as loaded:
        for port in range(500):
            assert loaded.run(request("S", port)).reason == "forwarded"
        found = [number_of(loaded.run(request("A", 499))) for _ in range(5)]
        assert len(set(found)) == 1
    with LoadedProgram(wire, full, flow_entries=64) as loaded:
        reasons = Counter(loaded.run(request("S", port)).reason for port in range(500))
        assert reasons["table_full"] > 300
        assert set(reasons) == {"forwarded", "table_full"}


def states(loaded: LoadedProgram) -> dict[int, int]:
    """Return the state bits of the records, by the client's port."""
    keys, values = loaded.maps["flows"].read_all()
    return dict(zip(keys["source_port"].tolist(), values["state"].tolist(), strict=True))


@pytest.mark.parametrize(
    ("web", "counted", "fin"),
    [
        (service(Mode.DSR), 0, CLIENT_FIN | CLOSED),
        (service(Mode.NAT), 0, CLIENT_FIN | CLOSED),
        (service(Mode.DSR, max_connections=9), COUNTED, CLIENT_FIN | CLOSED),
        (service(Mode.NAT, max_connections=9), COUNTED, CLIENT_FIN),
    ],
    ids=["dsr", "nat", "dsr, tracked", "nat, tracked"],
)
def test_a_flow_that_shows_itself_by_its_end(
    wire: Wire, web: Service, counted: int, fin: int
) -> None:
    """It is recorded as one that ends, and counted only while the backend's FIN is waited for."""
    with LoadedProgram(wire, web) as loaded:
        put(loaded, web, 2, UNSETTLED)
        for port, flags in enumerate(("A", "FA", "R", "RA", "S")):
            assert number_of(loaded.run(request(flags, port))) == (1 if flags == "S" else 2)
        opening = states(loaded).pop(4)
        assert opening == OPENING | counted
        assert {port: states(loaded)[port] for port in range(4)} == {
            0: counted,
            1: fin | counted,
            2: CLOSED | counted,
            3: CLOSED | counted,
        }
        open_still = sum(not state & CLOSED for state in states(loaded).values())
        connections = sum(loaded.counts(web, n).connections for n in (1, 2, 3))
        assert connections == (open_still if counted else 0)


RESETTING = {
    "dsr": service(Mode.DSR, on_backend_down=OnBackendDown.RESET),
    "nat": service(Mode.NAT, backend_port=8080, on_backend_down=OnBackendDown.RESET),
    "turns": service(
        Mode.DSR, algorithm=Algorithm.ROUND_ROBIN, on_backend_down=OnBackendDown.RESET
    ),
}


def turn(loaded: LoadedProgram, web: Service, number: int, *, up: bool) -> None:
    """Have a backend go down or come back, by its record alone."""
    identity = loaded.identity(web, number)
    record = replace(loaded.desired.records[identity], up=up)
    loaded.generation.write_record(identity, loaded.plan.indices[identity], record)


def with_fields(frame: Ether, **fields: int) -> Ether:
    for name, value in fields.items():
        setattr(frame[TCP], name, value)
    return frame


@pytest.mark.parametrize("web", RESETTING.values(), ids=RESETTING.keys())
def test_a_severed_slot_resets_what_is_not_recorded(wire: Wire, web: Service) -> None:
    """Its former backend's flows get a RST; new ones are recorded, and left alone."""
    with LoadedProgram(wire, web) as loaded:
        turn(loaded, web, 2, up=False)
        put(loaded, web, 2, SEVERED)
        outcome = loaded.run(request("A", 1))
        assert (outcome.action, outcome.reason) == ("tx", "reset")
        assert number_of(loaded.run(request("S", 2))) == 1
        assert number_of(loaded.run(request("A", 2))) == 1
        assert loaded.run(request("R", 1)).reason == "severed"
        assert loaded.run(request("A", 1)).reason == "reset"
        turn(loaded, web, 2, up=True)
        assert number_of(loaded.run(request("A", 1))) == 2


@pytest.mark.parametrize("web", RESETTING.values(), ids=RESETTING.keys())
@pytest.mark.parametrize("state", [UNSETTLED, MARKED, SEVERED])
def test_a_record_of_a_dead_backend_resets_its_flow(wire: Wire, web: Service, state: int) -> None:
    """As often as it asks, until it begins anew; other backends' flows go on."""
    with LoadedProgram(wire, web) as loaded:
        put(loaded, web, 2, UNSETTLED)
        assert number_of(loaded.run(request("A", 1))) == 2
        put(loaded, web, 3, UNSETTLED)
        assert number_of(loaded.run(request("A", 2))) == 3
        turn(loaded, web, 2, up=False)
        put(loaded, web, 3 if state == UNSETTLED else 2, state)
        assert [loaded.run(request("PA", 1)).reason for _ in range(3)] == ["reset"] * 3
        assert number_of(loaded.run(request("A", 2))) == 3
        assert number_of(loaded.run(request("S", 1))) == 1
        assert number_of(loaded.run(request("A", 1))) == 1


@pytest.mark.parametrize("state", [SETTLED, UNSETTLED, MARKED, SEVERED])
def test_fullnat_resets_what_has_no_record(wire: Wire, state: int) -> None:
    """Whatever the slot says: the port that its backend knew it by is lost. A SYN begins anew."""
    web = service(Mode.FULLNAT)
    with LoadedProgram(wire, web) as loaded:
        put(loaded, web, 0 if state in {SETTLED, MARKED} else 2, state)
        outcome = loaded.run(request("PA", 1))
        assert (outcome.action, outcome.reason) == ("tx", "reset")
        assert outcome.packet[TCP].flags == "R"
        assert loaded.run(request("R", 1)).reason == "severed"
        assert len(loaded.maps["flows"].read_all()[0]) == 0
        assert [loaded.run(request(flags, 1)).reason for flags in "SA"] == ["forwarded"] * 2


def test_fullnat_resets_flows_of_a_dead_backend(wire: Wire) -> None:
    """Where its service says so, as often as the client asks."""
    web = service(Mode.FULLNAT, on_backend_down=OnBackendDown.RESET)
    with LoadedProgram(wire, web) as loaded:
        put(loaded, web, 0, SETTLED)
        assert [number_of(loaded.run(request(flags, 1))) for flags in "SA"] == [1, 1]
        turn(loaded, web, 1, up=False)
        assert [loaded.run(request("PA", 1)).reason for _ in range(3)] == ["reset"] * 3


COUNTING = {
    "dsr": service(Mode.DSR, max_connections=50),
    "gue": service(Mode.GUE, algorithm=Algorithm.LEAST_CONNECTIONS),
    "nat": service(Mode.NAT, backend_port=8080, max_connections=50),
}


@pytest.mark.parametrize("web", COUNTING.values(), ids=COUNTING.keys())
def test_what_did_not_begin_here_is_neither_recorded_nor_counted(wire: Wire, web: Service) -> None:
    """It goes by the ring until its slot changes hands, and is recorded if it shows itself then."""

    def state_of_things() -> tuple[int, int, int]:
        counts = [loaded.counts(web, n) for n in (1, 2, 3)]
        records = len(loaded.maps["flows"].read_all()[0])
        return records, sum(c.connections for c in counts), sum(c.flows for c in counts)

    with LoadedProgram(wire, web) as loaded:
        for state in (SETTLED, MARKED):
            put(loaded, web, 0, state)
            for port in range(200):
                outcome = loaded.run(request("A", port))
                assert (outcome.reason, outcome.packet.dst[-2:]) == ("forwarded", "0b")
            assert state_of_things() == (0, 0, 0)
        put(loaded, web, 2, UNSETTLED)
        for port in range(3):
            assert loaded.run(request("A", port)).packet.dst[-2:] == "0c"
        assert state_of_things() == (3, 3, 3)


@pytest.mark.parametrize(
    ("flags", "payload", "expected"),
    [
        ("A", b"", {"flags": "R", "seq": 2000, "ack": 0}),
        ("PA", b"hello", {"flags": "R", "seq": 2000, "ack": 0}),
        ("P", b"hello", {"flags": "RA", "seq": 0, "ack": 1005}),
        ("F", b"", {"flags": "RA", "seq": 0, "ack": 1001}),
        ("SA", b"", {"flags": "R", "seq": 2000, "ack": 0}),
    ],
)
def test_the_octets_of_a_reset(
    wire: Wire, flags: str, payload: bytes, expected: dict[str, object]
) -> None:
    """Sequence numbers as RFC 9293, 3.5.2 says, ends exchanged, and sums that are right."""
    web = RESETTING["dsr"]
    with LoadedProgram(wire, web, down=[2]) as loaded:
        put(loaded, web, 2, SEVERED)
        sent = Ether(bytes(with_fields(request(flags, 1) / payload, seq=1000, ack=2000)))
        outcome = loaded.run(sent)
        assert outcome.reason == "reset"
        header = IP(src=str(VIP), dst=str(CLIENT), ttl=64, id=0, flags="DF")
        wanted = Ether(src=GATEWAY_MAC, dst=CLIENT_MAC) / header
        assert_same(outcome.data, wanted / TCP(sport=80, dport=1, window=0, **expected))


def test_a_service_that_rehashes_beside_one_that_resets(wire: Wire) -> None:
    """Only who asked for it has its flows reset; a slot left severed is taken for marked."""
    other = service(Mode.DSR, 443, name="other")
    with LoadedProgram(wire, RESETTING["dsr"], other) as loaded:
        put(loaded, other, 2, SEVERED)
        turn(loaded, other, 2, up=False)
        frame = request("A", 1)
        frame[TCP].dport = 443
        assert number_of(loaded.run(frame)) == 1
