"""Who is probed now, and which way: the prober, the courier, and what becomes of their results.

Owns which configurations' backends are probed (two while a change is under way) and the wait for
first results. It refuses to know what a result means, which is the reconciler's, and how a probe is
done, which is for the adapters that the daemon hands in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Protocol

from lb_xdp.core.health import ProbeResult, Target
from lb_xdp.core.model import Address, Config, Via
from lb_xdp.core.probe_way import ProbeWay, probe_ways
from lb_xdp.core.targets import TargetId
from lb_xdp.reconciler import Reconciler

_FIRST_RESULT_MARGIN_S = 0.2  # beyond the longest timeout, until undecided backends are passed over


class ProberPort(Protocol):
    """What is needed of the prober; see ``probes.prober.Prober``."""

    @property
    def begins_within_s(self) -> float: ...  # noqa: D102 - see Prober
    def set_targets(  # noqa: D102 - see Prober
        self, targets: Mapping[TargetId, Target], known: Collection[TargetId] = ()
    ) -> None: ...


class CourierPort(Protocol):
    """What is needed of the courier; see ``via.Courier``."""

    def can_tell(self, target: TargetId) -> bool: ...  # noqa: D102 - see Courier
    async def serve(self, vips: Collection[Address]) -> None: ...  # noqa: D102 - see Courier
    def set_ways(  # noqa: D102 - see Courier
        self, ways: Mapping[TargetId, ProbeWay], local: frozenset[Address]
    ) -> None: ...


class Probing:
    """``changed`` is called when what a backend may get has changed, ``observe`` with every result.

    ``observe`` gets names of service and backend, and seconds. Nothing is probed before ``prober``
    is set.
    """

    prober: ProberPort

    def __init__(
        self,
        reconciler: Reconciler,
        courier: CourierPort,
        changed: Callable[[], None],
        observe: Callable[[str, str, float], None],
    ) -> None:
        self._reconciler = reconciler
        self._courier = courier
        self._changed = changed
        self._observe = observe
        self._configs: tuple[Config, ...] = (reconciler.config,)
        self._decided = asyncio.Event()

    @property
    def changing(self) -> bool:
        """Whether backends of two configurations are probed: a change is tried out."""
        return len(self._configs) > 1

    def on_result(self, target: TargetId, result: ProbeResult) -> None:
        """Take in a probe's result."""
        if not self._courier.can_tell(target):
            return
        if self._reconciler.on_probe(target, result):
            self._decided.set()
            self._changed()
        for service, backend in self._reconciler.members(target):
            self._observe(service, backend, result.duration_s)

    def probe(self, *configs: Config) -> None:
        """Probe the backends of these configurations, the last one's wishes winning."""
        self._configs = configs
        self.again()

    def again(self) -> None:
        """Let the prober follow when somebody is to be probed, or left alone, who was not."""
        self.lead()
        targets = self._reconciler.probed(*self._configs)
        self.prober.set_targets(targets, known=self._reconciler.vitals.decided(targets))

    async def carry(self, *configs: Config) -> None:
        """Be ready for probes through the datapath. Raises HostError; then nothing has changed."""
        services = (service for config in configs for service in config.services)
        through = {s.vip for s in services if s.pool.health.via is Via.DATAPATH}
        await self._courier.serve(through)

    def lead(self) -> None:
        """Tell probes through the datapath where packets leave by now."""
        reconciler = self._reconciler
        topology, held = reconciler.topology, reconciler.observed.records
        ways = {
            target: way
            for config in self._configs
            for target, way in probe_ways(reconciler.whole_of(config), topology, held).items()
        }
        self._courier.set_ways(ways, topology.local_addresses)

    async def settle(self, config: Config) -> None:
        """Wait, within bounds, until first probes of a configuration's backends have ended."""
        timeout_s = max(service.pool.health.timeout_s for service in config.services)
        longest_s = self.prober.begins_within_s + timeout_s
        waiting = self._reconciler.undecided(config)
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s + _FIRST_RESULT_MARGIN_S):
                while waiting:
                    self._decided.clear()
                    await self._decided.wait()
                    waiting = self._reconciler.vitals.undecided(waiting)
