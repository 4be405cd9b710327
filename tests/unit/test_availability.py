"""Availability: shares of known time, equal to a sum over every second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb_xdp.core.availability import WINDOWS_S, Availability, BackendName
from lb_xdp.core.event import Event, EventKind
from lb_xdp.core.snapshot import Share, State

WEB1 = BackendName("web", "web1")
changes = st.lists(st.tuples(st.integers(1, 600), st.sampled_from(State)), max_size=40)


def after(*steps: tuple[float, State]) -> Availability:
    """Return the history of a backend that took these states at these times."""
    seen = Availability()
    for at_s, state in steps:
        seen.see(WEB1, state, at_s)
    return seen


@given(changes, st.integers(1, 5000), st.integers(0, 600))
def test_share_is_that_of_the_seconds(
    steps: list[tuple[int, State]], window_s: int, later_s: int
) -> None:
    """For any changes and window, counting second by second gives the same share."""
    now_s, states, seen = 10_000, [State.UNKNOWN] * 10_000, Availability()
    for lasting_s, state in steps:
        seen.see(WEB1, state, now_s)
        states += [state] * lasting_s
        now_s += lasting_s
    states += [steps[-1][1] if steps else State.UNKNOWN] * later_s
    known = [s for s in states[-window_s:] if s is not State.UNKNOWN]
    share = seen.share(WEB1, window_s, len(states))
    if not known:
        assert share is None
    else:
        assert share is not None
        assert share.known_s == pytest.approx(len(known))
        assert share.up == pytest.approx(known.count(State.UP) / len(known))


@given(changes, st.floats(1, 1e7), st.floats(0, 1e6))
def test_share_is_a_share(steps: list[tuple[int, State]], window_s: float, now_s: float) -> None:
    """Whatever the clock does, up time is between nothing and all of the known time."""
    share = after(*steps).share(WEB1, window_s, now_s)
    assert share is None or (0 <= share.up <= 1 and share.known_s >= 0)


@given(st.integers(0, 2_000))
def test_memory_is_bounded(flaps: int) -> None:
    """A backend that changes all the time takes no more room, and its share stays right."""
    seen = Availability()
    for number in range(flaps):
        seen.see(WEB1, State.DOWN if number % 2 else State.UP, float(number))
    history = seen._histories.get(WEB1)
    assert history is None or len(history.ends_s) <= 513
    share = seen.share(WEB1, 1e9, float(flaps))
    assert share is None or share.up == pytest.approx(0.5, abs=0.6 / flaps)


def test_windows_see_their_part_only() -> None:
    """A failure of ten minutes five hours ago is in the day's and the month's share alone."""
    now_s = 3_000_000.0
    seen = after(
        (0.0, State.UP), (now_s - 18_000, State.DOWN), (now_s - 17_400, State.UP)
    )  # fmt: skip
    shares = seen.shares(WEB1, now_s)
    assert list(shares) == list(WINDOWS_S)
    assert shares["1h"] == Share(1.0, 3600.0)
    assert shares["24h"].up == pytest.approx(1 - 600 / 86_400)
    assert shares["30d"].up == pytest.approx(1 - 600 / 2_592_000)


def test_time_without_a_daemon_is_not_counted() -> None:
    """Between the last sign of life of one daemon and the first state in the next nobody looked."""
    state = EventKind.BACKEND_STATE
    seen = Availability()
    seen.replay(
        [
            Event(EventKind.STARTED, 1000.0),
            Event(state, 1000.0, *WEB1, "", "up"),
            Event(state, 1090.0, *WEB1, "up", "down"),
        ],
        last_alive_s=1100.0,
    )
    seen.on_event(Event(EventKind.STARTED, 2000.0))
    seen.on_event(Event(state, 2000.0, *WEB1, "", "up"))
    assert seen.share(WEB1, 3600.0, 2100.0) == Share(190 / 200, 200.0)


def test_backend_that_is_gone_has_no_share() -> None:
    """A backend that was forgotten and comes again under its name begins anew."""
    seen = after((0.0, State.DOWN))
    seen.on_event(Event(EventKind.BACKEND_FORGOTTEN, 50.0, *WEB1))
    assert seen.share(WEB1, 3600.0, 100.0) is None
    seen.see(WEB1, State.UP, 100.0)
    assert seen.share(WEB1, 3600.0, 200.0) == Share(1.0, 100.0)


@given(changes, st.floats(0, 1e7))
def test_windows_are_counted_one_like_another(steps: list[tuple[int, State]], now_s: float) -> None:
    """All windows together give what each of them gives alone."""
    seen = after(*steps)
    alone = {window: seen.share(WEB1, length_s, now_s) for window, length_s in WINDOWS_S.items()}
    assert seen.shares(WEB1, now_s) == {w: share for w, share in alone.items() if share}
