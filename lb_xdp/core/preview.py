"""What another configuration would change: the value behind ``lb-xdp plan``, and its arithmetic.

It reads a ``Plan``, the very one that a reload would carry out, and counts the flows that it
touches. It refuses to say what differs in the file (``config.difference``) and to read anything.
numpy is allowed here: rings and flow tables are arrays.

A flow on a slot that moves stays with its backend: it is recorded from then on (``settle``). It is
broken only where nobody can carry it any more: its service goes or changes what it writes into
packets, its backend goes at once, or no flow of the service is ever recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lb_xdp.core.collect import CLOSED, placed
from lb_xdp.core.desired import Traits, traits
from lb_xdp.core.flow_list import FlowRecords
from lb_xdp.core.model import Config, Protocol, Service, ServiceKey
from lb_xdp.core.plan import INDICES, Observed, Plan
from lb_xdp.core.settle import NO_BACKEND, UNSETTLED, current_of, former_of, state_of

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

    ``refused`` says why a reload would be refused as things stand, None where it would be taken;
    ``restart`` is that sentence where it is about a setting that only a restart changes. Of what is
    refused no slots and flows are known: they are 0, the basis is unknown. ``generation``: another
    program is built and put in place; it was compiled and tried for this answer. ``undecided`` are
    backends (``SERVICE/BACKEND``) that no probe has decided about in time: they get nothing yet.
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
    undecided: tuple[str, ...]
    refused: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing would change."""
        return not (self.services or self.settings or self.generation)


@dataclass(frozen=True, slots=True)
class Begun:
    """Flows of each service that began in the last ``window_s``, from the counters."""

    window_s: float
    flows: Mapping[ServiceKey, int]


