"""A plan cut off after every single step: safe there, and the next plan reaches the goal."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from lb_xdp.core.desired import Desired
from lb_xdp.core.plan import INDICES, Observed, Plan, make_plan
from lb_xdp.core.settle import NO_BACKEND, SEVERED, current_of, former_of, state_of
from tests.support.plans import Kernel
from tests.unit.test_plan import NOW_NS, SETTLE_NS, goals, simple_goal

IFINDEX = {"eth0": 1, "eth1": 2, "eth2": 3}


def with_ways(goal: Desired) -> Desired:
    """Have every backend that is reachable be so by one of the goal's interfaces."""
    interfaces = {name: IFINDEX[name] for name in goal.interfaces}
    ours = sorted(interfaces.values())
    records = {
        key: replace(record, ifindex=ours[record.ifindex % len(ours)])
        if record.reachable
        else record
        for key, record in goal.records.items()
    }
    return replace(goal, records=records, interfaces=interfaces)


def cuts(kernel: Kernel, plan: Plan) -> Iterator[Kernel]:
    """Yield what is there after no step of a plan, after one, after two, up to all of them."""
    for number in itertools.count():
        there = copy.deepcopy(kernel)
        complete = there.apply(plan, steps=number)
        yield there
        if complete:
            return


def assert_meanings(kernel: Kernel) -> None:
    """An index means one backend in all that runs."""
    meaning: dict[int, object] = {}
    for _, number in kernel.links.values():
        for key, index in kernel.generations[number].indices.items():
            assert meaning.setdefault(index, key) == key


def assert_ways(kernel: Kernel, before: Kernel) -> None:
    """Who is named by a program can be reached by an interface that runs one.

    The former backend of a severed slot is down and gets nothing, so it needs no way.
    Of programs on interfaces that were there before: one on a new interface sees its first packet
    when the others are just being put in place. The former backend of a severed slot gets none.
    """
    attached = {ifindex for ifindex, _ in kernel.links.values()}
    for name in kernel.links.keys() & before.links.keys():
        generation = kernel.generations[kernel.links[name][1]]
        names = {index: key for key, index in generation.indices.items()}
        for image in generation.rings.values():
            former = former_of(image.slots)[state_of(image.slots) != SEVERED]
            named = {*current_of(image.slots).tolist(), *former.tolist()}
            ways = {generation.records[names[i]].ifindex for i in named - {NO_BACKEND}}
            assert ways <= attached


@settings(max_examples=60, deadline=None)
@given(goals(), goals())
def test_a_plan_is_safe_after_each_of_its_steps(first: Desired, then: Desired) -> None:
    """Whatever was the last step done, what runs is whole, and a new plan reaches the goal."""
    kernel, goal = Kernel(), with_ways(then)
    kernel.apply(make_plan(kernel.observe(), with_ways(first), NOW_NS))
    plan = make_plan(kernel.observe(), goal, NOW_NS)
    for there in cuts(kernel, plan):
        there.assert_safe()
        assert_meanings(there)
        assert_ways(there, kernel)
        there.apply(make_plan(there.observe(), goal, NOW_NS))
        there.assert_reached(goal)
        assert make_plan(there.observe(), goal, NOW_NS).empty


@settings(max_examples=40, deadline=None)
@given(goals(), goals(), goals(), st.integers(0, 2 * SETTLE_NS))
def test_a_plan_that_was_cut_gives_way_to_another(
    first: Desired, then: Desired, other: Desired, later_ns: int
) -> None:
    """The goal may have changed by then, and time have passed; nothing of the cut plan is left."""
    kernel, goal = Kernel(), with_ways(other)
    kernel.apply(make_plan(kernel.observe(), with_ways(first), NOW_NS))
    plan = make_plan(kernel.observe(), with_ways(then), NOW_NS)
    for cut in cuts(kernel, plan):
        for there in cuts(cut, make_plan(cut.observe(), goal, NOW_NS + later_ns)):
            there.assert_safe()
            assert_meanings(there)
        there.assert_reached(goal)


def test_reserved_indices_are_left_alone_while_there_are_others() -> None:
    """A new backend gets none that another generation's programs still use."""
    goal = simple_goal()
    observed = Observed(reserved=frozenset({1, 2}))
    assert set(make_plan(observed, goal, NOW_NS).indices.values()) == {3, 4}
    every = Observed(reserved=frozenset(range(1, INDICES)))
    assert set(make_plan(every, goal, NOW_NS).indices.values()) == {1, 2}
