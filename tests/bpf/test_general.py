"""What is not plain: tags, options, extension headers, fragments, errors, and what is answered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from itertools import count
from operator import truediv as div

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    fragment6,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from lb_xdp.core.model import Address, Mode, NoBackend, Protocol
from lb_xdp.datapath import syscall
from tests.support.program import (
    CLIENT,
    CLIENT6,
    CLIENT_MAC,
    GATEWAY_MAC,
    INNER,
    OUTER,
    SNATS,
    VIP,
    VIP6,
    LoadedProgram,
    Outcome,
    Wire,
    assert_same,
    backend_address,
    payload,
    service,
)

FAMILIES = [4, 6]
MODES = [Mode.DSR, Mode.IPIP, Mode.GUE, Mode.NAT, Mode.FULLNAT]
_IDS = count(0x1234)


def vip(family: int) -> str:
    return str(VIP if family == 4 else VIP6)


def client(family: int) -> str:
    return str(CLIENT if family == 4 else CLIENT6)


def header(family: int, source: str, destination: str, **fields: object) -> Packet:
    if family == 4:
        return IP(src=source, dst=destination, **{"ttl": 64, "id": 7, "flags": "DF", **fields})
    return IPv6(src=source, dst=destination, hlim=64)


def from_client(family: int, layer: Packet, **fields: object) -> Ether:
    return (
        Ether(src=CLIENT_MAC, dst=GATEWAY_MAC)
        / header(family, client(family), vip(family), **fields)
        / layer
    )


def load(wire: Wire, mode: Mode, version: int, **options: object) -> LoadedProgram:
    """Return a program with one TCP and one UDP service on the VIP of a family."""
    address = VIP if version == 4 else VIP6
    both = [
        service(mode, protocol=protocol, vip=address, name=protocol.value, **options)  # type: ignore[arg-type]  # passed through
        for protocol in (Protocol.TCP, Protocol.UDP)
    ]
    return LoadedProgram(wire, *both)


def rebuilt(frame: bytes) -> bytes:
    """Return a frame with all lengths and checksums computed by scapy, but for gue's own."""
    packet = Ether(frame)
    for layer in packet.iterpayloads():
        if isinstance(layer, UDP) and not layer.chksum:
            continue
        for field in ("chksum", "cksum", "len", "plen"):
            if field in getattr(layer, "fields", {}) and not isinstance(layer, Ether):
                delattr(layer, field)
    return bytes(packet)


