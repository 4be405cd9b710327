"""The plan reaches every goal from every state, and may be cut off after any of its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb_xdp.core.desired import UNREACHABLE, BackendId, BackendRecord, Desired, Structure
from lb_xdp.core.model import BackendKey, Mode, Protocol, ServiceKey
from lb_xdp.core.plan import NO_BACKEND, Observed, Plan, Slots, make_plan
from lb_xdp.core.ring import hand_over, maglev

SERVICES = [ServiceKey(IPv4Address("203.0.113.10"), port, Protocol.TCP) for port in (80, 443, 53)]
BACKENDS = [BackendKey(IPv4Address("10.0.0.10") + number, 80) for number in range(5)]
SLOTS = 13


@dataclass
class Generation:
    """What one pinned generation holds."""

    structure: Structure
    indices: dict[BackendId, int]
    records: dict[BackendId, BackendRecord]
    rings: dict[ServiceKey, Slots]


@dataclass
class Kernel:
    """A kernel in memory: generations by number, and for each interface (ifindex, generation)."""

    generations: dict[int, Generation] = field(default_factory=dict)
    links: dict[str, tuple[int, int]] = field(default_factory=dict)

    def observe(self) -> Observed:
        """Read it as the datapath does: the newest generation that some interface runs."""
        attached = {name: ifindex for name, (ifindex, _) in self.links.items()}
        running = {generation for _, generation in self.links.values()}
        numbers = sorted(running & self.generations.keys()) or sorted(self.generations)
        if not numbers:
            return Observed(attached=attached, outdated=frozenset(attached))
        chosen = self.generations[numbers[-1]]
        outdated = (name for name, (_, number) in self.links.items() if number != numbers[-1])
        return Observed(
            numbers[-1],
            chosen.structure,
            dict(chosen.indices),
            dict(chosen.records),
            dict(chosen.rings),
            attached,
            frozenset(outdated),
        )

    def steps(self, plan: Plan) -> Iterator[Callable[[], object]]:
        """Yield what a plan does, in order, in pieces that are atomic in the kernel."""
        if plan.build:
            yield lambda: self._build(plan)
        for name, ifindex in plan.attach.items():
            yield partial(self.links.update, {name: (ifindex, plan.generation)})
        if plan.build:
            for name in list(self.links):
                yield partial(self._run, name, plan)
        else:
            yield from self._writes(plan, self.generations[plan.generation])
        for name in plan.detach:
            yield partial(self.links.pop, name)
        yield lambda: self._forget_others(plan.generation)

    @staticmethod
    def _writes(plan: Plan, present: Generation) -> Iterator[Callable[[], object]]:
        records: dict[bool, list[Callable[[], object]]] = {True: [], False: []}
        for key, record in plan.records.items():
            records[record.reachable].append(partial(present.records.update, {key: record}))
        yield from records[True]
        for service, slots in plan.rings.items():
            yield partial(present.rings.update, {service: slots})
        yield from records[False]

    def _build(self, plan: Plan) -> None:
        self.generations[plan.generation] = Generation(
            plan.structure, dict(plan.indices), dict(plan.records), dict(plan.rings)
        )

    def _run(self, name: str, plan: Plan) -> None:
        self.links[name] = (self.links[name][0], plan.generation)

    def _forget_others(self, keep: int) -> None:
        self.generations = {keep: self.generations[keep]}

    def apply(self, plan: Plan, *, steps: int | None = None) -> None:
        """Carry a plan out, or its first ``steps``; each step must leave what runs consistent."""
        for number, step in enumerate(self.steps(plan)):
            if number == steps:
                return
            step()
            self.assert_safe()

    def assert_safe(self) -> None:
        """Every program that runs finds a usable record of its own for each index in its rings."""
        for _, number in self.links.values():
            generation = self.generations[number]
            assert len(set(generation.indices.values())) == len(generation.indices)
            known = {i: key for key, i in generation.indices.items() if key in generation.records}
            for service, slots in generation.rings.items():
                named = {known[i] for i in set(slots.tolist()) - {NO_BACKEND}}
                assert {key.service for key in named} <= {service}
                assert all(generation.records[key].reachable for key in named)

    def assert_reached(self, goal: Desired) -> None:
        """Every interface runs the goal, and nothing else is there."""
        (number,) = self.generations
        assert self.links == {name: (index, number) for name, index in goal.interfaces.items()}
        generation = self.generations[number]
        assert generation.structure == goal.structure
        assert generation.records == goal.records
        for service, ring in goal.rings.items():
            found = owners(generation.rings[service], generation.indices)
            wanted = [ring.keys[i] if i < len(ring.keys) else None for i in ring.owner.tolist()]
            assert [key.backend if key else None for key in found] == wanted


def owners(slots: Slots, indices: dict[BackendId, int]) -> list[BackendId | None]:
    by_index = {index: key for key, index in indices.items()}
    return [by_index.get(index) for index in slots.tolist()]


records = st.builds(
    BackendRecord,
    ifindex=st.integers(1, 3),
    mac=st.binary(min_size=6, max_size=6),
    source_mac=st.just(bytes(6)),
    mtu=st.just(1500),
    up=st.booleans(),
    shared=st.booleans(),
)


@st.composite
def goals(draw: st.DrawFn) -> Desired:
    """Draw a goal: services with backends, some of them down or out of reach, on interfaces."""
    modes = draw(st.dictionaries(st.sampled_from(SERVICES), st.sampled_from(Mode), min_size=1))
    known, rings = {}, {}
    for service in modes:
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
    structure = Structure(build, modes, frozenset(known), frozenset(), macs=frozenset())
    return Desired(structure, known, rings, interfaces)


@settings(max_examples=30)
@given(st.lists(goals(), min_size=1, max_size=4))
def test_every_goal_is_reached_and_then_nothing_is_left_to_do(wanted: list[Desired]) -> None:
    """From any state to any goal in one plan; the next plan is empty, remembered rings or not."""
    kernel = Kernel()
    for goal in wanted:
        kernel.apply(make_plan(kernel.observe(), goal))
        kernel.assert_reached(goal)
        observed = kernel.observe()
        assert make_plan(observed, goal).empty
        assert make_plan(replace(observed, applied=goal.rings), goal).empty


@settings(max_examples=30)
@given(st.lists(goals(), min_size=2, max_size=4), st.data())
def test_a_plan_that_is_cut_off_is_safe_and_taken_up_again(
    wanted: list[Desired], data: st.DataObject
) -> None:
    """After any step what runs is consistent, and a new plan from there reaches the goal."""
    kernel = Kernel()
    for goal in wanted:
        plan = make_plan(kernel.observe(), goal)
        kernel.apply(plan, steps=data.draw(st.integers(0, len(list(kernel.steps(plan))))))
    kernel.apply(make_plan(kernel.observe(), wanted[-1]))
    kernel.assert_reached(wanted[-1])


@settings(max_examples=30)
@given(goals(), goals())
def test_an_index_never_changes_its_meaning_within_a_plan(first: Desired, then: Desired) -> None:
    """A new backend gets an index that nobody held, is counted from 0, and index 0 stays none."""
    kernel = Kernel()
    kernel.apply(make_plan(kernel.observe(), first))
    before = kernel.observe().indices
    plan = make_plan(kernel.observe(), then)
    held = {index: key for key, index in before.items()}
    assert all(held.get(index, key) == key for key, index in plan.indices.items())
    assert set(plan.fresh) == set(plan.indices.values()) - set(before.values())
    assert NO_BACKEND not in plan.indices.values()


@settings(max_examples=30)
@given(goals(), goals())
def test_moved_counts_the_slots_that_change_their_backend(first: Desired, then: Desired) -> None:
    """The count is by backend, for services that are in both states."""
    kernel = Kernel()
    kernel.apply(make_plan(kernel.observe(), first))
    before = kernel.observe()
    plan = make_plan(before, then)
    kernel.apply(plan)
    after = kernel.observe()
    for service in first.rings.keys() & then.rings.keys():
        old = owners(before.rings[service], dict(before.indices))
        new = owners(after.rings[service], dict(after.indices))
        changed = sum(a != b for a, b in zip(old, new, strict=True))
        assert plan.moved.get(service, 0) == changed
    assert plan.moved.keys() <= first.rings.keys() & then.rings.keys()


def simple_goal(*, up: bool = True, weight: int = 1, build: int = 1) -> Desired:
    service, (one, two) = SERVICES[0], BACKENDS[:2]
    record = BackendRecord(1, b"\2\0\0\0\0\1", bytes(6), 1500, up=True, shared=False)
    known = {
        BackendId(service, one): record,
        BackendId(service, two): replace(record, up=up),
    }
    weights = {one: 1, two: weight}
    ring = hand_over(maglev(weights, SLOTS), {one, two} if up else {one}, weights)
    structure = Structure(
        build, {service: Mode.NAT}, frozenset(known), frozenset(), macs=frozenset()
    )
    return Desired(structure, known, {service: ring}, {"eth0": 1})


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
    kernel.apply(make_plan(kernel.observe(), simple_goal()))
    plan = make_plan(kernel.observe(), goal)
    assert plan.build == build
    assert plan.generation == 1 + build


def test_unchanged_slots_are_not_written() -> None:
    """A record that changes without its ring (a new MAC) writes that record alone."""
    kernel, goal = Kernel(), simple_goal()
    kernel.apply(make_plan(kernel.observe(), goal))
    identity, record = next(iter(goal.records.items()))
    moved = {**goal.records, identity: replace(record, mac=b"\2\0\0\0\0\2")}
    plan = make_plan(kernel.observe(), replace(goal, records=moved))
    assert (list(plan.records), dict(plan.rings)) == ([identity], {})
