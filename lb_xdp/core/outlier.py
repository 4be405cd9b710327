"""From readings of handshakes to suspicion and ejection: the passive side of health.

Owns what counts as suspicious in a pool's traffic, when the traffic proves nothing about a backend
(a SYN flood), and who is ejected for how long. It refuses to read counters, to probe, and to decide
what ejection means for packets. Times are seconds of a monotonic clock.

Invariants: of a pool's backends no larger share than ``max_ejected`` is ejected, the one in
question included, and never the last that serves; who is ejected returns when its time is over,
whatever happens, and is judged anew by what comes after.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

from lb_xdp.core.model import Detect

Key = TypeVar("Key", bound=Hashable)

_SKEWED = 3
"""Times the others' mean of handshakes, from which on a flood may be aimed at one backend."""

_REPEATED_SHARE = 0.1
"""Of unanswered SYNs; clients repeat theirs after a second, floods do not."""


class Reading(NamedTuple):
    """Totals of a backend at one moment; ``lb_watch_count`` of bpf/lb_types.h says what of."""

    begun: int = 0
    answered: int = 0
    repeated: int = 0
    resets: int = 0


class Change(Enum):
    """What is found of a backend."""

    SUSPECTED = "suspected"
    CLEARED = "cleared"
    EJECTED = "ejected"
    RETURNED = "returned"


@dataclass(frozen=True, slots=True)
class Finding(Generic[Key]):
    """One change, and why, in words."""

    key: Key
    change: Change
    why: str


@dataclass(frozen=True, slots=True)
class Member:
    """What is remembered of a backend.

    ``readings`` reach back to ``interval_s``, oldest first, each with its time. ``suspected`` says
    why, empty where it is not. ``ejected`` likewise, until ``until_s``. ``ejections`` are those
    that are not forgiven yet; ``since_s`` is when that number last changed.
    """

    readings: tuple[tuple[float, Reading], ...] = ()
    suspected: str = ""
    ejected: str = ""
    until_s: float = 0.0
    ejections: int = 0
    since_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Window:
    """What came about between the first and the last reading.

    ``begun`` leaves out what began since the last reading but one: that is not missed yet.
    """

    begun: int = 0
    answered: int = 0
    repeated: int = 0
    resets: int = 0
    length_s: float = 0.0

    @property
    def unanswered(self) -> int:
        """Return how many handshakes went without an answer, at least."""
        return max(self.begun - self.answered, 0)

    @property
    def failed_share(self) -> float:
        """Return the share of handshakes that went without an answer."""
        return self.unanswered / self.begun if self.begun else 0.0

    @property
    def reset_share(self) -> float:
        """Return resets for each handshake, 1 at most."""
        return min(self.resets / max(self.begun, 1), 1.0)


@dataclass(frozen=True, slots=True)
class Judgement(Generic[Key]):
    """The pool after a reading, and what has changed by it."""

    members: Mapping[Key, Member]
    findings: tuple[Finding[Key], ...] = field(default=())


def judge(
    before: Mapping[Key, Member],
    readings: Mapping[Key, Reading],
    serving: Collection[Key],
    rules: Detect,
    now_s: float,
) -> Judgement[Key]:
    """Return what the latest readings say of a pool.

    ``readings`` are of all backends of the pool: who is not among them is forgotten. ``serving``
    may have new flows as far as all else is concerned; ejected ones may be among them.
    """
    members = {key: before.get(key, Member(since_s=now_s)) for key in readings}
    findings = list(_returns(members, now_s))
    for key, reading in readings.items():
        members[key] = _forgiven(_read(members[key], reading, rules, now_s), rules, now_s)
    windows = {key: window(one) for key, one in members.items() if not one.ejected}
    whole = _whole(windows.values(), rules)
    found = {key: _suspicion(seen, whole, rules) for key, seen in windows.items()}
    held = {key for key, one in members.items() if one.suspected}
    findings += _suspect(members, found)
    if rules.eject:
        guilty = [key for key in held if found.get(key) and _fails(windows[key], rules)]
        guilty.sort(key=lambda key: -windows[key].failed_share)  # the worst first
        findings += _eject(members, guilty, serving, rules, now_s)
    return Judgement(members, tuple(findings))


def _returns(members: dict[Key, Member], now_s: float) -> Iterator[Finding[Key]]:
    for key, one in members.items():
        if one.ejected and one.until_s <= now_s:
            members[key] = Member(ejections=one.ejections, since_s=now_s)
            yield Finding(key, Change.RETURNED, f"its time is over, was {one.ejected}")


