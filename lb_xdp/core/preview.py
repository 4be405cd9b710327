"""What another configuration would change: the value behind ``lb-xdp plan``, and its arithmetic.

It compares the rings that the kernel has with those that would be, slot by slot, and counts the
flows that this touches. It refuses to say what differs in the file (``config.difference``) and to
read anything. numpy is allowed here: rings and flow tables are arrays.

A flow on a slot that moves stays with its backend: it is recorded from then on (``settle``). It is
broken only where nobody can carry it any more: its service goes or changes its mode, its backend
goes at once, or the service keeps no record of any flow.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lb_xdp.core.collect import placed
from lb_xdp.core.desired import BackendId, Traits
from lb_xdp.core.flow_list import FlowRecords
from lb_xdp.core.model import BackendKey, Config, Protocol, Service, ServiceKey
from lb_xdp.core.plan import INDICES, Observed
from lb_xdp.core.ring import EMPTY, Ring
from lb_xdp.core.settle import NO_BACKEND, current_of

Mask = npt.NDArray[np.bool_]


class Basis(StrEnum):
    """Where a number of flows comes from."""

    RECORDED = "recorded"
    ESTIMATED = "estimated"
    UNKNOWN = "unknown"


class ServiceChange(StrEnum):
    """What becomes of a service."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Setting:
    """A key of the file with another value, as dotted path and in the spelling of the file."""

    key: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class WeightChange:
    """A backend with another weight."""

    backend: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class ServiceDifference:
    """What differs of one service between two configurations; backends by name."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    weights: tuple[WeightChange, ...] = ()
    settings: tuple[Setting, ...] = ()


@dataclass(frozen=True, slots=True)
class FlowsTouched:
    """Live flows that a change touches.

    ``moved`` are on slots that move and stay where they are, ``broken`` have nobody to carry them
    any more. ``basis`` says whether that was counted in the flow table (recorded), is an estimate,
    or cannot be known (unknown, the numbers are 0 then); ``how`` says it in words.
    """

    moved: int
    broken: int
    basis: Basis
    how: str


@dataclass(frozen=True, slots=True)
class ServicePreview:
    """What would change of one service. ``moved_share`` is of all slots, 0 to 1."""

    name: str
    address: str
    change: ServiceChange
    added: tuple[str, ...]
    removed: tuple[str, ...]
    weights: tuple[WeightChange, ...]
    settings: tuple[Setting, ...]
    slots: int
    moved_slots: int
    moved_share: float
    flows: FlowsTouched


@dataclass(frozen=True, slots=True)
class Preview:
    """What a configuration would change. ``services`` are those that are not as before.

    ``generation``: another program is built and put in place. ``restart``: a sentence about a
    setting that a reload refuses, None where all can be reloaded. ``assumed_up`` are backends that
    no probe has decided about yet (``SERVICE/BACKEND``); the numbers count them as up.
    ``moved_share_max`` is that of the service that moves most; a service that goes counts as 1.
    """

    source: str
    revision: str
    services: tuple[ServicePreview, ...]
    unchanged: int
    settings: tuple[Setting, ...]
    generation: bool
    restart: str | None
    moved_slots: int
    moved_share_max: float
    assumed_up: tuple[str, ...]

    @property
    def empty(self) -> bool:
        """Whether nothing would change."""
        return not (self.services or self.settings or self.generation)


@dataclass(frozen=True, slots=True)
class Begun:
    """Flows of each service that began in the last ``window_s``, from the counters."""

    window_s: float
    flows: Mapping[ServiceKey, int]


@dataclass(frozen=True, slots=True)
class Slots:
    """A service's slots: which would move, and on which the present backend would be gone.

    ``leaving`` are the indices of backends that would be gone, by index.
    """

    moved: Mask
    gone: Mask
    leaving: Mask


class Held(NamedTuple):
    """The recorded flows of a service: the slot that each falls on, and its backend's index."""

    slots: npt.NDArray[np.int64]
    backends: npt.NDArray[np.uint32]


