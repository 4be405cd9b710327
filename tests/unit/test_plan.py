"""The plan reaches every goal from every state, and may be cut off after any of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb_xdp.core.desired import (
    UNREACHABLE,
    BackendId,
    BackendRecord,
    Desired,
    Schedule,
    Structure,
    Traits,
)
from lb_xdp.core.model import (
    Address,
    BackendKey,
    Mode,
    Protocol,
    ServiceKey,
    TunnelSources,
)
from lb_xdp.core.plan import Observed, make_plan
from lb_xdp.core.ring import hand_over, maglev
from lb_xdp.core.settle import (
    MARKED,
    NO_BACKEND,
    SETTLED,
    SEVERED,
    UNSETTLED,
    RingImage,
    former_of,
    state_of,
)
from tests.support.plans import Kernel, owners

VIPS: list[Address] = [IPv4Address("203.0.113.10"), IPv6Address("2001:db8::10")]
SERVICES = [
    *(ServiceKey(VIPS[0], port, Protocol.TCP) for port in (80, 443)),
    ServiceKey(VIPS[1], 53, Protocol.UDP),
]
BACKENDS = [
    *(BackendKey(IPv4Address("10.0.0.10") + number, 80) for number in range(3)),
    *(BackendKey(IPv6Address("2001:db8::20") + number, 80) for number in range(2)),
]
SLOTS = 13
NOW_NS, SETTLE_NS = 1_000, 100
PLAIN = Traits(
    Mode.NAT,
    Schedule.HASH,
    tracked=False,
    by_source=False,
    client=False,
    prefix=False,
    reject=False,
    limited=False,
    counted=False,
    stateless=False,
)


def structure_of(
    services: Mapping[ServiceKey, Traits], backends: frozenset[BackendId], build: int = 1
) -> Structure:
    return Structure(
        build, services, backends, frozenset(), frozenset(), (), TunnelSources(), 6080, 1000
    )


records = st.builds(
    BackendRecord,
    ifindex=st.integers(1, 3),
    mac=st.binary(min_size=6, max_size=6),
    source_mac=st.just(bytes(6)),
    mtu=st.just(1500),
    up=st.booleans(),
    shared=st.booleans(),
)


rules = st.builds(
    PLAIN._replace,
    mode=st.sampled_from(Mode),
    tracked=st.booleans(),
    by_source=st.booleans(),
    reset=st.booleans(),
)


@st.composite
def goals(draw: st.DrawFn) -> Desired:
    """Draw a goal: services with backends, some of them down or out of reach, on interfaces."""
    services = draw(st.dictionaries(st.sampled_from(SERVICES), rules, min_size=1))
    known, rings = {}, {}
    for service in services:
        keys = draw(st.sets(st.sampled_from(BACKENDS), min_size=1))
        for key in keys:
            record = draw(st.one_of(st.just(UNREACHABLE), records))
            known[BackendId(service, key)] = record
        weights = {key: draw(st.integers(0, 3)) for key in sorted(keys)}
        live = {key for key in keys if known[BackendId(service, key)].up}
        rings[service] = hand_over(maglev(weights, SLOTS), live, weights)
    build = draw(st.integers(1, 2))
    interfaces = draw(
        st.dictionaries(st.sampled_from(["eth0", "eth1", "eth2"]), st.integers(1, 9), min_size=1)
    )
    structure = structure_of(services, frozenset(known), build)
    settle_ns = {key: 0 if rule.stateless else SETTLE_NS for key, rule in services.items()}
    affinity_s = {key: draw(st.integers(0, 2)) for key in services}
    return Desired(structure, known, rings, interfaces, settle_ns, affinity_s)


@settings(max_examples=30)
@given(st.lists(goals(), min_size=1, max_size=4))
def test_every_goal_is_reached_and_then_nothing_is_left_to_do(wanted: list[Desired]) -> None:
    """From any state to any goal in one plan; the next plan is empty, remembered rings or not."""
    kernel = Kernel()
    for goal in wanted:
        kernel.apply(make_plan(kernel.observe(), goal, NOW_NS))
        kernel.assert_reached(goal)
        observed = kernel.observe()
        assert make_plan(observed, goal, NOW_NS).empty
        assert make_plan(replace(observed, applied=goal), goal, NOW_NS).empty


@settings(max_examples=30)
@given(st.lists(goals(), min_size=2, max_size=4), st.data())
def test_a_plan_that_is_cut_off_is_safe_and_taken_up_again(
    wanted: list[Desired], data: st.DataObject
) -> None:
    """After any step what runs is consistent, and a new plan from there reaches the goal."""
    kernel = Kernel()
    for goal in wanted:
        plan = make_plan(kernel.observe(), goal, NOW_NS)
        kernel.apply(plan, steps=data.draw(st.integers(0, len(list(kernel.steps(plan))))))
    kernel.apply(make_plan(kernel.observe(), wanted[-1], NOW_NS))
    kernel.assert_reached(wanted[-1])


@settings(max_examples=30)
@given(goals(), goals())
def test_an_index_never_changes_its_meaning_within_a_plan(first: Desired, then: Desired) -> None:
    """A new backend gets an index that nobody held, is counted from 0, and index 0 stays none."""
    kernel = Kernel()
    kernel.apply(make_plan(kernel.observe(), first, NOW_NS))
    before = kernel.observe().indices
    plan = make_plan(kernel.observe(), then, NOW_NS)
    held = {index: key for key, index in before.items()}
    assert all(held.get(index, key) == key for key, index in plan.indices.items())
    assert set(plan.fresh) == set(plan.indices.values()) - set(before.values())
    assert NO_BACKEND not in plan.indices.values()


@settings(max_examples=30)
@given(goals(), goals())
def test_moved_counts_the_slots_that_change_their_backend(first: Desired, then: Desired) -> None:
    """The count is by backend, for services that are in both states."""
    kernel = Kernel()
    kernel.apply(make_plan(kernel.observe(), first, NOW_NS))
    before = kernel.observe()
    plan = make_plan(before, then, NOW_NS)
    kernel.apply(plan)
    after = kernel.observe()
    for service in first.rings.keys() & then.rings.keys():
        old = owners(before.rings[service].slots, dict(before.indices))
        new = owners(after.rings[service].slots, dict(after.indices))
        changed = sum(a != b for a, b in zip(old, new, strict=True))
        assert plan.moved.get(service, 0) == changed
    assert plan.moved.keys() <= first.rings.keys() & then.rings.keys()


def simple_goal(
    *,
    up: bool = True,
    weight: int = 1,
    build: int = 1,
    tracked: bool = False,
    by_source: bool = False,
    reset: bool = False,
) -> Desired:
    """Two backends, ONE with weight 1, and what may be changed of it."""
    service, (one, two) = SERVICES[0], BACKENDS[:2]
    record = BackendRecord(1, b"\2\0\0\0\0\1", bytes(6), 1500, up=True, shared=False)
    known = {
        BackendId(service, one): record,
        BackendId(service, two): replace(record, up=up),
    }
    weights = {one: 1, two: weight}
    ring = hand_over(maglev(weights, SLOTS), {one, two} if up else {one}, weights)
    rules = PLAIN._replace(tracked=tracked, by_source=by_source, reset=reset)
    return Desired(
        structure_of({service: rules}, frozenset(known), build),
        known,
        {service: ring},
        {"eth0": 1},
        {service: SETTLE_NS},
        {service: 0},
    )


@pytest.mark.parametrize(
    ("goal", "build"),
    [
        (simple_goal(up=False), False),
        (simple_goal(weight=5), False),
        (simple_goal(build=2), True),
    ],
    ids=["health", "weight", "other sources"],
)
def test_only_a_change_of_structure_builds(goal: Desired, *, build: bool) -> None:
    """Health and weights are written in place; another program is another generation."""
    kernel = Kernel()
    kernel.apply(make_plan(kernel.observe(), simple_goal(), NOW_NS))
    plan = make_plan(kernel.observe(), goal, NOW_NS)
    assert plan.build == build
    assert plan.generation == 1 + build


def test_unchanged_slots_are_not_written() -> None:
    """A record that changes without its ring (a new MAC) writes that record alone."""
    kernel, goal = Kernel(), simple_goal()
    kernel.apply(make_plan(kernel.observe(), goal, NOW_NS))
    identity, record = next(iter(goal.records.items()))
    moved = {**goal.records, identity: replace(record, mac=b"\2\0\0\0\0\2")}
    plan = make_plan(kernel.observe(), replace(goal, records=moved), NOW_NS)
    assert (list(plan.records), dict(plan.rings)) == ([identity], {})


ONE = SERVICES[0]


def applied(*goals: Desired, now_ns: int = NOW_NS) -> Observed:
    """Return what the kernel holds after these goals, the last one remembered."""
    kernel = Kernel()
    for goal in goals:
        kernel.apply(make_plan(kernel.observe(), goal, now_ns))
    return replace(kernel.observe(), applied=goals[-1])


def states(ring: RingImage) -> set[int]:
    return set(state_of(ring.slots).tolist())


def test_a_moved_slot_is_unsettled_until_its_time_is_up() -> None:
    """An in-place change leaves unsettled slots; at their time, and not before, they are marked."""
    goal = simple_goal(weight=5)
    observed = applied(simple_goal(), goal)
    assert states(observed.rings[ONE]) == {SETTLED, UNSETTLED}
    assert observed.rings[ONE].unsettled_until_ns == NOW_NS + SETTLE_NS
    assert make_plan(observed, goal, NOW_NS + SETTLE_NS - 1).empty
    plan = make_plan(observed, goal, NOW_NS + SETTLE_NS)
    assert states(plan.rings[ONE]) == {SETTLED, MARKED}
    assert plan.moved == {ONE: 0}


def test_a_new_generation_takes_unsettled_slots_along() -> None:
    """Another program knows as much about the flows as the one before."""
    goal = simple_goal(weight=5)
    observed = applied(simple_goal(), goal)
    plan = make_plan(observed, replace(goal, structure=simple_goal(build=2).structure), NOW_NS)
    assert plan.build
    assert np.array_equal(plan.rings[ONE].slots, observed.rings[ONE].slots)
    assert plan.rings[ONE].unsettled_until_ns == observed.rings[ONE].unsettled_until_ns


def test_marks_go_when_records_are_counted() -> None:
    """Of the marked slots only those with records stay marked; then nothing is left to do."""
    goal = simple_goal(weight=5)
    observed = applied(simple_goal(), goal)
    plan = make_plan(observed, goal, NOW_NS + SETTLE_NS)
    marked = np.flatnonzero(state_of(plan.rings[ONE].slots) == MARKED)
    observed = replace(observed, rings=plan.rings, recorded={ONE: marked[:1]})
    after = make_plan(observed, goal, NOW_NS + SETTLE_NS).rings[ONE]
    assert np.flatnonzero(state_of(after.slots)).tolist() == marked[:1].tolist()
    observed = replace(observed, rings={ONE: after})
    assert make_plan(observed, goal, NOW_NS + SETTLE_NS).empty


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (simple_goal(tracked=True), simple_goal(), MARKED),
        (simple_goal(), simple_goal(tracked=True), SETTLED),
        (simple_goal(by_source=True), simple_goal(), MARKED),
        (simple_goal(), simple_goal(by_source=True), MARKED),
    ],
    ids=["no longer tracked", "tracked now", "by flow now", "by source now"],
)
def test_flows_that_fall_elsewhere_are_looked_up(
    before: Desired, after: Desired, expected: int
) -> None:
    """Records of flows that may be on any slot count until they are over."""
    plan = make_plan(applied(before), after, NOW_NS)
    assert states(plan.rings[ONE]) == {expected}


def test_where_flows_are_reset_slots_of_the_dead_are_severed() -> None:
    """Until their time is up, or the service wants it no more; who comes back has its slots."""
    goal, dead = simple_goal(reset=True), simple_goal(reset=True, up=False)
    observed = applied(goal, dead)
    image = observed.rings[ONE]
    assert states(image) == {SETTLED, SEVERED}
    assert image.unsettled_until_ns == NOW_NS + SETTLE_NS
    index = observed.indices[BackendId(ONE, BACKENDS[1])]
    severed = state_of(image.slots) == SEVERED
    assert set(former_of(image.slots)[severed].tolist()) == {index}
    assert make_plan(observed, dead, NOW_NS + 1).empty
    over = make_plan(observed, dead, NOW_NS + SETTLE_NS).rings[ONE]
    back = make_plan(observed, goal, NOW_NS + 1).rings[ONE]
    structure = simple_goal(up=False).structure
    rehashed = make_plan(observed, replace(dead, structure=structure), NOW_NS + 1).rings[ONE]
    assert [states(ring) for ring in (over, back, rehashed)] == [{SETTLED, MARKED}] * 3


def test_who_left_for_good_is_no_former_backend() -> None:
    """Its index may be given to another: a severed slot forgets it, and stays severed."""
    before = applied(simple_goal(reset=True), simple_goal(reset=True, up=False))
    goal = simple_goal(reset=True, up=False)
    gone = BackendId(ONE, BACKENDS[1])
    records = {key: record for key, record in goal.records.items() if key != gone}
    rules = dict(goal.structure.services)
    alone = replace(
        goal,
        records=records,
        rings={ONE: maglev({BACKENDS[0]: 1}, SLOTS)},
        structure=structure_of(rules, frozenset(records), 1),
    )
    image = make_plan(before, alone, NOW_NS + 1).rings[ONE]
    assert states(image) == {SETTLED, SEVERED}
    assert set(former_of(image.slots).tolist()) == {0}


def test_a_changed_affinity_or_settle_time_is_written() -> None:
    """A ring's head follows the configuration; without records there is nothing to settle."""
    goal = simple_goal(weight=5)
    observed = applied(simple_goal(), goal)
    longer = make_plan(observed, replace(goal, affinity_s={ONE: 7}), NOW_NS)
    assert longer.rings[ONE].affinity_s == 7
    without = make_plan(observed, replace(goal, settle_ns={ONE: 0}), NOW_NS)
    assert states(without.rings[ONE]) == {SETTLED}
    assert (longer.build, without.build) == (False, False)


def test_a_ring_that_stays_is_not_made_again() -> None:
    """The same Ring object is skipped: a thousand services cost nothing when one changes."""
    goal = simple_goal()
    observed = replace(applied(goal), rings={ONE: RingImage(np.empty(0, np.uint32))})
    assert make_plan(observed, goal, NOW_NS).empty
