"""A kernel in memory that plans are carried out on, and cut off in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from lb_xdp.core.desired import BackendId, BackendRecord, Desired, Structure
from lb_xdp.core.model import ServiceKey
from lb_xdp.core.plan import Observed, Plan
from lb_xdp.core.settle import (
    NO_BACKEND,
    SEVERED,
    UNSETTLED,
    RingImage,
    Slots,
    current_of,
    former_of,
    state_of,
)


@dataclass
class Generation:
    """What one pinned generation holds."""

    structure: Structure
    indices: dict[BackendId, int]
    records: dict[BackendId, BackendRecord]
    rings: dict[ServiceKey, RingImage]


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
            frozenset(index for n in numbers[:-1] for index in self.generations[n].indices.values())
            - set(chosen.indices.values()),
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
        for service, image in plan.rings.items():
            yield partial(present.rings.update, {service: image})
        yield from records[False]

    def _build(self, plan: Plan) -> None:
        self.generations[plan.generation] = Generation(
            plan.structure, dict(plan.indices), dict(plan.records), dict(plan.rings)
        )

    def _run(self, name: str, plan: Plan) -> None:
        self.links[name] = (self.links[name][0], plan.generation)

    def _forget_others(self, keep: int) -> None:
        self.generations = {keep: self.generations[keep]}

    def apply(self, plan: Plan, *, steps: int | None = None) -> bool:
        """Carry a plan out, or its first ``steps``; each step must leave what runs consistent.

        Return whether that was all of it.
        """
        for number, step in enumerate(self.steps(plan)):
            if number == steps:
                return False
            step()
            self.assert_safe()
        return True

    def assert_safe(self) -> None:
        """Every program that runs finds a usable record of its own for each index in its rings.

        The former backend of a severed slot may be out of reach: it is asked whether it is up.
        """
        for _, number in self.links.values():
            generation = self.generations[number]
            assert len(set(generation.indices.values())) == len(generation.indices)
            known = {i: key for key, i in generation.indices.items() if key in generation.records}
            for service, image in generation.rings.items():
                present, former = current_of(image.slots), former_of(image.slots)
                states = state_of(image.slots)
                waits = bool(np.isin(states, (UNSETTLED, SEVERED)).any())
                assert bool(image.unsettled_until_ns) == waits
                dead = {known[i] for i in set(former[states == SEVERED].tolist()) - {NO_BACKEND}}
                used = {*present.tolist(), *former[states != SEVERED].tolist()} - {NO_BACKEND}
                named = {known[i] for i in used}
                assert {key.service for key in named | dead} <= {service}
                assert all(generation.records[key].reachable for key in named)

    def assert_reached(self, goal: Desired) -> None:
        """Every interface runs the goal, and nothing else is there."""
        (number,) = self.generations
        assert self.links == {name: (index, number) for name, index in goal.interfaces.items()}
        generation = self.generations[number]
        assert generation.structure == goal.structure
        assert generation.records == goal.records
        for service, ring in goal.rings.items():
            found = owners(generation.rings[service].slots, generation.indices)
            wanted = [ring.keys[i] if i < len(ring.keys) else None for i in ring.owner.tolist()]
            assert [key.backend if key else None for key in found] == wanted


def owners(slots: Slots, indices: dict[BackendId, int]) -> list[BackendId | None]:
    by_index = {index: key for key, index in indices.items()}
    return [by_index.get(index) for index in current_of(slots).tolist()]
