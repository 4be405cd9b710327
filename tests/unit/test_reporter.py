"""The snapshot is put together from what the datapath, the reconciler and the collector know."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lb_xdp import __version__
from lb_xdp.core.desired import BackendId
from lb_xdp.core.model import (
    Backend,
    BackendKey,
    BackendName,
    CheckKind,
    Config,
    Gateway,
    HealthCheck,
    Mode,
    NoBackend,
    Pool,
    Protocol,
    Service,
    ServiceName,
    XdpMode,
)
from lb_xdp.core.plan import Observed, Plan
from lb_xdp.core.report import Count
from lb_xdp.core.ring import RING_SLOTS
from lb_xdp.core.snapshot import (
    FlowTableStatus,
    ProgramStatus,
    ReasonCount,
    ReloadStatus,
    Share,
    Snapshot,
    State,
    Verdict,
)
from lb_xdp.core.targets import TargetId
from lb_xdp.core.topology import Interface, NextHop, Topology
from lb_xdp.datapath.counters import BackendCount, WatchCount
from lb_xdp.errors import MapError
from lb_xdp.reconciler import Reconciler
from lb_xdp.reporter import Reporter, unhurried

MAC = b"\2\0\0\0\0\1"
ADDRESS = IPv4Address("10.0.0.11")
TOPOLOGY = Topology(
    {"eth0": Interface("eth0", 1, MAC, 1500, up=True)},
    {ADDRESS: NextHop(1, MAC, MAC, None, on_link=True)},
)
POOL = Pool(
    "web",
    (Backend(BackendName("web1"), ADDRESS, 80, 1, max_connections=100),),
    HealthCheck(CheckKind.NONE),
)
WEB = Service(ServiceName("web"), IPv4Address("203.0.113.10"), 80, Protocol.TCP, Mode.NAT, POOL)
GATEWAY = Gateway("gw1", ("eth0",), XdpMode.AUTO, "/run/api.sock", None)
WEB1 = BackendId(WEB.key, BackendKey(ADDRESS, 80))
PROGRAM = ProgramStatus("eth0", "native", 51)
WATCHED = WatchCount(10, 9, 1, 2, 500, (5, 4))
FORWARDED = ReasonCount(Verdict.FORWARD, "forwarded", 8)


@dataclass
class Datapath:
    """Counters of a gateway with one backend; also carries plans out, as far as it matters here."""

    detached: bool = False
    watches: bool = False
    layout_version: int = 2
    flow_capacity: int = 1000
    asked: list[Mapping[BackendId, int]] = field(default_factory=list)

    def backend_counts(self, indices: Mapping[BackendId, int]) -> dict[BackendId, Count]:
        if self.detached:
            raise MapError("map counts is closed: the gateway was detached")
        self.asked.append(indices)
        return {WEB1: BackendCount(packets=8, bytes=800, flows=2, connections=3)}

    def watch_counts(self, indices: Mapping[BackendId, int]) -> dict[BackendId, WatchCount]:
        return dict.fromkeys(indices, WATCHED) if self.watches else {}

    def reason_counts(self) -> tuple[ReasonCount, ...]:
        return (FORWARDED,)

    def flow_counts(self) -> tuple[int, int, int, int]:
        return 90, 30, 4, 5

    def programs(self) -> tuple[ProgramStatus, ...]:
        return (PROGRAM,)

    def apply(self, plan: Plan, observed: Observed) -> Observed:
        return replace(
            observed,
            generation=plan.generation,
            structure=plan.structure,
            indices=plan.indices,
            records=plan.records,
            rings=plan.rings,
            attached=dict(plan.interfaces),
        )

    def observe(self) -> Observed:
        return Observed()


@dataclass
class Seen:
    """What the collector saw last: seven records of the backend with index 1."""

    flows: Mapping[int, int] = field(default_factory=lambda: {1: 7})
    entries: int = 7
    removed: int = 50
    looked_timestamp_s: float = 1.5


@dataclass
class Disk:
    """Where things are kept, and what is wrong with it."""

    notice: str = ""


class Gate:
    """A reporter, and what it reports on."""

    def __init__(self, *, topology: Topology = TOPOLOGY, service: Service = WEB) -> None:
        self.datapath = Datapath()
        self.reconciler = Reconciler(
            Config(GATEWAY, (service,), source="/etc/lb-xdp/gw1.yaml"),
            self.datapath,
            Observed(),
            1,
            lambda: 100.0,
        )
        self.reconciler.topology = topology
        self.reconciler.cycle()
        self.reporter = Reporter(self.reconciler, self.datapath, Seen(), Disk())

    def snapshot(self) -> Snapshot:
        return asyncio.run(self.reporter.snapshot())


def test_the_gateway_says_who_it_is() -> None:
    """Name, version, process, file, and a time that is now."""
    before_s = time.time()
    shown = Gate().snapshot()
    assert (shown.gateway, shown.version, shown.pid) == ("gw1", __version__, os.getpid())
    assert shown.config_source == "/etc/lb-xdp/gw1.yaml"
    assert before_s <= shown.started_timestamp_s <= shown.timestamp_s <= time.time()
    assert shown.ready
    assert shown.last_reload.success
    assert shown.notices == ()


def test_the_datapath_is_as_the_kernel_says() -> None:
    """Programs, generation, layout, reasons, and the namespace that this process lives in."""
    shown = Gate().snapshot().datapath
    assert (shown.programs, shown.reasons) == ((PROGRAM,), (FORWARDED,))
    assert (shown.generation, shown.layout, shown.ring_slots) == (1, 2, RING_SLOTS)
    assert shown.netns == Path("/proc/self/ns/net").stat().st_ino


def test_the_flow_table_is_the_programs_and_the_collectors() -> None:
    """The program counts what begins and is seen to end, the collector what is left and expires."""
    assert Gate().snapshot().datapath.flow_table == FlowTableStatus(
        entries=7,
        capacity=1000,
        inserted=90,
        closed=30,
        expired=50,
        full=4,
        rehashed=5,
        looked_timestamp_s=1.5,
    )


def test_a_backend_has_its_counters_and_records() -> None:
    """Counters come by the backend's index, records by the same, connections where they count."""
    gate = Gate()
    (backend,) = gate.snapshot().services[0].backends
    assert gate.datapath.asked == [{WEB1: 1}]
    assert (backend.packets, backend.bytes, backend.flows) == (8, 800, 2)
    assert (backend.recorded, backend.connections, backend.max_connections) == (7, 3, 100)
    assert (backend.state, backend.slots) == (State.UP, RING_SLOTS)


