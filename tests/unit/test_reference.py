"""The reference model against scapy's idea of the same packets, and against DESIGN.md's table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from lb_xdp.core.desired import BackendId, BackendRecord, Schedule, Structure, Traits
from lb_xdp.core.flow_hash import flow_hash, flow_hash6
from lb_xdp.core.model import (
    ANY_PORT,
    Address,
    BackendKey,
    Mode,
    Protocol,
    ServiceKey,
    TunnelSources,
)
from lb_xdp.core.reference import Found, Model, Outcome, describe, difference
from lb_xdp.core.reference import build as make
from lb_xdp.core.reference.rewrite import adjusted, ones_sum
from lb_xdp.core.reference.trial import Trial
from lb_xdp.core.ring import RING_SLOTS
from lb_xdp.core.settle import MARKED, SEVERED, STATE_SHIFT, UNSETTLED, RingImage
from lb_xdp.core.snapshot import Verdict

GATEWAY, CLIENT_MAC = bytes.fromhex("020000000101"), bytes.fromhex("020000000102")
NEXT_HOP, OURS = bytes.fromhex("02000000020b"), bytes.fromhex("020000000201")
ENDS: dict[int, tuple[Address, Address, Address, Address]] = {
    4: tuple(map(IPv4Address, ("10.1.0.2", "203.0.113.10", "10.2.0.11", "10.2.0.100"))),  # type: ignore[dict-item]  # four of them
    6: tuple(map(IPv6Address, ("fd00:1::2", "2001:db8::10", "fd00:2::11", "fd00:2::100"))),  # type: ignore[dict-item]  # four of them
}
"""Client, VIP, backend, snat address."""

INGRESS, EGRESS = 2, 3
FIRST, SECOND = 1, 2


def traits(mode: Mode, **wish: object) -> Traits:
    plain = dict.fromkeys(Traits._fields, False) | {"mode": mode, "schedule": Schedule.HASH}
    return Traits(**(plain | wish))  # type: ignore[arg-type]  # fields by name


def record(**wish: object) -> BackendRecord:
    plain = BackendRecord(EGRESS, NEXT_HOP, OURS, 1500, up=True, shared=False)
    return replace(plain, **wish)  # type: ignore[arg-type]  # fields by name


class Scene:
    """One service with two backends, and a ring that holds one packed slot everywhere."""

    def __init__(
        self,
        mode: Mode,
        family: int = 4,
        *,
        outer: int | None = None,
        port: int = 80,
        protocol: Protocol = Protocol.TCP,
        slot: int = FIRST,
        blank: bool = False,
        **wish: object,
    ) -> None:
        self.client, self.vip, _, self.snat = ENDS[family]
        self.backend = ENDS[outer or family][2]
        self.service = ServiceKey(self.vip, port, protocol)
        moved = 0 if port == ANY_PORT or not mode.translates else 8000
        keys = [BackendKey(self.backend + n, port + moved) for n in (0, 1)]
        self.first, self.second = (BackendId(self.service, key) for key in keys)
        limits = {name: wish.pop(name) for name in ("mtu", "ifindex") if name in wish}
        self.structure = Structure(
            build=1,
            services={self.service: traits(mode, **wish)},
            backends=frozenset({self.first, self.second}),
            local_addresses=frozenset({ip_address("10.1.0.1")}),
            macs=frozenset({GATEWAY}),
            snat_addresses=(self.snat,),
            tunnel_sources=TunnelSources(),
            gue_port=6080,
            flow_entries=1024,
        )
        indices = {self.first: FIRST, self.second: SECOND}
        records = dict.fromkeys(indices, record(**limits))
        image = RingImage(np.full(RING_SLOTS, slot, dtype=np.uint32))
        rings = {self.service: image}
        self.model = Model(self.structure, indices, records, rings, {INGRESS, EGRESS}, blank=blank)

    def run(self, packet: Packet | bytes, choice: BackendId | None = None) -> Outcome:
        return self.model.journey(bytes(packet), INGRESS, choice)

    def ether(self) -> Ether:
        return Ether(dst=GATEWAY.hex(":"), src=CLIENT_MAC.hex(":"))

    def request(self, **fields: int) -> Packet:
        """Return a client's IP packet by scapy."""
        layer = IP if self.vip.version == 4 else IPv6
        hops = "ttl" if self.vip.version == 4 else "hlim"
        return layer(src=str(self.client), dst=str(self.vip), **{hops: fields.get("hops", 64)})

    def transport(self, sport: int = 3000) -> Packet:
        port = self.service.port or 4444
        if self.service.protocol is Protocol.UDP:
            return UDP(sport=sport, dport=port) / Raw(b"question")
        return TCP(sport=sport, dport=port, flags="S") / Raw(b"early data")

    def hash(self, sport: int = 3000) -> int:
        hash_of = flow_hash if self.vip.version == 4 else flow_hash6
        protocol = self.service.protocol.number
        return hash_of(int(self.client), int(self.vip), sport, self.service.port, protocol)


