"""What Python cannot do, or not soon enough, by way of C.

Owns the controller's one loop in C (``lb_ring.c`` beside it, where scripts/setup could build it),
and what allocator and collector do. It refuses to be needed: without a C compiler the same is done
in Python (``core.ring.fill``), fifteen times as slowly, slot for slot with the same outcome.
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import numpy as np

from lb_xdp.core.ring import EMPTY, Fill, Orders, Owners, Turns, fill

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGE_BYTES = 1 << 20  # more than any array of a ring: these come and go by the thousand
_SPARE_BYTES = 16 << 20
_YOUNG_OBJECTS = 50_000

LIBRARY = Path(__file__).with_name("liblb_ring.so")


def fastest_fill() -> Fill:
    """Return the C loop if it is there, else Python's."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return fill
    call = library.lb_ring_fill
    call.argtypes = (ctypes.c_uint32, *[ctypes.c_void_p] * 6)
    call.restype = None

    def fill_natively(turns: Turns, orders: Orders) -> Owners:
        """Take the turns one after the other; what ``core.ring.fill`` does. Frees the GIL."""
        inputs = (turns, orders.offsets, orders.skips, orders.powers)
        given = [np.ascontiguousarray(array, np.uint32) for array in inputs]
        places = np.zeros(len(orders.skips), np.uint32)
        owner = np.full(orders.slots, EMPTY, np.uint32)
        arrays = [*given, places, owner]
        call(orders.slots, *(array.ctypes.data for array in arrays))
        return owner

    return fill_natively


def keep_no_large_blocks() -> None:
    """Have what a large array took go back to the kernel when the array goes. Call it at the start.

    glibc does that at first. But the largest block that was ever freed, up to 32 MB, becomes the
    limit below which it takes blocks from its heaps, one for each thread, and keeps them: so the
    arrays of one look at the flow table stayed for good, several times. A limit that is set stays
    (mallopt(3)). As that sets the other one as well, a heap may keep a little at its end: else it
    would shrink and grow with each of a thousand rings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _SPARE_BYTES)


def give_memory_back() -> None:
    """Let the kernel have what was freed, as glibc does of its own only at the heap's end.

    A start and a reload compute with rings of 262 kB by the thousand, few of which are kept.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)


def look_for_cycles_rarely() -> None:
    """Have Python look for cycles after 50,000 objects: few are made, and most live long."""
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)
