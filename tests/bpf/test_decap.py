"""What `lb-xdp decap` makes of single packets, at both hooks: every byte, verdict and counter."""

from __future__ import annotations

import os
import random
import re
import struct
from collections.abc import Iterator
from functools import cache
from ipaddress import ip_network

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from lb_xdp.datapath import syscall
from lb_xdp.datapath.decap_program import (
    NAME,
    Hook,
    Settings,
    loaded,
    read_out,
    tc_crosses_families,
)
from lb_xdp.datapath.load import load_program
from lb_xdp.errors import MapError
from tests.support.program import assert_same, payload

MAC, OTHER_MAC, GATEWAY_MAC = "02:00:00:00:00:0a", "02:00:00:00:00:0b", "02:00:00:00:00:01"
VIPS = {4: "203.0.113.10", 6: "2001:db8::10"}
CLIENTS = {4: "198.51.100.7", 6: "2001:db8:c::7"}
GATEWAYS = {4: "172.16.3.4", 6: "100::3:4"}
BACKENDS = {4: "10.2.0.11", 6: "2001:db8:2::11"}
GUE_PORT = 6080
SETTINGS = Settings(
    (ip_network("172.16.0.0/16"), ip_network("100::/64")),
    (ip_network(VIPS[4]), ip_network(VIPS[6])),
    GUE_PORT,
)

crosses_families = cache(tc_crosses_families)
PASS = {Hook.XDP: 2, Hook.TC: 0xFFFF_FFFF}
DROP = {Hook.XDP: 1, Hook.TC: 2}
FAMILIES = [(outer, inner) for outer in (4, 6) for inner in (4, 6)]
TUNNELS = [
    pytest.param(kind, outer, inner, id=f"{kind} {inner}in{outer}")
    for kind in ("ipip", "gue")
    for outer, inner in FAMILIES
]


class Decap:
    """The loaded program of one hook."""

    def __init__(self, hook: Hook, program_fd: int, program_id: int) -> None:
        self.hook = hook
        self._fd = program_fd
        self._id = program_id

    def run(self, packet: Packet | bytes) -> tuple[int, bytes, str]:
        """Run a packet; return the action, what came out and the one reason that was counted."""
        before = read_out(self._id).packets
        outcome = syscall.program_test_run(self._fd, bytes(packet), ifindex=None)
        after = read_out(self._id).packets
        counted = {name: n - before[name] for name, n in after.items() if n != before[name]}
        assert list(counted.values()) == [1], counted
        return outcome.action, outcome.packet, next(iter(counted))

    def assert_passes(self, packet: Packet | bytes, reason: str) -> None:
        """Demand that a packet passes as it came, counted under ``reason``."""
        action, data, found = self.run(packet)
        assert found == reason
        assert action == PASS[self.hook]
        assert data == bytes(packet)

    def assert_undone(self, packet: Packet | bytes, wanted: Packet) -> None:
        """Demand that a packet passes as ``wanted``; in an older kernel's tc what it can do."""
        crosses = bytes(packet)[12:14] != bytes(wanted)[12:14]
        if crosses and self.hook is Hook.TC and not crosses_families():
            self.assert_passes(packet, "refused")
            return
        action, data, reason = self.run(packet)
        assert reason == "decapsulated"
        assert action == PASS[self.hook]
        assert_same(data, wanted)


@pytest.fixture(scope="module", params=list(Hook))
def decap(request: pytest.FixtureRequest) -> Iterator[Decap]:
    """Provide the program at each hook in turn, with ``SETTINGS``."""
    yield from load(request.param, SETTINGS)


def load(hook: Hook, settings: Settings) -> Iterator[Decap]:
    mac = bytes.fromhex(MAC.replace(":", ""))
    with loaded(hook, settings, mac, former=None) as program:
        yield Decap(hook, program.fd, program.id)


def inner_packet(version: int, *, octets: int = 30, ecn: int = 0) -> Packet:
    """Return what a client sends to the VIP, with a DSCP of 10."""
    layer = TCP(sport=4001, dport=80, flags="PA") / payload(octets)
    if version == 4:
        return IP(src=CLIENTS[4], dst=VIPS[4], ttl=61, id=9, tos=40 | ecn) / layer
    return IPv6(src=CLIENTS[6], dst=VIPS[6], hlim=61, tc=40 | ecn, fl=0x12345) / layer


def outer_header(version: int, protocol: int, *, ecn: int = 0, source: str = "") -> Packet:
    if version == 4:
        header = IP(src=source or GATEWAYS[4], dst=BACKENDS[4], tos=40 | ecn, flags="DF")
        header.proto = protocol
        return header
    source = source or GATEWAYS[6]
    return IPv6(src=source, dst=BACKENDS[6], nh=protocol, tc=40 | ecn, fl=0x54321)


