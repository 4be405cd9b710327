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
How a slot gets from one backend to the next without breaking a flow is for ``settle`` to say; the
clock is an argument. numpy is allowed here: rings are arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from lb_xdp.core.compact import Compact
from lb_xdp.core.desired import BackendId, BackendRecord, Desired, Structure
from lb_xdp.core.model import ServiceKey
from lb_xdp.core.proof import source_of
from lb_xdp.core.ring import Ring
from lb_xdp.core.settle import (
    NO_BACKEND,
    Live,
    RingImage,
    advance,
    current_of,
    mark_all,
    unmark,
)

INDICES = 32_768
"""How many backend indices there are: twice what a configuration may hold, so that all backends can
be replaced at once."""

SlotNumbers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Observed:
    """What the kernel holds. ``generation`` 0: nothing of ours.

    ``attached`` maps the interfaces that run a program of ours onto the interface's index;
    ``outdated`` names those of them that run another generation's. ``applied`` is the goal that was
    reached last, so that rings made from the same Ring need not be made and compared again.
    ``reserved`` are the indices of another generation that some interface still runs, because the
    plan that was to replace it was cut off.

    ``recorded`` holds, for rings with marked slots whose flow records have been counted since, the
    slots that records still fall on. Only who counted knows it; it is no part of what was read.
    ``proven`` says of rings that were just read what they follow from (``core.proof``), where an
    earlier life has written that down; with ``applied`` it means nothing any more.
    """

    generation: int = 0
    structure: Structure | None = None
    indices: Mapping[BackendId, int] = field(default_factory=dict)
    records: Mapping[BackendId, BackendRecord] = field(default_factory=dict)
    rings: Mapping[ServiceKey, RingImage] = field(default_factory=dict)
    attached: Mapping[str, int] = field(default_factory=dict)
    outdated: frozenset[str] = frozenset()
    reserved: frozenset[int] = frozenset()
    applied: Desired | None = None
    recorded: Mapping[ServiceKey, SlotNumbers] = field(default_factory=dict)
    proven: Mapping[ServiceKey, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in this order: build, attach, records, rings, detach.

    ``interfaces`` are all that the program may send packets by, ``attach`` those that do not run
    the goal's program yet.

    With ``build`` set, ``records`` and ``rings`` are the whole of the new generation; otherwise
    they are what changes in the present one. ``fresh`` are indices whose counters start at 0.
    ``moved`` counts, for each service that was there before, the slots that change their backend;
    flows that began before stay with the former one (``settle``).
    """

    generation: int
    structure: Structure
    build: bool
    indices: Mapping[BackendId, int]
    records: Mapping[BackendId, BackendRecord]
    rings: Mapping[ServiceKey, RingImage]
    interfaces: Mapping[str, int]
    attach: Mapping[str, int]
    detach: tuple[str, ...]
    fresh: tuple[int, ...]
    moved: Mapping[ServiceKey, int]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.build or self.records or self.rings or self.attach or self.detach)


def make_plan(observed: Observed, desired: Desired, now_ns: int) -> Plan:
    """Return the steps from ``observed`` to ``desired``; ``now_ns`` is CLOCK_MONOTONIC."""
    build = observed.structure is not desired.structure and observed.structure != desired.structure
    indices = _indices(observed, desired.structure.backends)
    records = desired.records if build else _changed_records(observed, desired)
    rings = dict(_Images(observed, desired, indices, now_ns).changed(whole=build))
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
        fresh=tuple(sorted(indices[key] for key in indices.keys() - observed.indices.keys())),
        moved=dict(_moved(observed, rings)),
    )


def _indices(observed: Observed, wanted: frozenset[BackendId]) -> Mapping[BackendId, int]:
    """Give every wanted backend an index: its own if it has one, else one that nobody held.

    New ones are above all that were held, as long as there are such: of several services that share
    a backend, the lowest index is then the oldest one's.
    """
    held = observed.indices
    if observed.applied is not None and observed.applied.structure.backends is wanted:
        return held
    if held.keys() == wanted:
        return dict(held)
    taken = {*held.values(), NO_BACKEND}
    if len(taken | observed.reserved) + len(wanted - held.keys()) <= INDICES:
        taken |= observed.reserved  # with three largest configurations under way, counters mix
    free = (i for i in chain(range(max(taken) + 1, INDICES), range(1, INDICES)) if i not in taken)
    new = {key: next(free) for key in sorted(wanted - held.keys())}
    return {key: index for key, index in held.items() if key in wanted} | new


def _changed_records(observed: Observed, desired: Desired) -> dict[BackendId, BackendRecord]:
    if observed.applied is desired:
        return {}  # the goal that was reached last: nobody else writes records
    held = ((key, record, observed.records.get(key)) for key, record in desired.records.items())
    return {key: after for key, after, before in held if before is not after and before != after}


class _Images:
    """The rings of a plan, as the program is to see them."""

    def __init__(
        self, observed: Observed, desired: Desired, indices: Mapping[BackendId, int], now_ns: int
    ) -> None:
        self._observed = observed
        self._desired = desired
        self._indices = indices
        self._now_ns = now_ns

    def changed(self, *, whole: bool) -> Iterator[tuple[ServiceKey, RingImage]]:
        """Yield the rings that are to be written; with ``whole`` all of them."""
        for service in self._desired.rings:
            before = self._observed.rings.get(service)
            if before is not None and self._stays(service, before):
                if whole:
                    yield service, before
                continue
            after = self._image(service, before)
            if whole or before is None or not after.same_as(before):
                yield service, after

    def _stays(self, service: ServiceKey, before: RingImage) -> bool:
        """Say whether nothing that a ring depends on has changed. The same Ring: the same live."""
        return (
            before.affinity_s == self._desired.affinity_s[service]
            and service not in self._observed.recorded
            and not self._places_anew(service)
            and (self._is_applied(service, before) or self._is_proven(service, before))
        )

    def _is_applied(self, service: ServiceKey, before: RingImage) -> bool:
        """Say whether a ring was made from the same Ring, which settles in the same way."""
        applied, desired = self._observed.applied, self._desired
        return (
            applied is not None
            and applied.rings.get(service) is desired.rings[service]
            and applied.settle_ns.get(service) == desired.settle_ns[service]
            and not 0 < before.unsettled_until_ns <= self._now_ns
            and applied.structure.services[service].reset
            == desired.structure.services[service].reset
        )

    def _is_proven(self, service: ServiceKey, before: RingImage) -> bool:
        """Say whether a ring that was read is known to be the wanted one; it is settled then."""
        source = self._observed.proven.get(service)
        if source is None or self._observed.applied is not None or before.unsettled_until_ns:
            return False
        ring = self._desired.rings[service]
        return source == source_of(ring, _meanings(service, ring, self._indices))

    def _image(self, service: ServiceKey, before: RingImage | None) -> RingImage:
        if before is not None and service in self._observed.recorded:
            before = unmark(before, self._observed.recorded[service])
        if before is not None and self._places_anew(service):
            before = mark_all(before)
        wanted = ring_slots(service, self._desired.rings[service], self._indices)
        if before is not None and before.size != wanted.size:
            before = None
        settle_ns = self._desired.settle_ns[service]
        known = self._known if self._desired.structure.services[service].reset else None
        after = advance(before, wanted, self._live, settle_ns, self._now_ns, known=known)
        return after._replace(affinity_s=self._desired.affinity_s[service])

    def _places_anew(self, service: ServiceKey) -> bool:
        """Say whether flows fall on other slots than before, or had records on any slot."""
        structure = self._observed.structure
        before = structure.services.get(service) if structure else None
        after = self._desired.structure.services[service]
        return before is not None and (
            before.by_source != after.by_source or before.tracked > after.tracked
        )

    @cached_property
    def _live(self) -> Live:
        """Say by index who may have packets: an index that was freed is nobody's."""
        return self._flags(key for key, record in self._desired.records.items() if record.up)

    @cached_property
    def _known(self) -> Live:
        """Say by index who is there, up or not."""
        return self._flags(self._desired.records)

    def _flags(self, keys: Iterable[BackendId]) -> Live:
        flags = np.zeros(INDICES, bool)
        flags[[self._indices[key] for key in keys]] = True
        return flags


def ring_slots(service: ServiceKey, ring: Ring, indices: Mapping[BackendId, int]) -> Compact:
    """Return the index of each slot's backend, or NO_BACKEND."""
    return ring.mean(_meanings(service, ring, indices), NO_BACKEND)


def _meanings(service: ServiceKey, ring: Ring, indices: Mapping[BackendId, int]) -> list[int]:
    """Return the indices of a ring's backends."""
    return [indices[BackendId(service, key)] for key in ring.keys]


def _moved(
    observed: Observed, rings: Mapping[ServiceKey, RingImage]
) -> Iterator[tuple[ServiceKey, int]]:
    for service, image in rings.items():
        before = observed.rings.get(service)
        if before is image:  # of thousands, all but a few
            yield service, 0
        elif before is not None and before.size == image.size:
            changed = current_of(before.slots) != current_of(image.slots)
            yield service, int(np.count_nonzero(changed))
