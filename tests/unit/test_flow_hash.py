"""The flow hash: MurmurHash3_x86_32 to the bit, and even over what real flows look like."""

from __future__ import annotations

from ipaddress import IPv4Address
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb_xdp.core.flow_hash import flow_hash, ring_slot
from lb_xdp.core.ring import RING_SLOTS

words = st.integers(0, 2**32 - 1)
ports = st.integers(0, 2**16 - 1)
CLIENT, VIP = int(IPv4Address("192.0.2.7")), int(IPv4Address("203.0.113.10"))


def murmur3(data: bytes, seed: int) -> int:
    """Compute MurmurHash3_x86_32 of any bytes: an oracle written from SMHasher's description."""
    mask = 2**32 - 1
    h = seed
    for start in range(0, len(data), 4):
        k = int.from_bytes(data[start : start + 4], "little") * 0xCC9E2D51 % 2**32
        k = (k * 2**15 % 2**32 + k // 2**17) * 0x1B873593 % 2**32
        h ^= k
        if start + 4 <= len(data):
            h = (h * 2**13 % 2**32 + h // 2**19) * 5 + 0xE6546B64 & mask
    h ^= len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h = (h ^ h >> shift) * factor & mask
    return h


def test_oracle_is_murmur3() -> None:
    """The oracle has SMHasher's own verification value of MurmurHash3_x86_32."""
    hashes = [murmur3(bytes(range(length)), 256 - length) for length in range(256)]
    assert murmur3(b"".join(pack("<I", value) for value in hashes), 0) == 0xB0F57EE3


@given(words, words, ports, ports, st.integers(0, 255))
def test_flow_hash_is_murmur3_of_three_words(
    saddr: int, daddr: int, sport: int, dport: int, protocol: int
) -> None:
    """The hash is that of the words' twelve bytes, least significant first, seeded by protocol."""
    data = pack("<3I", saddr, daddr, sport << 16 | dport)
    assert flow_hash(saddr, daddr, sport, dport, protocol) == murmur3(data, protocol)


@pytest.mark.parametrize(
    ("flow", "expected"),
    [
        (("192.0.2.7", "203.0.113.10", 40_000, 80, 6), 0xA3750A24),
        (("192.0.2.7", "203.0.113.10", 40_000, 80, 17), 0x23FCA0E6),
        (("0.0.0.0", "0.0.0.0", 0, 0, 0), 0xD941144B),
        (("255.255.255.255", "255.255.255.255", 65_535, 65_535, 255), 0xE6D0A32D),
        (("10.0.0.1", "10.0.0.2", 1, 2, 6), 0xB9C1D1AF),
    ],
)
def test_known_flows(flow: tuple[str, str, int, int, int], expected: int) -> None:
    """Vectors computed with the library mmh3 5.3.1: what the C program must yield as well."""
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
