"""The latest goals, and what each was computed from: as long as that is the same, so is the goal.

Cycles are asked for by whatever changes, a neighbour's word or a probe's, and mostly for nothing
that matters. Owns which goals still hold. What a goal is, ``desired`` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import is_
from typing import NamedTuple

from lb_xdp.core.desired import BackendId, BackendRecord, Desired
from lb_xdp.core.judge import Standings
from lb_xdp.core.topology import Topology

_KEPT = 2  # the present configuration's, and the one's that is being tried


class _Known(NamedTuple):
    standings: Standings
    topology: Topology
    held: Mapping[BackendId, BackendRecord]
    desired: Desired

    def holds(
        self, standings: Standings, topology: Topology, held: Mapping[BackendId, BackendRecord]
    ) -> bool:
        """Say whether the same would come out; standings of services keep their object."""
        before, after = self.standings.services, standings.services
        return (
            held is self.held
            and len(before) == len(after)
            and all(map(is_, before.values(), after.values()))
            and standings.config.gateway == self.standings.config.gateway
            and topology == self.topology
        )


class Goals:
    """Remembers a few goals; ``of`` returns the very object as long as it holds."""

    def __init__(self) -> None:
        self._known: list[_Known] = []

    def of(
        self,
        standings: Standings,
        topology: Topology,
        held: Mapping[BackendId, BackendRecord],
        make: Callable[[], Desired],
    ) -> Desired:
        """Return the goal for these; ``make`` computes it from nothing else but rings."""
        for known in self._known:
            if known.holds(standings, topology, held):
                return known.desired
        desired = make()
        self._known = [_Known(standings, topology, held, desired), *self._known[: _KEPT - 1]]
        return desired