def compare(
    service: Service, ring: Ring, observed: Observed, staying: Collection[BackendKey]
) -> Slots:
    """Return what becomes of the slots of a service whose ring would be ``ring``.

    ``staying`` are the backends that would still be known. A service that the kernel has not got
    yet has no slots.
    """
    image = observed.rings.get(service.key)
    if image is None or len(image.slots) != len(ring.owner):
        return Slots(np.zeros(0, bool), np.zeros(0, bool), np.zeros(INDICES, bool))
    indices = observed.indices
    new = {key: INDICES + n for n, key in enumerate(ring.keys)}  # of no index that is held
    known = [indices.get(BackendId(service.key, key), new[key]) for key in ring.keys]
    table = np.array([*known, NO_BACKEND], np.uint32)
    wanted = table[np.where(ring.owner == EMPTY, len(known), ring.owner)]
    current = current_of(image.slots)
    leaving = np.ones(INDICES, bool)
    leaving[[indices[i] for k in staying if (i := BackendId(service.key, k)) in indices]] = False
    leaving[NO_BACKEND] = False
    return Slots(current != wanted, leaving[current], leaving)


def whole(observed: Observed, service: ServiceKey) -> Slots:
    """Return the slots of a service of which every flow is broken."""
    image = observed.rings.get(service)
    every = np.ones(len(image.slots) if image else 0, bool)
    return Slots(every, every, np.ones(INDICES, bool))


def touched(service: Service, slots: Slots, held: Held, begun: Begun | None) -> FlowsTouched:
    """Return which flows of a service, as it is now, a change of its slots touches."""
    if not (slots.moved.any() or slots.gone.any()):
        return FlowsTouched(0, 0, Basis.RECORDED, "no slot moves")
    if service.tracked:
        known = held.backends < INDICES
        broken = slots.leaving[np.where(known, held.backends, NO_BACKEND)]
        moved = slots.moved[held.slots] & ~broken
        how = f"every flow is recorded: {len(held.slots)} now"
        return FlowsTouched(int(moved.sum()), int(broken.sum()), Basis.RECORDED, how)
    if service.protocol is not Protocol.TCP:
        how = "udp flows of this service are neither recorded nor counted"
        return FlowsTouched(0, 0, Basis.UNKNOWN, how)
    if begun is None:
        return FlowsTouched(0, 0, Basis.UNKNOWN, "the daemon has not counted for long enough")
    return _estimated(service, slots, begun)


def _estimated(service: Service, slots: Slots, begun: Begun) -> FlowsTouched:
    """Guess by the share of slots: hashing spreads flows evenly over them."""
    recent = begun.flows.get(service.key, 0)
    broken = slots.gone if service.session.flows else slots.moved | slots.gone
    moved = slots.moved & ~broken
    return FlowsTouched(
        round(float(moved.mean()) * recent),
        round(float(broken.mean()) * recent),
        Basis.ESTIMATED,
        f"share of slots x {recent} flows that began in the last {begun.window_s:.0f} s",
    )


def held_flows(
    records: FlowRecords, services: Mapping[ServiceKey, Traits]
) -> dict[ServiceKey, Held]:
    """Return the recorded flows by service; ``services`` must be all there are."""
    owner, slot = placed(records.keys, services)
    backends = records.values["backend"]
    return {
        key: Held(slot[owner == number], backends[owner == number])
        for number, key in enumerate(services)
    }


def largest_share(
    moved: Mapping[ServiceKey, int], slots: int, before: Config, after: Config
) -> float:
    """Return the share of slots that moves in the service that moves most, 0 to 1.

    ``moved`` are the slots that move by service. A service that goes counts as all of its slots.
    """
    left = {service.key for service in after.services}
    if any(service.key not in left for service in before.services):
        return 1.0
    return max(moved.values(), default=0) / slots
