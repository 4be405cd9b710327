"""Rings as they lie in their map: 262 kB each, so they are written and read with few copies.

Owns ``struct lb_ring``. What its slots mean, and how they change, ``core.settle`` says.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np

from lb_xdp.core.ring import RING_SLOTS
from lb_xdp.core.settle import NO_BACKEND, RingImage, compacted
from lb_xdp.datapath.maps import BpfMap, Values
from lb_xdp.errors import MapError

_AT_ONCE = 8  # rings a system call: the kernel's own copy of a value is made once for all


def write_fresh(rings: BpfMap, images: Iterable[tuple[int, RingImage]]) -> None:
    """Write rings by number that nothing runs yet, so no turn has been taken. Raises MapError."""
    block: Values = np.zeros(_AT_ONCE, dtype=rings.spec.value)
    remaining = iter(images)
    while some := list(islice(remaining, _AT_ONCE)):
        for value, (_, image) in zip(block, some, strict=False):
            _encode(value, image)
        rings.write_block([number for number, _ in some], block)


def write_ring(rings: BpfMap, number: int, image: RingImage) -> None:
    """Write a whole ring at once. A reader may see old and new slots mixed: all are valid."""
    value = _read(rings, number)
    _encode(value[0], image)
    rings.write_block([number], value)


def read_ring(rings: BpfMap, number: int) -> RingImage:
    """Return a ring. Raises MapError."""
    ring = _read(rings, number)[0]
    return RingImage(
        compacted(ring["slot"][:RING_SLOTS]),
        int(ring["head"]["unsettled_until_ns"]),
        int(ring["head"]["affinity_s"]),
    )


def _encode(value: Values, image: RingImage) -> None:
    """Put a ring into its element; the turn that it holds stays."""
    value["head"]["unsettled_until_ns"] = image.unsettled_until_ns
    value["head"]["affinity_s"] = image.affinity_s
    value["slot"][:RING_SLOTS] = image.slots
    value["slot"][RING_SLOTS] = NO_BACKEND


def _read(rings: BpfMap, number: int) -> Values:
    value = rings.read(number)
    if value is None:  # an array's element is there, unless the map is not what it claims to be
        raise MapError(f"map {rings.spec.name}[{number}] cannot be read")
    return value
