"""From what is to what should be: the steps, and nothing but the steps.

A plan is made from an ``Observed`` (read from the kernel, or what the last plan left) and a
``Desired``. It is a value: whoever applies it does not decide anything, and whoever is cut off
half-way reads the kernel again and plans again.

Invariants, whatever step is the last one done:
 - a ring refers only to indices whose records can be used (records before rings, those of backends
   that can not be reached any more after them);
 - an interface that a backend is reached by runs the program before a ring names that backend;
 - an index keeps its meaning while any packet can see it: a freed one is given out again only by a
   later plan, to a generation that starts its counters at 0;
 - a new generation is complete before the first interface runs it, and the old one stays until the
   last interface has left it.
numpy is allowed here: rings are arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt

from lb_xdp.core.desired import BackendId, BackendRecord, Desired, Structure
from lb_xdp.core.model import ServiceKey
from lb_xdp.core.ring import EMPTY, Ring

INDICES = 32_768
"""How many backend indices there are: twice what a configuration may hold, so that all backends can
be replaced at once."""

NO_BACKEND = 0
"""The index that stands for none in a ring; no backend ever has it."""

Slots = npt.NDArray[np.uint32]
"""A ring as the program sees it: slot -> backend index."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What the kernel holds. ``generation`` 0: nothing of ours.

    ``attached`` maps the interfaces that run a program of ours onto the interface's index;
    ``outdated`` names those of them that run another generation's. ``applied`` remembers the Ring
    that a slot array came from, so that an unchanged one need not be compared.
    """

    generation: int = 0
    structure: Structure | None = None
    indices: Mapping[BackendId, int] = field(default_factory=dict)
    records: Mapping[BackendId, BackendRecord] = field(default_factory=dict)
    rings: Mapping[ServiceKey, Slots] = field(default_factory=dict)
    attached: Mapping[str, int] = field(default_factory=dict)
    outdated: frozenset[str] = frozenset()
    applied: Mapping[ServiceKey, Ring] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in this order: build, attach, records, rings, detach.

    ``interfaces`` are all that the program may send packets by, ``attach`` those that do not run
    the goal's program yet.

    With ``build`` set, ``records`` and ``rings`` are the whole of the new generation; otherwise
    they are what changes in the present one. ``fresh`` are indices whose counters start at 0.
    ``moved`` counts, for each service that was there before, the slots that change their backend.
    """

    generation: int
    structure: Structure
    build: bool
    indices: Mapping[BackendId, int]
    records: Mapping[BackendId, BackendRecord]
    rings: Mapping[ServiceKey, Slots]
    interfaces: Mapping[str, int]
    attach: Mapping[str, int]
    detach: tuple[str, ...]
    fresh: tuple[int, ...]
    moved: Mapping[ServiceKey, int]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.build or self.records or self.rings or self.attach or self.detach)


def make_plan(observed: Observed, desired: Desired) -> Plan:
    """Return the steps from ``observed`` to ``desired``."""
    build = observed.structure != desired.structure
    indices = _indices(observed.indices, desired.structure.backends)
    records = desired.records if build else _changed_records(observed, desired)
    rings = dict(_rings(observed, desired, indices, whole=build))
    attach = {
        name: ifindex
        for name, ifindex in desired.interfaces.items()
        if observed.attached.get(name) != ifindex or name in observed.outdated
    }
    return Plan(
        generation=observed.generation + build,
        structure=desired.structure,
        build=build,
        indices=indices,
        records=records,
        rings=rings,
        interfaces=desired.interfaces,
        attach=attach,
        detach=tuple(sorted(set(observed.attached) - set(desired.interfaces))),
        fresh=tuple(sorted(i for key, i in indices.items() if key not in observed.indices)),
        moved=dict(_moved(observed, rings)),
    )


def _indices(held: Mapping[BackendId, int], wanted: Iterable[BackendId]) -> dict[BackendId, int]:
    """Give every wanted backend an index: its own if it has one, else one that nobody held.

    New ones are above all that were held, as long as there are such: of several services that share
    a backend, the lowest index is then the oldest one's.
    """
    taken = set(held.values()) | {NO_BACKEND}
    free = (i for i in chain(range(max(taken) + 1, INDICES), range(1, INDICES)) if i not in taken)
    return {key: held[key] if key in held else next(free) for key in sorted(wanted)}


def _changed_records(observed: Observed, desired: Desired) -> dict[BackendId, BackendRecord]:
    return {
        key: record
        for key, record in desired.records.items()
        if observed.records.get(key) != record
    }


def _rings(
    observed: Observed, desired: Desired, indices: Mapping[BackendId, int], *, whole: bool
) -> Iterator[tuple[ServiceKey, Slots]]:
    for service, ring in desired.rings.items():
        if not whole and observed.applied.get(service) is ring:
            continue
        slots = ring_slots(service, ring, indices)
        before = observed.rings.get(service)
        if whole or before is None or not np.array_equal(before, slots):
            yield service, slots


def ring_slots(service: ServiceKey, ring: Ring, indices: Mapping[BackendId, int]) -> Slots:
    """Return a ring as the program sees it: each slot the index of its backend, or NO_BACKEND."""
    known = [indices[BackendId(service, key)] for key in ring.keys]
    table = np.array([*known, NO_BACKEND], dtype=np.uint32)
    owners = np.where(ring.owner == EMPTY, len(known), ring.owner)
    return table[owners]


def _moved(
    observed: Observed, rings: Mapping[ServiceKey, Slots]
) -> Iterator[tuple[ServiceKey, int]]:
    for service, slots in rings.items():
        before = observed.rings.get(service)
        if before is not None and len(before) == len(slots):
            yield service, int(np.count_nonzero(before != slots))
