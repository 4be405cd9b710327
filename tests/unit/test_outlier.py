"""What is concluded from handshakes: who is suspected, who is ejected, and when nothing is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb_xdp.core.model import Detect
from lb_xdp.core.outlier import Change, Finding, Member, Reading, judge

RULES = Detect(eject=True, base_time_s=10, max_time_s=25)
FINE = Reading(begun=100, answered=100)
DEAD = Reading(begun=100, answered=0, repeated=60)
HALF = Reading(begun=100, answered=50, repeated=30)
FLOODED = Reading(begun=10_000, answered=100, repeated=1)
QUIET = Reading()
LONG_S = 40


@dataclass
class Pool:
    """Backends with their traffic, a reading each second."""

    names: str = "abc"
    rules: Detect = RULES
    serving: str = ""
    now_s: float = 1000.0
    totals: dict[str, Reading] = field(default_factory=dict)
    members: Mapping[str, Member] = field(default_factory=dict)
    told: list[tuple[str, Change]] = field(default_factory=list)

    def second(self, *traffic: Reading) -> Sequence[Finding[str]]:
        """Let a second pass, with traffic for each backend; ejected ones get none."""
        self.now_s += 1
        for name, more in zip(self.names, traffic, strict=True):
            before, member = self.totals.get(name, Reading()), self.members.get(name)
            extra = QUIET if member and member.ejected else more
            self.totals[name] = Reading(*(a + b for a, b in zip(before, extra, strict=True)))
        serving = self.serving or self.names
        after = judge(self.members, self.totals, serving, self.rules, self.now_s)
        self.members = after.members
        self.told += [(finding.key, finding.change) for finding in after.findings]
        return after.findings

    def seconds(self, count: int, *traffic: Reading) -> None:
        for _ in range(count):
            self.second(*traffic)

    @property
    def ejected(self) -> str:
        return "".join(name for name, one in self.members.items() if one.ejected)


def test_a_backend_that_answers_nobody_is_suspected_then_ejected() -> None:
    """As soon as what began can be missed; the next reading decides, and words say why."""
    pool = Pool()
    pool.seconds(3, FINE, FINE, FINE)
    pool.seconds(2, FINE, FINE, DEAD)
    findings: list[Finding[str]] = []
    while not pool.ejected:
        findings += pool.second(FINE, FINE, DEAD)
        assert pool.now_s < 1010
    assert [(f.key, f.change) for f in findings] == [
        ("c", Change.SUSPECTED), ("c", Change.EJECTED),
    ]  # fmt: skip
    assert "handshakes unanswered in 5 s" in findings[0].why
    assert findings[1].why.endswith("; for 10 s")
    assert pool.members["c"].ejected.startswith("ejected: ")


def test_without_eject_there_is_suspicion_alone() -> None:
    """And it ends when the backend answers again."""
    pool = Pool(rules=Detect())
    pool.seconds(10, FINE, FINE, DEAD)
    assert pool.members["c"].suspected
    pool.seconds(6, FINE, FINE, FINE)
    assert pool.told == [("c", Change.SUSPECTED), ("c", Change.CLEARED)]
    assert not pool.ejected


def test_who_returns_is_judged_anew_and_pays_more_each_time() -> None:
    """10 s, 20 s, then 25 s at most; times without an ejection are taken off."""
    pool = Pool()
    lengths_s = []
    for _ in range(4):
        while not pool.ejected:
            pool.second(FINE, FINE, DEAD)
        began_s = pool.now_s
        while pool.ejected:
            pool.second(FINE, FINE, DEAD)
        lengths_s.append(pool.now_s - began_s)
    assert lengths_s == [10, 20, 25, 25]
    pool.seconds(LONG_S, FINE, FINE, FINE)
    assert pool.members["c"].ejections == 0


@pytest.mark.parametrize(
    ("what", "traffic", "suspected"),
    [
        ("all well", (FINE, FINE, FINE), ""),
        ("one dead", (FINE, FINE, DEAD), "c"),
        ("two dead", (FINE, DEAD, DEAD), "bc"),
        ("all dead alike", (DEAD, DEAD, DEAD), ""),
        ("half of one", (FINE, FINE, HALF), ""),
        ("two thirds of one", (FINE, FINE, Reading(100, 33)), "c"),
        ("a flood on all", (FLOODED, FLOODED, FLOODED), ""),
        ("a flood on all, and one dead", (FLOODED, FLOODED, Reading(10_000)), ""),
        ("a flood on one", (FINE, FINE, FLOODED), ""),
        ("too little traffic", (FINE, FINE, Reading(begun=3, repeated=3)), ""),
        ("others have too little", (Reading(1, 1), Reading(1, 1), DEAD), "c"),
        ("the same, a flood", (Reading(1, 1), Reading(1, 1), Reading(100)), ""),
        ("much for one that is dead", (FINE, FINE, Reading(1000, 0, 700)), "c"),
        ("resets", (FINE, FINE, Reading(100, 100, 0, 80)), "c"),
        ("resets on all", (Reading(100, 100, 0, 80),) * 3, ""),
        ("resets without new flows", (FINE, FINE, Reading(0, 0, 0, 80)), "c"),
    ],
)
def test_who_is_suspected(what: str, traffic: tuple[Reading, ...], suspected: str) -> None:
    """Outliers are, among backends that can be compared; what clients may have done is not."""
    pool = Pool(rules=Detect())
    pool.seconds(10, *traffic)
    found = "".join(name for name, one in pool.members.items() if one.suspected)
    assert found == suspected, what


def test_resets_alone_eject_nobody() -> None:
    """They make a backend suspicious, so that it is probed; the rest is for probes to say."""
    pool = Pool()
    pool.seconds(10, FINE, FINE, Reading(100, 100, 0, 90))
    assert pool.members["c"].suspected
    assert not pool.ejected


def test_slow_answers_are_not_missed_at_once() -> None:
    """A burst whose answers take most of a second is no suspicion."""
    pool = Pool()
    pool.seconds(3, QUIET, QUIET, QUIET)
    pool.second(FINE, FINE, Reading(begun=100))
    pool.second(FINE, FINE, Reading(begun=0, answered=100))
    pool.seconds(5, QUIET, QUIET, QUIET)
    assert pool.told == []


def test_the_cap_counts_after_the_ejection_and_the_last_one_stays() -> None:
    """Of four, half is two; of two that die at once the worse one goes first; one must serve."""
    pool = Pool("abcd")
    pool.seconds(9, FINE, DEAD, DEAD, DEAD)
    assert len(pool.ejected) == 2
    pool = Pool("abc")
    pool.seconds(9, FINE, DEAD, DEAD)
    assert len(pool.ejected) == 1
    pool = Pool("abc", Detect(eject=True, max_ejected=0.3))
    pool.seconds(9, FINE, FINE, DEAD)
    assert pool.ejected == ""
    pool = Pool("ab", Detect(eject=True, max_ejected=1))
    pool.serving = "b"
    pool.seconds(9, FINE, DEAD)
    assert pool.ejected == ""


def test_counters_that_begin_anew_prove_nothing() -> None:
    """After totals fell (the datapath was replaced) the window starts over."""
    pool = Pool()
    pool.seconds(5, FINE, FINE, FINE)
    pool.totals = dict.fromkeys("abc", Reading())
    pool.seconds(5, FINE, FINE, FINE)
    assert pool.told == []


def test_who_leaves_the_pool_is_forgotten() -> None:
    """An ejection ends with its backend."""
    pool = Pool()
    pool.seconds(9, FINE, FINE, DEAD)
    assert pool.ejected == "c"
    after = judge(pool.members, {"a": Reading(), "b": Reading()}, "ab", RULES, pool.now_s + 1)
    assert set(after.members) == {"a", "b"}


amounts = st.integers(0, 200)
traffic = st.builds(Reading, amounts, amounts, amounts, amounts)


@given(
    st.lists(st.tuples(traffic, traffic, traffic, traffic), max_size=60),
    st.sets(st.sampled_from("abcd"), min_size=1).map(lambda names: "".join(sorted(names))),
    st.floats(0, 1),
)
def test_whatever_comes_enough_backends_stay(
    seconds: list[tuple[Reading, ...]], serving: str, cap: float
) -> None:
    """At no moment are more ejected than allowed, nor the last one that serves, and all return."""
    rules = Detect(min_flows=1, failure_share=0.3, eject=True, max_ejected=cap, base_time_s=3,
                   max_time_s=9)  # fmt: skip
    pool = Pool("abcd", rules, serving)
    for second in seconds:
        pool.second(*second)
        ejected = set(pool.ejected)
        assert len(ejected) <= cap * 4
        assert not ejected or set(serving) - ejected
        assert all(one.until_s <= pool.now_s + 9 for one in pool.members.values())
    pool.seconds(10, QUIET, QUIET, QUIET, QUIET)
    assert not pool.ejected
    changes = {name: [change for key, change in pool.told if key == name] for name in "abcd"}
    for told in changes.values():
        assert told.count(Change.EJECTED) == told.count(Change.RETURNED)
