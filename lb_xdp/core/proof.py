"""Which ring the slots in the kernel are, told without building the ring.

A ring follows from its cause (``Ring.cause``) and the indices of its backends, and takes a
millisecond to build; whoever has built it once can write down what came out. Owns the two digests:
of what goes in, and of the slots. As both are written down together, a proof is never out of date:
where the kernel's slots are others by now, or others are wanted, it just proves nothing.

Only of rings whose slots are all settled: others depend on the past. numpy is allowed here.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from hashlib import blake2b, sha256
from typing import NamedTuple

import numpy as np

from lb_xdp.core.compact import Compact
from lb_xdp.core.model import ServiceKey
from lb_xdp.core.ring import Ring
from lb_xdp.core.settle import RingImage


class Proof(NamedTuple):
    """``source`` is the digest of what a ring follows from, ``slots`` that of what came out."""

    source: bytes
    slots: bytes


def source_of(ring: Ring, indices: Iterable[int]) -> bytes:
    """Return the digest of what a ring's slots follow from; ``indices`` are those of its keys."""
    return blake2b(ring.cause + array("I", indices).tobytes(), digest_size=16).digest()


def slots_of(image: RingImage) -> bytes | None:
    """Return the digest of a ring's slots; None where some are not settled."""
    if image.unsettled_until_ns or not isinstance(image.held, Compact):
        return None
    indices = image.held.numbers(np.uint16)  # INDEX_BITS are fewer
    return sha256(indices.data).digest()[:16]  # sooner than any other of hashlib's


def proven(
    kept: Mapping[ServiceKey, Proof], rings: Mapping[ServiceKey, RingImage]
) -> dict[ServiceKey, bytes]:
    """Return what the rings in the kernel follow from, of those about which a proof says so."""
    return {
        key: kept[key].source
        for key, image in rings.items()
        if key in kept and kept[key].slots == slots_of(image)
    }
