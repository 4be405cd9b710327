"""The watcher: what it reads, whom it has probed, and what the reconciler hears of ejections."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

import pytest

from lb_xdp.core.desired import BackendId
from lb_xdp.core.event import Event
from lb_xdp.core.model import (
    Backend,
    BackendKey,
    BackendName,
    CheckKind,
    Config,
    Detect,
    Gateway,
    HealthCheck,
    Mode,
    Pool,
    Protocol,
    Service,
    ServiceName,
    XdpMode,
)
from lb_xdp.core.plan import Observed, Plan
from lb_xdp.core.targets import TargetId
from lb_xdp.core.topology import Interface, NextHop, Topology
from lb_xdp.datapath.counters import WatchCount
from lb_xdp.reconciler import Reconciler
from lb_xdp.watcher import Watcher

ADDRESSES = [IPv4Address(f"10.0.0.1{n}") for n in (1, 2, 3)]
BACKENDS = tuple(Backend(BackendName(f"b{n}"), a, 80) for n, a in enumerate(ADDRESSES, 1))
POOL = Pool("web", BACKENDS, HealthCheck(CheckKind.NONE), detect=Detect(eject=True, base_time_s=9))
WEB = Service(ServiceName("web"), IPv4Address("203.0.113.10"), 80, Protocol.TCP, Mode.NAT, POOL)
ALSO = replace(WEB, name=ServiceName("also"), vip=IPv4Address("203.0.113.11"))
DNS = replace(WEB, name=ServiceName("dns"), protocol=Protocol.UDP)
PLAIN = replace(WEB, name=ServiceName("plain"), vip=IPv4Address("203.0.113.12"),
                pool=replace(POOL, name="plain", detect=None))  # fmt: skip
GATEWAY = Gateway("gw1", ("eth0",), XdpMode.AUTO, "/run/api.sock", None)
HOP = NextHop(2, bytes(6), bytes(5) + b"\1", None, on_link=True)
TOPOLOGY = Topology(
    {"eth0": Interface("eth0", 2, bytes(6), 1500, up=True)}, dict.fromkeys(ADDRESSES, HOP)
)
THIRD = TargetId("web", BackendKey(ADDRESSES[2], 80))


class Kernel:
    """Does what plans say, as far as it matters here."""

    def apply(self, plan: Plan, observed: Observed) -> Observed:
        return replace(
            observed,
            structure=plan.structure,
            indices=plan.indices,
            records={**observed.records, **plan.records},
            rings={**observed.rings, **plan.rings},
            attached=dict(plan.interfaces),
        )

    def observe(self) -> Observed:
        return Observed()


@dataclass
class Gate:
    """A watcher, a clock, and handshakes of three backends; the third answers none of its own."""

    services: tuple[Service, ...] = (WEB,)
    now_s: float = 100.0
    seconds: int = 0
    reads: int = 0
    changes: int = 0
    probed: list[TargetId] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = Config(GATEWAY, self.services)
        self.reconciler = Reconciler(config, Kernel(), Observed(), 1, lambda: self.now_s)
        self.reconciler.topology = TOPOLOGY
        self.reconciler.cycle()
        self.watcher = Watcher(
            self.reconciler,
            self,
            probe_now=self.probed.append,
            changed=self.on_change,
            record=self.events.append,
            clock=lambda: self.now_s,
        )

    def on_change(self) -> None:
        self.changes += 1
        self.reconciler.cycle()

    def watch_counts(self, indices: Mapping[BackendId, int]) -> dict[BackendId, WatchCount]:
        self.reads += 1
        return {
            identity: WatchCount(begun=50 * self.seconds, answered=50 * self.seconds * answers)
            for identity in indices
            if identity.service in {WEB.key, ALSO.key}
            for answers in [identity.backend != THIRD.backend]
        }

    def pass_seconds(self, count: int) -> None:
        for _ in range(count):
            self.now_s += 1
            self.seconds += 1
            asyncio.run(self.watcher.look())

    def up(self) -> set[str]:
        records = self.reconciler.observed.records
        return {
            backend.name
            for service, backend in self.reconciler.config.backends()
            if records[BackendId(service.key, backend.key)].up
        }


def test_a_deaf_backend_is_probed_then_ejected_then_back() -> None:
    """Events in this order, each once; the records follow, and the cycles that write them."""
    gate = Gate()
    gate.pass_seconds(4)
    assert (gate.up(), set(gate.probed), gate.changes) == ({"b1", "b2"}, {THIRD}, 1)
    assert [(e.kind.value, e.service, e.backend) for e in gate.events] == [
        ("suspected", "web", "b3"), ("ejected", "web", "b3"),
    ]  # fmt: skip
    assert gate.events[1].cause == "100 of 100 handshakes unanswered in 3 s; for 9 s"
    gate.pass_seconds(9)
    assert (gate.up(), gate.changes) == ({"b1", "b2", "b3"}, 2)
    assert gate.events[-1].kind.value == "returned"


def test_a_pool_of_several_services_is_judged_as_one() -> None:
    """What is seen in each counts together, and an ejection is from all of them, UDP included."""
    gate = Gate((WEB, ALSO, DNS))
    gate.pass_seconds(4)
    assert gate.up() == {"b1", "b2"}
    assert [e.service for e in gate.events] == ["web", "also", "dns"] * 2
    assert gate.events[0].cause.startswith("100 of 100 ")


def test_nothing_is_read_where_nothing_is_asked_for() -> None:
    """Without a pool that has detect the kernel is left alone."""
    gate = Gate((PLAIN,))
    gate.pass_seconds(5)
    assert (gate.reads, gate.events) == (0, [])


@pytest.mark.parametrize("service", [PLAIN, replace(WEB, pool=replace(POOL, detect=None))])
def test_a_reload_without_detect_ends_an_ejection(service: Service) -> None:
    """Who was out is back at once: nobody would ever bring it back otherwise."""
    gate = Gate()
    gate.pass_seconds(4)
    gate.reconciler.adopt(Config(GATEWAY, (service,)))
    gate.pass_seconds(1)
    assert gate.up() == {"b1", "b2", "b3"}
    reads = gate.reads
    gate.pass_seconds(1)
    assert gate.reads == reads