def frame(layer: Packet, *, to: str = MAC) -> Packet:
    return Ether(src=GATEWAY_MAC, dst=to) / layer


def tunnel(kind: str, outer: int, inside: Packet, *, ecn: int = 0, source: str = "") -> Packet:
    """Return the frame in which a gateway sends ``inside``."""
    if kind == "ipip":
        protocol = 4 if isinstance(inside, IP) else 41
        return frame(outer_header(outer, protocol, ecn=ecn, source=source) / inside)
    udp = UDP(sport=50123, dport=GUE_PORT, chksum=0) / Raw(bytes(inside))
    return frame(outer_header(outer, 17, ecn=ecn, source=source) / udp)


@pytest.mark.parametrize("octets", [0, 1, 1400])
@pytest.mark.parametrize(("kind", "outer", "inner"), TUNNELS)
def test_a_tunnel_is_undone(decap: Decap, kind: str, outer: int, inner: int, octets: int) -> None:
    """What comes out is the inner packet to the last bit, TTL and all, behind the same MACs."""
    inside = inner_packet(inner, octets=octets)
    decap.assert_undone(tunnel(kind, outer, inside), frame(inside))


def test_the_trial_before_attach_is_right() -> None:
    """tc undoes tunnels of two families since Linux 6.3, and the trial finds that out."""
    version = tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
    assert (version >= (6, 3)) == crosses_families()


@pytest.mark.parametrize(("kind", "outer", "inner"), TUNNELS)
def test_padding_stays(decap: Decap, kind: str, outer: int, inner: int) -> None:
    """What a card put behind the outer packet is left behind the inner one."""
    inside = inner_packet(inner, octets=0)
    data = bytes(tunnel(kind, outer, inside)) + b"pad"
    decap.assert_undone(data, Raw(bytes(frame(inside)) + b"pad"))


def test_an_inner_fragment_is_let_out(decap: Decap) -> None:
    """A fragment inside is the backend's to put together."""
    inside = IP(src=CLIENTS[4], dst=VIPS[4], frag=100, proto=17) / payload(40)
    decap.assert_undone(tunnel("ipip", 4, inside), frame(inside))


def test_inner_options_are_let_out(decap: Decap) -> None:
    """Options of the inner header are no concern of ours."""
    inside = IP(src=CLIENTS[4], dst=VIPS[4], options=b"\x01" * 8) / UDP(dport=53) / payload(40)
    decap.assert_undone(tunnel("gue", 6, inside), frame(inside))


def without_lengths(packet: Packet, layer: type[Packet], name: str, change: int) -> bytes:
    """Return a packet with one length field off by ``change``."""
    wrong = Ether(bytes(packet))
    found = wrong[layer]
    setattr(found, name, getattr(found, name) + change)
    return bytes(wrong)


def _gue(data: bytes) -> Packet:
    return frame(outer_header(4, 17) / UDP(dport=GUE_PORT, chksum=0) / Raw(data))


