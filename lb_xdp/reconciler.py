"""Keeps the datapath true to the configuration, the probes and the network.

Owns the cycle, where whatever changes ends: stand, desire, plan, apply, arrive; and which probe
results are believed. It refuses to own what it joins: who is here (``core.roster``), health
(``core.vitals``), what cycles remember (``core.planner``), what reports show (``core.picture``). It
does no I/O of its own: the daemon hands in results and topologies, and a datapath behind
``DatapathPort`` does what the plan says.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from lb_xdp.core.desired import Desired, Structure, identities
from lb_xdp.core.event import Event, EventKind
from lb_xdp.core.health import ProbeResult, Target, is_live
from lb_xdp.core.judge import Standings
from lb_xdp.core.lingering import (
    Farewell,
    Held,
    after_restart,
    farewells,
    lingering_after,
)
from lb_xdp.core.model import (
    BackendKey,
    Config,
    HealthCheck,
    ServiceKey,
)
from lb_xdp.core.override import Overrides
from lb_xdp.core.picture import Picture
from lb_xdp.core.plan import Observed, Plan, SlotNumbers, make_plan
from lb_xdp.core.plan_sentence import plan_sentence
from lb_xdp.core.planner import Planner
from lb_xdp.core.rings import Rings
from lb_xdp.core.roster import Gone, Roster
from lb_xdp.core.settle import RingImage, has_marked, unmarking
from lb_xdp.core.snapshot import State
from lb_xdp.core.standing import ServiceStanding, at_start
from lb_xdp.core.targets import TargetId, checks, members, resting, targets, targets_of
from lb_xdp.core.topology import Topology
from lb_xdp.core.vitals import Vitals, found_up
from lb_xdp.errors import DatapathError
from lb_xdp.witness import Record, Seen, Witness, log_event

_log = logging.getLogger(__name__)

_LATE_S = 0.1  # how much longer than its timeout a probe may take, and still be believed


class DatapathPort(Protocol):
    """What the reconciler needs of the datapath."""

    def apply(self, plan: Plan, observed: Observed) -> Observed: ...  # noqa: D102 - see Datapath
    def observe(self) -> Observed: ...  # noqa: D102 - see Datapath


class Reconciler:
    """Not thread-safe: all is called from the event loop. ``clock`` is monotonic, in seconds.

    ``former`` is what was in force before a start with another configuration, where that is known.
    """

    def __init__(
        self,
        config: Config,
        datapath: DatapathPort,
        observed: Observed,
        build: int,
        clock: Callable[[], float],
        *,
        former: Config | None = None,
        overrides: Overrides | None = None,
        lingering: Sequence[Farewell] = (),
        record: Record = log_event,
        timestamp: Callable[[], float] = time.time,
        rings: Rings | None = None,
    ) -> None:
        self.topology = Topology()
        self.observed = observed
        self.overrides = overrides or Overrides()
        self.vitals = Vitals()
        self.ring_build_s = 0.0
        self._arrived = False
        self._datapath = datapath
        self._clock = clock
        self._timestamp = timestamp
        self._record = record
        self._witness = Witness(record)
        held = after_restart(lingering, config, clock(), timestamp())
        staying = lingering_after(config, observed, held, former, clock())
        self.roster = Roster(config, staying)
        self._take_over()
        found = frozenset(observed.records) if observed.structure else None
        self._planner = Planner(build, rings or Rings(), at_start(self.whole, found))

    # What comes in.

    def consider(self, config: Config) -> None:
        """Make room for the health of backends that are new; those known keep theirs."""
        self._consider(self.whole_of(config))

    def _consider(self, whole: Config) -> None:
        new = self.vitals.unknown(whole)
        found = found_up(whole, new, self.observed.records, self.overrides)
        self.vitals.consider(whole, found, self._clock())

    def adopt(self, config: Config) -> None:
        """Make a configuration the goal; ``cycle`` goes there. Who is not in it lingers."""
        lingering = self.roster.lingering_after(config, self.observed, self._clock())
        self._adopt(config, lingering)
        self._planner.rings.forget_others(config.services)

    def disregard(self) -> None:
        """Forget what was learnt about configurations that were considered and not adopted."""
        self.vitals.disregard()
        self._planner.rings.forget_others(self.config.services)

    def forget_former(self) -> None:
        """Hold no memory for goals before the latest: this costs time at most."""
        self._planner.forget_former()

    def _adopt(self, config: Config, lingering: Held) -> None:
        self.roster.adopt(config, lingering)
        self._take_over()

    def _take_over(self) -> None:
        """Go by the health of those that are here, and forget all others'."""
        self._consider(self.whole)
        self.vitals.adopt(self.whole, self._clock())
        self._members = members(self.whole)

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.roster.config

    @property
    def whole(self) -> Config:
        """The configuration in force, with fallbacks and lingering backends in it."""
        return self.roster.whole

    @property
    def lingering(self) -> Held:
        """Who lingers."""
        return self.roster.lingering

    def whole_of(self, config: Config) -> Config:
        """Return a configuration with all backends that it has, or would have as the goal."""
        return self.roster.whole_of(config, self.observed, self._clock())

    def set_overrides(self, overrides: Overrides) -> None:
        """Make these the overrides; ``cycle`` follows them.

        What nobody wanted to be probed, and somebody does now, is not known any more: the first
        result decides.
        """
        rested = resting(self.whole, self.overrides) - resting(self.whole, overrides)
        self.overrides = overrides
        self.vitals.begin_again(rested, self._clock())

    def farewells(self) -> tuple[Farewell, ...]:
        """Return what is to be kept of the backends that linger."""
        return farewells(self.lingering, self._clock(), self._timestamp())

    def let_go(self) -> None:
        """Decide that lingering backends whose time is over are no part of the next goal.

        That takes another generation. Nothing else decides it, so that a generation which was
        prepared a moment ago is the one to take; until it runs, they are shown.
        """
        self.roster.let_go(self._clock())

    def _forget(self, gone: list[Gone]) -> None:
        """Take note that these are gone, and only those in the goal are here."""
        self._adopt(self.config, self.roster.goal.lingering)
        for one in gone:
            for_s = self._clock() - one.since_s
            cause = f"removed from the file {for_s:.0f} s ago, its time is over"
            who = one.service, one.backend
            self._record(Event(EventKind.BACKEND_FORGOTTEN, self._timestamp(), *who, cause=cause))

    def on_flows(self, flows: Mapping[int, int], began_s: float) -> bool:
        """Take in how many records name each index; True if some lingering backend has no flow.

        ``began_s`` is when the look at the records began.
        """
        return self.roster.on_flows(flows, began_s, self.observed, self._clock())

    def on_probe(self, target: TargetId, result: ProbeResult) -> bool:
        """Take in a probe's result; True if what the backend may get has changed.

        Two kinds of failure decide nothing. One that took much longer than the check allows says
        that this process was late. One without a way to a backend that was up says that our own
        link is down: should each backend be found up again at a time of its own once the link is
        back, flows of the later ones would be lent to the first, which knows nothing of them.
        """
        health, check = self.vitals.probed(target), self.vitals.check_of(target)
        if health is None:
            return False
        if not result.ok and result.duration_s > check.timeout_s + _LATE_S:
            _log.warning("probe of %s took %.1f s: the controller was late, result ignored",
                         target.backend, result.duration_s)  # fmt: skip
            return False
        if not result.ok and is_live(health.health) and self._severed(target, check):
            return False
        heard = self.vitals.take(target, result, self._clock())
        for names in self.members(target) if heard.flapping else ():
            cause = heard.flapping
            self._record(Event(EventKind.FLAPPING, self._timestamp(), *names, cause=cause))
        return heard.changed

    def _severed(self, target: TargetId, check: HealthCheck) -> bool:
        """Say whether a probe had no way; of one that goes elsewhere nothing is known."""
        return check.host is None and self.topology.severed(target.backend.address)

    def eject(self, ejected: Mapping[TargetId, str]) -> bool:
        """Have these count as down, whatever probes say, for the reasons given.

        True if what the backends may get has changed.
        """
        return self.vitals.eject(ejected, self._clock())

    def serving(self) -> frozenset[TargetId]:
        """Return the targets that may have new flows now, of some service."""
        records = self.observed.records
        found = (
            (target, records.get(identity))
            for service in self.config.services
            for target, identity in zip(targets_of(service), identities(service), strict=True)
        )
        return frozenset(t for t, record in found if record and record.up and not record.no_new)

    # What goes out.

    def undecided(self, config: Config) -> set[TargetId]:
        """Return the targets of a configuration that no probe has decided about yet."""
        whole = self.whole_of(config)
        quiet = resting(whole, self.overrides)
        return self.vitals.undecided(checks(whole).keys() - quiet)

    def probed(self, *configs: Config) -> dict[TargetId, Target]:
        """Return what these configurations want to be probed, the last one's wishes winning."""
        wholes = [self.whole_of(config) for config in configs]
        return {t: target for w in wholes for t, target in targets(w, self.overrides).items()}

    def _stand(self, whole: Config) -> Standings:
        return self._planner.stand(whole, self.overrides, self.vitals, self._clock())

    def standings(self) -> Standings:
        """Return what every backend of the present configuration is to get, as things stand."""
        return self._stand(self.whole)

    def plan(self, config: Config | None = None) -> tuple[Plan, Desired]:
        """Return the steps from what is to what a configuration asks for, as things stand."""
        whole = self.roster.goal.whole if config is None else self.whole_of(config)
        return self._plan(self._stand(whole))

    def structure(self) -> Structure:
        """Return what the goal's generation is built from; its rings take no part in that."""
        standings = self._stand(self.roster.goal.whole)
        return self._planner.desired(standings, self.topology, self.observed.records).structure

    def _plan(self, standings: Standings) -> tuple[Plan, Desired]:
        rings = self._planner.rings
        started_s, builds = self._clock(), rings.builds
        desired = self._planner.desired(standings, self.topology, self.observed.records)
        plan = make_plan(self.observed, desired, self._now_ns())
        if rings.builds > builds:
            self.ring_build_s = self._clock() - started_s
        return plan, desired

    def cycle(self) -> Plan | None:
        """Bring the datapath to the goal; returns the plan that was applied, None if all is well.

        Raises DatapathError; then the kernel is read again, and the next cycle goes on from there.
        """
        started_s = self._clock()
        self.vitals.release(self._clock())
        standings = self._stand(self.roster.goal.whole)
        return self._go(standings, *self._plan(standings), started_s)

    def cycle_in_place(self) -> bool:
        """Do what ``cycle`` does, unless that takes another generation; say whether it was done."""
        started_s = self._clock()
        self.vitals.release(self._clock())
        standings = self._stand(self.roster.goal.whole)
        plan, desired = self._plan(standings)
        if not plan.build:
            self._go(standings, plan, desired, started_s)
        return not plan.build

    def _go(
        self, standings: Standings, plan: Plan, desired: Desired, started_s: float
    ) -> Plan | None:
        if plan.empty:
            self._arrive(self.observed, desired, standings)
            return None
        held = self.observed.records
        touched = frozenset(i.service for i, new in plan.records.items() if held.get(i) != new)
        try:
            observed = self._datapath.apply(plan, self.observed)
        except DatapathError:
            self._arrived = False
            self.observed = self._datapath.observe()
            raise
        self._arrive(observed, desired, standings, touched)
        _log.info("%s in %.1f ms", plan_sentence(plan), (self._clock() - started_s) * 1e3)
        return plan

    def _arrive(
        self,
        observed: Observed,
        desired: Desired,
        standings: Standings,
        touched: frozenset[ServiceKey] = frozenset(),
    ) -> None:
        self.observed = replace(observed, applied=desired, recorded={}, proven={})
        self._arrived = True
        self._planner.arrive(standings)
        picture = self.picture(self._timestamp())
        see = partial(_see, picture)
        self._witness.look(standings.services, touched, see, picture.timestamp_s)
        if self.roster.goal.lingering is not self.lingering:
            self._forget(self.roster.gone())

    def picture(self, timestamp_s: float) -> Picture:
        """Return all that is known at this moment, which is ``timestamp_s`` in Unix time."""
        return Picture(
            self.roster,
            self.vitals,
            self.overrides,
            self.topology,
            self.observed,
            self._clock(),
            timestamp_s,
        )

    def states(self) -> Mapping[tuple[str, str], State]:
        """Return the state of every backend after the latest cycle, by service and backend."""
        return self._witness.states()

    def now_s(self) -> float:
        """Return the time, on the clock of everything here."""
        return self._clock()

    def _now_ns(self) -> int:
        return int(self._clock() * 1e9)

    # Slots that settle.

    def next_deadline_ns(self) -> int | None:
        """Return when a cycle is due though nothing happens, CLOCK_MONOTONIC; None for never.

        Then the unsettled slots of some ring have waited long enough, a slow start takes its next
        step, a priority may leave, or the time of a lingering or flapping backend is over.
        """
        ends_ns = [image.unsettled_until_ns for image in self.observed.rings.values()]
        ends_ns += [round(one.until_s * 1e9) for one in self.lingering.values()]
        ends_ns.append(round((self._planner.wake_s or 0) * 1e9))
        ends_ns += [round(end_s * 1e9) for end_s in self.vitals.holds_end_s()]
        return min(filter(None, ends_ns), default=None)

    def marked(self) -> dict[ServiceKey, RingImage]:
        """Return the rings with marked slots; call it before flow records are read."""
        return {key: image for key, image in self.observed.rings.items() if has_marked(image)}

    def on_collected(
        self, marked: Mapping[ServiceKey, RingImage], recorded: Mapping[ServiceKey, SlotNumbers]
    ) -> bool:
        """Take in which slots flow records fall on; True if a cycle can settle some slot now.

        ``marked`` is what ``marked`` returned before the records were read.
        """
        useful = unmarking(marked, recorded, self.observed.rings)
        self.observed = replace(self.observed, recorded=useful)
        return bool(useful)

    def members(self, target: TargetId) -> list[tuple[str, str]]:
        """Return the names, service and backend, that a probed target has."""
        return self._members.get(target, [])

    @property
    def ready(self) -> bool:
        """Whether the latest cycle reached its goal, and every backend is decided about."""
        wanted = set(self.config.gateway.interfaces)
        attached = wanted <= set(self.observed.attached)
        return self._arrived and attached and not self.undecided(self.config)


def _see(picture: Picture, standing: ServiceStanding) -> dict[BackendKey, Seen]:
    service = standing.service
    seen = {}
    for backend in service.pool.backends:
        about = service, backend, standing.backends[backend.key]
        state, cause = picture.state(*about), partial(picture.cause, *about)
        seen[backend.key] = Seen(service.name, backend.name, state, cause)
    return seen