def same(found: bytes | None, expected: Packet) -> None:
    """Compare with what scapy makes, its checksums included."""
    assert found is not None
    assert Ether(found).show(dump=True) == Ether(bytes(expected)).show(dump=True)
    assert found == bytes(expected)


def onwards() -> Ether:
    return Ether(dst=NEXT_HOP.hex(":"), src=OURS.hex(":"))


both = pytest.mark.parametrize("family", [4, 6])
protocols = pytest.mark.parametrize("protocol", list(Protocol))


@both
def test_dsr_changes_the_macs_alone(family: int) -> None:
    """The packet itself is not touched, not even its TTL."""
    scene = Scene(Mode.DSR, family)
    outcome = scene.run(scene.ether() / scene.request(hops=1) / scene.transport())
    assert (outcome.verdict, outcome.reason) == (Verdict.FORWARD, "forwarded")
    assert (outcome.backend, outcome.egress) == (scene.first, EGRESS)
    same(outcome.frame_out, onwards() / scene.request(hops=1) / scene.transport())


def outer_header(scene: Scene, inner: Packet) -> Packet:
    """Return what scapy puts around a packet; addresses and label follow from the flow's hash."""
    if scene.backend.version == 4:
        source = int(IPv4Address("172.16.0.0")) | scene.hash() & 0xFFFF
        identification = inner.id if inner.version == 4 else 0
        flags = "DF" if inner.version == 6 else inner.flags
        return IP(
            src=str(IPv4Address(source)), dst=str(scene.backend), id=identification, flags=flags
        )
    source = int(IPv6Address("100::")) | scene.hash()
    return IPv6(src=str(IPv6Address(source)), dst=str(scene.backend), fl=scene.hash() & 0xFFFFF)


@pytest.mark.parametrize("outer", [4, 6])
@both
def test_ipip_wraps_the_packet_whole(family: int, outer: int) -> None:
    """Either family in either, one hop less inside."""
    scene = Scene(Mode.IPIP, family, outer=outer)
    inner = scene.request(hops=63) / scene.transport()
    outcome = scene.run(scene.ether() / scene.request() / scene.transport())
    header = outer_header(scene, inner)
    header.setfieldval("proto" if outer == 4 else "nh", 4 if family == 4 else 41)
    same(outcome.frame_out, onwards() / header / inner)


@pytest.mark.parametrize("outer", [4, 6])
@both
def test_gue_wraps_the_packet_in_udp(family: int, outer: int) -> None:
    """Variant 1: IP directly in UDP, without a checksum, from a port that varies with the flow."""
    scene = Scene(Mode.GUE, family, outer=outer)
    inner = scene.request(hops=63) / scene.transport()
    outcome = scene.run(scene.ether() / scene.request() / scene.transport())
    udp = UDP(sport=0xC000 | scene.hash() & 0x3FFF, dport=6080, chksum=0, len=8 + len(inner))
    header = outer_header(scene, inner)
    header.setfieldval("proto" if outer == 4 else "nh", 17)
    same(outcome.frame_out, onwards() / header / udp / Raw(bytes(inner)))


@protocols
@both
def test_nat_translates_the_destination(family: int, protocol: Protocol) -> None:
    """Address, port, TTL and both checksums, as scapy would have built the packet."""
    scene = Scene(Mode.NAT, family, protocol=protocol)
    outcome = scene.run(scene.ether() / scene.request() / scene.transport())
    expected = scene.request(hops=63) / scene.transport()
    expected.dst = str(scene.backend)
    expected.payload.dport = 8080
    same(outcome.frame_out, onwards() / expected)


@protocols
@both
def test_fullnat_translates_both_ends(family: int, protocol: Protocol) -> None:
    """With nothing recorded yet, the client's own port stands behind our address."""
    scene = Scene(Mode.FULLNAT, family, protocol=protocol, blank=True, tracked=True)
    outcome = scene.run(scene.ether() / scene.request() / scene.transport())
    expected = scene.request(hops=63) / scene.transport()
    expected.src, expected.dst = str(scene.snat), str(scene.backend)
    expected.payload.dport = 8080
    same(outcome.frame_out, onwards() / expected)


