"""The slots of rings are counted once for each image, at once or ahead of time."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lb_xdp.core.model import Protocol, ServiceKey
from lb_xdp.core.settle import MARKED, SETTLED, SEVERED, UNSETTLED, RingImage, pack
from lb_xdp.core.tally import Tallies, Tally

KEYS = [ServiceKey(IPv4Address("203.0.113.10"), port, Protocol.TCP) for port in range(1, 4)]
_slots = st.tuples(
    st.integers(0, 5), st.integers(0, 5), st.sampled_from([SETTLED, UNSETTLED, MARKED, SEVERED])
)


def image(slots: list[tuple[int, int, int]]) -> RingImage:
    current, former, state = np.array(slots, np.uint32).T
    return RingImage(pack(current, former, state))


images = st.lists(_slots, min_size=1, max_size=20).map(image)
rings = st.dictionaries(st.sampled_from(KEYS), images)


def counted(tally: Tally) -> tuple[int, int, dict[int, int]]:
    return tally.unsettled, tally.marked, dict(tally.held)


@given(rings, rings, st.integers(0, 3))
def test_counted_ahead_or_at_once_is_the_same(
    before: dict[ServiceKey, RingImage], after: dict[ServiceKey, RingImage], many: int
) -> None:
    """Whatever was counted before, of rings that are others by now, the counts are those of now."""
    tallies = Tallies()
    for _ in zip(range(many), tallies.ahead(before), strict=False):
        pass
    found, fresh = tallies.of(after), Tallies().of(after)
    assert {key: counted(tally) for key, tally in found.items()} == {
        key: counted(tally) for key, tally in fresh.items()
    }
    assert all(found[key].image is ring for key, ring in after.items())


@given(st.lists(_slots, min_size=1, max_size=20))
def test_counts_are_those_of_each_slot(slots: list[tuple[int, int, int]]) -> None:
    """Every slot is counted for its present backend, and by its state."""
    tally = Tallies().of({KEYS[0]: image(slots)})[KEYS[0]]
    states = Counter(state for _, _, state in slots)
    assert tally.held == Counter(current for current, _, _ in slots)
    assert tally.unsettled == states[UNSETTLED] + states[SEVERED]
    assert tally.marked == states[MARKED]


def test_what_was_counted_is_not_counted_again() -> None:
    """The very image has the very counts; nothing is left to count ahead."""
    tallies, held = Tallies(), {KEYS[0]: image([(1, 0, SETTLED)])}
    first = tallies.of(held)[KEYS[0]]
    assert list(tallies.ahead(held)) == []
    assert tallies.of(held)[KEYS[0]] is first
