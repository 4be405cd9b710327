"""What tests ask of rings and the program never does: whose the slots are, backend by backend."""

from __future__ import annotations

from lb_xdp.core.model import BackendKey
from lb_xdp.core.ring import EMPTY, Ring


def owners(ring: Ring) -> list[BackendKey | None]:
    """Return whose each slot is; None: nobody's."""
    return [None if i == EMPTY else ring.keys[i] for i in ring.owner.tolist()]


def counts(ring: Ring) -> dict[BackendKey, int]:
    """Return how many slots each backend owns; backends with none are in it with 0."""
    found = dict.fromkeys(ring.keys, 0)
    for key in owners(ring):
        if key is not None:
            found[key] += 1
    return found


def moved(before: Ring, after: Ring) -> int:
    """Return how many slots of two rings of one size have another owner."""
    return sum(old != new for old, new in zip(owners(before), owners(after), strict=True))