def test_any_port_is_kept() -> None:
    """A service on any port sends a packet to the port that the client chose."""
    scene = Scene(Mode.NAT, port=ANY_PORT)
    outcome = scene.run(scene.ether() / scene.request() / scene.transport())
    assert Ether(outcome.frame_out)[TCP].dport == 4444


def test_udp_without_a_checksum_stays_so() -> None:
    """0 means that the sender computed none."""
    scene = Scene(Mode.NAT, protocol=Protocol.UDP)
    packet = scene.request() / UDP(sport=3000, dport=80, chksum=0) / b"x"
    outcome = scene.run(scene.ether() / packet)
    assert Ether(outcome.frame_out)[UDP].chksum == 0


@given(st.binary(min_size=4, max_size=40), st.binary(min_size=4, max_size=4))
def test_an_adjusted_checksum_is_a_computed_one(data: bytes, after: bytes) -> None:
    """Replacing octets by difference leads to what summing up anew does."""
    checksum = 0xFFFF - (ones_sum(data) or 0xFFFF)
    replaced = after + data[4:]
    expected = 0xFFFF - (ones_sum(replaced) or 0xFFFF)
    if any(replaced):
        assert adjusted(checksum, data[:4], after) == expected


def test_tags_stay_in_front() -> None:
    """802.1Q and QinQ tags are kept, the type behind them becomes the tunnel's."""
    scene = Scene(Mode.IPIP, outer=6)
    tags = Dot1Q(vlan=7, type=0x8100) / Dot1Q(vlan=5)
    outcome = scene.run(scene.ether() / tags / scene.request() / scene.transport())
    frame = Ether(outcome.frame_out)
    assert (frame[Dot1Q].vlan, frame[Dot1Q].payload.vlan) == (7, 5)
    assert frame[IPv6].nh == 4


def test_echo_requests_are_answered() -> None:
    """The reply is the request with its ends swapped, and its checksums are right."""
    scene = Scene(Mode.DSR)
    message = ICMP(id=1, seq=2) / b"ping"
    outcome = scene.run(scene.ether() / scene.request(hops=9) / message)
    back = Ether(dst=CLIENT_MAC.hex(":"), src=GATEWAY.hex(":"))
    reply = IP(src=str(scene.vip), dst=str(scene.client)) / ICMP(type=0, id=1, seq=2) / b"ping"
    assert (outcome.reason, outcome.egress) == ("echo", INGRESS)
    same(outcome.frame_out, back / reply)


def test_echo_requests_are_answered_in_ipv6() -> None:
    """The same for ICMPv6, whose checksum covers the addresses as well."""
    scene = Scene(Mode.DSR, 6)
    outcome = scene.run(scene.ether() / scene.request(hops=9) / ICMPv6EchoRequest(data=b"ping"))
    back = Ether(dst=CLIENT_MAC.hex(":"), src=GATEWAY.hex(":"))
    reply = IPv6(src=str(scene.vip), dst=str(scene.client)) / ICMPv6EchoReply(data=b"ping")
    same(outcome.frame_out, back / reply)


def frame_of(packet: bytes, mac: bytes = GATEWAY) -> bytes:
    return make.ethernet(packet, mac, CLIENT_MAC)


def syn(scene: Scene, **how: object) -> bytes:
    source = how.pop("source", scene.client)
    destination = how.pop("destination", scene.vip)
    port = how.pop("port", 80)
    segment = make.tcp(3000, port, make.SYN)  # type: ignore[arg-type]  # a port
    return make.ip(source, destination, 6, segment, **how)  # type: ignore[arg-type]  # ip()'s own


REFUSALS: dict[str, Callable[[Scene], bytes]] = {
    "not_ip": lambda _: b"\xff" * 6 + CLIENT_MAC + b"\x08\x06" + bytes(28),
    "other_family": lambda s: frame_of(syn(Scene(Mode.DSR, 10 - s.vip.version))),
    "not_vip": lambda s: frame_of(syn(s, destination=s.vip + 1)),
    "no_service": lambda s: frame_of(syn(s, port=81)),
    "protocol": lambda s: frame_of(make.ip(s.client, s.vip, 47, bytes(8))),
    "other_host": lambda s: frame_of(syn(s), NEXT_HOP),
    "ttl_expired": lambda s: frame_of(syn(s, ttl=1)),
    "martian": lambda s: frame_of(syn(s, source=s.vip)),
    "bad_length": lambda s: frame_of(syn(s))[:-1],
    "truncated": lambda s: frame_of(syn(s))[: 14 + (20 if s.vip.version == 4 else 40) + 3],
}


