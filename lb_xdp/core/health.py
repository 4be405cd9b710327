"""From probe results to health: rise and fall, and nothing else.

Owns the state machine of one backend. It refuses to probe (``lb_xdp.probes``), to know the time
(it comes with each result), and to decide what health means for traffic beyond ``is_live``.

Times are seconds of whichever clock the caller uses throughout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lb_xdp.core.model import Address, CheckKind, HealthCheck
from lb_xdp.core.snapshot import Health


@dataclass(frozen=True, slots=True)
class Target:
    """What to probe, where: ``address`` and ``port`` are final, ``check``'s own are not heeded."""

    check: HealthCheck
    address: Address
    port: int


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one probe found. ``detail`` says it in words; ``at_s`` is when the probe ended."""

    ok: bool
    detail: str
    duration_s: float
    at_s: float


@dataclass(frozen=True, slots=True)
class HealthState:
    """Health of one backend.

    ``streak`` counts the latest results in a row that contradict ``health``. ``detail`` is what the
    last probe found. ``since_s`` is when ``health`` became what it is.
    """

    health: Health
    streak: int
    detail: str
    since_s: float


def initial(check: HealthCheck, at_s: float, observed_up: bool | None) -> HealthState:  # noqa: FBT001 - three states of one fact, not a switch
    """Return the state before the first probe.

    ``observed_up`` is what the datapath's maps say from an earlier life of the controller, ``None``
    where they say nothing: only then does the first result decide alone.
    """
    if check.kind is CheckKind.NONE:
        return HealthState(Health.NONE, 0, "not probed", at_s)
    if observed_up is None:
        return HealthState(Health.UNKNOWN, 0, "no probe has ended yet", at_s)
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
    says = Health.UP if result.ok else Health.DOWN
    if says is state.health:
        return replace(state, streak=0, detail=result.detail)
    needed = _needed(state.health, check)
    streak = state.streak + 1
    if streak >= needed:
        return HealthState(says, 0, result.detail, result.at_s)
    return replace(state, streak=streak, detail=f"{result.detail} ({streak} of {needed})")


def is_live(health: Health) -> bool:
    """Return whether a backend of this health may get traffic."""
    return health in (Health.UP, Health.NONE)


def _needed(health: Health, check: HealthCheck) -> int:
    """Return how many results in a row overturn ``health``."""
    return {Health.UP: check.fall, Health.DOWN: check.rise}.get(health, 1)
