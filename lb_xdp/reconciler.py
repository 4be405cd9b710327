"""Keeps the datapath true to the configuration, the probes and the network.

Owns the controller's picture: configuration, health, topology, what the kernel holds. Whatever
changes ends in ``cycle``: desired, plan, apply. It does no I/O of its own: the daemon hands in
results and topologies, and a datapath behind ``DatapathPort`` does what the plan says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

from lb_xdp.core.desired import UNREACHABLE, BackendId, Desired, desire
from lb_xdp.core.health import HealthState, ProbeResult, Target, initial, is_live, observe
from lb_xdp.core.model import Address, BackendKey, CheckKind, Config, HealthCheck, ServiceKey
from lb_xdp.core.plan import Observed, Plan, SlotNumbers, make_plan
from lb_xdp.core.report import BackendView, Count
from lb_xdp.core.rings import Rings
from lb_xdp.core.settle import NO_BACKEND, RingImage, has_marked, state_counts, unmark
from lb_xdp.core.snapshot import Health
from lb_xdp.core.topology import Topology
from lb_xdp.errors import DatapathError

_log = logging.getLogger(__name__)

_LATE_S = 0.1  # how much longer than its timeout a probe may take, and still be believed


class DatapathPort(Protocol):
    """What the reconciler needs of the datapath."""

    def apply(self, plan: Plan, observed: Observed) -> Observed: ...  # noqa: D102 - see Datapath
    def observe(self) -> Observed: ...  # noqa: D102 - see Datapath


class TargetId(NamedTuple):
    """What is probed: a backend of a pool, once for all services that share the pool."""

    pool: str
    backend: BackendKey


class Reconciler:
    """Not thread-safe: all is called from the event loop. ``clock`` is monotonic, in seconds."""

    def __init__(
        self,
        config: Config,
        datapath: DatapathPort,
        observed: Observed,
        build: int,
        clock: Callable[[], float],
    ) -> None:
        self.config = config
        self.topology = Topology()
        self.observed = observed
        self.rings = Rings()
        self.failovers = 0
        self.ring_build_s = 0.0
        self._settling: dict[ServiceKey, tuple[RingImage, tuple[int, int]]] = {}
        self._arrived = False
        self._datapath = datapath
        self._build = build
        self._clock = clock
        self._health: dict[TargetId, HealthState] = {}
        self._probe_s: dict[TargetId, float] = {}
        self._checks = checks(config)
        self._members = _members(config)
        self.consider(config)

    # What comes in.

    def consider(self, config: Config) -> None:
        """Make room for the health of backends that are new; those known keep theirs."""
        for target, check in checks(config).items():
            if target not in self._health:
                self._health[target] = initial(check, self._clock(), self._found_up(config, target))

    def _found_up(self, config: Config, target: TargetId) -> bool | None:
        """Return what the kernel's records say of a target; None where it has none."""
        for service in config.services:
            record = self.observed.records.get(BackendId(service.key, target.backend))
            if service.pool.name == target.pool and record is not None:
                return record.up
        return None

    def adopt(self, config: Config) -> None:
        """Make a configuration the goal; ``cycle`` goes there."""
        self.config = config
        self._checks = checks(config)
        self._members = _members(config)
        self.consider(config)
        self._health = {t: self._carry_on(t, check) for t, check in self._checks.items()}
        self._probe_s = {t: s for t, s in self._probe_s.items() if t in self._checks}
        self.rings.forget_others(config.services)

    def _carry_on(self, target: TargetId, check: HealthCheck) -> HealthState:
        """Keep a target's health under a new check; only "not probed" is no health to keep."""
        held = self._health[target]
        if (held.health is Health.NONE) == (check.kind is CheckKind.NONE):
            return held
        return initial(check, self._clock(), is_live(held.health))

    def on_probe(self, target: TargetId, result: ProbeResult) -> bool:
        """Take in a probe's result; True if what the backend may get has changed.

        A failure that took much longer than the check allows says that this process was late, not
        that the backend is: it decides nothing.
        """
        before = self._health.get(target)
        check = self._checks.get(target, _FIRST_LOOK)
        if before is None:
            return False
        if not result.ok and result.duration_s > check.timeout_s + _LATE_S:
            _log.warning("probe of %s took %.1f s: the controller was late, result ignored",
                         target.backend, result.duration_s)  # fmt: skip
            return False
        self._probe_s[target] = result.duration_s
        after = observe(before, result, check)
        self._health[target] = after
        if after.health is before.health:
            return False
        if is_live(before.health):
            self.failovers += 1
        level = logging.INFO if is_live(after.health) else logging.WARNING
        _log.log(level, "backend %s of pool %s is %s, was %s: %s", target.backend, target.pool,
                 after.health, before.health, after.detail)  # fmt: skip
        return True

    # What goes out.

    def undecided(self, config: Config) -> set[TargetId]:
        """Return the targets of a configuration that no probe has decided about yet."""
        return {t for t in checks(config) if self._health[t].health is Health.UNKNOWN}

    def live(self, config: Config) -> frozenset[BackendId]:
        """Return the backends that probes allow traffic to."""
        return frozenset(
            BackendId(service.key, backend.key)
            for service, backend in config.backends()
            if is_live(self._health[TargetId(service.pool.name, backend.key)].health)
        )

    def plan(self, config: Config | None = None) -> tuple[Plan, Desired]:
        """Return the steps from what is to what a configuration asks for, as things stand."""
        config = config or self.config
        started_s, builds = self._clock(), self.rings.builds
        desired = desire(
            config,
            self.topology,
            self.live(config),
            self.rings.ring_of,
            build=self._build,
            held=self.observed.records,
        )
        if self.rings.builds > builds:
            self.ring_build_s = self._clock() - started_s
        return make_plan(self.observed, desired, self._now_ns()), desired

    def cycle(self) -> Plan | None:
        """Bring the datapath to the goal; returns the plan that was applied, None if all is well.

        Raises DatapathError; then the kernel is read again, and the next cycle goes on from there.
        """
        started_s = self._clock()
        plan, desired = self.plan()
        if plan.empty:
            self._arrive(self.observed, desired)
            return None
        try:
            observed = self._datapath.apply(plan, self.observed)
        except DatapathError:
            self._arrived = False
            self.observed = self._datapath.observe()
            raise
        self._arrive(observed, desired)
        _log.info("%s in %.1f ms", _sentence(plan), (self._clock() - started_s) * 1e3)
        return plan

    def _arrive(self, observed: Observed, desired: Desired) -> None:
        self.observed = replace(observed, applied=desired, recorded={})
        self._arrived = True

    def _now_ns(self) -> int:
        return int(self._clock() * 1e9)

    # Slots that settle.

    def next_deadline_ns(self) -> int | None:
        """Return when a cycle is due though nothing happens, CLOCK_MONOTONIC; None for never.

        Then the unsettled slots of some ring have waited long enough.
        """
        ends_ns = (image.unsettled_until_ns for image in self.observed.rings.values())
        return min(filter(None, ends_ns), default=None)

    def settling(self) -> dict[ServiceKey, tuple[int, int]]:
        """Return how many slots of each service are unsettled, and how many marked."""
        counted = {}
        for key, image in self.observed.rings.items():
            held = self._settling.get(key)
            known = held is not None and held[0] is image
            counted[key] = held if held is not None and known else (image, state_counts(image))
        self._settling = counted
        return {key: counts for key, (_, counts) in counted.items()}

    def marked(self) -> dict[ServiceKey, RingImage]:
        """Return the rings with marked slots; call it before flow records are read."""
        return {key: image for key, image in self.observed.rings.items() if has_marked(image)}

    def on_collected(
        self, marked: Mapping[ServiceKey, RingImage], recorded: Mapping[ServiceKey, SlotNumbers]
    ) -> bool:
        """Take in which slots flow records fall on; True if a cycle can settle some slot now.

        ``marked`` is what ``marked`` returned before the records were read. A ring that has changed
        since keeps its marks, as does one that ``recorded`` says nothing of: records may have been
        added after they were read.
        """
        held = self.observed.rings
        useful = {
            key: recorded[key]
            for key, image in marked.items()
            if held.get(key) is image
            and key in recorded
            and unmark(image, recorded[key]) is not image
        }
        self.observed = replace(self.observed, recorded=useful)
        return bool(useful)

    def members(self, target: TargetId) -> list[tuple[str, str]]:
        """Return the names, service and backend, that a probed target has."""
        return self._members.get(target, [])

    def views(
        self, counts: Mapping[BackendId, Count], timestamp_s: float, flows: Mapping[int, int]
    ) -> dict[BackendId, BackendView]:
        """Return what is known of every backend.

        ``timestamp_s`` is now, in Unix time; ``flows`` are records by the index of their backend.
        """
        now_s = self._clock()
        views = {}
        for service, backend in self.config.backends():
            target = TargetId(service.pool.name, backend.key)
            identity = BackendId(service.key, backend.key)
            health = self._health[target]
            views[identity] = BackendView(
                health,
                self.observed.records.get(identity, UNREACHABLE),
                counts.get(identity),
                self.rings.slots(service.key).get(backend.key, 0),
                self._probe_s.get(target),
                timestamp_s - (now_s - health.since_s),
                flows.get(self.observed.indices.get(identity, NO_BACKEND), 0),
            )
        return views

    @property
    def ready(self) -> bool:
        """Whether the latest cycle reached its goal, and every backend is decided about."""
        wanted = set(self.config.gateway.interfaces)
        attached = wanted <= set(self.observed.attached)
        return self._arrived and attached and not self.undecided(self.config)