@both
@pytest.mark.parametrize("reason", REFUSALS)
def test_refusals_have_their_reason(reason: str, family: int) -> None:
    """What is refused is told apart; passed packets are untouched."""
    scene = Scene(Mode.NAT, family)
    frame = REFUSALS[reason](scene)
    outcome = scene.run(frame)
    assert outcome.reason == reason
    dropped = reason in {"martian", "bad_length"}
    assert outcome.verdict is (Verdict.DROP if dropped else Verdict.PASS)
    assert outcome.frame_out == (None if dropped else frame)


def test_a_virtual_routers_mac_is_ours() -> None:
    """Frames to VRRP's MAC are for whoever holds the address."""
    scene = Scene(Mode.DSR)
    assert scene.run(frame_of(syn(scene), bytes.fromhex("00005e000107"))).backend


def test_unfollowable_extension_headers_pass() -> None:
    """Seven headers in a row are more than anybody follows; six are not."""
    scene = Scene(Mode.DSR, 6)
    frames = [frame_of(syn(scene, extra=make.extensions((1,) * n, 6))) for n in (6, 7)]
    assert [scene.run(frame).reason for frame in frames] == ["forwarded", "odd_header"]


def test_nobody_to_take_it() -> None:
    """An empty slot drops; where the service says so, all but an RST is answered."""
    for reject, reasons in ((False, ["no_backend"] * 2), (True, ["refused", "no_backend"])):
        scene = Scene(Mode.DSR, slot=0, reject=reject)
        frames = [
            frame_of(make.ip(scene.client, scene.vip, 6, make.tcp(3000, 80, flags)))
            for flags in (make.SYN, make.RST)
        ]
        assert [scene.run(frame).reason for frame in frames] == reasons


def test_too_big_and_no_egress() -> None:
    """What does not fit is answered, what has no interface to leave by is dropped."""
    small = Scene(Mode.DSR, mtu=40)
    assert small.run(frame_of(syn(small))).reason == "too_big"
    gone = Scene(Mode.DSR, ifindex=99)
    assert gone.run(frame_of(syn(gone))).reason == "no_egress"


@pytest.mark.parametrize("state", [UNSETTLED, MARKED])
def test_a_slot_that_is_not_settled_is_unknown(state: int) -> None:
    """A record may say otherwise; who knows that there is none hears the rule."""
    slot = FIRST | SECOND << 15 | state << STATE_SHIFT
    assert Scene(Mode.DSR, slot=slot).run(frame_of(syn(Scene(Mode.DSR)))).unknown
    scene = Scene(Mode.DSR, slot=slot, blank=True)
    ack = make.ip(scene.client, scene.vip, 6, make.tcp(3000, 80, make.ACK))
    assert scene.run(frame_of(syn(scene))).backend == scene.first
    older = scene.second if state == UNSETTLED else scene.first
    assert scene.run(frame_of(ack)).backend == older


def test_a_severed_slot_resets_what_was_the_former_backends() -> None:
    """Where the service says so; a SYN begins a flow at once, and a RST is dropped."""
    slot = FIRST | 9 << 15 | SEVERED << STATE_SHIFT

    def reason(flags: int, *, reset: bool = True) -> str:
        scene = Scene(Mode.DSR, slot=slot, blank=True, reset=reset)
        packet = make.ip(scene.client, scene.vip, 6, make.tcp(3000, 80, flags))
        return scene.run(frame_of(packet)).reason

    flags = (make.SYN, make.ACK, make.ACK | make.FIN, make.RST)
    assert [reason(each) for each in flags] == ["forwarded", "reset", "reset", "severed"]
    assert reason(make.ACK, reset=False) == "forwarded"


def test_what_turn_or_load_decide_needs_a_choice() -> None:
    """The model names who may get the packet, and says what it looks like for each."""
    scene = Scene(Mode.DSR, blank=True, tracked=True, schedule=Schedule.LEAST)
    outcome = scene.run(frame_of(syn(scene)))
    assert outcome.among == (scene.first,)
    assert scene.run(frame_of(syn(scene)), scene.second).backend == scene.second
    assert Scene(Mode.DSR, tracked=True).run(frame_of(syn(scene))).unknown


