"""The flow hash: pinned to the bit, and even over what real flows look like."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb_xdp.core.flow_hash import flow_hash, ring_slot
from lb_xdp.core.ring import RING_SLOTS

words = st.integers(0, 2**32 - 1)
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


def flips(flow: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the flow with each single bit of addresses and ports turned over."""
    for field, bits in enumerate((32, 32, 16, 16)):
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
