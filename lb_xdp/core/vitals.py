"""What is known of every target's health: from probes, from traffic, from how often it changes.

Owns each target's state and which word counts where several have one: ejected is down, held for
flapping is down, else probes decide. It refuses to say which results are to be believed (the
reconciler does) and what health means for traffic (``standing`` does).

Times are seconds of whichever clock the caller uses throughout; ``now_s`` is now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import NamedTuple

from lb_xdp.core.damping import Holds
from lb_xdp.core.desired import BackendId, BackendRecord
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
from lb_xdp.core.model import CheckKind, Config, HealthCheck
from lb_xdp.core.override import Overrides
from lb_xdp.core.snapshot import Admin, Health
from lb_xdp.core.targets import TargetId, checks, target_of

_FIRST_LOOK = HealthCheck(CheckKind.TCP)
"""For a target that is probed before its configuration is adopted: the first result decides."""


class Heard(NamedTuple):
    """What one more result brought.

    ``changed``: what the backend may get is another. ``flapping`` says why it is held down from now
    on, where it is.
    """

    changed: bool
    flapping: str = ""


class Vitals:
    """The health of the targets of what is in force, and of what is considered.

    ``failovers`` counts what went from live to not live, by probes or by traffic.
    """

    def __init__(self) -> None:
        self.failovers = 0
        self._checks: Mapping[TargetId, HealthCheck] = {}
        self._probed: dict[TargetId, HealthState] = {}
        self._probe_s: dict[TargetId, float] = {}
        self._ejected: Mapping[TargetId, HealthState] = {}
        self._holds = Holds()

    # What comes in.

    def consider(self, whole: Config, found: Mapping[TargetId, bool], now_s: float) -> None:
        """Make room for targets that are new; those known keep their health.

        ``found`` is what the kernel's records say of them (``found_up``).
        """
        for target, check in checks(whole).items():
            if target not in self._probed:
                self._probed[target] = initial(check, now_s, found.get(target))

    def adopt(self, whole: Config, now_s: float) -> None:
        """Go by the checks of a configuration that was considered, and forget all other targets."""
        self._checks = checks(whole)
        self._probed = {t: self._carry_on(t, check, now_s) for t, check in self._checks.items()}
        self._probe_s = {t: s for t, s in self._probe_s.items() if t in self._checks}
        self._holds.adopt(whole)

    def _carry_on(self, target: TargetId, check: HealthCheck, now_s: float) -> HealthState:
        """Keep a target's health under a new check; only "not probed" is no health to keep."""
        held = self._probed[target]
        if (held.health is Health.NONE) == (check.kind is CheckKind.NONE):
            return held
        return initial(check, now_s, is_live(held.health))

    def disregard(self) -> None:
        """Forget targets that were considered and not adopted."""
        self._probed = {t: state for t, state in self._probed.items() if t in self._checks}

    def begin_again(self, targets: Iterable[TargetId], now_s: float) -> None:
        """Know nothing of these any more: the first result decides."""
        for target in targets:
            self._probed[target] = initial(self._checks[target], now_s, None)

    def take(self, target: TargetId, result: ProbeResult, now_s: float) -> Heard:
        """Take in a probe's result, of a target that is known."""
        self._probe_s[target] = result.duration_s
        before = self._probed[target]
        self._probed[target] = after = observe(before, result, self.check_of(target))
        if after.health is before.health:
            return Heard(after.advice != before.advice)
        if is_live(before.health):
            self.failovers += 1
        if before.health is Health.UNKNOWN:
            return Heard(changed=True)
        return Heard(changed=True, flapping=self._holds.note_change(target, now_s))

    def eject(self, ejected: Mapping[TargetId, str], now_s: float) -> bool:
        """Have these count as down, whatever probes say, for the reasons given.

        True if what the backends may get has changed.
        """
        if ejected.keys() == self._ejected.keys():
            return False
        self.failovers += len(ejected.keys() - self._ejected.keys())
        self._ejected = {
            target: self._ejected.get(target) or HealthState(Health.DOWN, 0, why, now_s)
            for target, why in ejected.items()
        }
        return True

    def release(self, now_s: float) -> None:
        """End the holds of flapping targets whose time is over."""
        self._holds.release(now_s)

    # What goes out.

    def check_of(self, target: TargetId) -> HealthCheck:
        """Return what decides about a target's results."""
        return self._checks.get(target, _FIRST_LOOK)

    def probed(self, target: TargetId) -> HealthState | None:
        """Return a target's health as probes alone tell it; None for one that nobody knows."""
        return self._probed.get(target)

    def state_of(self, target: TargetId, now_s: float) -> HealthState:
        """Return a target's health as it counts: down while it is ejected, or held down."""
        state = self._ejected.get(target) or self._probed.get(target)
        if state is None:
            return HealthState(Health.UNKNOWN, 0, "no probe has ended yet", now_s)
        if not is_live(state.health):
            return state
        left_s = self._holds.left_s(target, now_s)
        if not left_s:
            return state
        detail = f"flapping, held down for another {left_s:.0f} s; {state.detail}"
        return replace(state, health=Health.DOWN, detail=detail)

    def advice_of(self, target: TargetId) -> Advice:
        """Return what a target asks for itself."""
        state = self._probed.get(target)
        return state.advice if state else NO_ADVICE

    def ejected(self, target: TargetId) -> bool:
        """Say whether a target is down for what its traffic tells."""
        return target in self._ejected

    def probe_s(self, target: TargetId) -> float | None:
        """Return how long the latest probe of a target took."""
        return self._probe_s.get(target)

    def pace_s(self, target: TargetId, check: HealthCheck) -> float:
        """Return how long after a probe's start the next one is due, as things stand."""
        state = self._probed.get(target)
        return next_interval_s(check, state) if state is not None else check.interval_s

    def undecided(self, wanted: AbstractSet[TargetId]) -> set[TargetId]:
        """Return those of known targets that nobody has decided about yet."""
        return {t for t in wanted if self._probed[t].health is Health.UNKNOWN}

    def decided(self, wanted: Iterable[TargetId]) -> set[TargetId]:
        """Return those of whose health something is known, from probes or from the kernel."""
        known = self._probed
        return {t for t in wanted if t in known and known[t].health is not Health.UNKNOWN}

    def holds_end_s(self) -> list[float]:
        """Return when the holds of flapping targets end."""
        return self._holds.ends_s()


def found_up(
    whole: Config, records: Mapping[BackendId, BackendRecord], overrides: Overrides
) -> dict[TargetId, bool]:
    """Return what the kernel's records say of targets; nothing of those it has no word about.

    A record that is down because an operator wanted it so says nothing of health.
    """
    found: dict[TargetId, bool] = {}
    for service, backend in whole.backends():
        record = records.get(BackendId(service.key, backend.key))
        cut = overrides.admin(service.name, backend.name) is Admin.DOWN
        if record is not None and (record.up or not cut):
            target = target_of(service, backend)
            found[target] = record.up or found.get(target, False)
    return found
