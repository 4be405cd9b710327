"""What is known of live flows: the flow table, read when somebody asks, and flows as they begin.

Most services have no record of a flow: the ring alone places it. There the counters tell how many
began lately, which is what an estimate is made from. Reading the table blocks, so it happens in a
thread. It refuses to say what a change does to flows (``core.preview``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from lb_xdp.core.desired import BackendId, traits
from lb_xdp.core.flow_list import FlowList, FlowRecords, Wanted, list_flows
from lb_xdp.core.model import ServiceKey
from lb_xdp.core.report import Count
from lb_xdp.core.touched import Begun, Evidence, live_flows
from lb_xdp.errors import DatapathError
from lb_xdp.reconciler import Reconciler

_log = logging.getLogger(__name__)

INTERVAL_S = 60.0
_SAMPLES = 16  # 15 minutes: as long as a silent flow is taken to live on
_SHORTEST_S = 1.0  # of counting, to say anything


class FlowsPort(Protocol):
    """What is needed of the datapath."""

    def backend_counts(  # noqa: D102 - see Datapath
        self, indices: Mapping[BackendId, int]
    ) -> Mapping[BackendId, Count]: ...
    def flow_records(self) -> FlowRecords: ...  # noqa: D102 - see Datapath


class _Sample(NamedTuple):
    at_s: float
    flows: Mapping[BackendId, int]


class LiveFlows:
    """Its ``work`` runs as a task of the daemon's. ``clock`` is monotonic, in seconds."""

    def __init__(
        self,
        reconciler: Reconciler,
        datapath: FlowsPort,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reconciler = reconciler
        self._datapath = datapath
        self._clock = clock
        self._samples: deque[_Sample] = deque(maxlen=_SAMPLES)

    async def work(self) -> None:
        """Note how many flows there were, again and again, until cancelled."""
        while True:
            try:
                self.sample()
            except DatapathError as error:
                _log.warning("counters could not be read: %s", error)
            await asyncio.sleep(INTERVAL_S)

    def sample(self) -> None:
        """Note how many flows there were so far. Raises DatapathError."""
        self._samples.append(self._count())

    def _count(self) -> _Sample:
        counts = self._datapath.backend_counts(self._reconciler.observed.indices)
        return _Sample(self._clock(), {key: count.flows for key, count in counts.items()})

    def begun(self) -> Begun | None:
        """Return how many flows of each service began lately; None if it is too early to say."""
        now = self._count()
        if not self._samples or now.at_s - self._samples[0].at_s < _SHORTEST_S:
            return None
        first = self._samples[0]
        flows = Counter[ServiceKey]()
        for identity, count in now.flows.items():
            former = first.flows.get(identity, 0)
            flows[identity.service] += count - former if count >= former else count
        return Begun(now.at_s - first.at_s, flows)

    async def evidence(self) -> Evidence:
        """Return all that is known of live flows. Raises DatapathError."""
        services = {service.key: traits(service) for service in self._reconciler.config.services}
        records = await asyncio.to_thread(self._datapath.flow_records)
        held = await asyncio.to_thread(live_flows, records, services)
        return Evidence(held, self.begun())

    async def listed(self, wanted: Wanted) -> FlowList:
        """Return recorded flows that match. Raises DatapathError."""
        records = await asyncio.to_thread(self._datapath.flow_records)
        reconciler = self._reconciler
        config, indices = reconciler.whole, reconciler.observed.indices
        return await asyncio.to_thread(list_flows, records, config, indices, wanted)