_FIRST_LOOK = HealthCheck(CheckKind.TCP)
"""For a target that is probed before its configuration is adopted: the first result decides."""


def checks(config: Config) -> dict[TargetId, HealthCheck]:
    """Return the health check of every backend of every pool in use."""
    return {
        TargetId(service.pool.name, backend.key): service.pool.health
        for service, backend in config.backends()
    }


def _members(config: Config) -> dict[TargetId, list[tuple[str, str]]]:
    members: dict[TargetId, list[tuple[str, str]]] = {}
    for service, backend in config.backends():
        target = TargetId(service.pool.name, backend.key)
        members.setdefault(target, []).append((service.name, backend.name))
    return members


def targets(config: Config) -> dict[TargetId, Target]:
    """Return what is to be probed; ``host`` and ``port`` of a check win over the backend's own."""
    return {
        target: Target(
            check, check.host or target.backend.address, check.port or target.backend.port
        )
        for target, check in checks(config).items()
        if check.kind is not CheckKind.NONE
    }


def addresses(config: Config) -> frozenset[Address]:
    """Return the addresses that packets are sent to."""
    return frozenset(backend.address for _, backend in config.backends())


def _sentence(plan: Plan) -> str:
    """Say in one sentence what a cycle changed."""
    parts = []
    if plan.build:
        parts.append(f"generation {plan.generation} with {_number(len(plan.rings), 'service')}")
    elif plan.rings:
        parts.append(f"{_number(len(plan.rings), 'ring')} written")
    if plan.records and not plan.build:
        parts.append(f"{_number(len(plan.records), 'backend')} updated")
    if moved := sum(plan.moved.values()):
        parts.append(f"{_number(moved, 'slot')} moved")
    if plan.attach:
        parts.append(f"attached to {', '.join(plan.attach)}")
    if plan.detach:
        parts.append(f"detached from {', '.join(plan.detach)}")
    return "; ".join(parts)


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
