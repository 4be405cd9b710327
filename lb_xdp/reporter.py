"""Makes the Snapshot that status, API and metrics show: one read of everything at one moment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from lb_xdp import __version__
from lb_xdp.core.desired import BackendId
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
from lb_xdp.core.tally import Tallies
from lb_xdp.reconciler import Reconciler


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

    def snapshot(self) -> Snapshot:
        """Return the gateway as it is now. Raises DatapathError once it is detached."""
        reconciler = self._reconciler
        config, now_s = reconciler.config, time.time()
        counts = self._datapath.backend_counts(reconciler.observed.indices)
        watched = self._datapath.watch_counts(reconciler.observed.indices)
        standings = reconciler.standings()
        tallies = self._tallies.of(reconciler.observed.rings)
        figures = Figures(counts, self._collector.flows, watched, tallies)
        views = reconciler.picture(now_s).views(standings, figures)
        whole, panics = reconciler.whole, standings.panics
        slots = {key: (tally.unsettled, tally.marked) for key, tally in tallies.items()}
        services = service_statuses(
            whole,
            reconciler.topology,
            views,
            slots,
            panics,
            shares=lambda service, backend: self.shares(service, backend, now_s),
        )
        trouble = (self.trouble,) if self.trouble else ()
        return Snapshot(
            gateway=config.gateway.name,
            version=__version__,
            pid=os.getpid(),
            started_timestamp_s=self._started_timestamp_s,
            timestamp_s=now_s,
            config_source=config.source,
            ready=reconciler.ready and not trouble,
            last_reload=self.last_reload,
            failovers=reconciler.vitals.failovers,
            ring_build_s=reconciler.ring_build_s,
            datapath=self._datapath_status(),
            services=services,
            notices=(
                *panic_notices(whole, panics),
                *trouble,
                *filter(None, [self._layers.notice]),
                *self.host_notices,
                *self.change_notices,
                *self.name_notices,
                *empty_services(services),
                *orphan_notices(whole, reconciler.overrides),
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