OURS_4, OURS_6 = inner_packet(4), inner_packet(6)
UNTOUCHED = {
    "ARP": (frame(ARP(pdst=BACKENDS[4])), "not_tunnel"),
    "TCP to the host": (frame(IP(dst=BACKENDS[4]) / TCP(dport=22)), "not_tunnel"),
    "TCP to the host, IPv6": (frame(IPv6(dst=BACKENDS[6]) / TCP(dport=22)), "not_tunnel"),
    "UDP to another port": (frame(outer_header(4, 17) / UDP(dport=6081)), "not_tunnel"),
    "UDP from the gue port": (
        frame(outer_header(6, 17) / UDP(sport=GUE_PORT, dport=53)),
        "not_tunnel",
    ),
    "802.1Q": (
        Ether(src=GATEWAY_MAC, dst=MAC) / Dot1Q(vlan=5) / outer_header(4, 4) / OURS_4,
        "vlan",
    ),
    "another MAC": (frame(outer_header(4, 4) / OURS_4, to=OTHER_MAC), "other_host"),
    "broadcast": (frame(outer_header(4, 4) / OURS_4, to="ff:ff:ff:ff:ff:ff"), "other_host"),
    "untrusted IPv4": (tunnel("ipip", 4, OURS_4, source="172.17.0.1"), "untrusted"),
    "untrusted IPv6": (tunnel("ipip", 6, OURS_4, source="100:0:0:1::1"), "untrusted"),
    "untrusted gue": (tunnel("gue", 4, OURS_6, source="10.0.0.1"), "untrusted"),
    "trusted IPv4 in IPv6's clothes": (
        tunnel("ipip", 6, OURS_4, source="::ffff:172.16.3.4"),
        "untrusted",
    ),
    "first fragment": (
        frame(IP(src=GATEWAYS[4], dst=BACKENDS[4], flags="MF") / OURS_4),
        "fragment",
    ),
    "later fragment": (
        frame(IP(src=GATEWAYS[4], dst=BACKENDS[4], frag=9, proto=4) / payload(60)),
        "fragment",
    ),
    "IPv6 fragment": (
        frame(IPv6(src=GATEWAYS[6], dst=BACKENDS[6]) / IPv6ExtHdrFragment(nh=4) / OURS_4),
        "fragment",
    ),
    "outer options": (
        frame(IP(src=GATEWAYS[4], dst=BACKENDS[4], options=b"\x01" * 4) / OURS_4),
        "ip_options",
    ),
    "outer longer than the frame": (
        without_lengths(tunnel("ipip", 4, OURS_4), IP, "len", 1),
        "bad_outer",
    ),
    "outer IPv6 longer than the frame": (
        without_lengths(tunnel("ipip", 6, OURS_4), IPv6, "plen", 1),
        "bad_outer",
    ),
    "UDP longer than its packet": (
        without_lengths(tunnel("gue", 4, OURS_4), UDP, "len", 1),
        "bad_outer",
    ),
    "UDP shorter than its header": (
        without_lengths(tunnel("gue", 6, OURS_4), UDP, "len", -len(bytes(OURS_4)) - 1),
        "bad_outer",
    ),
    "outer shorter than the inner packet": (
        without_lengths(tunnel("ipip", 4, OURS_4), IP, "len", -1),
        "bad_inner",
    ),
    "UDP shorter than the inner packet": (
        without_lengths(tunnel("gue", 4, OURS_6), UDP, "len", -1),
        "bad_inner",
    ),
    "gue variant 0": (_gue(bytes(60)), "bad_inner"),
    "gue with nothing inside": (_gue(b""), "bad_inner"),
    "gue with something else inside": (_gue(b"\x55" * 60), "bad_inner"),
    "IPv6 where IPv4 is announced": (frame(outer_header(4, 4) / Raw(bytes(OURS_6))), "bad_inner"),
    "IPv4 where IPv6 is announced": (frame(outer_header(4, 41) / Raw(bytes(OURS_4))), "bad_inner"),
    "inner header shorter than it may be": (
        frame(outer_header(4, 4) / Raw(b"\x44" + bytes(OURS_4)[1:])),
        "bad_inner",
    ),
    "inner destination that is no VIP": (
        tunnel("ipip", 4, IP(src=CLIENTS[4], dst="10.2.0.11") / UDP(dport=80)),
        "not_vip",
    ),
    "inner destination that is no VIP, IPv6": (
        tunnel("gue", 6, IPv6(src=CLIENTS[6], dst="2001:db8::11") / UDP(dport=80)),
        "not_vip",
    ),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_what_is_not_ours_passes_untouched(decap: Decap, name: str) -> None:
    """Everything but a whole tunnel packet from a trusted gateway passes as it came."""
    packet, reason = UNTOUCHED[name]
    decap.assert_passes(packet, reason)


@pytest.mark.parametrize(("kind", "outer", "inner"), TUNNELS)
def test_a_packet_cut_off_anywhere_passes_untouched(
    decap: Decap, kind: str, outer: int, inner: int
) -> None:
    """No truncation, at any byte, is taken for a whole packet or read past its end."""
    data = bytes(tunnel(kind, outer, inner_packet(inner, octets=4)))
    reasons = set()
    # The kernel's test run itself refuses a tc packet without a whole IP header.
    shortest = 14 if decap.hook is Hook.XDP else 14 + (20 if outer == 4 else 40)
    for length in range(shortest, len(data)):
        action, left, reason = decap.run(data[:length])
        assert (action, left) == (PASS[decap.hook], data[:length])
        reasons.add(reason)
    assert reasons <= {"not_tunnel", "bad_outer"}


@pytest.mark.parametrize(("kind", "outer", "inner"), TUNNELS)
def test_an_inner_packet_cut_off_anywhere_passes_untouched(
    decap: Decap, kind: str, outer: int, inner: int
) -> None:
    """The same where the outer lengths agree with what is there."""
    whole = bytes(inner_packet(inner, octets=4))
    protocol = 17 if kind == "gue" else (4 if inner == 4 else 41)
    for length in range(len(whole)):
        layer: Packet = Raw(whole[:length])
        if kind == "gue":
            layer = UDP(dport=GUE_PORT, chksum=0) / layer
        decap.assert_passes(frame(outer_header(outer, protocol) / layer), "bad_inner")


def joined_ecn(outer: int, inner: int) -> int | None:
    """Return the ECN field that RFC 6040, figure 4 asks for; None is a drop."""
    not_ect, ect1, ect0, ce = 0, 1, 2, 3
    table: dict[int, dict[int, int | None]] = {
        not_ect: {not_ect: not_ect, ect0: not_ect, ect1: not_ect, ce: None},
        ect0: {not_ect: ect0, ect0: ect0, ect1: ect1, ce: ce},
        ect1: {not_ect: ect1, ect0: ect1, ect1: ect1, ce: ce},
        ce: {not_ect: ce, ect0: ce, ect1: ce, ce: ce},
    }
    return table[inner][outer]


@pytest.mark.parametrize(("kind", "outer", "inner"), TUNNELS)
def test_ecn_is_joined(decap: Decap, kind: str, outer: int, inner: int) -> None:
    """Each pair of ECN fields becomes what RFC 6040 says, checksum included; DSCP is the inner."""
    for outer_ecn in range(4):
        for inner_ecn in range(4):
            packet = tunnel(kind, outer, inner_packet(inner, ecn=inner_ecn), ecn=outer_ecn)
            wanted = joined_ecn(outer_ecn, inner_ecn)
            if wanted is None:
                action, _, reason = decap.run(packet)
                assert (action, reason) == (DROP[decap.hook], "congested")
            else:
                decap.assert_undone(packet, frame(inner_packet(inner, ecn=wanted)))


def test_the_checksum_follows_ecn_at_its_edges(decap: Decap) -> None:
    """For a spread of inner headers the updated checksum is the one computed anew."""
    for number in range(0, 65536, 257):
        inside = IP(src=CLIENTS[4], dst=VIPS[4], id=number, tos=2) / UDP(dport=80)
        wanted = IP(src=CLIENTS[4], dst=VIPS[4], id=number, tos=3) / UDP(dport=80)
        decap.assert_undone(tunnel("ipip", 4, inside, ecn=3), frame(wanted))


@pytest.mark.parametrize("hook", list(Hook))
def test_without_vips_any_inner_destination_is_let_out(hook: Hook) -> None:
    """No --vip means no limit; what is trusted stays limited to its family."""
    settings = Settings((ip_network("::/0"),), (), GUE_PORT)
    inside = IP(src=CLIENTS[4], dst="192.0.2.1") / UDP(dport=80)
    for decap in load(hook, settings):
        decap.assert_undone(tunnel("ipip", 6, inside), frame(inside))
        decap.assert_passes(tunnel("ipip", 4, inside), "untrusted")


@pytest.mark.parametrize("hook", list(Hook))
def test_another_gue_port(hook: Hook) -> None:
    """gue is what comes to the port that was given, and nothing else is."""
    packet = tunnel("gue", 4, OURS_4)
    moved = Ether(bytes(packet))
    moved[UDP].dport = 7000
    for decap in load(hook, Settings(SETTINGS.trust, (), 7000)):
        decap.assert_undone(moved, frame(OURS_4))
        decap.assert_passes(packet, "not_tunnel")


def test_a_program_of_another_version_is_not_misread() -> None:
    """Maps are read only where they are what this version declares."""
    go_on = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)  # r0 = XDP_PASS; exit
    program = load_program(go_on, {}, NAME)
    with pytest.raises(MapError, match="another version"):
        read_out(program.id)
    os.close(program.fd)


