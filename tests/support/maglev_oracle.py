"""Weighted Maglev, slow and literal: what ``lb_xdp.core.ring.maglev`` must equal slot for slot.

A transcription of the pseudo code of Eisenbud et al., NSDI 2016, section 3.4 (names as there), with
the credits that make it weighted, and preferences that go by a power (docs/decisions/0002-ring.md
says why). It shares no line with the real one, and writes whole permutations down.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

from lb_xdp.core.model import BackendKey


def oracle(weights: Mapping[BackendKey, int], m: int) -> list[BackendKey]:
    """Return the owner of each of ``m`` slots. At least one weight must be positive."""
    keys = sorted(key for key, weight in weights.items() if weight > 0)
    permutation = [_permutation(f"{key.address}:{key.port}", m) for key in keys]
    largest = max(weights[key] for key in keys)
    credit = [0] * len(keys)
    following = [0] * len(keys)  # "next" in the paper
    entry = [-1] * m
    n = 0
    while True:
        for i, key in enumerate(keys):
            credit[i] += weights[key]
            if credit[i] < largest:
                continue
            credit[i] -= largest
            c = permutation[i][following[i]]
            while entry[c] >= 0:
                following[i] += 1
                c = permutation[i][following[i]]
            entry[c] = i
            following[i] += 1
            n += 1
            if n == m:
                return [keys[owner] for owner in entry]


def _permutation(identity: str, m: int) -> list[int]:
    """Return all slots in the order in which a backend prefers them."""
    digest = blake2b(identity.encode("ascii"), digest_size=24, person=b"lb-xdp ring").digest()
    offset = sum(byte << 8 * place for place, byte in enumerate(digest[:8])) % m
    skip = sum(byte << 8 * place for place, byte in enumerate(digest[8:16])) % (m - 1) + 1
    exponent = 3
    while len({pow(j, exponent, m) for j in range(m)}) < m:
        exponent += 2
    return [(offset + skip * pow(j, exponent, m)) % m for j in range(m)]
