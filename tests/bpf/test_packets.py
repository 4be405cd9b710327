"""What becomes of single packets: verdict, reason, counters, and every byte of what comes out."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from lb_xdp.core.flow_hash import flow_hash, ring_slot
from lb_xdp.core.model import Mode, Protocol, Service
from lb_xdp.core.ring import RING_SLOTS
from tests.support.program import (
    CLIENT,
    CLIENT_MAC,
    GATEWAY_MAC,
    INNER,
    INNER_ADDRESS,
    OUTER,
    VIP,
    LoadedProgram,
    Wire,
    assert_same,
    backend_address,
    backend_mac,
    payload,
    service,
)

MODES = [Mode.DSR, Mode.NAT]


def from_client(layer: Packet, *, destination: IPv4Address = VIP, **ip: object) -> Ether:
    header = IP(src=str(CLIENT), dst=str(destination), id=7, ttl=64, tos=0x28, flags="DF")
    for name, value in ip.items():
        setattr(header, name, value)
    return Ether(src=CLIENT_MAC, dst=GATEWAY_MAC) / header / layer


def from_backend(number: int, layer: Packet, *, destination: IPv4Address = CLIENT) -> Ether:
    header = IP(src=str(backend_address(number)), dst=str(destination), id=9, ttl=64, flags="DF")
    return Ether(src=backend_mac(number).hex(":"), dst=GATEWAY_MAC) / header / layer


def expected_backend(loaded: LoadedProgram, web: Service, sport: int) -> int:
    """Return the backend's number by the Python reference of hash and ring."""
    hashed = flow_hash(int(CLIENT), int(web.vip), sport, web.port, web.protocol.number)
    ring = loaded.desired.rings[web.key]
    key = ring.keys[int(ring.owner[ring_slot(hashed, RING_SLOTS)])]
    return int(key.address) - int(backend_address(0))


def macs(loaded: LoadedProgram, egress: str) -> str:
    return loaded.topology.interfaces[egress].mac.hex(":")


@pytest.mark.parametrize("octets", [0, 1, 1400])
def test_dsr_changes_the_macs_alone(wire: Wire, octets: int) -> None:
    """A dsr packet leaves towards the backend that hash and ring name, with new MACs only."""
    web = service(Mode.DSR)
    with LoadedProgram(wire, web) as loaded:
        packet = from_client(TCP(sport=4001, dport=80, flags="A", seq=5) / payload(octets))
        outcome = loaded.run(packet)
        number = expected_backend(loaded, web, 4001)
        wanted = packet.copy()
        wanted.dst, wanted.src = backend_mac(number).hex(":"), macs(loaded, INNER)
        assert (outcome.action, outcome.reason) == ("redirect", "forwarded")
        assert_same(outcome.data, wanted)


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
@pytest.mark.parametrize("backend_port", [80, 8080])
@pytest.mark.parametrize("octets", [0, 1, 1400])
def test_nat_rewrites_the_destination(
    wire: Wire, protocol: Protocol, backend_port: int, octets: int
) -> None:
    """A nat packet gets the backend's address and port, one hop less and right checksums."""
    web = service(Mode.NAT, protocol=protocol, backend_port=backend_port)
    layer = (
        TCP(sport=4002, dport=80, flags="PA")
        if protocol is Protocol.TCP
        else UDP(sport=4002, dport=80)
    )
    with LoadedProgram(wire, web) as loaded:
        outcome = loaded.run(from_client(layer / payload(octets)))
        number = expected_backend(loaded, web, 4002)
        wanted = from_client(layer.copy() / payload(octets), destination=backend_address(number))
        wanted.dst, wanted.src = backend_mac(number).hex(":"), macs(loaded, INNER)
        wanted[IP].ttl = 63
        wanted[type(layer)].dport = backend_port
        assert (outcome.action, outcome.reason) == ("redirect", "forwarded")
        assert_same(outcome.data, wanted)


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
@pytest.mark.parametrize("octets", [0, 1, 1400])
def test_nat_reply_bears_the_vip(wire: Wire, protocol: Protocol, octets: int) -> None:
    """A backend's reply leaves towards the client as if the VIP had sent it."""
    web = service(Mode.NAT, protocol=protocol, backend_port=8080)
    layer = (
        TCP(sport=8080, dport=4003, flags="PA")
        if protocol is Protocol.TCP
        else UDP(sport=8080, dport=4003)
    )
    with LoadedProgram(wire, web) as loaded:
        outcome = loaded.run(from_backend(2, layer / payload(octets)), ingress=INNER)
        wanted = from_backend(2, layer.copy() / payload(octets))
        wanted.dst, wanted.src = CLIENT_MAC, macs(loaded, OUTER)
        wanted[IP].src, wanted[IP].ttl = str(VIP), 63
        wanted[type(layer)].sport = 80
        assert (outcome.action, outcome.reason) == ("redirect", "replied")
        assert_same(outcome.data, wanted)
        assert loaded.counts(web, 2).reply_packets == 1
        assert loaded.counts(web, 2).reply_bytes == len(wanted)