@pytest.mark.parametrize(("outer", "inner"), FAMILIES)
def test_a_multi_buffer_frame_is_undone(outer: int, inner: int) -> None:
    """A jumbo frame, of which XDP sees the first part only, loses its outer headers too."""
    for decap in load(Hook.XDP, SETTINGS):
        inside = inner_packet(inner, octets=8700)
        decap.assert_undone(tunnel("gue", outer, inside), frame(inside))


def test_mutated_packets_are_undone_whole_or_not_at_all(decap: Decap) -> None:
    """Whatever the bytes, the packet is unchanged, dropped for ECN, or the rest of what came."""
    choose = random.Random(6040)
    samples = [bytes(tunnel(k, *f)) for k in ("ipip", "gue") for f in ((4, OURS_4), (6, OURS_6))]
    for _ in range(4000):
        data = bytearray(choose.choice(samples))
        for _ in range(choose.randint(1, 3)):
            data[choose.randrange(12, min(len(data), 90))] = choose.randrange(256)
        action, left, reason = decap.run(bytes(data))
        if reason == "decapsulated":
            stripped = len(data) - len(left)
            assert stripped in {20, 28, 40, 48}
            assert left[:12] == data[:12]
            assert left[24:] == data[24 + stripped :]  # before that: ECN and its checksum
        elif reason != "congested":
            assert (action, left) == (PASS[decap.hook], bytes(data))
