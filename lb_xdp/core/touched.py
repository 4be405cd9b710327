"""Which live flows a plan touches: counted in the flow table, or estimated, and named so.

A flow on a slot that moves stays with its backend: it is recorded from then on (``settle``). It is
broken only where nobody can carry it any more: its service goes or changes what it writes into
packets, its backend goes at once, or no flow of the service is ever recorded. It refuses to read
anything. numpy is allowed here: rings and flow tables are arrays.
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
from lb_xdp.core.model import Protocol, Service, ServiceKey
from lb_xdp.core.plan import INDICES, Observed, Plan
from lb_xdp.core.settle import NO_BACKEND, UNSETTLED, current_of, former_of, state_of

Mask = npt.NDArray[np.bool_]


class Basis(StrEnum):
    """Where a number of flows comes from."""

    RECORDED = "recorded"
    ESTIMATED = "estimated"
    UNKNOWN = "unknown"


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
    """A service's slots: which would move, and on which unrecorded flows would lose their backend.

    ``leaving`` are the indices of backends that would be gone, by index. ``same`` is the chance
    that a flow which is hashed anew meets its backend again, 1 where none is.
    """

    moved: Mask
    gone: Mask
    leaving: Mask
    same: float = 1.0

    @property
    def touch_any(self) -> bool:
        """Whether any flow may be touched."""
        masks = (self.moved, self.gone, self.leaving)
        return self.same < 1.0 or any(bool(mask.any()) for mask in masks)


def live_flows(
    records: FlowRecords, services: Mapping[ServiceKey, Traits]
) -> dict[ServiceKey, Held]:
    """Return the recorded flows by service; ``services`` must be all there are."""
    going_on = records.values["state"] & np.uint64(CLOSED) == 0
    owner, slot = placed(records.keys[going_on], services)
    backends = records.values["backend"][going_on]
    order = np.argsort(owner, kind="stable")
    cuts = np.searchsorted(owner[order], np.arange(len(services) + 1))
    parts = [order[cuts[i] : cuts[i + 1]] for i in range(len(services))]
    return {
        key: Held(slot[part], backends[part]) for key, part in zip(services, parts, strict=True)
    }


def flows_touched(
    before: Service,
    after: Service | None,
    observed: Observed,
    plan: Plan,
    evidence: Evidence,
) -> FlowsTouched:
    """Return which live flows of a service a plan touches; ``after`` None: the service goes."""
    slots = _slots(before, after, observed, plan)
    if not slots.touch_any:
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
    every = np.ones(image.size, bool)
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
    if new is None or new.size != image.size:
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


def _estimated(before: Service, after: Service | None, slots: _Slots, begun: Begun) -> FlowsTouched:
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
