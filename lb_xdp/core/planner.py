"""From what was asked for and what is known to what the datapath should be: the way to a goal.

Owns what is remembered between one cycle and the next: outcomes that still hold, rings, and what
standings are made with. It refuses to know what the kernel holds beyond records that go on, and to
act: whoever plans and does not go there has changed nothing.

Times are seconds of whichever clock the caller uses throughout.
"""

from __future__ import annotations

from collections.abc import Mapping

from lb_xdp.core.desired import BackendId, BackendRecord, Desired
from lb_xdp.core.goals import Goals
from lb_xdp.core.health import Advice
from lb_xdp.core.judge import Judge, Standings
from lb_xdp.core.model import Backend, Config, Service, ServiceKey
from lb_xdp.core.override import Overrides
from lb_xdp.core.rings import Rings
from lb_xdp.core.snapshot import Health
from lb_xdp.core.standing import Memory
from lb_xdp.core.targets import target_of
from lb_xdp.core.topology import Topology
from lb_xdp.core.vitals import Vitals


class Planner:
    """``build`` names the program's sources; ``memories`` are what the first standings know.

    ``wake_s`` is when standings change though nothing happens, None for never.
    """

    def __init__(self, build: int, rings: Rings, memories: Mapping[ServiceKey, Memory]) -> None:
        self.rings = rings
        self.wake_s: float | None = None
        self._memories = memories
        self._judge = Judge()
        self._goals = Goals(build, rings.ring_of)

    def stand(self, whole: Config, overrides: Overrides, vitals: Vitals, now_s: float) -> Standings:
        """Return what every backend of an ``extended`` configuration is to get."""

        def health_of(service: Service, backend: Backend) -> Health:
            return vitals.state_of(target_of(service, backend), now_s).health

        def advice_of(service: Service, backend: Backend) -> Advice:
            return vitals.advice_of(target_of(service, backend))

        return self._judge.stand(
            *(whole, overrides, health_of, self._memories, now_s),
            advice_of=advice_of,
            stamp_of=vitals.stamp_of,
        )

    def desired(
        self,
        standings: Standings,
        topology: Topology,
        held: Mapping[BackendId, BackendRecord],
    ) -> Desired:
        """Return what the datapath should be; ``held`` are the kernel's records."""
        return self._goals.of(standings, topology, held)

    def forget_former(self) -> None:
        """Hold no memory for goals but the latest."""
        self._goals.forget_former()

    def arrive(self, standings: Standings) -> None:
        """Have the next standings be made with what these remember: they are in the kernel."""
        self._memories = standings.memories
        self.wake_s = standings.wake_s
