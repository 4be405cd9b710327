"""The hash that turns a flow into a ring slot, as ``lb_flow_hash`` in ``bpf/lb_hash.h`` does.

Owns the arithmetic only, as the reference for the C. The controller itself hashes no packets: tests
do, and whoever must know beforehand where a flow goes. Both sides have to agree to the bit, and so
do all gateways: changing anything here moves every flow.

Three multiplications of 64 bits with the shifts between them that MurmurHash3's finalizer has
(fmix64, Austin Appleby, public domain). A packet waits for each of them in turn, so this is a
third of what MurmurHash3_x86_32 over the same 12 octets takes; avalanche and spread are tested. The
hash has no secret, so who picks source ports can aim at one slot; a flow's backend never changes by
it, only the spread suffers.
"""

from __future__ import annotations

_U64 = 0xFFFF_FFFF_FFFF_FFFF
_FACTORS = (0x9E37_79B9_7F4A_7C15, 0xFF51_AFD7_ED55_8CCD, 0xC4CE_B9FE_1A85_EC53)


def flow_hash(saddr: int, daddr: int, sport: int, dport: int, protocol: int) -> int:
    """Return the 32-bit hash of an IPv4 flow.

    All arguments are host-order integers (``int(IPv4Address(...))``); ``protocol`` is the IANA
    number.
    """
    state = (saddr << 32 | daddr) * _FACTORS[0] & _U64
    state ^= state >> 32
    state = (state ^ (protocol << 32 | sport << 16 | dport)) * _FACTORS[1] & _U64
    state ^= state >> 32
    return (state * _FACTORS[2] & _U64) >> 32


def ring_slot(hashed: int, slots: int) -> int:
    """Return the slot of a 32-bit hash in a ring of ``slots``: the hash scaled, not its remainder.

    ``hashed * slots >> 32`` keeps the verifier's bounds where ``%`` loses them, and is cheaper.
    """
    return hashed * slots >> 32
