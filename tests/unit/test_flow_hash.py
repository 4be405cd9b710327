"""The flow hash: pinned to the bit, and even over what real flows look like."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb_xdp.core.flow_hash import flow_hash, flow_hash6, flow_hashes, ring_slot, source_hash
from lb_xdp.core.model import IPV4, IPV6, Address
from lb_xdp.core.ring import RING_SLOTS
from tests.support.flows import flow_keys

words = st.integers(0, 2**32 - 1)
wide = st.integers(0, 2**128 - 1)
ports = st.integers(0, 2**16 - 1)
CLIENT, VIP = int(IPv4Address("192.0.2.7")), int(IPv4Address("203.0.113.10"))


@given(words, words, ports, ports, st.sampled_from([6, 17]))
def test_different_flows_differ_before_the_cut(
    saddr: int, daddr: int, sport: int, dport: int, protocol: int
) -> None:
    """Flipping any one bit of a flow flips some bit of its hash, or at most rarely none."""
    flow = (saddr, daddr, sport, dport, protocol)
    same = sum(flow_hash(*flow) == flow_hash(*flipped) for flipped in flips(flow))
    assert same <= 1


@given(wide, wide, ports, ports, st.sampled_from([6, 17]))
def test_different_ipv6_flows_differ_before_the_cut(
    saddr: int, daddr: int, sport: int, dport: int, protocol: int
) -> None:
    """The same for IPv6."""
    flow = (saddr, daddr, sport, dport, protocol)
    same = sum(flow_hash6(*flow) == flow_hash6(*flipped) for flipped in flips(flow, 128))
    assert same <= 1


def flips(flow: tuple[int, ...], width: int = 32) -> Iterator[tuple[int, ...]]:
    """Yield the flow with each single bit of addresses and ports turned over."""
    for field, bits in enumerate((width, width, 16, 16)):
        for bit in range(bits):
            yield tuple(v ^ (1 << bit) if i == field else v for i, v in enumerate(flow))


def test_every_input_bit_reaches_every_slot_bit() -> None:
    """Avalanche: each input bit flips each of the 17 bits of a slot about half the time."""
    random = Random(7)
    trials = 400
    flipped = [[0] * 17 for _ in range(96)]
    for _ in range(trials):
        saddr, daddr = random.getrandbits(32), random.getrandbits(32)
        flow = (saddr, daddr, random.getrandbits(16), random.getrandbits(16), 6)
        before = flow_hash(*flow)
        for counts, other in zip(flipped, flips(flow), strict=True):
            change = before ^ flow_hash(*other)
            for bit in range(17):
                counts[bit] += change >> (31 - bit) & 1
    shares = [count / trials for counts in flipped for count in counts]
    assert min(shares) > 0.35
    assert max(shares) < 0.65


@pytest.mark.parametrize(
    ("flow", "expected"),
    [
        (("192.0.2.7", "203.0.113.10", 40_000, 80, 6), 0x3F3C5C3E),
        (("192.0.2.7", "203.0.113.10", 40_000, 80, 17), 0x59F160DC),
        (("0.0.0.0", "0.0.0.0", 0, 0, 0), 0x00000000),
        (("255.255.255.255", "255.255.255.255", 65_535, 65535, 255), 0x397B2D74),
        (("10.0.0.1", "10.0.0.2", 1, 2, 6), 0x15285AF1),
    ],
)
def test_known_flows(flow: tuple[str, str, int, int, int], expected: int) -> None:
    """Pinned values: another result would move the flows of every gateway at its upgrade."""
    client, vip, *rest = flow
    assert flow_hash(int(IPv4Address(client)), int(IPv4Address(vip)), *rest) == expected


@pytest.mark.parametrize(
    ("flow", "expected"),
    [
        (("2001:db8::7", "2001:db8:1::10", 40_000, 80, 6), 0xC8F91950),
        (("2001:db8::7", "2001:db8:1::10", 40_000, 80, 17), 0x54F8C755),
        (("::", "::", 0, 0, 0), 0x00000000),
        ((str(IPv6Address(2**128 - 1)), str(IPv6Address(2**128 - 1)), 65_535, 65_535, 255),
         0xC1C8DB15),
    ],
)  # fmt: skip
def test_known_ipv6_flows(flow: tuple[str, str, int, int, int], expected: int) -> None:
    """Pinned values for IPv6, as the C compiled on its own gave them."""
    client, vip, *rest = flow
    assert flow_hash6(int(IPv6Address(client)), int(IPv6Address(vip)), *rest) == expected


@pytest.mark.parametrize(
    ("client", "expected"), [("192.0.2.7", 0x11C15662), ("2001:db8::7", 0x83976470)]
)
def test_known_sources(client: str, expected: int) -> None:
    """Pinned values for services that go by the source alone."""
    assert source_hash(ip_address(client)) == expected


flows = st.one_of(
    st.tuples(words.map(IPv4Address), words.map(IPv4Address)),
    st.tuples(wide.map(IPv6Address), wide.map(IPv6Address)),
)


@given(st.lists(st.tuples(flows, ports, ports, st.sampled_from([6, 17]), st.booleans())))
def test_many_flows_at_once_hash_as_one_by_one(
    rows: list[tuple[tuple[Address, Address], int, int, int, bool]],
) -> None:
    """Arrays as they come from the kernel give the same hashes, families mixed."""
    keys = flow_keys([(*ends, sport, dport, number) for ends, sport, dport, number, _ in rows])
    found = flow_hashes(keys, np.array([by_source for *_, by_source in rows], bool))
    hashes = {IPV4: flow_hash, IPV6: flow_hash6}
    assert found.tolist() == [
        source_hash(client)
        if by_source
        else hashes[client.version](int(client), int(vip), sport, dport, number)
        for (client, vip), sport, dport, number, by_source in rows
    ]


def test_direction_and_protocol_count() -> None:
    """Swapped ends, swapped ports and another protocol are other flows."""
    hashes = {
        flow_hash(CLIENT, VIP, 40_000, 80, 6),
        flow_hash(VIP, CLIENT, 40_000, 80, 6),
        flow_hash(CLIENT, VIP, 80, 40_000, 6),
        flow_hash(CLIENT, VIP, 40_000, 80, 17),
    }
    assert len(hashes) == 4


@given(words, st.sampled_from([1, 2, 7, 65_537]))
def test_slot_is_within_the_ring(hashed: int, slots: int) -> None:
    """Every 32-bit hash has a slot."""
    assert 0 <= ring_slot(hashed, slots) < slots


def test_slots_keep_the_order_of_hashes_and_reach_both_ends() -> None:
    """Scaling maps the lowest hash to the first slot and the highest to the last."""
    assert ring_slot(0, RING_SLOTS) == 0
    assert ring_slot(2**31, RING_SLOTS) == RING_SLOTS // 2
    assert ring_slot(2**32 - 1, RING_SLOTS) == RING_SLOTS - 1


def chi_square(slots: list[int], bins: int) -> float:
    expected = len(slots) / bins
    counts = [0] * bins
    for slot in slots:
        counts[slot * bins // RING_SLOTS] += 1
    return sum((count - expected) ** 2 / expected for count in counts)


CLIENT6, VIP6 = int(IPv6Address("2001:db8::7")), int(IPv6Address("2001:db8:1::10"))
FLOWS6 = {
    "ports of one client": [(CLIENT6, 1024 + i) for i in range(20_000)],
    "interface identifiers in a row": [(CLIENT6 + i, 40_000) for i in range(20_000)],
    "networks in a row": [(CLIENT6 + (i << 64), 40_000) for i in range(20_000)],
    "sites in a row": [(CLIENT6 + (i << 80), 40_000) for i in range(20_000)],
    "networks and ports in a row": [
        (CLIENT6 + (i // 200 << 64), 32_768 + i % 200) for i in range(20_000)
    ],
}


FLOWS = {
    "ports of one client": [(CLIENT, 1024 + i) for i in range(20_000)],
    "every second port": [(CLIENT, 1024 + 2 * i) for i in range(20_000)],
    "every port in steps of 256": [(CLIENT + i // 256, i % 256 * 256) for i in range(20_000)],
    "networks in a row": [(CLIENT + (i << 12), 40_000) for i in range(20_000)],
    "clients in a row, one port": [(CLIENT + i, 40_000) for i in range(20_000)],
    "clients and ports in a row": [(CLIENT + i // 200, 32_768 + i % 200) for i in range(20_000)],
}


@pytest.mark.parametrize("flows", FLOWS.values(), ids=FLOWS.keys())
@pytest.mark.parametrize("protocol", [6, 17])
def test_flows_in_a_row_spread_evenly(flows: list[tuple[int, int]], protocol: int) -> None:
    """Neighbouring flows fall on 100 stretches of the ring as chance would have it."""
    hashes = (flow_hash(saddr, VIP, sport, 80, protocol) for saddr, sport in flows)
    slots = [ring_slot(hashed, RING_SLOTS) for hashed in hashes]
    assert chi_square(slots, 100) < 161  # 99 degrees of freedom: exceeded once in 10,000 times


@pytest.mark.parametrize("flows", FLOWS6.values(), ids=FLOWS6.keys())
@pytest.mark.parametrize("protocol", [6, 17])
def test_ipv6_flows_in_a_row_spread_evenly(flows: list[tuple[int, int]], protocol: int) -> None:
    """Neighbouring IPv6 flows do so as well."""
    hashes = (flow_hash6(saddr, VIP6, sport, 80, protocol) for saddr, sport in flows)
    slots = [ring_slot(hashed, RING_SLOTS) for hashed in hashes]
    assert chi_square(slots, 100) < 161  # as above


@pytest.mark.parametrize("first", ["192.0.2.0", "2001:db8::"])
def test_sources_in_a_row_spread_evenly(first: str) -> None:
    """Neighbouring clients of a service that goes by the source alone do so as well."""
    hashes = (source_hash(ip_address(first) + i) for i in range(20_000))
    slots = [ring_slot(hashed, RING_SLOTS) for hashed in hashes]
    assert chi_square(slots, 100) < 161  # as above
