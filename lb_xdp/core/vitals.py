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
from itertools import count
from typing import NamedTuple

from lb_xdp.core.damping import Holds
from lb_xdp.core.desired import BackendId, BackendRecord, identities
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
from lb_xdp.core.model import CheckKind, Config, HealthCheck, Service
from lb_xdp.core.override import Overrides
from lb_xdp.core.snapshot import Admin, Health
from lb_xdp.core.targets import TargetId, checks, pools_of, targets_of

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
        self._stamps: dict[str, int] = {}
        self._numbers = count(1)

    # What comes in.

    def unknown(self, whole: Config) -> set[TargetId]:
        """Return the targets of a configuration that are new."""
        return checks(whole).keys() - self._probed.keys()

    def consider(self, whole: Config, found: Mapping[TargetId, bool], now_s: float) -> None:
        """Make room for targets that are new; those known keep their health.

        ``found`` is what the kernel's records say of them (``found_up``).
        """
        for target in self.unknown(whole):
            self._set(target, initial(checks(whole)[target], now_s, found.get(target)))

    def adopt(self, whole: Config, now_s: float) -> None:
        """Go by the checks of a configuration that was considered, and forget all other targets."""
        former, self._checks = self._checks, checks(whole)
        for target, check in self._checks.items():
            if former.get(target) is not check:
                self._carry_on(target, check, now_s)
        self.disregard()
        self._probe_s = {t: s for t, s in self._probe_s.items() if t in self._checks}
        pools = {target.pool for target in self._checks}
        self._stamps = {pool: n for pool, n in self._stamps.items() if pool in pools}
        self._holds.adopt(whole)

    def _carry_on(self, target: TargetId, check: HealthCheck, now_s: float) -> None:
        """Keep a target's health under a new check; only "not probed" is no health to keep."""
        held = self._probed[target]
        if (held.health is Health.NONE) != (check.kind is CheckKind.NONE):
            self._set(target, initial(check, now_s, is_live(held.health)))

    def disregard(self) -> None:
        """Forget targets that were considered and not adopted."""
        for target in self._probed.keys() - self._checks.keys():
            del self._probed[target]
            self._touch(target)

    def begin_again(self, targets: Iterable[TargetId], now_s: float) -> None:
        """Know nothing of these any more: the first result decides."""
        for target in targets:
            self._set(target, initial(self._checks[target], now_s, None))

    def _set(self, target: TargetId, state: HealthState) -> None:
        self._probed[target] = state
        self._touch(target)

    def _touch(self, target: TargetId) -> None:
        """Note that the health of a backend of this pool is another."""
        self._stamps[target.pool] = next(self._numbers)

    def take(self, target: TargetId, result: ProbeResult, now_s: float) -> Heard:
        """Take in a probe's result, of a target that is known."""
        self._probe_s[target] = result.duration_s
        before = self._probed[target]
        self._probed[target] = after = observe(before, result, self.check_of(target))
        if after.health is before.health and after.advice == before.advice:
            return Heard(changed=False)
        self._touch(target)
        if after.health is before.health:
            return Heard(changed=True)
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
        for target in ejected.keys() ^ self._ejected.keys():
            self._touch(target)
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

    def stamp_of(self, service: Service) -> object:
        """Return what is equal as long as nobody's health or advice among a service's is another.

        Holds end by time alone: while there are any, nothing equals it.
        """
        if self._holds.any:
            return object()
        pools = pools_of(service)
        if len(pools) == 1:  # as most services have it
            return self._stamps.get(pools[0], 0)
        return tuple([self._stamps.get(pool, 0) for pool in pools])

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
    whole: Config,
    wanted: AbstractSet[TargetId],
    records: Mapping[BackendId, BackendRecord],
    overrides: Overrides,
) -> dict[TargetId, bool]:
    """Return what the kernel's records say of targets; nothing of those it has no word about.

    A record that is down because an operator wanted it so says nothing of health.
    """
    found: dict[TargetId, bool] = {}
    for service in whole.services if wanted else ():
        if wanted.isdisjoint(targets_of(service)):
            continue
        members = zip(service.pool.backends, identities(service), targets_of(service), strict=True)
        for backend, identity, target in members:
            record = records.get(identity)
            cut = overrides.admin(service.name, backend.name) is Admin.DOWN
            if record is not None and (record.up or not cut):
                found[target] = record.up or found.get(target, False)
    return found
