"""Slots settle in time: when the reconciler wants a cycle, and what it takes from records."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import numpy as np
import pytest

from lb_xdp.core.model import Backend, BackendName, Config, Mode
from lb_xdp.core.plan import Observed, Plan
from lb_xdp.core.settle import MARKED, SETTLED, UNSETTLED, state_of
from lb_xdp.reconciler import Reconciler
from tests.support.one_service import config_of, topology_of

ADDRESSES = [IPv4Address("10.0.0.11"), IPv4Address("10.0.0.12")]
TOPOLOGY = topology_of(*ADDRESSES)


def config(*weights: int) -> Config:
    backends = (
        Backend(BackendName(str(address)), address, 80, weight)
        for address, weight in zip(ADDRESSES, weights, strict=False)
    )
    return config_of(*backends, mode=Mode.DSR)


class Memory:
    """A datapath that remembers what it was told."""

    def apply(self, plan: Plan, observed: Observed) -> Observed:
        return replace(
            observed,
            generation=plan.generation,
            structure=plan.structure,
            indices=plan.indices,
            records={**observed.records, **plan.records},
            rings={**observed.rings, **plan.rings},
            attached=dict(plan.interfaces),
        )

    def observe(self) -> Observed:
        return Observed()


class Change:
    """A reconciler whose ring has just changed, and its clock."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.reconciler = Reconciler(config(1, 1), Memory(), Observed(), 1, lambda: self.now_s)
        self.reconciler.topology = TOPOLOGY
        self.reconciler.cycle()
        self.reconciler.adopt(config(1, 5))
        self.reconciler.cycle()

    @property
    def states(self) -> set[int]:
        (ring,) = self.reconciler.observed.rings.values()
        return set(state_of(ring.slots).tolist())

    def wait_until_settled(self) -> None:
        self.now_s += 900
        self.reconciler.cycle()


@pytest.fixture
def changed() -> Change:
    return Change()


def test_the_deadline_is_the_end_of_the_settle_time(changed: Change) -> None:
    """A cycle at the deadline marks what was unsettled; then there is no deadline any more."""
    assert changed.reconciler.next_deadline_ns() == 1000 * 10**9
    assert changed.states == {SETTLED, UNSETTLED}
    assert changed.reconciler.cycle() is None
    changed.wait_until_settled()
    assert changed.states == {SETTLED, MARKED}
    assert changed.reconciler.next_deadline_ns() is None


def test_marks_go_after_a_collection(changed: Change) -> None:
    """Records that are left keep their slots marked; when none is, all slots are settled."""
    changed.wait_until_settled()
    marked = changed.reconciler.marked()
    ((service, image),) = marked.items()
    still = np.flatnonzero(state_of(image.slots) == MARKED)[:3]
    assert changed.reconciler.on_collected(marked, {service: still})
    changed.reconciler.cycle()
    (ring,) = changed.reconciler.observed.rings.values()
    assert np.flatnonzero(state_of(ring.slots)).tolist() == still.tolist()
    marked = changed.reconciler.marked()
    assert not changed.reconciler.on_collected(marked, {service: still})
    assert changed.reconciler.on_collected(marked, {service: still[:0]})
    changed.reconciler.cycle()
    assert changed.states == {SETTLED}
    assert changed.reconciler.marked() == {}


def test_a_ring_that_changed_meanwhile_keeps_its_marks(changed: Change) -> None:
    """Records that were read before a change say nothing of those added after it."""
    changed.wait_until_settled()
    marked = changed.reconciler.marked()
    changed.reconciler.adopt(config(1, 4))
    changed.reconciler.cycle()
    assert not changed.reconciler.on_collected(marked, {key: np.empty(0, int) for key in marked})
    assert MARKED in changed.states


def test_nothing_is_known_of_a_service_that_was_not_counted(changed: Change) -> None:
    """A service that the collection knew nothing of keeps its marks."""
    changed.wait_until_settled()
    assert not changed.reconciler.on_collected(changed.reconciler.marked(), {})
