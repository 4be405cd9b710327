"""A preview says what a reload does: the slots that move, the flows that this touches."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb_xdp.config.difference import service_differences
from lb_xdp.core.collect import CLOSED
from lb_xdp.core.desired import BackendId, traits
from lb_xdp.core.flow_list import FlowRecords
from lb_xdp.core.model import Config, Protocol
from lb_xdp.core.plan import Observed, Plan
from lb_xdp.core.preview import (
    ServiceChange,
    ServicePreview,
    largest_share,
    moved_shares,
    service_previews,
)
from lb_xdp.core.ring import RING_SLOTS
from lb_xdp.core.settle import current_of
from lb_xdp.core.topology import Interface, NextHop, Topology
from lb_xdp.core.touched import Basis, Begun, Evidence, FlowsTouched, live_flows
from lb_xdp.datapath.layout import layout
from lb_xdp.reconciler import Reconciler
from tests.support.flows import flow_keys
from tests.support.writings import VIP, config

MAC = b"\2\0\0\0\0\1"
TOPOLOGY = Topology(
    {"eth0": Interface("eth0", 1, MAC, 1500, up=True)},
    {ip_address(f"10.0.0.{10 + n}"): NextHop(1, MAC, MAC, None, on_link=True) for n in range(1, 9)},
)
NOTHING = Evidence({}, None)
RECENT = 1000


class Memory:
    """A datapath that remembers what it was told."""

    def apply(self, plan: Plan, observed: Observed) -> Observed:
        return replace(
            observed,
            generation=plan.generation,
            structure=plan.structure,
            indices=plan.indices,
            records=plan.records if plan.build else {**observed.records, **plan.records},
            rings=plan.rings if plan.build else {**observed.rings, **plan.rings},
            attached=dict(plan.interfaces),
        )

    def observe(self) -> Observed:
        return Observed()


def at_work(of: Config) -> Reconciler:
    """Return a reconciler that has reached a configuration."""
    reconciler = Reconciler(of, Memory(), Observed(), 1, lambda: 100.0, timestamp=lambda: 100.0)
    reconciler.topology = TOPOLOGY
    reconciler.cycle()
    return reconciler


def seen(
    reconciler: Reconciler, after: Config, evidence: Evidence = NOTHING
) -> tuple[tuple[ServicePreview, ...], Plan]:
    """Return what another configuration would change, and the plan for it."""
    before = reconciler.config
    reconciler.consider(after)
    plan, _ = reconciler.plan(after)
    found = service_previews(
        before, after, service_differences(before, after), (reconciler.observed, plan), evidence
    )
    return found, plan


def touched(before: Config, after: Config, evidence: Evidence | None = None) -> FlowsTouched:
    """Return which flows of the first service a change touches; 1,000 began lately."""
    reconciler = at_work(before)
    begun = Begun(60.0, {before.services[0].key: RECENT})
    (found, *_), _ = seen(reconciler, after, evidence or Evidence({}, begun))
    return found.flows


weights = st.lists(st.sampled_from([-1, 0, 1, 50, 100, 300]), min_size=3, max_size=5).filter(
    lambda found: any(weight > 0 for weight in found)
)


@settings(max_examples=40, deadline=None)
@given(weights, weights, st.sampled_from(["maglev", "source_hash", "round_robin"]))
def test_what_was_previewed_is_what_moves(
    first: list[int], second: list[int], algorithm: str
) -> None:
    """Slots of the preview are those whose backend differs in the kernel after the reload."""
    reconciler = at_work(config(*first, algorithm=algorithm))
    after = config(*second, algorithm=algorithm)
    former = dict(reconciler.observed.rings)
    previews, plan = seen(reconciler, after)
    share = largest_share(reconciler.config, after, plan)
    reconciler.adopt(after)
    reconciler.cycle()
    ((key, image),) = reconciler.observed.rings.items()
    moved = int((current_of(former[key].slots) != current_of(image.slots)).sum())
    assert sum(preview.moved_slots for preview in previews) == moved
    assert share == pytest.approx(moved / RING_SLOTS)


def test_what_is_equal_is_no_change() -> None:
    """The same file again has no preview of any service, and moves nothing."""
    reconciler = at_work(config(100, 200))
    found, plan = seen(reconciler, config(100, 200))
    assert (found, plan.empty) == ((), True)
    assert largest_share(reconciler.config, config(100, 200), plan) == 0


def test_a_looked_at_configuration_leaves_no_trace() -> None:
    """What was considered and not adopted is not known any more, and rings are those before."""
    reconciler = at_work(config(100, 200))
    rings = dict(reconciler.observed.rings)
    new = config(100, 200, 300, health={"type": "tcp"})
    seen(reconciler, new)
    assert reconciler.undecided(new)
    reconciler.disregard()
    with pytest.raises(KeyError):
        reconciler.undecided(new)
    assert reconciler.cycle() is None
    assert reconciler.observed.rings == rings


def test_services_that_come_and_go() -> None:
    """A new service has no flows to lose; one that goes loses all, and counts as all its slots."""
    before, after = config(100, 200), config(100, 200, vip="203.0.113.11")
    reconciler = at_work(before)
    (new, gone), plan = seen(reconciler, after, Evidence({}, Begun(60.0, {})))
    assert (new.change, new.added) == (ServiceChange.ADDED, ("web1", "web2"))
    assert (new.moved_slots, new.flows.broken) == (0, 0)
    assert (gone.change, gone.removed) == (ServiceChange.REMOVED, ("web1", "web2"))
    assert (gone.moved_slots, gone.moved_share) == (RING_SLOTS, 1.0)
    assert largest_share(before, after, plan) == 1.0


def test_the_service_that_moves_most_comes_first() -> None:
    """A refusal names the worst ones."""
    reconciler = at_work(config(100, 100))
    after = config(100, 300)
    _, plan = seen(reconciler, after)
    ((service, share),) = moved_shares(after, plan)
    assert service.name == "web"
    assert share == pytest.approx(0.25, abs=0.01)
    assert largest_share(reconciler.config, after, plan) == share


def records(before: Reconciler, *flows: tuple[int, str, int]) -> Evidence:
    """Return records of flows: client's port, address of the backend, state."""
    indices = {
        str(identity.backend.address): index for identity, index in before.observed.indices.items()
    }
    source, vip = ip_address("192.0.2.7"), ip_address(VIP)
    keys = flow_keys([(source, vip, port, 80, Protocol.TCP.number) for port, _, _ in flows])
    values = np.zeros(len(flows), layout().structs["lb_flow"])
    values["backend"] = [indices[address] for _, address, _ in flows]
    values["state"] = [state for _, _, state in flows]
    services = {service.key: traits(service) for service in before.config.services}
    return Evidence(live_flows(FlowRecords(keys, values, 0, 250), services), None)