def assert_right(frame: bytes) -> None:
    """Fail unless each length and checksum is what scapy would compute."""
    assert_same(frame, Ether(rebuilt(frame)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tags", [Dot1Q(vlan=7), Dot1AD(vlan=9) / Dot1Q(vlan=7)])
def test_tags_are_kept(wire: Wire, mode: Mode, family: int, tags: Packet) -> None:
    """A tagged packet leaves as the plain one does, its tags between MACs and packet."""
    plain = from_client(family, TCP(sport=4001, dport=80, flags="S") / payload(30))
    tagged = Ether(src=CLIENT_MAC, dst=GATEWAY_MAC) / tags.copy() / plain.payload.copy()
    with load(wire, mode, family) as loaded:
        wanted, found = loaded.run(plain), loaded.run(tagged)
        assert (found.action, found.reason) == (wanted.action, "forwarded")
        octets = 4 * len(list(tags.iterpayloads()))
        assert found.data[:12] + found.data[12 + octets :] == wanted.data
        assert found.data[12 : 10 + octets] == bytes(tagged)[12 : 10 + octets]


@pytest.mark.parametrize("mode", MODES)
def test_ipv4_options_are_kept(wire: Wire, mode: Mode) -> None:
    """A packet with IPv4 options goes to the backend of its flow, options and all."""
    layer = TCP(sport=4002, dport=80, flags="S") / payload(30)
    with load(wire, mode, 4) as loaded:
        plain = loaded.run(from_client(4, layer))
        found = loaded.run(from_client(4, layer, options=[IPOption_NOP()] * 12))
        assert (found.action, found.reason) == ("redirect", "forwarded")
        assert found.packet.dst == plain.packet.dst
        assert found.data[-50:] == plain.data[-50:]
        assert len(found.data) == len(plain.data) + 12
        assert_right(found.data)


@pytest.mark.parametrize("mode", MODES)
def test_ipv6_extension_headers_are_followed(wire: Wire, mode: Mode) -> None:
    """Hop-by-hop, routing (spent) and destination headers hide no ports."""
    layer = UDP(sport=4003, dport=80) / payload(30)
    chain = IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting(segleft=0) / IPv6ExtHdrDestOpt()
    with load(wire, mode, 6) as loaded:
        plain = loaded.run(from_client(6, layer))
        found = loaded.run(from_client(6, chain / layer))
        assert (found.action, found.reason) == ("redirect", "forwarded")
        assert found.packet.dst == plain.packet.dst
        assert bytes(found.data)[-38:] == bytes(plain.data)[-38:]


@pytest.mark.parametrize(
    "chain",
    [
        IPv6ExtHdrRouting(segleft=1, addresses=["fd00::1"]),
        reduce(div, [IPv6ExtHdrDestOpt() for _ in range(7)]),
    ],
)
def test_headers_that_cannot_be_followed_pass(wire: Wire, chain: Packet) -> None:
    """A packet still under way by its routing header passes, and so does a chain without end."""
    with load(wire, Mode.DSR, 6) as loaded:
        packet = from_client(6, chain.copy() / UDP(sport=4003, dport=80))
        found = loaded.run(packet)
        assert (found.action, found.reason) == ("pass", "odd_header")
        assert found.data == bytes(packet)


def fragments(family: int, octets: int) -> list[Ether]:
    """Return a UDP datagram of a client's in fragments of at most 600 octets of payload."""
    layer = UDP(sport=4004, dport=80) / payload(octets)
    if family == 4:
        whole = from_client(4, layer, flags=0, id=next(_IDS))
        parts = fragment(whole[IP], 600)
    else:
        whole = IPv6(src=client(6), dst=vip(6), hlim=64) / IPv6ExtHdrFragment(id=next(_IDS)) / layer
        parts = fragment6(whole, 700)
    return [Ether(src=CLIENT_MAC, dst=GATEWAY_MAC) / part for part in parts]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_fragments_follow_the_first(wire: Wire, mode: Mode, family: int) -> None:
    """Later fragments, in any order and again, go where the first one went."""
    parts = fragments(family, 2000)
    assert len(parts) >= 4
    with load(wire, mode, family) as loaded:
        first = loaded.run(parts[0])
        assert (first.action, first.reason) == ("redirect", "forwarded")
        for part in [*reversed(parts[1:]), parts[2]]:
            found = loaded.run(part)
            assert (found.action, found.reason) == ("redirect", "forwarded")
            assert found.packet.dst == first.packet.dst
            kind = IP if family == 4 else IPv6
            assert found.packet[kind].dst == first.packet[kind].dst
            if not mode.tunnel:
                assert found.packet[kind].src == first.packet[kind].src
            assert len(found.data) - len(part) == len(first.data) - len(parts[0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", [Mode.NAT, Mode.FULLNAT])
def test_translated_fragments_make_a_right_datagram(wire: Wire, mode: Mode, family: int) -> None:
    """What the backend puts together has the right checksum; so has what its client gets back."""
    parts = fragments(family, 1500)
    with load(wire, mode, family, backend_port=8080) as loaded:
        out = [loaded.run(part).packet for part in parts]
        request = reassembled(out, family)
        assert request[UDP].dport == 8080
        back = header(family, network(request).dst, network(request).src, flags=0, id=next(_IDS))
        answer = UDP(sport=8080, dport=request[UDP].sport) / payload(1500)
        if family == 4:
            replies = fragment(back / answer, 600)
        else:
            replies = fragment6(back / IPv6ExtHdrFragment(id=next(_IDS)) / answer, 700)
        frames = [Ether(src=out[0].dst, dst=GATEWAY_MAC) / part for part in replies]
        results = [loaded.run(frame, ingress=INNER) for frame in frames]
        assert {result.reason for result in results} == {"replied"}
        reply = reassembled([result.packet for result in results], family)
        assert (network(reply).src, network(reply).dst) == (vip(family), client(family))
        assert (reply[UDP].sport, reply[UDP].dport) == (80, 4004)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_a_first_fragment_must_have_the_whole_header(wire: Wire, mode: Mode, family: int) -> None:
    """Padding is no transport header: there is no checksum in it to update."""
    tcp = bytes(from_client(family, TCP(sport=4006, dport=80)))[-20:]
    if family == 4:
        head = header(4, client(4), vip(4), flags="MF", proto=6)
    else:
        head = header(6, client(6), vip(6)) / IPv6ExtHdrFragment(m=1, nh=6)
    with load(wire, mode, family) as loaded:
        for octets, reason in ((8, "bad_length"), (16, "bad_length"), (24, "forwarded")):
            frame = Ether(src=CLIENT_MAC, dst=GATEWAY_MAC) / head / Raw((tcp + bytes(4))[:octets])
            found = loaded.run(bytes(frame) + tcp[octets:])
            assert found.reason == reason


def test_fragments_of_a_reply_that_are_fragmented_again(wire: Wire) -> None:
    """Those after a first one that the kernel has to cut are translated as it was."""
    with load(wire, Mode.NAT, 4, backends=[1]) as loaded:
        wire.set_mtu(OUTER, 1400)
        try:
            whole = header(4, str(backend_address(1)), client(4), flags=0, id=next(_IDS))
            parts = fragment(whole / UDP(sport=80, dport=4004) / payload(3100), 1480)
            sent = [loaded.run(Ether(dst=GATEWAY_MAC) / part, ingress=INNER) for part in parts]
        finally:
            wire.set_mtu(OUTER, 1500)
        assert [(s.action, s.reason) for s in sent] == [
            ("pass", "reply_too_big"),
            ("pass", "reply_too_big"),
            ("redirect", "replied"),
        ]
        assert {s.packet[IP].src for s in sent} == {vip(4)}


def network(packet: Packet) -> Packet:
    return packet[IP] if IP in packet else packet[IPv6]


def reassembled(frames: list[Ether], family: int) -> Packet:
    """Put fragments together, and fail unless the UDP checksum is right."""
    if family == 4:
        octets = b"".join(bytes(frame[IP].payload) for frame in frames)
        whole = IP(src=frames[0][IP].src, dst=frames[0][IP].dst, proto=17) / octets
    else:
        octets = b"".join(bytes(frame[IPv6ExtHdrFragment].payload) for frame in frames)
        whole = IPv6(src=frames[0][IPv6].src, dst=frames[0][IPv6].dst, nh=17) / octets
    whole = type(whole)(bytes(whole))
    sent = whole[UDP].chksum
    del whole[UDP].chksum
    assert type(whole)(bytes(whole))[UDP].chksum == sent
    return whole


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fragment_without_its_first_is_dropped(wire: Wire, family: int) -> None:
    """A later fragment to a VIP is dropped unless its first was seen; to others it passes."""
    parts = fragments(family, 1500)
    with load(wire, Mode.DSR, family) as loaded:
        lost = loaded.run(parts[1])
        assert (lost.action, lost.reason) == ("drop", "fragment_lost")
        network(parts[1]).dst = "198.51.100.1" if family == 4 else "2001:db8:9::1"
        other = loaded.run(parts[1])
        assert (other.action, other.reason) == ("pass", "not_vip")
        assert other.data == bytes(parts[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_fragments_without_a_service_all_pass(wire: Wire, family: int) -> None:
    """What belongs to no service is the kernel's, to the last fragment."""
    parts = fragments(family, 1500)
    with LoadedProgram(
        wire, service(Mode.DSR, vip=VIP if family == 4 else VIP6, protocol=Protocol.TCP)
    ) as loaded:
        assert {loaded.run(part).reason for part in parts} == {"no_service"}


@pytest.mark.parametrize("tags", [[], [Dot1Q(vlan=7)]])
@pytest.mark.parametrize("octets", [0, 1, 56, 1400])
@pytest.mark.parametrize("family", FAMILIES)
def test_echo_is_answered(wire: Wire, family: int, octets: int, tags: list[Packet]) -> None:
    """An echo request to a VIP comes back as a reply, to the octet."""
    request: Packet = ICMP(id=5, seq=6) if family == 4 else ICMPv6EchoRequest(id=5, seq=6)
    reply: Packet = ICMP(type=0, id=5, seq=6) if family == 4 else ICMPv6EchoReply(id=5, seq=6)
    body = payload(octets)
    with load(wire, Mode.DSR, family) as loaded:
        packet = Ether(src=CLIENT_MAC, dst=GATEWAY_MAC)
        wanted: Packet = Ether(src=GATEWAY_MAC, dst=CLIENT_MAC)
        for tag in tags:
            packet, wanted = packet / tag.copy(), wanted / tag.copy()
        found = loaded.run(packet / header(family, client(family), vip(family)) / request / body)
        assert (found.action, found.reason) == ("tx", "echo")
        assert_same(found.data, wanted / header(family, vip(family), client(family)) / reply / body)


@pytest.mark.parametrize("family", FAMILIES)
def test_too_big_is_told(wire: Wire, family: int) -> None:
    """What does not fit the tunnel is answered with the MTU that does, from the VIP."""
    with load(wire, Mode.IPIP, family) as loaded:
        packet = from_client(family, TCP(sport=4005, dport=80, flags="A") / payload(1460))
        found = loaded.run(packet)
        assert (found.action, found.reason) == ("tx", "too_big")
        assert (found.packet.src, found.packet.dst) == (GATEWAY_MAC, CLIENT_MAC)
        assert (network(found.packet).src, network(found.packet).dst) == (
            vip(family),
            client(family),
        )
        if family == 4:
            error = found.packet[ICMP]
            assert (error.type, error.code, error.nexthopmtu) == (3, 4, 1480)
            assert len(found.data) == 14 + 576
            quoted = 14 + 28
        else:
            assert found.packet[ICMPv6PacketTooBig].mtu == 1460
            assert len(found.data) == 14 + 1280
            quoted = 14 + 48
        assert found.data[quoted:] == bytes(packet)[14 : 14 + len(found.data) - quoted]
        checksums_hold(found.data, family)


def checksums_hold(frame: bytes, family: int) -> None:
    """Fail unless the outer header's and the ICMP checksum sum up as they must."""
    l3 = 14
    if family == 4:
        assert residue(frame[l3 : l3 + 20]) == 0
        assert residue(frame[l3 + 20 :]) == 0
    else:
        pseudo = frame[l3 + 8 : l3 + 40] + bytes([0, 58]) + frame[l3 + 4 : l3 + 6]
        assert residue(pseudo + frame[l3 + 40 :]) == 0


def residue(octets: bytes) -> int:
    octets += b"\0" * (len(octets) % 2)
    return sum(int.from_bytes(octets[n : n + 2]) for n in range(0, len(octets), 2)) % 0xFFFF


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("flags", ["S", "A", "PA", "R"])
def test_refused_tcp_gets_a_reset(wire: Wire, family: int, flags: str) -> None:
    """A service that rejects answers a segment as a closed port does (RFC 9293, 3.10.7.1)."""
    with refusing(wire, family) as loaded:
        packet = from_client(
            family, TCP(sport=4006, dport=80, flags=flags, seq=100, ack=77) / payload(9)
        )
        found = loaded.run(packet)
        if flags == "R":
            assert (found.action, found.reason) == ("drop", "no_backend")
            return
        assert (found.action, found.reason) == ("tx", "refused")
        reset = TCP(sport=80, dport=4006, window=0)
        if "A" in flags:
            reset.flags, reset.seq = "R", 77
        else:
            reset.flags, reset.seq, reset.ack = "RA", 0, 110
        back = header(family, vip(family), client(family), id=0)
        assert_same(found.data, Ether(src=GATEWAY_MAC, dst=CLIENT_MAC) / back / reset)


def refusing(wire: Wire, family: int) -> LoadedProgram:
    both = [
        service(
            Mode.DSR,
            protocol=protocol,
            vip=VIP if family == 4 else VIP6,
            name=protocol.value,
            no_backend=NoBackend.REJECT,
        )
        for protocol in (Protocol.TCP, Protocol.UDP)
    ]
    return LoadedProgram(wire, *both, down=(1, 2, 3))


@pytest.mark.parametrize("octets", [0, 1, 2, 3, 700, 1300])
@pytest.mark.parametrize("family", FAMILIES)
def test_refused_udp_is_unreachable(wire: Wire, family: int, octets: int) -> None:
    """A service that rejects answers a datagram with port unreachable, quoting it."""
    with refusing(wire, family) as loaded:
        packet = from_client(family, UDP(sport=4007, dport=80) / payload(octets))
        found = loaded.run(packet)
        assert (found.action, found.reason) == ("tx", "refused")
        at = 14 + (20 if family == 4 else 40)
        assert tuple(found.data[at : at + 2]) == ((3, 3) if family == 4 else (1, 4))
        quote = bytes(packet)[14:][: 548 if family == 4 else 1232]
        assert found.data[at + 8 :] == quote
        checksums_hold(found.data, family)


@contextmanager
def on_one_cpu() -> Iterator[None]:
    """Stay where we are: each CPU has a budget of its own."""
    free = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(free)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, free)


def test_answers_have_a_budget(wire: Wire) -> None:
    """A flood of what is refused is answered a thousand times a second, and dropped beyond."""
    with refusing(wire, 4) as loaded, on_one_cpu():
        packet = from_client(4, UDP(sport=4008, dport=80))
        for _ in range(5000):
            syscall.program_test_run(loaded.generation.program.fd, bytes(packet), ifindex=None)
        counted = loaded.reasons()
        assert counted["unanswered"] > 0
        assert 1000 <= counted["refused"] < 5000
        assert counted["refused"] + counted["unanswered"] == 5000


@pytest.mark.parametrize("family", FAMILIES)
def test_a_flood_of_what_is_refused_stops_no_path_mtu_discovery(wire: Wire, family: int) -> None:
    """Too big has a budget of its own: hosts hear of it while no more refusals are sent."""
    wanted = Mode.IPIP, (1, 2, 3), NoBackend.DROP
    refused = Mode.IPIP, (9,), NoBackend.REJECT
    at: Address = VIP if family == 4 else VIP6
    services = [
        service(mode, port, vip=at, backends=who, no_backend=nobody, name=str(port))
        for port, (mode, who, nobody) in ((80, wanted), (81, refused))
    ]
    large = from_client(family, TCP(sport=4008, dport=80, flags="A") / payload(1460))
    flood = from_client(family, TCP(sport=4008, dport=81, flags="S"))
    with LoadedProgram(wire, *services, down=(9,)) as loaded:
        for _ in range(3):  # a second may end between the flood and what follows
            spent = 0
            while spent < 2:
                spent += loaded.run(flood).reason == "unanswered"
            assert loaded.run(large).reason == "too_big"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quote", [8, 20, 60])
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("mode", MODES)
def test_an_error_reaches_the_backend(
    wire: Wire, mode: Mode, family: int, quote: int, protocol: type[Packet]
) -> None:
    """A router's error about a reply from the VIP goes to the flow's backend."""
    layer = protocol(sport=4009, dport=80)
    with load(wire, mode, family, backend_port=80 if not mode.translates else 8080) as loaded:
        request = loaded.run(from_client(family, layer / payload(10)))
        assert request.reason == "forwarded"
        sent = header(family, vip(family), client(family)) / protocol(sport=80, dport=4009)
        error = error_about(family, sent / payload(60), quote, vip(family))
        found = loaded.run(error)
        assert (found.action, found.reason) == ("redirect", "icmp_error")
        assert found.packet.dst == request.packet.dst
        if mode is Mode.DSR:
            assert found.data[12:] == bytes(error)[12:]
        elif mode.tunnel:
            hops = 8 if family == 4 else 7
            inner = bytearray(bytes(error)[14:])
            inner[hops] -= 1
            length = len(inner)
            body = found.data[-length:]
            assert body[:10] + body[12:] == bytes(inner[:10] + inner[12:]) or family == 6
        else:
            checksums_hold(found.data, family)
            at = 14 + (28 if family == 4 else 48)
            kind = IP if family == 4 else IPv6
            inner_packet = kind(found.data[at:])
            network_out = network(request.packet)
            assert inner_packet.src == network_out.dst == network(found.packet).dst
            assert inner_packet.dst == network_out.src
            l4 = found.data[at + (20 if family == 4 else 40) :]
            assert int.from_bytes(l4[:2]) == 8080
            assert int.from_bytes(l4[2:4]) == request.packet[protocol].sport
            if family == 4:
                assert residue(found.data[at : at + 20]) == 0
            if quote == 60:
                whole_checksum(found.data[at:], bytes(error)[at:], family, protocol)


def whole_checksum(after: bytes, before: bytes, family: int, protocol: type[Packet]) -> None:
    """Fail unless the quoted transport checksum changed with what it covers."""
    at = 20 if family == 4 else 40
    first = 12 if family == 4 else 8
    assert residue(after[first:]) == residue(before[first:])
    check = at + (16 if protocol is TCP else 6)
    assert after[check : check + 2] != before[check : check + 2]


def error_about(
    family: int, packet: Packet, quote: int, destination: str, source: str | None = None
) -> Ether:
    """Return a router's "host unreachable" about a packet, quoting so much of its payload."""
    octets = bytes(packet)[: (20 if family == 4 else 40) + quote]
    if family == 4:
        back = header(4, source or "192.0.2.1", destination)
        return Ether(src=CLIENT_MAC, dst=GATEWAY_MAC) / back / ICMP(type=3, code=1) / Raw(octets)
    back = header(6, source or "2001:db8:5::1", destination)
    raw = ICMPv6EchoRequest(type=1, code=0, id=0, seq=0, data=octets)
    return Ether(src=CLIENT_MAC, dst=GATEWAY_MAC) / back / raw


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("by_backend", [True, False])
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("mode", [Mode.NAT, Mode.FULLNAT])
def test_an_error_reaches_the_client(
    wire: Wire, mode: Mode, family: int, protocol: type[Packet], *, by_backend: bool
) -> None:
    """An error about a translated request is translated back: the client knows its own packet."""
    with load(wire, mode, family, backend_port=8080) as loaded:
        packet = from_client(family, protocol(sport=4010, dport=80) / payload(30))
        sent = network(loaded.run(packet).packet)
        source = sent.dst if by_backend else None
        error = error_about(family, sent, 38, sent.src, source)
        found = loaded.run(error, ingress=INNER)
        assert (found.action, found.reason) == ("redirect", "icmp_error")
        assert found.packet.dst == CLIENT_MAC
        assert network(found.packet).dst == client(family)
        assert (network(found.packet).src == vip(family)) is by_backend
        checksums_hold(found.data, family)
        at = 14 + (28 if family == 4 else 48)
        wanted = bytearray(bytes(packet)[14:][: len(found.data) - at])
        if family == 4:
            wanted[8] -= 1
            wanted[10:12] = found.data[at + 10 : at + 12]
            assert residue(found.data[at : at + 20]) == 0
        else:
            wanted[7] -= 1
        assert found.data[at:] == bytes(wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backend_of_nat_and_of_fullnat(wire: Wire, family: int) -> None:
    """What a backend of both sends to fullnat's address is fullnat's, errors included."""
    address = VIP if family == 4 else VIP6
    nat = service(Mode.NAT, 80, vip=address, backends=[1], name="nat")
    full = service(Mode.FULLNAT, 81, vip=address, backends=[1], backend_port=80, name="full")
    with LoadedProgram(wire, nat, full) as loaded:
        sent = loaded.run(from_client(family, TCP(sport=4020, dport=81, flags="S"))).packet
        there = network(sent)
        answer = header(family, there.dst, there.src) / TCP(
            sport=80, dport=there[TCP].sport, flags="SA"
        )
        error = error_about(family, there, 20, there.src)
        for packet, reason in ((Ether(dst=GATEWAY_MAC) / answer, "replied"), (error, "icmp_error")):
            found = loaded.run(packet, ingress=INNER)
            assert (found.action, found.reason) == ("redirect", reason)
            assert network(found.packet).dst == client(family)


@pytest.mark.parametrize("mode", [Mode.IPIP, Mode.GUE])
@pytest.mark.parametrize("outer", FAMILIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_too_big_within_the_tunnel_is_told(wire: Wire, mode: Mode, family: int, outer: int) -> None:
    """A router's "too big" about an outer packet reaches the client, less the tunnel's headers."""
    with load(wire, mode, family, family=outer) as loaded:
        packet = from_client(family, TCP(sport=4011, dport=80, flags="A") / payload(1350))
        sent = loaded.run(packet)
        assert sent.reason == "forwarded"
        told = 1350
        tunnel = bytes(sent.data[14:])
        if outer == 4:
            error = (
                header(4, "192.0.2.1", sent.packet[IP].src)
                / ICMP(type=3, code=4, nexthopmtu=told)
                / Raw(tunnel[:200])
            )
        else:
            error = (
                header(6, "2001:db8:5::1", sent.packet[IPv6].src)
                / ICMPv6PacketTooBig(mtu=told)
                / Raw(tunnel[:300])
            )
        found = loaded.run(Ether(src=sent.packet.dst, dst=GATEWAY_MAC) / error, ingress=INNER)
        assert (found.action, found.reason) == ("redirect", "icmp_error")
        assert found.packet.dst == CLIENT_MAC
        assert (network(found.packet).src, network(found.packet).dst) == (
            vip(family),
            client(family),
        )
        overhead = (20 if outer == 4 else 40) + (8 if mode is Mode.GUE else 0)
        if family == 4:
            assert found.packet[ICMP].nexthopmtu == told - overhead
        else:
            assert found.packet[ICMPv6PacketTooBig].mtu == max(told - overhead, 1280)
        checksums_hold(found.data, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_too_big_for_a_client_without_neighbour_is_the_kernels_to_send(
    wire: Wire, family: int
) -> None:
    """What the kernel has to route is addressed to the gateway: it drops others' frames."""
    with load(wire, Mode.IPIP, family) as loaded:
        packet = from_client(family, TCP(sport=4011, dport=80, flags="A") / payload(1350))
        network(packet).src = "10.1.0.77" if family == 4 else "fd00:1::77"
        sent = loaded.run(packet)
        error = tunnel_error(family, sent, 1350)
        found = loaded.run(error, ingress=INNER)
        assert (found.action, found.reason) == ("pass", "no_neighbour")
        assert (found.packet.src, found.packet.dst) == (error.src, GATEWAY_MAC)
        assert network(found.packet).dst == network(packet).src


def tunnel_error(outer: int, sent: Outcome, told: int) -> Ether:
    """Return a router's "too big" about a tunnel's packet."""
    tunnel = bytes(sent.data[14:])
    frame = Ether(src=sent.packet.dst, dst=GATEWAY_MAC)
    if outer == 4:
        icmp = ICMP(type=3, code=4, nexthopmtu=told) / Raw(tunnel[:200])
        return frame / header(4, "192.0.2.1", sent.packet[IP].src) / icmp
    icmp = ICMPv6PacketTooBig(mtu=told) / Raw(tunnel[:300])
    return frame / header(6, "2001:db8:5::1", sent.packet[IPv6].src) / icmp


@pytest.mark.parametrize("outer", FAMILIES)
def test_an_error_about_a_tunnel_that_is_not_ours_is_not_relayed(wire: Wire, outer: int) -> None:
    """What it quotes must have been sent from where the error goes to."""
    with load(wire, Mode.IPIP, 4, family=outer) as loaded:
        layer = TCP(sport=4011, dport=80, flags="A") / payload(1350)
        sent = loaded.run(from_client(4, layer))
        error = tunnel_error(outer, sent, 1390)
        octets = bytearray(bytes(error))
        octets[14 + (28 + 15 if outer == 4 else 48 + 23)] ^= 1  # the quoted source
        found = loaded.run(bytes(octets), ingress=INNER)
        assert (found.action, found.reason) == ("pass", "to_gateway")


@pytest.mark.parametrize("family", FAMILIES)
def test_tunnels_of_a_version_without_a_vip(wire: Wire, family: int) -> None:
    """Errors about them are relayed, tagged or not; all else of that version passes untouched."""
    outer = 10 - family
    with load(wire, Mode.IPIP, family, family=outer) as loaded:
        layer = TCP(sport=4011, dport=80, flags="A") / payload(1350)
        sent = loaded.run(from_client(family, layer))
        error = tunnel_error(outer, sent, 1390)
        tagged = Ether(src=error.src, dst=error.dst) / Dot1Q(vlan=7) / error.payload
        for frame in (error, tagged):
            assert loaded.run(frame, ingress=INNER).reason == "icmp_error"
        to = sent.packet.payload.src
        plain = header(outer, client(outer), to)
        odd = plain / IPv6ExtHdrDestOpt() / TCP() if outer == 6 else plain / UDP()
        for packet in (odd, plain / TCP(), plain / ICMP()):
            for tags in (Ether(dst=GATEWAY_MAC), Ether(dst=GATEWAY_MAC) / Dot1Q(vlan=7)):
                frame = tags / packet
                found = loaded.run(frame)
                assert (found.action, found.reason) == ("pass", "other_family")
                assert found.data == bytes(frame)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_an_error_about_no_flow_passes(wire: Wire, mode: Mode, family: int) -> None:
    """An error that quotes nothing of ours is left alone."""
    with load(wire, mode, family) as loaded:
        sent = header(family, vip(family), client(family)) / TCP(sport=99, dport=4012)
        for quote in (0, 7, 20):
            error = error_about(family, sent, quote, vip(family))
            found = loaded.run(error)
            assert (found.action, found.reason) == ("pass", "protocol")
            assert found.data == bytes(error)
        stranger = "198.51.100.7" if family == 4 else "2001:db8:7::1"
        error = error_about(family, header(family, stranger, stranger) / TCP(), 20, stranger)
        found = loaded.run(error)
        assert (found.action, found.reason) == ("pass", "not_vip")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_error_from_a_backend_to_a_vip_is_not_about_a_client(wire: Wire, family: int) -> None:
    """What a VIP sent to a backend's address was no request that nat had translated."""
    with load(wire, Mode.NAT, family, backend_port=8080) as loaded:
        packet = from_client(family, TCP(sport=4020, dport=80) / payload(30))
        backend = network(loaded.run(packet).packet).dst
        sent = header(family, vip(family), backend) / TCP(sport=99, dport=8080)
        error = error_about(family, sent, 20, vip(family), backend)
        found = loaded.run(error, ingress=INNER)
        assert (found.action, found.reason) == ("pass", "protocol")
        assert found.data == bytes(error)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_every_truncation_is_survived(wire: Wire, mode: Mode, family: int) -> None:
    """Cut at any octet, no packet is forwarded that claims more than it has."""
    layer = TCP(sport=4013, dport=80, flags="S") / payload(9)
    sent = header(family, vip(family), client(family)) / TCP(sport=80, dport=4013) / payload(20)
    tagged = Ether(src=CLIENT_MAC, dst=GATEWAY_MAC) / Dot1AD() / Dot1Q()
    odd = (
        from_client(4, layer, options=[IPOption_NOP()] * 8)
        if family == 4
        else from_client(6, IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / layer)
    )
    accepted = [
        odd,
        tagged / odd.payload,
        from_client(family, ICMP() if family == 4 else ICMPv6EchoRequest()),
        error_about(family, sent, 40, vip(family)),
        fragments(family, 1000)[0],
    ]
    with load(wire, mode, family) as loaded:
        loaded.run(from_client(family, layer))
        for packet in map(bytes, accepted):
            assert loaded.run(packet).action in {"redirect", "tx"}
            for length in range(14, len(packet)):
                found = loaded.run(packet[:length])
                assert found.action in {"pass", "drop"}, (length, found.reason)


def test_a_snat_address_alone_is_no_flow(wire: Wire) -> None:
    """A packet to fullnat's address that no flow accounts for passes."""
    with load(wire, Mode.FULLNAT, 4) as loaded:
        packet = (
            Ether(src=CLIENT_MAC, dst=GATEWAY_MAC)
            / Dot1Q()
            / header(4, str(backend_address(1)), str(SNATS[0]))
            / TCP(sport=80, dport=5555)
        )
        found = loaded.run(packet, ingress=INNER)
        assert (found.action, found.reason) == ("pass", "no_flow")
