"""Numbers for many places, of which few differ: each once, and a byte or two for each place.

Owns that form, which takes a quarter of the memory of plain numbers: rings are held in it by the
thousand. It refuses to know what the numbers and places are. numpy is allowed here.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint32]
Places = npt.NDArray[np.unsignedinteger[Any]]

_BYTE = 0xFF


class Compact(NamedTuple):
    """The number at a place is ``values[places[place]]``. Neither array changes any more.

    ``values`` may hold numbers that are nowhere, and one of them twice; ``places`` may be shared.
    """

    values: Numbers
    places: Places

    @classmethod
    def of(cls, numbers: Numbers) -> Self:
        """Return the form of some small numbers: it takes memory for as many as the largest."""
        low, high = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, 0)
        if high - low <= _BYTE:  # as the indices of a pool mostly are: soon done
            values = np.arange(low, high + 1, dtype=np.uint32)
            return cls(values, (numbers - np.uint32(low)).astype(np.uint8))
        values = np.flatnonzero(np.bincount(numbers)).astype(np.uint32)
        place_of = np.zeros(high + 1, np.min_scalar_type(len(values) - 1))
        place_of[values] = np.arange(len(values))
        return cls(values, place_of[numbers])

    @property
    def size(self) -> int:
        """Return how many places there are."""
        return len(self.places)

    def at(self, place: int) -> int:
        """Return the number at one place."""
        return int(self.values[self.places[place]])

    def numbers(self, kind: type[np.unsignedinteger[Any]] = np.uint32) -> npt.NDArray[Any]:
        """Return the number at each place, in an array of the caller's own."""
        return np.take(self.values.astype(kind), self.places, mode="clip")  # "raise" looks twice

    def equals(self, other: Compact) -> bool:
        """Say whether there are the same numbers at the same places."""
        if self.places is other.places and np.array_equal(self.values, other.values):
            return True
        return np.array_equal(self.numbers(), other.numbers())