TRACKED: dict[str, Any] = {"algorithm": "least_connections"}


def test_recorded_flows_are_counted() -> None:
    """Those of a backend that goes at once break, others stay; ended ones count for nothing."""
    before = config(100, 100, **TRACKED)
    reconciler = at_work(before)
    ports = range(1024, 1064)
    evidence = records(
        reconciler,
        *((port, "10.0.0.11", 0) for port in ports),
        (9, "10.0.0.12", 0),
        (10, "10.0.0.11", CLOSED),
    )
    (kept,), _ = seen(reconciler, config(-1, 100, **TRACKED), evidence)
    assert (kept.flows.basis, kept.flows.broken) == (Basis.RECORDED, 0)
    assert 0 < kept.flows.moved < 41
    assert kept.flows.how == "every flow is recorded: 41 now"
    (cut,), _ = seen(reconciler, config(-1, 100, drain_timeout=0, **TRACKED), evidence)
    assert cut.flows.broken == 40


@pytest.mark.parametrize(
    ("second", "moved", "broken"),
    [
        ({"weights": (100, 300)}, 250, 0),
        ({"weights": (-1, 100)}, 500, 0),
        ({"weights": (-1, 100), "drain_timeout": 0}, 0, 500),
        ({"mode": "dsr"}, 0, 1000),
        ({"algorithm": "source_hash"}, 0, 500),
        ({"vip": "203.0.113.11"}, 0, 1000),
        ({"weights": (100, 300), "session": {"flows": "none"}}, 0, 250),
    ],
    ids=["weight", "drained", "cut", "mode", "hashed anew", "gone", "no records"],
)
def test_flows_without_records_are_estimated(
    second: dict[str, Any], moved: int, broken: int
) -> None:
    """By the share of slots of those that began lately; what breaks is what nobody can carry."""
    changed = {"algorithm": "maglev", **second}
    after = config(*changed.pop("weights", (100, 100)), **changed)
    before = config(100, 100)
    (found, *others), _ = seen(
        at_work(before), after, Evidence({}, Begun(60.0, {before.services[0].key: RECENT}))
    )
    gone = others[0] if others else found
    assert gone.flows.basis is Basis.ESTIMATED
    assert gone.flows.moved == pytest.approx(moved, abs=20)
    assert gone.flows.broken == pytest.approx(broken, abs=20)
    assert gone.flows.how.endswith("1000 flows that began in the last 60 s")


def test_a_change_between_tunnels_breaks_nothing() -> None:
    """A backend gets the client's packet as it is from dsr and from both tunnels."""
    found = touched(config(100, 100, mode="ipip"), config(100, 100, mode="gue"))
    assert (found.moved, found.broken) == (0, 0)


def test_what_cannot_be_known_is_said() -> None:
    """Neither of udp nor right after a start there is a number; 0 would be a lie without a word."""
    udp = {"protocol": "udp"}
    found = touched(config(100, 100, **udp), config(100, 300, **udp))
    assert (found.basis, "neither recorded nor counted" in found.how) == (Basis.UNKNOWN, True)
    early = touched(config(100, 100), config(100, 300), NOTHING)
    assert (early.basis, "long enough" in early.how) == (Basis.UNKNOWN, True)


def test_what_would_be_refused_has_no_numbers() -> None:
    """Then the differences of the file are all there is."""
    before, after = config(100, 100), config(100, 300)
    (found,) = service_previews(before, after, service_differences(before, after), None, NOTHING)
    assert (found.moved_slots, found.flows.basis) == (0, Basis.UNKNOWN)
    assert found.weights[0].after == 300


def test_backends_of_other_services_are_not_leaving() -> None:
    """Only a service's own backends that go at once break its flows."""
    before = config(100, 100)
    reconciler = at_work(before)
    (found,), plan = seen(reconciler, config(100, 101))
    assert {identity.service for identity in plan.indices} == {before.services[0].key}
    assert all(isinstance(identity, BackendId) for identity in plan.indices)
    assert found.flows.broken == 0
