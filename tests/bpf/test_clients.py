"""Affinity: whose new flows follow the earlier ones, and what a flood of first packets can do."""

from __future__ import annotations

import random
from ipaddress import IPv4Address

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from lb_xdp.core.model import Affinity, Algorithm, Mode, Protocol, Session
from lb_xdp.datapath import maps
from tests.bpf.test_tracking import number_of
from tests.support.program import CLIENT_MAC, GATEWAY_MAC, VIP, LoadedProgram, Wire, service

FEW = 512
"""Clients in either table: small, so that a flood is soon larger."""

PINNED = Session(Affinity.CLIENT_IP, 60.0)
WEB = service(Mode.DSR, algorithm=Algorithm.RANDOM, session=PINNED)
DNS = service(Mode.DSR, 53, protocol=Protocol.UDP, algorithm=Algorithm.RANDOM, session=PINNED)


@pytest.fixture(autouse=True)
def _small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "CLIENTS", FEW)
    monkeypatch.setattr(maps, "UNPROVEN", FEW)


def packet(client: int, transport: Packet) -> Ether:
    source = str(IPv4Address("10.64.0.0") + client)
    return Ether(src=CLIENT_MAC, dst=GATEWAY_MAC) / IP(src=source, dst=str(VIP)) / transport


def segment(client: int, flags: str, port: int) -> Ether:
    return packet(client, TCP(sport=port, dport=80, flags=flags))


def datagram(client: int, port: int) -> Ether:
    return packet(client, UDP(sport=port, dport=53) / b"?")


def send(loaded: LoadedProgram, frame: Ether) -> int:
    outcome = loaded.run(frame)
    assert outcome.reason == "forwarded"
    return number_of(outcome)


def homes(loaded: LoadedProgram, client: int, first_port: int) -> set[int]:
    """Return where a client's next eight connections go, all under way at once."""
    ports = range(first_port, first_port + 8)
    found = {send(loaded, segment(client, "S", port)) for port in ports}
    return found | {send(loaded, segment(client, "A", port)) for port in ports}


def remembered(loaded: LoadedProgram, name: str) -> int:
    return len(loaded.maps[name].read_all()[0])


def test_connections_that_begin_together_go_together(wire: Wire) -> None:
    """Before any of them is established, and after."""
    with LoadedProgram(wire, WEB) as loaded:
        for client in range(20):
            found = homes(loaded, client, 1000)
            assert len(found) == 1
            assert homes(loaded, client, 2000) == found


def test_a_flood_of_first_packets_takes_no_clients_place(wire: Wire) -> None:
    """Of SYNs from three times as many addresses as are remembered, nothing stays.

    Clients that were there keep their backend, and new ones are remembered.
    """
    with LoadedProgram(wire, WEB) as loaded:
        before = {client: homes(loaded, client, 1000) for client in range(20)}
        sources = random.Random(4).sample(range(1000, 1 << 20), 3 * FEW)
        for source in sources:
            send(loaded, segment(source, "S", 1))
        assert remembered(loaded, "affinities") == 20
        assert {client: homes(loaded, client, 2000) for client in before} == before
        for client in range(20, 40):
            found = homes(loaded, client, 1000)
            for source in sources[:FEW]:
                loaded.run(segment(source, "S", 2 + client))
            assert homes(loaded, client, 2000) == found


def test_a_first_packet_again_and_a_reset_prove_nothing(wire: Wire) -> None:
    """Hosts that never asked answer a SYN-ACK by RST: that is no client's word either."""
    with LoadedProgram(wire, WEB) as loaded:
        for flags in ("S", "S", "R"):
            send(loaded, segment(1, flags, 1))
        assert remembered(loaded, "affinities") == 0
        send(loaded, segment(1, "S", 2))
        send(loaded, segment(1, "A", 2))
        assert remembered(loaded, "affinities") == 1


def test_a_client_of_udp_is_remembered_by_its_second_flow(wire: Wire) -> None:
    """It is with its first; packets of one flow within a second are not enough."""
    with LoadedProgram(wire, DNS) as loaded:
        found = {send(loaded, datagram(1, 1)) for _ in range(5)}
        assert remembered(loaded, "affinities") == 0
        found |= {send(loaded, datagram(1, port)) for port in range(2, 20)}
        assert len(found) == 1
        assert remembered(loaded, "affinities") == 1


def test_the_latest_connection_says_where_a_client_belongs(wire: Wire) -> None:
    """When its backend takes no more, the client moves to another one, and stays there."""
    limited = service(Mode.DSR, algorithm=Algorithm.RANDOM, session=PINNED, max_connections=2)
    with LoadedProgram(wire, limited) as loaded:
        (first,) = {send(loaded, segment(1, flags, port)) for port in (1, 2) for flags in "SA"}
        (second,) = {send(loaded, segment(1, flags, port)) for port in (3, 4) for flags in "SA"}
        assert first != second
        _, bonds = loaded.maps["affinities"].read_all()
        index = loaded.plan.indices[loaded.identity(limited, second)]
        assert bonds["backend"].tolist() == [np.uint32(index)]
