"""What the API answers where that is no value of the core: the JSON objects by their fields.

The OpenAPI description is made from these classes and from those of ``core``; a field added here is
described at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lb_xdp.core.event import Event
from lb_xdp.core.override import Override
from lb_xdp.core.snapshot import Admin, Health, ServiceStatus, Snapshot, State


@dataclass(frozen=True, slots=True)
class Ping:
    """Who answers."""

    pid: int
    version: str


@dataclass(frozen=True, slots=True)
class Done:
    """What was done, in a sentence, and the revision of the desired state after it."""

    summary: str
    revision: str


@dataclass(frozen=True, slots=True)
class Detached:
    """The gateway forwards no more; the daemon ends."""

    detached: bool


@dataclass(frozen=True, slots=True)
class Services:
    """Every service with its backends, in the file's order."""

    services: tuple[ServiceStatus, ...]


@dataclass(frozen=True, slots=True)
class ServiceNames:
    """The names of the backends by service, those that linger included, and of pools in use."""

    services: Mapping[str, tuple[str, ...]]
    pools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PoolMember:
    """A backend of a pool in one service that the pool answers for."""

    service: str
    backend: str
    address: str
    state: State
    admin: Admin
    health: Health
    weight: int
    detail: str


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A pool that is in use: which services it answers for, and its backends in each."""

    name: str
    services: tuple[str, ...]
    backends: tuple[PoolMember, ...]


@dataclass(frozen=True, slots=True)
class Pools:
    """Every pool in use."""

    pools: tuple[PoolStatus, ...]


@dataclass(frozen=True, slots=True)
class HeldOverride:
    """Something asked for at run time: of which backend, what, by whom, why, and until when."""

    service: str
    backend: str
    kind: str
    value: str
    author: str
    reason: str
    at_timestamp_s: float
    expires_timestamp_s: float | None


@dataclass(frozen=True, slots=True)
class OverrideList:
    """Overrides, and the revision of the desired state that they are part of."""

    overrides: tuple[HeldOverride, ...]
    revision: str


@dataclass(frozen=True, slots=True)
class EventList:
    """Events, oldest first. Of an event, what says nothing is left out."""

    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a configuration file; line and column count from 1."""

    file: str
    line: int
    column: int
    path: str
    message: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something was not done. Nothing was changed then.

    ``kind`` names the sort of error, ``exit_code`` is what a command leaves with. ``place`` is
    where in the request the mistake is (``body.weight``), ``errors`` are those of a configuration.
    """

    error: str
    kind: str
    exit_code: int
    place: str = ""
    errors: tuple[Problem, ...] = ()


def override_list(overrides: Iterable[Override], revision: str) -> OverrideList:
    """Return overrides as they are shown."""
    shown = tuple(
        HeldOverride(
            *(o.subject.service, o.subject.backend, o.subject.kind.value, o.value, o.author),
            *(o.reason, o.at_timestamp_s, o.expires_timestamp_s),
        )
        for o in overrides
    )
    return OverrideList(shown, revision)


def pool_statuses(snapshot: Snapshot) -> tuple[PoolStatus, ...]:
    """Return every pool of a snapshot, in the order of the services."""
    services: dict[str, list[ServiceStatus]] = {}
    for service in snapshot.services:
        services.setdefault(service.pool, []).append(service)
    return tuple(_pool(name, users) for name, users in services.items())


def _pool(name: str, users: Sequence[ServiceStatus]) -> PoolStatus:
    members = tuple(
        PoolMember(
            *(service.name, backend.name, backend.address, backend.state, backend.admin),
            *(backend.health, backend.weight, backend.detail),
        )
        for service in users
        for backend in service.backends
    )
    return PoolStatus(name, tuple(service.name for service in users), members)
