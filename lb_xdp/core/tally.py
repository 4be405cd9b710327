"""How the slots of rings in the kernel are shared out: counted once for each ring image.

Owns the counting, and which counts still hold: an image does not change, so the very object has the
same. What the states of slots mean, ``settle`` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from lb_xdp.core.model import ServiceKey
from lb_xdp.core.settle import RingImage, current_of, state_counts


class Tally(NamedTuple):
    """The counts of one image. ``held`` is how many slots each index holds, where it holds any."""

    image: RingImage
    unsettled: int
    marked: int
    held: Mapping[int, int]


class Tallies:
    """The counts of every service's ring."""

    def __init__(self) -> None:
        self._known: dict[ServiceKey, Tally] = {}

    def of(self, rings: Mapping[ServiceKey, RingImage]) -> Mapping[ServiceKey, Tally]:
        """Return the counts of these rings, which are all that there are."""
        self._known = {
            key: self._found(key, image) or _count(image) for key, image in rings.items()
        }
        return self._known

    def ahead(self, rings: Mapping[ServiceKey, RingImage]) -> Iterator[Tally]:
        """Count rings one by one, so that ``of`` has little left to do a moment later.

        After a start that is 0.15 ms for each service, and others may want to act in between.
        """
        for key, image in rings.items():
            if self._found(key, image) is None:
                self._known[key] = tally = _count(image)
                yield tally

    def _found(self, key: ServiceKey, image: RingImage) -> Tally | None:
        tally = self._known.get(key)
        return tally if tally is not None and tally.image is image else None


def _count(image: RingImage) -> Tally:
    slots = np.bincount(current_of(image.slots))
    holders = np.flatnonzero(slots)
    held = dict(zip(holders.tolist(), slots[holders].tolist(), strict=True))
    return Tally(image, *state_counts(image), held)
