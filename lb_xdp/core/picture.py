"""All that is known of each backend at one moment: what reports show, and why its state is so.

Owns putting the controller's picture side by side, backend by backend. It refuses to change any of
it and to word a report: ``report`` does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lb_xdp.core.desired import UNREACHABLE, BackendId, BackendRecord
from lb_xdp.core.health import HealthState
from lb_xdp.core.judge import Standings
from lb_xdp.core.model import Backend, Service, ServiceKey
from lb_xdp.core.override import Overrides
from lb_xdp.core.plan import Observed
from lb_xdp.core.report import BackendView, Count, Watched
from lb_xdp.core.roster import Roster, hides
from lb_xdp.core.settle import NO_BACKEND
from lb_xdp.core.snapshot import Admin, State
from lb_xdp.core.standing import ServiceStanding, Standing
from lb_xdp.core.tally import Tally
from lb_xdp.core.targets import target_of
from lb_xdp.core.topology import Topology
from lb_xdp.core.vitals import Vitals
from lb_xdp.core.ways import why_unreachable


class Cause(NamedTuple):
    """Why a state is what it is: in words, who wanted it, how long the probe took that says so."""

    words: str
    author: str = ""
    probe_s: float | None = None


class Figures(NamedTuple):
    """What was counted. ``flows`` are records by the index of their backend."""

    counts: Mapping[BackendId, Count]
    flows: Mapping[int, int]
    watched: Mapping[BackendId, Watched]
    tallies: Mapping[ServiceKey, Tally]


@dataclass(frozen=True, slots=True)
class Picture:
    """Good for one moment: ``now_s``, of the monotonic clock, and ``timestamp_s``, in Unix time."""

    roster: Roster
    vitals: Vitals
    overrides: Overrides
    topology: Topology
    observed: Observed
    now_s: float
    timestamp_s: float

    def views(self, standings: Standings, figures: Figures) -> dict[ServiceKey, list[BackendView]]:
        """Return what is known of each service's backends, in their order."""
        return {
            service.key: self._views(service, standings.services[service.key], figures)
            for service in self.roster.whole.services
        }

    def _views(
        self, service: Service, outcome: ServiceStanding, figures: Figures
    ) -> list[BackendView]:
        tally = figures.tallies.get(service.key)
        held: Mapping[int, int] = tally.held if tally else {}
        return [
            self._view(service, backend, outcome.backends[backend.key], figures, held)
            for backend in service.pool.backends
        ]

    def _view(
        self,
        service: Service,
        backend: Backend,
        standing: Standing,
        figures: Figures,
        held: Mapping[int, int],
    ) -> BackendView:
        """Return what is known of a backend; ``held`` is how many slots each index holds."""
        identity, target = BackendId(service.key, backend.key), target_of(service, backend)
        health = self.vitals.state_of(target, self.now_s)
        index = self.observed.indices.get(identity, NO_BACKEND)
        left = self.roster.lingering.get(identity)
        return BackendView(
            health,
            self.observed.records.get(identity, UNREACHABLE),
            figures.counts.get(identity),
            held.get(index, 0),
            self.vitals.probe_s(target),
            self.timestamp_s - (self.now_s - health.since_s),
            figures.flows.get(index, 0),
            standing,
            self.overrides.about(service.name, backend.name),
            None if left is None else max(left.until_s - self.now_s, 0.0),
            not standing.weight and hides(identity, self.observed),
            figures.watched.get(identity),
            self.vitals.ejected(target),
        )

    def state(self, service: Service, backend: Backend, standing: Standing) -> State:
        """Return the state that a backend is in."""
        reachable = self._record(service, backend).reachable
        return standing.state(self._health(service, backend).health, reachable=reachable)

    def cause(self, service: Service, backend: Backend, standing: Standing) -> Cause:
        """Say why a backend's state is what it is."""
        asked = self.overrides.about(service.name, backend.name)
        if standing.admin is not Admin.READY or standing.drains:
            return Cause(standing.why or "weight 0 in the file", asked[0].author if asked else "")
        record = self._record(service, backend)
        obstacle = why_unreachable(service, backend.address, self.topology, record)
        if obstacle is not None:
            return Cause(obstacle)
        probe_s = self.vitals.probe_s(target_of(service, backend))
        return Cause(self._health(service, backend).detail, probe_s=probe_s)

    def _health(self, service: Service, backend: Backend) -> HealthState:
        return self.vitals.state_of(target_of(service, backend), self.now_s)

    def _record(self, service: Service, backend: Backend) -> BackendRecord:
        identity = BackendId(service.key, backend.key)
        return self.observed.records.get(identity, UNREACHABLE)