def test_trouble_comes_first_and_is_not_ready() -> None:
    """A failed cycle is told before notices of the host, and the gateway is not ready."""
    gate = Gate()
    gate.reporter.host_notices = ("rp_filter is strict on eth0",)
    assert gate.snapshot().ready
    gate.reporter.trouble = "the datapath could not be updated"
    shown = gate.snapshot()
    assert shown.notices == ("the datapath could not be updated", "rp_filter is strict on eth0")
    assert not shown.ready


@pytest.mark.parametrize(
    ("choice", "word"), [(NoBackend.DROP, "dropped"), (NoBackend.REJECT, "refused")]
)
def test_a_service_without_a_backend_is_told(choice: NoBackend, word: str) -> None:
    """A backend without a way to it is down, says why, and its service says what clients get."""
    service = replace(WEB, no_backend=choice)
    shown = Gate(topology=Topology(TOPOLOGY.interfaces, {}), service=service).snapshot()
    assert shown.services[0].backends[0].detail == "no route to 10.0.0.11"
    assert shown.notices == (f"service web: no backend is up; its packets are {word}",)


def test_a_refused_reload_is_shown() -> None:
    """How the last reload went is the daemon's word, passed on as it is."""
    gate = Gate()
    gate.reporter.last_reload = ReloadStatus(success=False, timestamp_s=1.0, errors=("wrong",))
    assert gate.snapshot().last_reload.errors == ("wrong",)


def test_a_detached_gateway_has_no_snapshot() -> None:
    """After a detach there is nothing to count, and who asks is told so."""
    gate = Gate()
    gate.datapath.detached = True
    with pytest.raises(MapError, match="was detached"):
        gate.snapshot()


@pytest.mark.parametrize("mode", [Mode.NAT, Mode.DSR])
def test_a_watched_backend_has_its_handshakes(mode: Mode) -> None:
    """All of them, and durations where both directions pass; None where nothing is watched."""
    gate = Gate(service=replace(WEB, mode=mode))
    assert gate.snapshot().services[0].backends[0].handshakes is None
    gate.datapath.watches = True
    (found,) = (b.handshakes for b in gate.snapshot().services[0].backends)
    assert found is not None
    assert (found.begun, found.answered, found.repeated, found.resets) == (10, 9, 1, 2)
    assert (found.exact, found.durations) == ((True, (5, 4)) if mode is Mode.NAT else (False, ()))


def test_an_ejected_backend_is_down_and_says_why() -> None:
    """Whatever probes say; it is up again once it has returned."""
    gate = Gate()
    target = TargetId(POOL.name, WEB1.backend)
    assert gate.reconciler.eject({target: "ejected: 37 of 40 handshakes unanswered in 5 s"})
    assert not gate.reconciler.eject({target: "ejected: 38 of 40 handshakes unanswered in 5 s"})
    gate.reconciler.cycle()
    (found,) = gate.snapshot().services[0].backends
    assert (found.state, found.ejected, found.slots) == (State.DOWN, True, 0)
    assert found.detail == "ejected: 37 of 40 handshakes unanswered in 5 s"
    assert gate.reconciler.vitals.failovers == 1
    assert gate.reconciler.eject({})
    gate.reconciler.cycle()
    (found,) = gate.snapshot().services[0].backends
    assert (found.state, found.ejected) == (State.UP, False)


def test_what_changes_meanwhile_is_not_told() -> None:
    """A report is of one moment, however long it takes to put that into words."""
    gate = Gate()
    gate.reporter.host_notices = ("before",)

    def change(*_: object) -> dict[str, Share]:
        gate.reporter.host_notices = ("after",)
        gate.datapath.detached = True
        return {}

    gate.reporter.shares = change
    assert gate.snapshot().notices == ("before",)


async def test_others_go_first() -> None:
    """Whoever waits for the event loop gets it between two items, not after all of them."""
    made: list[int] = []
    seen: list[int] = []

    def items() -> Iterator[int]:
        for number in range(3):
            made.append(number)
            yield number

    asyncio.get_running_loop().call_soon(lambda: seen.extend(made))
    assert [item async for item in unhurried(items(), 0.0)] == [0, 1, 2]
    assert seen == [0]
