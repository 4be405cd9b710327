"""From probe results to health: rise and fall, and nothing else.

Owns the state machine of one backend. It refuses to probe (``lb_xdp.probes``), to know the time
(it comes with each result), and to decide what health means for traffic beyond ``is_live``.

Times are seconds of whichever clock the caller uses throughout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from lb_xdp.core.model import Address, CheckKind, HealthCheck
from lb_xdp.core.snapshot import Admin, Health


class Names(NamedTuple):
    """What a command is told about the backend that it probes; a pool may have many services."""

    pool: str = ""
    backend: str = ""
    services: tuple[str, ...] = ()


NO_NAMES: Final = Names()


@dataclass(frozen=True, slots=True)
class Target:
    """What to probe, where: ``address`` and ``port`` are final, ``check``'s own are not heeded.

    ``names`` are for exec alone; elsewhere they stay empty, so that a new name restarts no probe.
    """

    check: HealthCheck
    address: Address
    port: int
    names: Names = NO_NAMES


@dataclass(frozen=True, slots=True)
class Advice:
    """What a backend asks for itself through its agent; None where it leaves that to others.

    ``weight_share`` is a factor of the configured weight, 0.75 for ``75%``. ``admin`` is an
    observed wish, below what operators asked for; a backend in ``maint`` by its own advice is
    still probed, or its ``ready`` would never be heard.
    """

    weight_share: float | None = None
    admin: Admin | None = None


NO_ADVICE: Final = Advice()


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one probe found. ``detail`` says it in words; ``at_s`` is when the probe ended.

    ``advice`` is all that an agent's answer asks for, None where there was no such answer.
    """

    ok: bool
    detail: str
    duration_s: float
    at_s: float
    advice: Advice | None = None


@dataclass(frozen=True, slots=True)
class HealthState:
    """Health of one backend.

    ``streak`` counts the latest results in a row that contradict ``health``. ``detail`` is what the
    last probe found. ``since_s`` is when ``health`` became what it is. ``advice`` is the agent's
    latest: an agent that falls silent is held to its last word.
    """

    health: Health
    streak: int
    detail: str
    since_s: float
    advice: Advice = NO_ADVICE


def initial(check: HealthCheck, at_s: float, observed_up: bool | None) -> HealthState:  # noqa: FBT001 - three states of one fact, not a switch
    """Return the state before the first probe.

    ``observed_up`` is what the datapath's maps say from an earlier life of the controller, ``None``
    where they say nothing: only then ``check.initial`` holds, and where that is unknown, too, the
    first result decides alone.
    """
    if check.kind is CheckKind.NONE:
        return HealthState(Health.NONE, 0, "not probed", at_s)
    if observed_up is None:
        health = Health(check.initial)
        known = health is not Health.UNKNOWN
        detail = f"{health} by configuration, no probe has ended yet"
        return HealthState(health, 0, detail if known else "no probe has ended yet", at_s)
    health = Health.UP if observed_up else Health.DOWN
    return HealthState(health, 0, f"found {health} at start, no probe has ended yet", at_s)


def observe(state: HealthState, result: ProbeResult, check: HealthCheck) -> HealthState:
    """Return the state after one more result.

    Unknown takes the first result's word. Up turns down after ``check.fall`` failures in a row,
    down turns up after ``check.rise`` successes; a result that agrees ends the row. A backend that
    is not probed stays so: a result that arrives after a reload took the check away is stale.
    """
    if state.health is Health.NONE:
        return state
    if result.advice is not None:
        state = replace(state, advice=result.advice)
    says = Health.UP if result.ok else Health.DOWN
    if says is state.health:
        if not state.streak and state.detail == result.detail:
            return state  # as nearly always, and of ten thousand backends
        return replace(state, streak=0, detail=result.detail)
    needed = _needed(state.health, check)
    streak = state.streak + 1
    if streak >= needed:
        return HealthState(says, 0, result.detail, result.at_s, state.advice)
    return replace(state, streak=streak, detail=f"{result.detail} ({streak} of {needed})")


def next_interval_s(check: HealthCheck, state: HealthState) -> float:
    """Return how long after a probe's start the next one is due, before jitter.

    In transition, that is, while results contradict the health, ``fast_interval_s``; else
    ``down_interval_s`` while down.
    """
    if state.streak > 0 and check.fast_interval_s is not None:
        return check.fast_interval_s
    if state.health is Health.DOWN and check.down_interval_s is not None:
        return check.down_interval_s
    return check.interval_s


def is_live(health: Health) -> bool:
    """Return whether a backend of this health may get traffic."""
    return health in (Health.UP, Health.NONE)


def _needed(health: Health, check: HealthCheck) -> int:
    """Return how many results in a row overturn ``health``."""
    return {Health.UP: check.fall, Health.DOWN: check.rise}.get(health, 1)
