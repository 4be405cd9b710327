"""The hash that turns a flow into a ring slot, as ``lb_flow_hash`` in ``bpf/lb_hash.h`` does.

Owns the arithmetic only, as the reference for the C. The controller itself hashes no packets: tests
do, and whoever must know beforehand where a flow goes. Both sides have to agree to the bit, and so
do all gateways: changing anything here moves every flow.

MurmurHash3_x86_32 (Austin Appleby, SMHasher, public domain): a few ns in BPF, no table, and mixed
well enough that clients that differ in one bit spread evenly. The seed is no secret, so who picks
source ports can aim at one slot; a flow's backend never changes by it, only the spread suffers.
"""

from __future__ import annotations

_U32 = 0xFFFF_FFFF
_LENGTH_BYTES = 12


def flow_hash(saddr: int, daddr: int, sport: int, dport: int, protocol: int) -> int:
    """Return the 32-bit hash of an IPv4 flow.

    All arguments are host-order integers (``int(IPv4Address(...))``); ``protocol`` is the IANA
    number and seeds the hash. Hashed are three 32-bit blocks: ``saddr``, ``daddr`` and
    ``sport << 16 | dport``.
    """
    state = protocol
    for block in (saddr, daddr, sport << 16 | dport):
        state ^= _scramble(block)
        state = (_rotate(state, 13) * 5 + 0xE654_6B64) & _U32
    return _finish(state ^ _LENGTH_BYTES)


def ring_slot(hashed: int, slots: int) -> int:
    """Return the slot of a 32-bit hash in a ring of ``slots``: the hash scaled, not its remainder.

    ``hashed * slots >> 32`` keeps the verifier's bounds where ``%`` loses them, and is cheaper.
    """
    return hashed * slots >> 32


def _scramble(block: int) -> int:
    return _rotate(block * 0xCC9E_2D51 & _U32, 15) * 0x1B87_3593 & _U32


def _rotate(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & _U32


def _finish(state: int) -> int:
    """Let every bit of the state change every bit of the result (SMHasher's fmix32)."""
    state = (state ^ state >> 16) * 0x85EB_CA6B & _U32
    state = (state ^ state >> 13) * 0xC2B2_AE35 & _U32
    return state ^ state >> 16
