"""Makes the Snapshot that status, API and metrics show: one read of everything at one moment."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

from lb_xdp import __version__
from lb_xdp.core.desired import BackendId
from lb_xdp.core.model import ServiceKey
from lb_xdp.core.picture import Figures
from lb_xdp.core.report import (
    Count,
    Watched,
    empty_services,
    orphan_notices,
    panic_notices,
    service_statuses,
)
from lb_xdp.core.ring import RING_SLOTS
from lb_xdp.core.snapshot import (
    ChangeStatus,
    DatapathStatus,
    FlowTableStatus,
    ProgramStatus,
    ReasonCount,
    ReloadStatus,
    Share,
    Snapshot,
)
from lb_xdp.core.tally import Tallies, Tally
from lb_xdp.reconciler import Reconciler

Item = TypeVar("Item")

_BREATH_S = 0.003
"""For so long at a time the event loop may be busy with words."""


class CountersPort(Protocol):
    """What is read from the datapath."""

    @property
    def layout_version(self) -> int: ...  # noqa: D102 - see Datapath
    def backend_counts(  # noqa: D102 - see Datapath
        self, indices: Mapping[BackendId, int]
    ) -> Mapping[BackendId, Count]: ...
    def watch_counts(  # noqa: D102 - see Datapath
        self, indices: Mapping[BackendId, int]
    ) -> Mapping[BackendId, Watched]: ...
    def reason_counts(self) -> tuple[ReasonCount, ...]: ...  # noqa: D102 - see Datapath
    def flow_counts(self) -> tuple[int, int, int, int]: ...  # noqa: D102 - see Datapath
    @property
    def flow_capacity(self) -> int: ...  # noqa: D102 - see Datapath
    def programs(self) -> tuple[ProgramStatus, ...]: ...  # noqa: D102 - see Datapath


class FlowsSeen(Protocol):
    """What the collector saw when it last looked."""

    flows: Mapping[int, int]
    entries: int
    removed: int
    looked_timestamp_s: float


class Disk(Protocol):
    """What is told of the place where things are kept; see ``layers.Layers``."""

    notice: str


class Reporter:
    """Holds what only a report needs: when the daemon started, how the last reload went."""

    def __init__(
        self,
        reconciler: Reconciler,
        datapath: CountersPort,
        collector: FlowsSeen,
        layers: Disk,
    ) -> None:
        self._reconciler = reconciler
        self._datapath = datapath
        self._collector = collector
        self._layers = layers
        self._tallies = Tallies()
        self._started_timestamp_s = time.time()
        self.last_reload = ReloadStatus(success=True, timestamp_s=time.time())
        self.host_notices: tuple[str, ...] = ()
        self.name_notices: tuple[str, ...] = ()
        self.change_notices: tuple[str, ...] = ()
        self.change: ChangeStatus | None = None
        self.trouble = ""
        self.api_strangers = 0
        self.shares: Callable[[str, str, float], Mapping[str, Share]] = lambda *_: {}

    async def snapshot(self) -> Snapshot:
        """Return the gateway as it is now. Raises DatapathError once it is detached.

        All is looked at in one moment. To count slots before it and to put it into words after it
        takes a while, and probes that end meanwhile do not wait for it.
        """
        reconciler = self._reconciler
        async for _ in unhurried(self._tallies.ahead(reconciler.observed.rings)):
            pass
        now_s, whole, standings = time.time(), reconciler.whole, reconciler.standings()
        tallies = self._tallies.of(reconciler.observed.rings)
        views = reconciler.picture(now_s).views(standings, self._figures(tallies))
        snapshot = self._without_services(now_s)
        orphans = orphan_notices(whole, reconciler.overrides)
        statuses = service_statuses(
            whole,
            reconciler.topology,
            views,
            {key: (tally.unsettled, tally.marked) for key, tally in tallies.items()},
            standings.panics,
            shares=lambda service, backend: self.shares(service, backend, now_s),
        )
        services = tuple([status async for status in unhurried(statuses)])
        return replace(
            snapshot,
            services=services,
            notices=(
                *panic_notices(whole, standings.panics),
                *snapshot.notices,
                *empty_services(services),
                *orphans,
            ),
        )

    def _figures(self, tallies: Mapping[ServiceKey, Tally]) -> Figures:
        indices = self._reconciler.observed.indices
        counts = self._datapath.backend_counts(indices)
        return Figures(counts, self._collector.flows, self._datapath.watch_counts(indices), tallies)

    def _without_services(self, now_s: float) -> Snapshot:
        """Return all but the services, and what there is to say of them."""
        reconciler, config = self._reconciler, self._reconciler.config
        return Snapshot(
            gateway=config.gateway.name,
            version=__version__,
            pid=os.getpid(),
            started_timestamp_s=self._started_timestamp_s,
            timestamp_s=now_s,
            config_source=config.source,
            ready=reconciler.ready and not self.trouble,
            last_reload=self.last_reload,
            failovers=reconciler.vitals.failovers,
            ring_build_s=reconciler.ring_build_s,
            datapath=self._datapath_status(),
            services=(),
            notices=(
                *filter(None, [self.trouble, self._layers.notice]),
                *self.host_notices,
                *self.change_notices,
                *self.name_notices,
            ),
            change=self.change,
            api_strangers=self.api_strangers,
        )

    def _datapath_status(self) -> DatapathStatus:
        return DatapathStatus(
            programs=self._datapath.programs(),
            generation=self._reconciler.observed.generation,
            layout=self._datapath.layout_version,
            netns=Path("/proc/self/ns/net").stat().st_ino,
            ring_slots=RING_SLOTS,
            flow_table=self._flow_table(),
            reasons=self._datapath.reason_counts(),
        )

    def _flow_table(self) -> FlowTableStatus:
        inserted, closed, full, rehashed = self._datapath.flow_counts()
        return FlowTableStatus(
            entries=self._collector.entries,
            capacity=self._datapath.flow_capacity,
            inserted=inserted,
            closed=closed,
            expired=self._collector.removed,
            full=full,
            rehashed=rehashed,
            looked_timestamp_s=self._collector.looked_timestamp_s,
        )


async def unhurried(items: Iterable[Item], breath_s: float = _BREATH_S) -> AsyncIterator[Item]:
    """Yield items that take a while to make; whoever waits for the event loop goes first."""
    until_s = time.perf_counter() + breath_s
    for item in items:
        yield item
        if time.perf_counter() >= until_s:
            await asyncio.sleep(0)
            until_s = time.perf_counter() + breath_s