def test_it_does_not_guess() -> None:
    """Replies, later fragments and ICMP errors depend on routes and flows."""
    scene = Scene(Mode.NAT)
    reply = make.ip(scene.backend, scene.client, 6, make.tcp(8080, 3000, make.ACK))
    later = make.ip(scene.client, scene.vip, 6, bytes(64), fragment=8)
    error = make.ip(scene.client, scene.vip, 1, make.icmp(3, 4, 1400, reply))
    for packet in (reply, later, error):
        assert scene.run(frame_of(packet)).unknown
    local = make.ip(scene.backend, ip_address("10.1.0.1"), 6, make.tcp(8080, 3000, make.ACK))
    direct = make.ip(scene.client, scene.backend, 6, make.tcp(3000, 8080, make.ACK))
    assert scene.run(frame_of(local)).reason == "to_gateway"
    assert scene.run(frame_of(direct)).reason == "direct"


def test_a_later_fragment_of_nothing_is_judged_by_its_frame_first() -> None:
    """Where no fragment was ever noted, one in a frame for others passes; ours are dropped."""
    scene = Scene(Mode.DSR, blank=True)
    later = make.ip(scene.client, scene.vip, 6, bytes(64), fragment=8)
    assert scene.run(frame_of(later)).reason == "fragment_lost"
    others = make.ethernet(later, NEXT_HOP, CLIENT_MAC)
    assert scene.run(others).reason == "other_host"


@pytest.mark.parametrize("mode", list(Mode))
@both
def test_every_truncation_has_an_outcome(mode: Mode, family: int) -> None:
    """Cut anywhere, a packet ends with a reason and is not forwarded."""
    scene = Scene(mode, family, blank=True)
    whole = frame_of(syn(scene))
    for octets in range(len(whole)):
        outcome = scene.run(whole[:octets])
        assert outcome.reason in {"truncated", "bad_length", "not_ip"}
        assert describe(whole[:octets])
    assert scene.run(whole).reason == "forwarded"


@given(st.binary(max_size=120), st.sampled_from([b"\x08\x00E", b"\x86\xdd`", b"\x81\x00"]))
def test_noise_has_an_outcome(noise: bytes, start: bytes) -> None:
    """Whatever comes, the model answers, and can describe it."""
    scene = NOISE
    frame = GATEWAY + CLIENT_MAC + start + noise
    outcome = scene.run(frame)
    assert outcome.unknown or outcome.reason
    assert describe(frame)


NOISE = Scene(Mode.NAT)


def test_a_difference_is_told_in_words() -> None:
    """Both sides are decoded, and the first octet that differs is shown."""
    scene = Scene(Mode.NAT)
    frame = frame_of(syn(scene))
    outcome = scene.run(frame)
    assert outcome.frame_out is not None
    right = Found("redirect", "forwarded", outcome.frame_out)
    assert difference(frame, INGRESS, outcome, right) is None
    wrong = right._replace(frame=outcome.frame_out[:30] + b"\1\2\3\4" + outcome.frame_out[34:])
    said = difference(frame, INGRESS, outcome, wrong)
    assert said is not None
    assert "10.2.0.11:8080" in said
    assert "at 30: " in said
    for other in (right._replace(action="tx"), Found("drop", "internal", frame)):
        assert difference(frame, INGRESS, outcome, other)


def test_a_tunnel_is_described_with_what_is_inside() -> None:
    """Both packets of a tunnel are named."""
    scene = Scene(Mode.GUE, outer=6)
    outcome = scene.run(frame_of(syn(scene)))
    assert outcome.frame_out is not None
    assert "203.0.113.10:80 tcp syn" in describe(outcome.frame_out)


@pytest.mark.parametrize("mode", list(Mode))
@both
def test_a_trial_tries_what_can_be_told(mode: Mode, family: int) -> None:
    """With blank tables, the model foretells every packet of a trial, and most kinds of ends."""
    scene = Scene(mode, family, blank=True, tracked=mode is Mode.FULLNAT)
    frames = list(Trial(scene.structure))
    outcomes = [scene.run(frame) for frame in frames]
    assert not [outcome.unknown for outcome in outcomes if outcome.unknown]
    reasons = {outcome.reason for outcome in outcomes}
    assert reasons >= {"forwarded", "martian", "bad_length", "other_host", "echo", "no_service"}
