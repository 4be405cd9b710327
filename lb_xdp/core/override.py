"""What operators asked for at run time: the layer between the file and what is observed.

An override is about one backend of one service, by their names, and about one thing: its admin
state or its weight. It says who asked, when and why, and may end by itself. Overrides survive
reloads and restarts; this module owns their meaning, not where they are kept (``lb_xdp.store``).

Times are seconds since the Unix epoch: an expiry has to hold across a reboot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from lb_xdp.core.snapshot import Admin


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

    def expired(self, timestamp_s: float) -> bool:
        """Say whether its time is over."""
        return self.expires_timestamp_s is not None and self.expires_timestamp_s <= timestamp_s


@dataclass(frozen=True, slots=True)
class Overrides:
    """All overrides of a gateway: a value, changed by making another."""

    held: Mapping[Subject, Override] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Override]:
        """Yield them in the order of their subjects."""
        return (self.held[subject] for subject in sorted(self.held))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.held)

    def having(self, *overrides: Override) -> Overrides:
        """Return these with some added; one about the same subject is replaced."""
        return Overrides({**self.held, **{o.subject: o for o in overrides}})

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

    def weight(self, service: str, backend: str) -> int | None:
        """Return the weight that was asked for, None where the file's holds."""
        held = self.held.get(Subject(service, backend, Kind.WEIGHT))
        return int(held.value) if held else None
