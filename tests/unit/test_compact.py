"""The compact form of many numbers says the same as the numbers, in a quarter of the memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lb_xdp.core.compact import Compact, Numbers
from lb_xdp.core.plan import INDICES
from lb_xdp.core.settle import (
    NO_BACKEND,
    RingImage,
    advance,
    compacted,
    has_marked,
    pack,
    state_counts,
)

FEW = arrays(np.uint32, st.integers(1, 300), elements=st.integers(0, INDICES - 1))


def wide(count: int) -> Numbers:
    """Return slots of so many backends whose indices lie far apart."""
    return (np.arange(65_537) % count * (INDICES // count)).astype(np.uint32)


@given(FEW, st.data())
def test_the_numbers_come_back(numbers: Numbers, data: st.DataObject) -> None:
    """All of them, one of them, and as small integers."""
    held = Compact.of(numbers)
    place = data.draw(st.integers(0, len(numbers) - 1))
    assert held.size == len(numbers)
    assert held.numbers().dtype == np.uint32
    assert held.numbers().tolist() == numbers.tolist() == held.numbers(np.uint16).tolist()
    assert held.at(place) == numbers[place]


@given(FEW, FEW)
def test_two_are_equal_if_their_numbers_are(one: Numbers, other: Numbers) -> None:
    """Whatever form they came in: the same numbers in another order of values are the same."""
    turned = Compact(Compact.of(one).values[::-1], Compact.of(one).values.size - 1 - places(one))
    assert Compact.of(one).equals(turned)
    assert Compact.of(one).equals(Compact.of(other)) == np.array_equal(one, other)


def places(numbers: Numbers) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    return Compact.of(numbers).places.astype(np.uint16)


@pytest.mark.parametrize(("backends", "octets"), [(1, 1), (10, 1), (256, 1), (257, 2), (4096, 2)])
def test_a_place_takes_as_few_bytes_as_it_can(backends: int, octets: int) -> None:
    """One for up to 256 backends, wherever their indices lie, and two for more."""
    slots = wide(backends)
    assert Compact.of(slots).places.itemsize == octets
    assert np.array_equal(Compact.of(slots).numbers(), slots)


@given(FEW)
def test_a_settled_ring_is_the_same_in_both_forms(indices: Numbers) -> None:
    """Nobody can tell by what a ring says whether it is held compactly."""
    plain, held = RingImage(indices, 0, 60), RingImage(compacted(indices), 0, 60)
    assert isinstance(held.held, Compact)
    assert held.slots.tolist() == indices.tolist()
    assert (held.size, held.settled, held.slot(0)) == (plain.size, plain.settled, plain.slot(0))
    assert (has_marked(held), state_counts(held)) == (has_marked(plain), state_counts(plain))
    assert held.same_as(plain)
    assert plain.same_as(held)
    assert not held.same_as(held._replace(affinity_s=61))


def test_a_ring_that_settles_is_as_it_is() -> None:
    """Its slots have a past, for which the compact form has no room."""
    slots = pack(np.array([1, 2], np.uint32), np.uint32(0), np.array([2, 0], np.uint32))
    assert compacted(slots) is slots
    assert not RingImage(slots).settled


def test_what_is_settled_shares_the_memory_of_the_goal() -> None:
    """The slots of a thousand rings are held once, though two parts of the program know them."""
    goal = compacted(wide(10))
    live = np.arange(INDICES) != NO_BACKEND
    first = advance(None, goal, live, 900, 0)
    again = advance(RingImage(compacted(wide(10)), 0, 60), goal, live, 900, 0)
    other = advance(RingImage(np.zeros(65_537, np.uint32)), goal, live, 900, 0)
    assert first.held is again.held is other.held is goal