def test_udp_without_checksum_stays_without(wire: Wire) -> None:
    """RFC 768's zero checksum means "none", and nat does not invent one."""
    web = service(Mode.NAT, protocol=Protocol.UDP)
    with LoadedProgram(wire, web) as loaded:
        outcome = loaded.run(from_client(UDP(sport=4004, dport=80, chksum=0) / payload(5)))
        assert outcome.packet[UDP].chksum == 0


def test_a_wrong_checksum_stays_wrong(wire: Wire) -> None:
    """Checksums are updated, not computed: a packet damaged on its way does not turn whole."""
    web = service(Mode.NAT)
    with LoadedProgram(wire, web) as loaded:
        packet = from_client(TCP(sport=4005, dport=80, chksum=0x1234) / payload(9))
        out = loaded.run(packet).packet
        found = out[TCP].chksum
        del out[TCP].chksum
        assert found != Ether(bytes(out))[TCP].chksum


@pytest.mark.parametrize("mode", MODES)
def test_every_port_goes_where_the_reference_says(wire: Wire, mode: Mode) -> None:
    """C and Python agree on hash, slot and backend over many flows, and syns are counted."""
    web = service(mode)
    sent = dict.fromkeys((1, 2, 3), 0)
    with LoadedProgram(wire, web) as loaded:
        for sport in range(1024, 1324):
            outcome = loaded.run(from_client(TCP(sport=sport, dport=80, flags="S")))
            number = expected_backend(loaded, web, sport)
            assert outcome.packet.dst == backend_mac(number).hex(":")
            sent[number] += 1
        counted = {n: loaded.counts(web, n) for n in sent}
        assert {n: c.packets for n, c in counted.items()} == sent
        assert {n: c.flows for n, c in counted.items()} == sent
        assert {n: c.bytes for n, c in counted.items()} == {n: 54 * p for n, p in sent.items()}


def test_a_backend_that_is_down_gets_nothing(wire: Wire) -> None:
    """With one backend down, its flows go to the others and theirs do not move."""
    web = service(Mode.DSR)
    with LoadedProgram(wire, web) as all_up, LoadedProgram(wire, web, down=[2]) as one_down:
        for sport in range(2000, 2200):
            packet = from_client(TCP(sport=sport, dport=80))
            before, after = all_up.run(packet).packet.dst, one_down.run(packet).packet.dst
            assert after != backend_mac(2).hex(":")
            assert before in {after, backend_mac(2).hex(":")}


@pytest.mark.parametrize("mode", MODES)
def test_without_any_backend_packets_are_dropped_and_counted(wire: Wire, mode: Mode) -> None:
    """A service whose backends are all down drops, with its own reason."""
    with LoadedProgram(wire, service(mode), down=[1, 2, 3]) as loaded:
        outcome = loaded.run(from_client(TCP(sport=1, dport=80)))
        assert (outcome.action, outcome.reason) == ("drop", "no_backend")


