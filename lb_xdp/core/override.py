"""What operators asked for at run time: the layer between the file and what is observed.

An override is about one backend of one service, by their names, and about one thing: its admin
state or its weight. It says who asked, when and why, and may end by itself. Overrides survive
reloads and restarts; this module owns their meaning, not where they are kept (``lb_xdp.store``).

Times are seconds since the Unix epoch: an expiry has to hold across a reboot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from lb_xdp.core.model import Config, ServiceName
from lb_xdp.core.snapshot import Admin
from lb_xdp.core.unknown import require_backend, require_service
from lb_xdp.errors import UnfitOverrideError

MAX_WEIGHT = 65_535
"""The largest weight, as in the file."""


class Kind(StrEnum):
    """What an override is about."""

    ADMIN = "admin"
    WEIGHT = "weight"


class Subject(NamedTuple):
    """Whose override: names of a service and of a backend in it, and the kind."""

    service: str
    backend: str
    kind: Kind

    def __str__(self) -> str:
        """Return ``web/web1 weight``."""
        return f"{self.service}/{self.backend} {self.kind}"


@dataclass(frozen=True, slots=True)
class Override:
    """``value`` is an ``Admin`` or a weight in decimal digits; ``author`` names who asked."""

    subject: Subject
    value: str
    author: str
    reason: str
    at_timestamp_s: float
    expires_timestamp_s: float | None = None

    def __str__(self) -> str:
        """Return ``drain by uid 0: new disks``, or ``weight 50 by uid 0``."""
        what = f"weight {self.value}" if self.subject.kind is Kind.WEIGHT else self.value
        asked = f"{what} by {self.author}"
        return f"{asked}: {self.reason}" if self.reason else asked

    def expired(self, timestamp_s: float) -> bool:
        """Say whether its time is over."""
        return self.expires_timestamp_s is not None and self.expires_timestamp_s <= timestamp_s


@dataclass(frozen=True, slots=True)
class Overrides:
    """All overrides of a gateway: a value, changed by making another.

    ``by_service`` has those of each service that has any.
    """

    held: Mapping[Subject, Override] = field(default_factory=dict)
    by_service: Mapping[str, Mapping[Subject, Override]] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Sort them by service once."""
        sorted_: dict[str, dict[Subject, Override]] = {}
        for subject, override in self.held.items():
            sorted_.setdefault(subject.service, {})[subject] = override
        object.__setattr__(self, "by_service", sorted_)

    def __iter__(self) -> Iterator[Override]:
        """Yield them in the order of their subjects."""
        return (self.held[subject] for subject in sorted(self.held))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.held)

    def having(self, *overrides: Override) -> Overrides:
        """Return these with some added; one about the same subject is replaced.

        Ready is what a backend is without an override: asking for it takes one away.
        """
        held = {**self.held, **{o.subject: o for o in overrides}}
        return Overrides({s: o for s, o in held.items() if o.value != Admin.READY})

    def lacking(self, *subjects: Subject) -> Overrides:
        """Return these without some; what is not there is not missed."""
        gone = set(subjects)
        return Overrides({s: o for s, o in self.held.items() if s not in gone})

    def expired(self, timestamp_s: float) -> tuple[Override, ...]:
        """Return those whose time is over."""
        return tuple(o for o in self if o.expired(timestamp_s))

    def next_expiry_timestamp_s(self) -> float | None:
        """Return when the next one ends, None if none does by itself."""
        ends = (o.expires_timestamp_s for o in self.held.values())
        return min((end for end in ends if end is not None), default=None)

    def admin(self, service: str, backend: str) -> Admin:
        """Return what was asked of a backend."""
        held = self.held.get(Subject(service, backend, Kind.ADMIN))
        return Admin(held.value) if held else Admin.READY

    def about(self, service: str, backend: str) -> tuple[Override, ...]:
        """Return what was asked of a backend, in the order of kinds."""
        if not self.held:
            return ()
        held = (self.held.get(Subject(service, backend, kind)) for kind in Kind)
        return tuple(override for override in held if override is not None)

    def weight(self, service: str, backend: str) -> int | None:
        """Return the weight that was asked for, None where the file's holds."""
        held = self.held.get(Subject(service, backend, Kind.WEIGHT))
        return int(held.value) if held else None


def refuse_unfit(overrides: Iterable[Override], config: Config) -> None:
    """Raise an LbError if some override is about nobody, or asks for what cannot be.

    ``config`` has the backends that linger as well: they can be cut, but have no weight any more.
    """
    for override in overrides:
        _refuse_unknown(override.subject, config)
        if override.subject.kind is Kind.ADMIN:
            _refuse_unknown_admin(override)
        else:
            _refuse_bad_weight(override)
        _refuse_idle(override, config)


def _refuse_unknown(subject: Subject, config: Config) -> None:
    services = {service.name: service for service in config.services}
    require_service(subject.service, services)
    backends = services[ServiceName(subject.service)].pool.backends
    require_backend(subject.service, subject.backend, [backend.name for backend in backends])


def _refuse_unknown_admin(override: Override) -> None:
    allowed = [admin.value for admin in Admin]
    if override.value not in allowed:
        raise UnfitOverrideError(
            f"{override.value!r} is no admin state; allowed are {', '.join(allowed)}"
        )


def _refuse_bad_weight(override: Override) -> None:
    value = override.value
    digits = value.isascii() and value.isdigit() and len(value) <= len(str(MAX_WEIGHT))
    if not digits or int(value) > MAX_WEIGHT:
        raise UnfitOverrideError(
            f"{value!r} is no weight; an integer from 0 to {MAX_WEIGHT} is allowed"
        )


def _refuse_idle(override: Override, config: Config) -> None:
    """Refuse what would have no effect: somebody believes that it has."""
    subject = override.subject
    backend = next(
        backend
        for service, backend in config.backends()
        if (service.name, backend.name) == (subject.service, subject.backend)
    )
    if backend.fallback:
        raise UnfitOverrideError(
            f"{subject.service}/{subject.backend} is the fallback, which gets traffic only in "
            "panic: change it in the file"
        )
    if backend.left is not None and override.value not in {Admin.DOWN, Admin.READY}:
        raise UnfitOverrideError(
            f"{subject.service}/{subject.backend} was removed from the file and drains already; "
            "it can only be cut: down"
        )