def _read(one: Member, reading: Reading, rules: Detect, now_s: float) -> Member:
    """Add a reading; totals that are smaller than before began anew, and so does the window."""
    held, first = one.readings, 0
    if held and min(new - old for new, old in zip(reading, held[-1][1], strict=True)) < 0:
        held = ()
    while first + 1 < len(held) and held[first + 1][0] <= now_s - rules.interval_s:
        first += 1
    return replace(one, readings=(*held[first:], (now_s, reading)))


def _forgiven(one: Member, rules: Detect, now_s: float) -> Member:
    """Take one off the number of ejections for each base time that passed without any."""
    if one.ejected or not one.ejections or now_s - one.since_s < rules.base_time_s:
        return one
    return replace(one, ejections=one.ejections - 1, since_s=one.since_s + rules.base_time_s)


def window(one: Member) -> Window:
    """Return what came about in the time that a member's readings span."""
    if not one.readings:
        return Window()
    (first_s, first), (last_s, last) = one.readings[0], one.readings[-1]
    begun = one.readings[-2][1].begun if len(one.readings) > 1 else first.begun
    return Window(
        begun - first.begun,
        last.answered - first.answered,
        last.repeated - first.repeated,
        last.resets - first.resets,
        last_s - first_s,
    )


def _fails(seen: Window, rules: Detect) -> bool:
    return seen.begun >= rules.min_flows and seen.failed_share >= rules.failure_share


def _resets(seen: Window, rules: Detect) -> bool:
    return seen.resets >= rules.min_flows and seen.reset_share >= rules.failure_share


class _Whole(NamedTuple):
    """What a pool's windows come to, ejected backends left out.

    ``compared`` are those with enough traffic; the best shares are theirs.
    """

    members: int
    begun: int
    compared: int
    best_failed: float
    best_reset: float


def _whole(windows: Collection[Window], rules: Detect) -> _Whole:
    compared = [one for one in windows if one.begun >= rules.min_flows]
    return _Whole(
        len(windows),
        sum(one.begun for one in windows),
        len(compared),
        min((one.failed_share for one in compared), default=0.0),
        min((one.reset_share for one in compared), default=0.0),
    )


def _suspicion(seen: Window, whole: _Whole, rules: Detect) -> str:
    """Say why a backend is suspicious; empty where it is not, or its traffic proves nothing."""
    if _fails(seen, rules) and not _is_flood(seen, whole, rules):
        return (f"{seen.unanswered} of {seen.begun} handshakes unanswered "
                f"in {seen.length_s:.0f} s")  # fmt: skip
    alike = _others(seen, whole, rules) > 0 and whole.best_reset >= rules.failure_share / 2
    if _resets(seen, rules) and not alike:
        return f"{seen.resets} resets in {seen.length_s:.0f} s"
    return ""


def _others(seen: Window, whole: _Whole, rules: Detect) -> int:
    """Return how many other backends this one can be compared with."""
    return whole.compared - (seen.begun >= rules.min_flows)


def _is_flood(seen: Window, whole: _Whole, rules: Detect) -> bool:
    """Say whether unanswered handshakes may be the doing of clients.

    They are if even the best of the others leaves many unanswered: a flood rises on all alike. (If
    this one is the best of all, so do the others.) They may be if there is nobody to compare with,
    or this backend gets far more than its share, and hardly any SYN is repeated.
    """
    others = _others(seen, whole, rules)
    if others and whole.best_failed >= rules.failure_share / 2:
        return True
    mean = (whole.begun - seen.begun) / max(whole.members - 1, 1)
    alone = not others or seen.begun > _SKEWED * mean
    return alone and seen.repeated < _REPEATED_SHARE * seen.unanswered


def _suspect(members: dict[Key, Member], found: Mapping[Key, str]) -> Iterator[Finding[Key]]:
    for key, why in found.items():
        before = members[key].suspected
        if why != before:
            members[key] = replace(members[key], suspected=why)
        if why and not before:
            yield Finding(key, Change.SUSPECTED, why)
        elif before and not why:
            yield Finding(key, Change.CLEARED, f"no more: {before}")


def _eject(
    members: dict[Key, Member],
    guilty: Collection[Key],
    serving: Collection[Key],
    rules: Detect,
    now_s: float,
) -> Iterator[Finding[Key]]:
    """Eject the guilty in their order, as long as enough are left."""
    for key in guilty:
        ejected = {other for other, one in members.items() if one.ejected} | {key}
        left = set(serving) - ejected
        if not left or len(ejected) > rules.max_ejected * len(members):
            continue
        one = members[key]
        ejections = one.ejections + 1
        time_s = min(rules.base_time_s * ejections, rules.max_time_s)
        why = f"ejected: {one.suspected}"
        members[key] = Member(
            ejected=why, until_s=now_s + time_s, ejections=ejections, since_s=now_s
        )
        yield Finding(key, Change.EJECTED, f"{one.suspected}; for {time_s:.0f} s")
