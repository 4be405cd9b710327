"""The hash that turns a flow into a ring slot, as ``lb_hash_of`` in ``bpf/lb_ring.h`` does.

Owns the arithmetic only, as the reference for the C. The controller itself hashes no packets, but
it does hash the flows that have records, to see which slots they fall on; ``flow_hashes`` does so
for hundreds of thousands at once. Both sides have to agree to the bit, and so do all gateways:
changing anything here moves every flow.

A packet waits for each of three multiplications in turn, with the shifts between them that
MurmurHash3's finalizer has (fmix64, Austin Appleby, public domain), so this is a third of what
MurmurHash3_x86_32 over the same 12 octets takes; avalanche and spread are tested. For IPv6 the
first is a sum of four products that do not wait for each other. The hash has no secret, so who
picks source ports can aim at one slot; a flow's backend never changes by it, only the spread
suffers.

numpy is allowed here: a flow table is an array.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lb_xdp.core.model import IPV6, Address

_U64 = 0xFFFF_FFFF_FFFF_FFFF
_MIX = (
    0x9E37_79B9_7F4A_7C15,
    0xFF51_AFD7_ED55_8CCD,
    0xC4CE_B9FE_1A85_EC53,
    0xBF58_476D_1CE4_E5B9,
    0x94D0_49BB_1331_11EB,
)
"""``LB_MIX_1`` to ``LB_MIX_5`` of ``bpf/lb_hash.h``."""

_FACTORS = np.array(_MIX, np.uint64)
_HALF = np.uint64(32)
_Words = npt.NDArray[np.uint64]


def flow_hash(saddr: int, daddr: int, sport: int, dport: int, protocol: int) -> int:
    """Return the 32-bit hash of an IPv4 flow.

    All arguments are host-order integers (``int(IPv4Address(...))``); ``protocol`` is the IANA
    number.
    """
    return _finish((saddr << 32 | daddr) * _MIX[0], sport, dport, protocol)


def flow_hash6(saddr: int, daddr: int, sport: int, dport: int, protocol: int) -> int:
    """Return the 32-bit hash of an IPv6 flow; addresses are host-order integers of 128 bits."""
    state = (saddr >> 64) * _MIX[0] + (saddr & _U64) * _MIX[1]
    state += (daddr >> 64) * _MIX[3] + (daddr & _U64) * _MIX[4]
    return _finish(state, sport, dport, protocol)


def source_hash(address: Address) -> int:
    """Return the hash of all flows from an address, for services that go by the source alone."""
    hashed = flow_hash6 if address.version == IPV6 else flow_hash
    return hashed(int(address), 0, 0, 0, 0)


def _finish(state: int, sport: int, dport: int, protocol: int) -> int:
    state &= _U64
    state ^= state >> 32
    state = (state ^ (protocol << 32 | sport << 16 | dport)) * _MIX[1] & _U64
    state ^= state >> 32
    return (state * _MIX[2] & _U64) >> 32


def flow_hashes(keys: npt.NDArray[np.void], by_source: npt.NDArray[np.bool_]) -> _Words:
    """Return the hash of each flow of an array of ``struct lb_flow_key``, as ``uint64``.

    Fields in network order have big-endian dtypes; ``by_source`` says for each flow whether its
    service goes by the source alone. Both families may be mixed.
    """
    others = ~by_source
    source = _halves(keys["source"])
    destination = [half * others for half in _halves(keys["destination"])]
    state4 = (source[0] & ~np.uint64(0xFFFF_FFFF) | destination[0] >> _HALF) * _FACTORS[0]
    state6 = source[0] * _FACTORS[0] + source[1] * _FACTORS[1]
    state6 += destination[0] * _FACTORS[3] + destination[1] * _FACTORS[4]
    state = np.where(keys["family"] == IPV6, state6, state4)
    rest = keys["protocol"].astype(np.uint64) << _HALF
    rest |= keys["source_port"].astype(np.uint64) << np.uint64(16)
    rest |= keys["destination_port"].astype(np.uint64)
    state = (state ^ state >> _HALF ^ rest * others) * _FACTORS[1]
    hashes: _Words = (state ^ state >> _HALF) * _FACTORS[2] >> _HALF
    return hashes


def _halves(address: npt.NDArray[Any]) -> tuple[_Words, _Words]:
    """Return the upper and lower 64 bits of addresses; an IPv4 address is the topmost word."""
    words = address.astype(np.uint64)
    return words[:, 0] << _HALF | words[:, 1], words[:, 2] << _HALF | words[:, 3]


def ring_slot(hashed: int, slots: int) -> int:
    """Return the slot of a 32-bit hash in a ring of ``slots``: the hash scaled, not its remainder.

    ``hashed * slots >> 32`` keeps the verifier's bounds where ``%`` loses them, and is cheaper.
    """
    return hashed * slots >> 32
