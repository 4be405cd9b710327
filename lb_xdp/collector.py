"""Looks after the flow table from time to time: records that are over, slots that have settled.

Reading the table blocks, so it happens in a thread, one look after the other; what it tells is
taken in by the event loop. Forwarding does not wait for any of this: with the controller away,
records stay, and a full table sends new flows by the ring.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from lb_xdp.core.desired import Traits, traits
from lb_xdp.core.model import FlowTable, ServiceKey
from lb_xdp.core.plan import SlotNumbers
from lb_xdp.errors import DatapathError
from lb_xdp.reconciler import Reconciler

_log = logging.getLogger(__name__)

INTERVAL_S = 5.0


class Look(Protocol):
    """What a look at the flow table found; see ``datapath.flows.Collected``."""

    @property
    def recorded(self) -> Mapping[ServiceKey, SlotNumbers]: ...  # noqa: D102 - see Collected
    @property
    def entries(self) -> int: ...  # noqa: D102 - see Collected
    @property
    def flows(self) -> Mapping[int, int]: ...  # noqa: D102 - see Collected
    @property
    def removed(self) -> int: ...  # noqa: D102 - see Collected


class FlowsPort(Protocol):
    """What the collector needs of the datapath."""

    def collect(  # noqa: D102 - see Datapath
        self,
        times: FlowTable,
        services: Mapping[ServiceKey, Traits],
        affinity_s: Mapping[ServiceKey, int],
    ) -> Look: ...


class Collector:
    """Runs as a task of the daemon's. ``changed`` is called when a slot can settle."""

    def __init__(
        self, reconciler: Reconciler, datapath: FlowsPort, changed: Callable[[], None]
    ) -> None:
        self._reconciler = reconciler
        self._datapath = datapath
        self._changed = changed
        self.flows: Mapping[int, int] = {}
        self.entries = 0
        self.removed = 0
        self.looked_timestamp_s = 0.0

    async def work(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                await self.look()
            except DatapathError as error:
                _log.warning("the flow table could not be read: %s", error)
            await asyncio.sleep(INTERVAL_S)

    async def look(self) -> None:
        """Look once. Raises DatapathError."""
        config = self._reconciler.config
        marked = self._reconciler.marked()
        began_s, began_timestamp_s = self._reconciler.now_s(), time.time()
        found = await asyncio.to_thread(
            self._datapath.collect,
            config.gateway.flow_table,
            {service.key: traits(service) for service in config.services},
            {key: image.affinity_s for key, image in self._reconciler.observed.rings.items()},
        )
        self.flows, self.entries = found.flows, found.entries
        self.looked_timestamp_s = began_timestamp_s
        self.removed += found.removed
        ended = self._reconciler.on_flows(found.flows, began_s)
        if self._reconciler.on_collected(marked, found.recorded) or ended:
            self._changed()
