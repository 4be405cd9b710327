"""Health: the first word, rise and fall, restarts, and what may get traffic."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb_xdp.core.health import (
    NO_ADVICE,
    Advice,
    HealthState,
    ProbeResult,
    initial,
    is_live,
    next_interval_s,
    observe,
)
from lb_xdp.core.model import CheckKind, HealthCheck, Initial
from lb_xdp.core.snapshot import Admin, Health

CHECK = HealthCheck(kind=CheckKind.TCP, rise=2, fall=3)

histories = st.lists(st.booleans(), max_size=40)
checks = st.builds(
    HealthCheck, kind=st.just(CheckKind.HTTP), rise=st.integers(1, 4), fall=st.integers(1, 4)
)
beginnings = st.sampled_from([None, True, False])


def play(check: HealthCheck, observed_up: bool | None, history: list[bool]) -> HealthState:  # noqa: FBT001 - three states of one fact, not a switch
    """Feed the results in, one a second from second 1 on."""
    state = initial(check, 0.0, observed_up)
    for second, ok in enumerate(history, start=1):
        result = ProbeResult(ok, "fine" if ok else "refused", 0.01, float(second))
        state = observe(state, result, check)
    return state


def model(
    check: HealthCheck,
    observed_up: bool | None,  # noqa: FBT001 - as above
    history: list[bool],
) -> tuple[bool | None, int, float]:
    """Return (up, streak, since) by looking at whole runs of equal results, not result by result.

    A run overturns health if it is long enough; what it needs depends on its own kind, save that
    the very first result needs no company.
    """
    up, since_s, streak, begin = observed_up, 0.0, 0, 0
    for ok, run in groupby(history):
        length = len(list(run))
        needed = 1 if up is None else check.rise if ok else check.fall
        streak = 0
        if ok != up and length >= needed:
            up, since_s = ok, float(begin + needed)
        elif ok != up:
            streak = length
        begin += length
    return up, streak, since_s


@given(checks, beginnings, histories)
def test_observe_equals_the_model(
    check: HealthCheck,
    observed_up: bool | None,  # noqa: FBT001 - drawn by hypothesis
    history: list[bool],
) -> None:
    """For any thresholds, beginning and results, health, streak and time of change are right."""
    state = play(check, observed_up, history)
    up, streak, since_s = model(check, observed_up, history)
    assert state.health is {None: Health.UNKNOWN, True: Health.UP, False: Health.DOWN}[up]
    assert (state.streak, state.since_s) == (streak, since_s)


@pytest.mark.parametrize(("ok", "health"), [(True, Health.UP), (False, Health.DOWN)])
def test_first_result_decides_at_once(*, ok: bool, health: Health) -> None:
    """An unknown backend needs no row of results to become up or down."""
    assert play(CHECK, None, [ok]).health is health


def test_fall_takes_failures_in_a_row() -> None:
    """Two failures, a success and two failures more do not bring a backend down; a third does."""
    history = [True, False, False, True, False, False]
    assert play(CHECK, None, history).health is Health.UP
    assert play(CHECK, None, [*history, False]).health is Health.DOWN


def test_rise_takes_successes_in_a_row() -> None:
    """A flapping backend stays down until it holds."""
    history = [False, True, False, True]
    assert play(CHECK, None, history).health is Health.DOWN
    assert play(CHECK, None, [*history, True]).health is Health.UP


def test_restart_is_no_first_result() -> None:
    """A backend found up in the maps is not taken out by one failure, nor a down one let in."""
    assert play(CHECK, True, [False, False]).health is Health.UP  # noqa: FBT003 - see play
    assert play(CHECK, True, [False] * 3).health is Health.DOWN  # noqa: FBT003 - see play
    assert play(CHECK, False, [True]).health is Health.DOWN  # noqa: FBT003 - see play
    assert play(CHECK, False, [True, True]).health is Health.UP  # noqa: FBT003 - see play


def test_detail_says_how_far_the_row_has_come() -> None:
    """An operator sees why a backend that fails is still up, and why it went down."""
    assert play(CHECK, None, [True]).detail == "fine"
    assert play(CHECK, None, [True, False, False]).detail == "refused (2 of 3)"
    assert play(CHECK, None, [True, False, False, False]).detail == "refused"


def test_details_before_the_first_probe() -> None:
    """Before a probe has ended the state says where it comes from."""
    assert initial(CHECK, 5.0, None).detail == "no probe has ended yet"
    assert initial(CHECK, 5.0, observed_up=True).detail.startswith("found up at start")
    assert initial(CHECK, 5.0, observed_up=False) == HealthState(
        Health.DOWN, 0, "found down at start, no probe has ended yet", 5.0
    )


@pytest.mark.parametrize("observed_up", [None, True, False])
def test_unprobed_backend_stays_as_it_is(*, observed_up: bool | None) -> None:
    """Without a check a backend's health is none, whatever was before and whatever still comes."""
    unprobed = HealthCheck(kind=CheckKind.NONE)
    state = initial(unprobed, 1.0, observed_up)
    assert state == HealthState(Health.NONE, 0, "not probed", 1.0)
    assert observe(state, ProbeResult(False, "late", 0.1, 2.0), unprobed) == state  # noqa: FBT003 - the field's name says it


def test_only_up_and_unprobed_are_live() -> None:
    """Unknown and down get no traffic."""
    assert [health for health in Health if is_live(health)] == [Health.UP, Health.NONE]


@pytest.mark.parametrize("word", list(Initial))
def test_a_new_backend_begins_as_configured(word: Initial) -> None:
    """Only where the maps say nothing; and only unknown lets the first result decide alone."""
    check = HealthCheck(CheckKind.TCP, rise=2, fall=3, initial=word)
    state = initial(check, 1.0, None)
    assert state.health is Health(word)
    assert is_live(state.health) is (word is Initial.UP)
    assert initial(check, 1.0, observed_up=True).health is Health.UP
    assert initial(check, 1.0, observed_up=False).health is Health.DOWN
    after = observe(state, ProbeResult(word is not Initial.UP, "", 0.1, 2.0), check)
    assert (after.health is Health(word)) is (word is not Initial.UNKNOWN)


PACED = HealthCheck(
    CheckKind.TCP, interval_s=4.0, rise=2, fall=3, fast_interval_s=1.0, down_interval_s=9.0
)


@pytest.mark.parametrize(
    ("history", "interval_s"),
    [
        ([True], 4.0),
        ([True, False], 1.0),
        ([True, False, True], 4.0),
        ([True, False, False, False], 9.0),
        ([True, False, False, False, True], 1.0),
        ([True, False, False, False, True, True], 4.0),
    ],
    ids=["up", "failing", "up again", "down", "rising", "risen"],
)
def test_the_pace_follows_the_health(history: list[bool], interval_s: float) -> None:
    """Fast while results contradict the health, as configured while down, else as usual."""
    assert next_interval_s(PACED, play(PACED, None, history)) == interval_s
    assert next_interval_s(CHECK, play(CHECK, None, history)) == CHECK.interval_s


def test_advice_holds_until_there_is_other_advice() -> None:
    """An agent that does not answer has not changed its mind; one that answers says all anew."""
    half = Advice(0.5, Admin.DRAIN)
    state = initial(CHECK, 0.0, None)
    assert state.advice == NO_ADVICE
    for second, (told, advice) in enumerate(
        [(half, half), (None, half), (Advice(0.1), Advice(0.1)), (NO_ADVICE, NO_ADVICE)]
    ):
        for ok in (True, False, False, False):
            state = observe(state, ProbeResult(ok, "", 0.1, float(second), told), CHECK)
            assert state.advice == advice