ETHER = Ether(src=CLIENT_MAC, dst=GATEWAY_MAC)
PASSING: list[tuple[str, Packet, str]] = [
    ("ARP", ETHER / ARP(pdst=str(VIP)), "not_ip"),
    ("IPv6", ETHER / IPv6(dst="2001:db8::1") / TCP(dport=80), "other_family"),
    ("another address", from_client(TCP(dport=80), destination=IPv4Address("10.9.9.9")), "not_vip"),
    ("another port", from_client(TCP(dport=81)), "no_service"),
    ("another protocol", from_client(UDP(dport=80)), "no_service"),
    ("GRE", from_client(Raw(bytes(64)), proto=47), "protocol"),
    ("fragment to others", from_client(TCP(dport=80), dst="10.9.9.9", flags="MF"), "not_vip"),
    ("bare Ethernet", Ether(type=0x0800), "truncated"),
    ("IP version 5", ETHER / IP(version=5, dst=str(VIP)) / TCP(dport=80), "odd_header"),
    ("short IP header", ETHER / IP(ihl=4, dst=str(VIP)) / TCP(dport=80), "odd_header"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("what", "packet", "reason"), PASSING, ids=[case[0] for case in PASSING])
def test_what_is_not_handled_passes_untouched(
    wire: Wire, mode: Mode, what: str, packet: Packet, reason: str
) -> None:
    """Whatever the program does not handle goes to the kernel as it came, under its own reason."""
    with LoadedProgram(wire, service(mode)) as loaded:
        outcome = loaded.run(packet)
        assert (outcome.action, outcome.reason) == ("pass", reason), what
        assert_same(outcome.data, packet)


@pytest.mark.parametrize(("mode", "action"), [(Mode.NAT, "pass"), (Mode.DSR, "redirect")])
def test_ttl_1_is_the_kernels_where_the_gateway_routes(wire: Wire, mode: Mode, action: str) -> None:
    """nat is routing, so TTL 1 passes for the kernel to answer; dsr is the same wire."""
    packet = from_client(TCP(dport=80), ttl=1)
    with LoadedProgram(wire, service(mode)) as loaded:
        outcome = loaded.run(packet)
        assert outcome.action == action
        if action == "pass":
            assert outcome.reason == "ttl_expired"
            assert_same(outcome.data, packet)
        else:
            assert outcome.packet[IP].ttl == 1


BAD_LENGTHS: list[tuple[str, Packet]] = [
    ("IP longer than the frame", from_client(TCP(dport=80), len=41)),
    ("IP shorter than its header", from_client(TCP(dport=80), len=19)),
    ("TCP longer than IP", from_client(TCP(dport=80, dataofs=6), len=40)),
    ("TCP shorter than its header", from_client(TCP(dport=80, dataofs=4))),
    ("no room for TCP", from_client(Raw(bytes([0, 9, 0, 80, 1, 2])), proto=6)),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("what", "packet"), BAD_LENGTHS, ids=[case[0] for case in BAD_LENGTHS])
def test_contradicting_lengths_are_dropped(
    wire: Wire, mode: Mode, what: str, packet: Packet
) -> None:
    """A packet for a service whose headers claim more than there is ends with bad_length."""
    with LoadedProgram(wire, service(mode)) as loaded:
        outcome = loaded.run(packet)
        assert (outcome.action, outcome.reason) == ("drop", "bad_length"), what


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("claimed", [7, 100])
def test_udp_lengths_are_checked_too(wire: Wire, mode: Mode, claimed: int) -> None:
    """A UDP length below 8 or beyond the packet is a bad_length."""
    with LoadedProgram(wire, service(mode, protocol=Protocol.UDP)) as loaded:
        outcome = loaded.run(from_client(UDP(dport=80, len=claimed) / payload(4)))
        assert outcome.reason == "bad_length"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_every_truncation_is_survived(wire: Wire, mode: Mode, protocol: Protocol) -> None:
    """Cut at every byte, an accepted packet is passed or dropped with a reason, never forwarded."""
    layer = TCP(dport=80) if protocol is Protocol.TCP else UDP(dport=80)
    whole = bytes(from_client(layer / payload(30)))
    with LoadedProgram(wire, service(mode, protocol=protocol)) as loaded:
        assert loaded.run(whole).reason == "forwarded"
        for length in range(14, len(whole)):
            outcome = loaded.run(whole[:length])
            assert outcome.reason in {"truncated", "bad_length"}
            if outcome.action == "pass":
                assert outcome.data == whole[:length]


def test_trailing_padding_is_kept(wire: Wire) -> None:
    """Ethernet padding behind a short packet stays, and counts as octets of the frame."""
    web = service(Mode.NAT, protocol=Protocol.UDP)
    with LoadedProgram(wire, web) as loaded:
        packet = bytes(from_client(UDP(sport=4010, dport=80) / payload(1))) + bytes(17)
        outcome = loaded.run(packet)
        assert outcome.reason == "forwarded"
        assert len(outcome.data) == 60
        assert loaded.counts(web, expected_backend(loaded, web, 4010)).bytes == 60


def test_answers_to_probes_reach_the_gateway(wire: Wire) -> None:
    """A nat backend's packet to the gateway's own address passes untouched."""
    with LoadedProgram(wire, service(Mode.NAT)) as loaded:
        packet = from_backend(1, TCP(sport=80, dport=40000, flags="SA"), destination=INNER_ADDRESS)
        outcome = loaded.run(packet, ingress=INNER)
        assert (outcome.action, outcome.reason) == ("pass", "to_gateway")
        assert_same(outcome.data, packet)


def test_direct_traffic_and_its_replies_are_untouched(wire: Wire) -> None:
    """Once a client has talked to a backend's own address, replies of that flow keep it."""
    with LoadedProgram(wire, service(Mode.NAT)) as loaded:
        request = from_client(TCP(sport=5000, dport=80, flags="S"), destination=backend_address(1))
        reply = from_backend(1, TCP(sport=80, dport=5000, flags="SA"))
        sent = loaded.run(request)
        assert (sent.action, sent.reason) == ("pass", "direct")
        assert_same(sent.data, request)
        answered = loaded.run(reply, ingress=INNER)
        assert (answered.action, answered.reason) == ("pass", "direct")
        assert_same(answered.data, reply)
        through_vip = loaded.run(
            from_backend(1, TCP(sport=80, dport=5001, flags="SA")), ingress=INNER
        )
        assert through_vip.reason == "replied"


def test_a_port_used_directly_and_then_through_the_vip_is_translated_again(wire: Wire) -> None:
    """The flow table follows what the client's latest packet was addressed to."""
    web = service(Mode.NAT, backends=[1])
    with LoadedProgram(wire, web) as loaded:
        reply = from_backend(1, TCP(sport=80, dport=5002, flags="SA"))
        loaded.run(from_client(TCP(sport=5002, dport=80), destination=backend_address(1)))
        assert loaded.run(reply, ingress=INNER).reason == "direct"
        loaded.run(from_client(TCP(sport=5002, dport=80)))
        assert loaded.run(reply, ingress=INNER).reason == "replied"


def test_a_backend_of_two_nat_services_answers_as_the_right_one(wire: Wire) -> None:
    """The recorded flow tells the VIP; a flow older than the second service is the first's."""
    other_vip = IPv4Address("203.0.113.20")
    one = service(Mode.NAT, backends=[1], name="one")
    two = service(Mode.NAT, backends=[1], vip=other_vip, name="two")
    with LoadedProgram(wire, one, two) as loaded:
        loaded.run(from_client(TCP(sport=6001, dport=80)))
        loaded.run(from_client(TCP(sport=6002, dport=80), destination=other_vip))
        for sport, vip in ((6001, VIP), (6002, other_vip)):
            outcome = loaded.run(from_backend(1, TCP(sport=80, dport=sport)), ingress=INNER)
            assert (outcome.reason, outcome.packet[IP].src) == ("replied", str(vip))
        older = loaded.run(from_backend(1, TCP(sport=80, dport=6003)), ingress=INNER)
        assert (older.reason, older.packet[IP].src) == ("replied", str(VIP))


def test_a_reply_without_neighbour_passes_translated(wire: Wire) -> None:
    """Where the client's MAC is unknown the kernel gets the translated packet, to resolve it."""
    web = service(Mode.NAT)
    with LoadedProgram(wire, web) as loaded:
        client = IPv4Address("10.1.0.99")
        packet = from_backend(1, TCP(sport=80, dport=7000), destination=client)
        outcome = loaded.run(packet, ingress=INNER)
        assert (outcome.action, outcome.reason) == ("pass", "no_neighbour")
        wanted = packet.copy()
        wanted[IP].src = str(VIP)
        assert_same(outcome.data, wanted)


@pytest.mark.parametrize("destination", ["02:00:00:00:09:09", "ff:ff:ff:ff:ff:ff"])
@pytest.mark.parametrize("mode", MODES)
def test_frames_to_others_are_left_alone(wire: Wire, mode: Mode, destination: str) -> None:
    """A frame that a switch flooded, or a mirror copied, is not forwarded a second time."""
    packet = from_client(TCP(dport=80))
    packet.dst = destination
    with LoadedProgram(wire, service(mode)) as loaded:
        outcome = loaded.run(packet)
        assert (outcome.action, outcome.reason) == ("pass", "other_host")
        assert_same(outcome.data, packet)


def test_replies_in_frames_to_others_are_left_alone(wire: Wire) -> None:
    """Nor is a mirrored reply translated."""
    packet = from_backend(1, TCP(sport=80, dport=7001))
    packet.dst = "02:00:00:00:09:09"
    with LoadedProgram(wire, service(Mode.NAT)) as loaded:
        assert loaded.run(packet, ingress=INNER).reason == "other_host"


def test_the_virtual_router_mac_is_ours(wire: Wire) -> None:
    """Frames to a VRRP MAC address are for whoever is the master: the gateway that gets them."""
    packet = from_client(TCP(dport=80))
    packet.dst = "00:00:5e:00:01:2a"
    with LoadedProgram(wire, service(Mode.DSR)) as loaded:
        assert loaded.run(packet).reason == "forwarded"


@pytest.mark.parametrize(("flags", "source"), [("DF", backend_address(1)), (0, VIP)])
def test_a_reply_too_big_for_the_way_out(wire: Wire, flags: str | int, source: IPv4Address) -> None:
    """With DF it passes untranslated, so that the backend hears of the MTU; else translated."""
    wire.set_mtu(OUTER, 1000)
    try:
        with LoadedProgram(wire, service(Mode.NAT)) as loaded:
            packet = from_backend(1, TCP(sport=80, dport=7002) / payload(1200))
            packet[IP].flags = flags
            outcome = loaded.run(packet, ingress=INNER)
            assert (outcome.action, outcome.reason) == ("pass", "reply_too_big")
            assert outcome.packet[IP].src == str(source)
    finally:
        wire.set_mtu(OUTER, 1500)


def test_one_armed_packets_leave_as_they_came(wire: Wire) -> None:
    """To a backend behind the interface that the packet came by, XDP_TX is the way."""
    with LoadedProgram(wire, service(Mode.DSR)) as loaded:
        outcome = loaded.run(from_client(TCP(dport=80)), ingress=INNER)
        assert (outcome.action, outcome.reason) == ("tx", "forwarded")


def test_both_modes_in_one_program(wire: Wire) -> None:
    """Services of both modes live side by side, each treated by its own."""
    web, dns = service(Mode.NAT), service(Mode.DSR, 53, protocol=Protocol.UDP, name="dns")
    with LoadedProgram(wire, web, dns) as loaded:
        assert loaded.run(from_client(TCP(dport=80))).packet[IP].dst != str(VIP)
        assert loaded.run(from_client(UDP(dport=53))).packet[IP].dst == str(VIP)
