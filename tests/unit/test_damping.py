"""Flap damping: held after too many changes, longer each time, free again for good behaviour."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lb_xdp.core.damping import STEADY, FlapState, on_change
from lb_xdp.core.model import Damping

DAMPING = Damping(changes=4, within_s=60.0, hold_s=30.0, max_hold_s=100.0)


def after(*changes_s: float) -> FlapState:
    state = STEADY
    for at_s in changes_s:
        state = on_change(state, DAMPING, at_s)
    return state


def test_one_change_too_many_holds() -> None:
    """The fourth change within a minute holds for half a minute, the third does not."""
    assert not after(0, 10, 20).held(20)
    state = after(0, 10, 20, 30)
    assert state.held(30)
    assert state.held(59.9)
    assert not state.held(60)


def test_changes_far_apart_do_not_count() -> None:
    """A backend that changes every twenty seconds never has four changes in a minute."""
    assert not after(*range(0, 2000, 20)).held(1980)


def test_each_hold_is_twice_as_long_up_to_the_longest() -> None:
    """30 s, 60 s, then 100 s, while it goes on flapping."""
    state, now_s, lengths = STEADY, 0.0, []
    for _ in range(4):
        while not state.held(now_s):
            now_s += 1.0
            state = on_change(state, DAMPING, now_s)
        lengths.append(state.held_until_s - now_s)
        now_s = state.held_until_s
    assert lengths == [30, 60, 100, 100]


def test_good_behaviour_is_rewarded() -> None:
    """After being free for the longest hold, the next one is the shortest again."""
    state = after(0, 1, 2, 3, 34, 35, 36, 37)
    assert state.held_until_s == 97
    for at_s in (200, 201, 202, 203):
        state = on_change(state, DAMPING, at_s)
    assert state.held_until_s == 233


@given(st.lists(st.floats(0, 100), max_size=200))
def test_a_hold_is_never_longer_than_allowed(gaps_s: list[float]) -> None:
    """However it flaps, it is free again within the longest hold after its last change."""
    state, now_s = STEADY, 0.0
    for gap_s in gaps_s:
        now_s += gap_s
        state = on_change(state, DAMPING, now_s)
        assert len(state.changes_s) <= DAMPING.changes
    assert not state.held(now_s + DAMPING.max_hold_s)
