"""What is probed: each backend of a pool once, for all services that share the pool.

A probe through the datapath is addressed to a VIP, though: two services of a pool are two ways, and
a backend may have the one VIP and not the other. So each such service has a health of its own.

It refuses to know what a probe finds (``health``) and when one is due (``lb_xdp.probes``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from lb_xdp.core.health import Names, Target
from lb_xdp.core.model import (
    Address,
    Backend,
    BackendKey,
    CheckKind,
    Config,
    HealthCheck,
    Service,
    ServiceKey,
    Via,
)
from lb_xdp.core.override import Overrides
from lb_xdp.core.remembered import remembered
from lb_xdp.core.snapshot import Admin


class TargetId(NamedTuple):
    """What is probed. ``service`` is set where the probe goes through the datapath."""

    pool: str
    backend: BackendKey
    service: ServiceKey | None = None


_UNPROBED = HealthCheck(CheckKind.NONE)


def target_of(service: Service, backend: Backend) -> TargetId:
    """Return what is probed for a backend of a service; one that has left is what it was."""
    through = service.pool.health.via is Via.DATAPATH
    pool = backend.left or service.pool.name
    return TargetId(pool, backend.key, service.key if through else None)


@remembered
def targets_of(service: Service) -> tuple[TargetId, ...]:
    """Return what is probed for each backend of a service, in the order of its pool."""
    return tuple(target_of(service, backend) for backend in service.pool.backends)


@remembered
def pools_of(service: Service) -> tuple[str, ...]:
    """Return the pools that a service's backends are in, or were."""
    return tuple({target.pool: None for target in targets_of(service)})


@remembered
def _checks(service: Service) -> tuple[dict[TargetId, HealthCheck], dict[TargetId, HealthCheck]]:
    """Return the health checks of a service's backends: of those that have none, of the others."""
    pool = service.pool
    extra: dict[TargetId, HealthCheck] = {}
    found: dict[TargetId, HealthCheck] = {}
    for target, backend in zip(targets_of(service), pool.backends, strict=True):
        if backend.fallback or backend.left not in {None, pool.name}:
            extra[target] = _UNPROBED
        else:
            found[target] = pool.health
    return extra, found


@remembered
def checks(config: Config) -> Mapping[TargetId, HealthCheck]:
    """Return the health check of every backend of every pool in use.

    A fallback has none, nor has a backend that lingers after its service went to another pool.
    """
    extra: dict[TargetId, HealthCheck] = {}
    found: dict[TargetId, HealthCheck] = {}
    for service in config.services:
        unprobed, probed = _checks(service)
        extra.update(unprobed)
        found.update(probed)
    return {**extra, **found}


@remembered
def members(config: Config) -> Mapping[TargetId, list[tuple[str, str]]]:
    """Return the names, service and backend, that each target has."""
    named: defaultdict[TargetId, list[tuple[str, str]]] = defaultdict(list)
    for service in config.services:
        for target, backend in zip(targets_of(service), service.pool.backends, strict=True):
            named[target].append((service.name, backend.name))
    return dict(named)


def resting(config: Config, overrides: Overrides) -> frozenset[TargetId]:
    """Return the targets that nobody wants to be probed: all who share them are in maint."""
    if not overrides:
        return frozenset()
    return frozenset(
        target
        for target, names in members(config).items()
        if all(overrides.admin(*name) is Admin.MAINT for name in names)
    )


def targets(config: Config, overrides: Overrides) -> Mapping[TargetId, Target]:
    """Return what is to be probed; ``host`` and ``port`` of a check win over the backend's own.

    Through the datapath, the VIP is asked.
    """
    found: dict[TargetId, Target] = {}
    for service in config.services:
        found.update(_targets(service))
        if service.pool.health.kind is CheckKind.EXEC:
            named = members(config)
            for target in _targets(service):
                found[target] = replace(found[target], names=_names(target, named[target]))
    for target in resting(config, overrides):
        found.pop(target, None)
    return found


@remembered
def _targets(service: Service) -> Mapping[TargetId, Target]:
    """Return what is probed for a service, but for what a command is told."""
    _, probed = _checks(service)
    return {
        target: Target(check, check.host or _asked(target), check.port or target.backend.port)
        for target, check in probed.items()
        if check.kind is not CheckKind.NONE
    }


def _asked(target: TargetId) -> Address:
    return target.backend.address if target.service is None else target.service.vip


def _names(target: TargetId, named: list[tuple[str, str]]) -> Names:
    """Return what a command is told; services that share a pool have its names in common."""
    return Names(target.pool, named[0][1], tuple(service for service, _ in named))


@remembered
def addresses(config: Config) -> frozenset[Address]:
    """Return the addresses that packets are sent to."""
    return frozenset[Address]().union(*map(addresses_of, config.services))


@remembered
def addresses_of(service: Service) -> frozenset[Address]:
    """Return the addresses that packets for a service are sent to."""
    return frozenset(backend.address for backend in service.pool.backends)
