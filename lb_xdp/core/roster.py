"""Which backends there are: those of the configuration in force, and those that linger.

Owns who is here now, who is in the next goal, and when somebody's time is over. It refuses to know
what lingering means for traffic (``standing``), and to take anybody away: that takes a generation
without them, so whoever has made one says so by ``adopt``.

Times are seconds of whichever clock the caller uses throughout; ``now_s`` is now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import is_
from typing import NamedTuple

from lb_xdp.core.desired import BackendId
from lb_xdp.core.lingering import Held, Lingering, extended, lingering_after
from lb_xdp.core.model import Config
from lb_xdp.core.plan import Observed
from lb_xdp.core.settle import was_before


class Goal(NamedTuple):
    """Where the next cycle goes: everybody in it, and those of them that linger."""

    whole: Config
    lingering: Held


class Gone(NamedTuple):
    """One that lingers no more, with its names while it did."""

    service: str
    backend: str
    since_s: float


class Roster:
    """``whole`` is ``config`` with fallbacks and lingering backends in it.

    Each of the attributes is the very object that it was as long as nothing of it has changed.
    """

    config: Config
    lingering: Held
    whole: Config
    goal: Goal
    _considered: tuple[tuple[object, ...], Config] | None

    def __init__(self, config: Config, lingering: Held) -> None:
        self.adopt(config, lingering)

    def adopt(self, config: Config, lingering: Held) -> None:
        """Have these be here from now on, and nobody else."""
        self._considered = None
        self.config = config
        self.lingering = lingering
        self.whole = extended(config, lingering)
        self.goal = Goal(self.whole, lingering)

    def lingering_after(self, config: Config, observed: Observed, now_s: float) -> Held:
        """Return who would linger with a configuration in force."""
        return lingering_after(config, observed, self.lingering, self.whole, now_s)

    def whole_of(self, config: Config, observed: Observed, now_s: float) -> Config:
        """Return a configuration with all backends that it has, or would have as the goal."""
        if config is self.config:
            return self.whole
        causes = config, observed.structure, observed.records, self.lingering, self.whole
        if self._considered is None or not all(map(is_, self._considered[0], causes)):
            whole = extended(config, self.lingering_after(config, observed, now_s))
            self._considered = causes, whole
        return self._considered[1]

    def let_go(self, now_s: float) -> None:
        """Decide that lingering backends whose time is over are no part of the next goal.

        Nothing else decides it, so that a generation which was prepared a moment ago is the one to
        take; until it runs, they are shown.
        """
        stay = {key: one for key, one in self.lingering.items() if one.until_s > now_s}
        if len(stay) < len(self.lingering):
            self.goal = Goal(extended(self.config, stay), stay)
        else:
            self.goal = Goal(self.whole, self.lingering)

    def gone(self) -> list[Gone]:
        """Return those that are here, and not in the goal."""
        names = {
            BackendId(service.key, backend.key): (service.name, backend.name)
            for service, backend in self.whole.backends()
        }
        stay = self.goal.lingering
        return [
            Gone(*names[one.identity], one.since_s)
            for key, one in self.lingering.items()
            if key not in stay
        ]

    def on_flows(
        self, flows: Mapping[int, int], began_s: float, observed: Observed, now_s: float
    ) -> bool:
        """End the time of lingering backends that have no flow left; True if there are any.

        ``flows`` says how many records name each index, by a look that began at ``began_s``.
        """
        over = {
            identity: replace(one, until_s=now_s)
            for identity, one in self.lingering.items()
            if one.since_s < began_s and _flowless(one, flows, observed)
        }
        if over:
            self.lingering = {**self.lingering, **over}
            self.goal = Goal(self.whole, self.lingering)
        return bool(over)


def _flowless(one: Lingering, flows: Mapping[int, int], observed: Observed) -> bool:
    """Say whether a backend has no flow left, as far as records and slots can tell.

    Where not every flow has a record, those that have none fall on slots that are unsettled.
    """
    index = observed.indices.get(one.identity)
    return index is not None and not flows.get(index, 0) and not hides(one.identity, observed)


def hides(identity: BackendId, observed: Observed) -> bool:
    """Say whether a backend that gets no new flow may have some that no record knows."""
    index = observed.indices.get(identity)
    structure = observed.structure
    ring = observed.rings.get(identity.service)
    if index is None or structure is None or ring is None:
        return True
    return not structure.services[identity.service].tracked and was_before(ring, index)