class Held(NamedTuple):
    """A service's recorded flows that have not ended: their slots, and their backends' indices."""

    slots: npt.NDArray[np.int64]
    backends: npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of live flows. ``begun`` is None while the daemon has not counted for long."""

    held: Mapping[ServiceKey, Held]
    begun: Begun | None


@dataclass(frozen=True, slots=True)
class _Slots:
    """A service's slots: which would move, and on which the unrecorded flows' backend would be gone.

    ``leaving`` are the indices of backends that would be gone, by index. ``same`` is the chance
    that a flow which is hashed anew meets its backend again, 1 where none is.
    """

    moved: Mask
    gone: Mask
    leaving: Mask
    same: float = 1.0


def live_flows(
    records: FlowRecords, services: Mapping[ServiceKey, Traits]
) -> dict[ServiceKey, Held]:
    """Return the recorded flows by service; ``services`` must be all there are."""
    going_on = records.values["state"] & np.uint64(CLOSED) == 0
    owner, slot = placed(records.keys[going_on], services)
    backends = records.values["backend"][going_on]
    return {
        key: Held(slot[owner == number], backends[owner == number])
        for number, key in enumerate(services)
    }


def service_previews(
    before: Config,
    after: Config,
    differences: Mapping[ServiceKey, ServiceDifference],
    change: tuple[Observed, Plan] | None,
    evidence: Evidence,
) -> tuple[ServicePreview, ...]:
    """Return the services that would not be as before, in the new file's order; those that go last.

    ``change`` is what the kernel holds and the plan from there, None where there can be no plan.
    """
    former = {service.key: service for service in before.services}
    left = {service.key for service in after.services}
    moved = change[1].moved if change else {}
    changed = [
        _preview(former.get(new.key), new, differences.get(new.key), change, evidence)
        for new in after.services
        if new.key not in former or new.key in differences or moved.get(new.key)
    ]
    gone = [
        _preview(old, None, None, change, evidence) for old in before.services if old.key not in left
    ]
    return (*changed, *gone)


def _preview(
    before: Service | None,
    after: Service | None,
    difference: ServiceDifference | None,
    change: tuple[Observed, Plan] | None,
    evidence: Evidence,
) -> ServicePreview:
    service = after or before
    if service is None:
        raise ValueError("a preview of no service")
    moved, slots = _moved(service, after, change)
    names = tuple(str(backend.name) for backend in service.pool.backends)
    differs = difference or ServiceDifference(
        added=() if before else names, removed=() if after else names
    )
    return ServicePreview(
        str(service.name),
        str(service.key),
        _kind(before, after),
        differs.added,
        differs.removed,
        differs.weights,
        differs.settings,
        slots,
        moved,
        moved / slots if slots else 0.0,
        _flows(before, after, change, evidence),
    )


def _kind(before: Service | None, after: Service | None) -> ServiceChange:
    if before is None:
        return ServiceChange.ADDED
    return ServiceChange.CHANGED if after else ServiceChange.REMOVED


def _moved(
    service: Service, after: Service | None, change: tuple[Observed, Plan] | None
) -> tuple[int, int]:
    """Return how many slots move, and how many there are; of a service that goes, all do."""
    if change is None:
        return 0, 0
    observed, plan = change
    image = observed.rings.get(service.key) or plan.rings.get(service.key)
    slots = len(image.slots) if image else 0
    return plan.moved.get(service.key, 0) if after else slots, slots


def _flows(
    before: Service | None,
    after: Service | None,
    change: tuple[Observed, Plan] | None,
    evidence: Evidence,
) -> FlowsTouched:
    if before is None:
        return FlowsTouched(0, 0, Basis.RECORDED, "a new service has no flows yet")
    if change is None:
        return FlowsTouched(0, 0, Basis.UNKNOWN, "a reload would be refused")
    slots = _slots(before, after, *change)
    if slots.same == 1.0 and not (slots.moved.any() or slots.gone.any() or slots.leaving.any()):
        return FlowsTouched(0, 0, Basis.RECORDED, "no slot moves")
    if before.tracked:
        return _counted(slots, evidence.held.get(before.key))
    if before.protocol is not Protocol.TCP:
        how = "udp flows of this service are neither recorded nor counted"
        return FlowsTouched(0, 0, Basis.UNKNOWN, how)
    if evidence.begun is None:
        return FlowsTouched(0, 0, Basis.UNKNOWN, "the daemon has not counted flows for long enough")
    return _estimated(before, after, slots, evidence.begun)


def _slots(before: Service, after: Service | None, observed: Observed, plan: Plan) -> _Slots:
    """Return what becomes of the slots of a service. Unknown to the kernel, it has none."""
    image = observed.rings.get(before.key)
    leaving = np.zeros(INDICES, bool)
    if image is None:
        return _Slots(np.zeros(0, bool), np.zeros(0, bool), leaving)
    every = np.ones(len(image.slots), bool)
    if after is None or _breaks(before, after):
        return _Slots(every, every, ~leaving)
    gone = [
        index
        for identity, index in observed.indices.items()
        if identity.service == before.key and identity not in plan.indices
    ]
    leaving[gone] = True
    current = current_of(image.slots)
    unsettled = state_of(image.slots) == UNSETTLED
    unrecorded = np.where(unsettled, former_of(image.slots), current)
    new = plan.rings.get(before.key)
    if new is None or len(new.slots) != len(image.slots):
        return _Slots(~every, leaving[unrecorded], leaving)
    wanted = current_of(new.slots)
    anew = traits(before).by_source != traits(after).by_source
    return _Slots(
        current != wanted, leaving[unrecorded], leaving, _same(current, wanted) if anew else 1.0
    )


def _breaks(before: Service, after: Service) -> bool:
    """Say whether backends see the packets of one flow otherwise than before.

    dsr and the tunnels hand them the client's packet as it is; translations differ from that and
    from each other.
    """
    return before.mode is not after.mode and (before.mode.translates or after.mode.translates)


def _same(before: npt.NDArray[np.uint32], after: npt.NDArray[np.uint32]) -> float:
    """Return the chance that two slots, one of each ring, have the same backend."""
    shares = (np.bincount(indices, minlength=INDICES) / len(indices) for indices in (before, after))
    first, second = shares
    return float(first @ second)


def _counted(slots: _Slots, held: Held | None) -> FlowsTouched:
    if held is None or not len(held.slots):
        return FlowsTouched(0, 0, Basis.RECORDED, "every flow is recorded: none now")
    known = held.backends < INDICES
    broken = slots.leaving[np.where(known, held.backends, NO_BACKEND)]
    moved = slots.moved[held.slots] & ~broken
    how = f"every flow is recorded: {len(held.slots)} now"
    return FlowsTouched(int(moved.sum()), int(broken.sum()), Basis.RECORDED, how)


def _estimated(
    before: Service, after: Service | None, slots: _Slots, begun: Begun
) -> FlowsTouched:
    """Guess by the share of slots: hashing spreads flows evenly over them."""
    recent = begun.flows.get(before.key, 0)
    kept = after is not None and after.session.flows and before.session.flows
    gone = slots.gone if kept else slots.moved | slots.gone
    broken = max(_share(gone), 1.0 - slots.same)
    moved = min(_share(slots.moved & ~gone), 1.0 - broken)
    return FlowsTouched(
        round(moved * recent),
        round(broken * recent),
        Basis.ESTIMATED,
        f"share of slots x {recent} flows that began in the last {begun.window_s:.0f} s",
    )


def _share(chosen: Mask) -> float:
    return float(chosen.mean()) if len(chosen) else 0.0


def largest_share(before: Config, after: Config, plan: Plan) -> float:
    """Return the share of slots that moves in the service that moves most, 0 to 1.

    A service that goes counts as all of its slots.
    """
    left = {service.key for service in after.services}
    if any(service.key not in left for service in before.services):
        return 1.0
    return max((share for _, share in moved_shares(after, plan)), default=0.0)


def moved_shares(after: Config, plan: Plan) -> list[tuple[Service, float]]:
    """Return the services of which slots move with the share of these, 0 to 1, the largest first."""
    shares = [
        (service, moved / len(plan.rings[service.key].slots))
        for service in after.services
        if (moved := plan.moved.get(service.key, 0))
    ]
    return sorted(shares, key=lambda each: -each[1])
