"""Looks at the flow table: what they ask for, what is kept of them, and when a cycle is due."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

import numpy as np
import pytest

from lb_xdp import collector as module
from lb_xdp.collector import Collector
from lb_xdp.core.desired import Traits
from lb_xdp.core.model import (
    Backend,
    BackendName,
    CheckKind,
    Config,
    FlowTable,
    Gateway,
    HealthCheck,
    Mode,
    Pool,
    Protocol,
    Service,
    ServiceKey,
    ServiceName,
    XdpMode,
)
from lb_xdp.core.plan import Observed, Plan, SlotNumbers
from lb_xdp.core.settle import MARKED, SETTLED, RingImage, pack, state_of
from lb_xdp.errors import MapError
from lb_xdp.reconciler import Reconciler

TIMES = FlowTable(tcp_idle_s=600)
POOL = Pool(
    "web",
    (Backend(BackendName("web1"), IPv4Address("10.0.0.11"), 80),),
    HealthCheck(CheckKind.NONE),
)
WEB = Service(ServiceName("web"), IPv4Address("203.0.113.10"), 80, Protocol.TCP, Mode.DSR, POOL)
CONFIG = Config(
    Gateway("gw1", ("eth0",), XdpMode.AUTO, "/run/api.sock", None, flow_table=TIMES), (WEB,)
)
MARKED_RING = RingImage(
    pack(np.ones(8, np.uint32), np.uint32(0), np.array([MARKED] * 4 + [SETTLED] * 4, np.uint32)),
    affinity_s=60,
)


@dataclass
class Look:
    """What a look found."""

    recorded: Mapping[ServiceKey, SlotNumbers] = field(default_factory=dict)
    entries: int = 0
    flows: Mapping[int, int] = field(default_factory=dict)
    removed: int = 0


NONE = {WEB.key: np.array([], np.int64)}


class Table:
    """A flow table whose looks end as ``finds`` says, one after the other; the last one stays."""

    def __init__(self, *finds: Look | MapError) -> None:
        self.finds = list(finds)
        self.asked: list[tuple[FlowTable, Mapping[ServiceKey, Traits], object]] = []
        self.threads: list[int] = []

    def collect(
        self,
        times: FlowTable,
        services: Mapping[ServiceKey, Traits],
        affinity_s: Mapping[ServiceKey, int],
    ) -> Look:
        self.threads.append(threading.get_ident())
        self.asked.append((times, services, affinity_s))
        found = self.finds.pop(0) if len(self.finds) > 1 else self.finds[0]
        if isinstance(found, MapError):
            raise found
        return found


class NoDatapath:
    """A datapath that nothing is asked of."""

    def apply(self, plan: Plan, observed: Observed) -> Observed:
        raise AssertionError(plan, observed)

    def observe(self) -> Observed:
        raise AssertionError


def reconciler() -> Reconciler:
    """Return a reconciler that has found a ring with marked slots."""
    observed = Observed(rings={WEB.key: MARKED_RING})
    return Reconciler(CONFIG, NoDatapath(), observed, 1, lambda: 100.0)


async def test_a_look_asks_by_the_configuration() -> None:
    """Times and traits are the configuration's, the memory of clients is the ring's."""
    table = Table(Look())
    await Collector(reconciler(), table, lambda: None).look()
    ((times, services, affinity_s),) = table.asked
    assert times == TIMES
    assert {key: rules.mode for key, rules in services.items()} == {WEB.key: Mode.DSR}
    assert affinity_s == {WEB.key: 60}


async def test_the_table_is_read_in_another_thread() -> None:
    """Probes and commands need not wait while it is read."""
    table = Table(Look())
    await Collector(reconciler(), table, lambda: None).look()
    assert table.threads != [threading.get_ident()]


async def test_the_latest_look_is_kept_and_what_expired_adds_up() -> None:
    """Entries and flows are the last look's; removed records are a total."""
    table = Table(
        Look(entries=9, flows={1: 9}, removed=2), Look(entries=4, flows={1: 4}, removed=5)
    )
    collector = Collector(reconciler(), table, lambda: None)
    await collector.look()
    before_s = time.time()
    await collector.look()
    assert (collector.entries, collector.flows, collector.removed) == (4, {1: 4}, 7)
    assert before_s <= collector.looked_timestamp_s <= time.time()


@pytest.mark.parametrize(("still", "due"), [([], True), ([2], True), ([0, 1, 2, 3], False)])
async def test_a_cycle_is_due_when_a_slot_can_settle(still: list[int], due: bool) -> None:  # noqa: FBT001 - a case's outcome
    """It is if some marked slot has no record, and is not while records fall on all of them."""
    called: list[bool] = []
    table = Table(Look(recorded={WEB.key: np.array(still, np.int64)}))
    await Collector(reconciler(), table, lambda: called.append(True)).look()
    assert bool(called) == due


async def test_a_ring_that_changed_meanwhile_keeps_its_marks() -> None:
    """What was read before the change says nothing about records that came after it."""
    watched = reconciler()

    class Changing(Table):
        def collect(
            self,
            times: FlowTable,
            services: Mapping[ServiceKey, Traits],
            affinity_s: Mapping[ServiceKey, int],
        ) -> Look:
            other = MARKED_RING._replace(held=MARKED_RING.slots.copy())
            watched.observed = replace(watched.observed, rings={WEB.key: other})
            return super().collect(times, services, affinity_s)

    called: list[bool] = []
    table = Changing(Look(recorded={WEB.key: np.array([], np.int64)}))
    await Collector(watched, table, lambda: called.append(True)).look()
    assert not called
    assert set(state_of(watched.observed.rings[WEB.key].slots).tolist()) == {SETTLED, MARKED}


async def test_a_failed_look_is_told_and_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that cannot be read once is read the next time; the daemon goes on."""
    monkeypatch.setattr(module, "INTERVAL_S", 0.0)
    seen = asyncio.Event()
    table = Table(MapError("map flows: no such device"), Look(entries=3, recorded=NONE))
    collector = Collector(reconciler(), table, seen.set)
    working = asyncio.create_task(collector.work())
    await asyncio.wait_for(seen.wait(), 5)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert collector.entries == 3
    assert "the flow table could not be read: map flows: no such device" in caplog.text
