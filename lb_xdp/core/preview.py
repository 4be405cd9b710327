"""What another configuration would change: the value behind ``lb-xdp plan``.

It reads a ``Plan``, the very one that a reload would carry out. It refuses to say what differs in
the file (``config.difference``), which flows that touches (``core.touched``), and to read anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from lb_xdp.core.desired import BackendId
from lb_xdp.core.model import Config, Service, ServiceKey
from lb_xdp.core.plan import Observed, Plan
from lb_xdp.core.touched import Basis, Evidence, FlowsTouched, flows_touched


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
    program is built and put in place; it was compiled and tried for this answer. ``not_up`` are new
    backends (``SERVICE/BACKEND``) that would get nothing yet: their probes fail or have not decided
    in time, or there is no way to them.
    ``moved_share_max`` is that of the service that moves most; a service that goes counts as 1.
    ``layout`` is that of the running version's maps.
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
    not_up: tuple[str, ...]
    refused: str | None = None
    warnings: tuple[str, ...] = ()
    gateway: str = ""
    layout: int = 0

    @property
    def empty(self) -> bool:
        """Whether nothing would change."""
        return not (self.services or self.settings or self.generation)


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
        _preview(old, None, None, change, evidence)
        for old in before.services
        if old.key not in left
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
    return flows_touched(before, after, *change, evidence)


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
    slots = image.size if image else 0
    return plan.moved.get(service.key, 0) if after else slots, slots


def new_and_not_up(after: Config, observed: Observed, plan: Plan) -> tuple[str, ...]:
    """Return the new backends, ``SERVICE/BACKEND``, that would get no packets yet."""
    return tuple(
        f"{service.name}/{backend.name}"
        for service, backend in after.backends()
        if (identity := BackendId(service.key, backend.key)) not in observed.indices
        and identity in plan.records
        and not plan.records[identity].up
    )


def largest_share(before: Config, after: Config, plan: Plan) -> float:
    """Return the share of slots that moves in the service that moves most, 0 to 1.

    A service that goes counts as all of its slots.
    """
    left = {service.key for service in after.services}
    if any(service.key not in left for service in before.services):
        return 1.0
    return max((share for _, share in moved_shares(after, plan)), default=0.0)


def moved_shares(after: Config, plan: Plan) -> list[tuple[Service, float]]:
    """Return the services of which slots move, with the share that does, the largest first."""
    shares = [
        (service, moved / plan.rings[service.key].size)
        for service in after.services
        if (moved := plan.moved.get(service.key, 0))
    ]
    return sorted(shares, key=lambda each: -each[1])
