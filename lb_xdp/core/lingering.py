"""Backends that were taken out of the file, and still have flows to end.

Owns who lingers, for how long, and the configuration with everybody in it: the file's backends, the
fallbacks and those that linger (``extended``). It refuses to know what lingering means for traffic:
``standing`` says that. What the kernel holds is the truth here, so a restart finds the same
backends whether or not a file was kept; that only tells names and how much time is left.

A service that leaves the file takes its backends with it at once: nothing matches its packets any
more. So do backends that were down, and those of services that keep no flow anywhere.

Times are seconds of a monotonic clock, ``*_timestamp_s`` since the Unix epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import NamedTuple

from lb_xdp.core.desired import BackendId, identities
from lb_xdp.core.model import Address, Backend, BackendName, Config, Service, ServiceKey
from lb_xdp.core.plan import INDICES, Observed
from lb_xdp.core.remembered import remembered

_MOST = INDICES // 2
"""How many backends there may be in all: then all of them can be replaced at once."""


@dataclass(frozen=True, slots=True)
class Lingering:
    """One backend of one service. ``pool`` is the one that it left."""

    identity: BackendId
    name: str
    pool: str
    since_s: float
    until_s: float


Held = Mapping[BackendId, Lingering]


class Farewell(NamedTuple):
    """The same as it is kept on disk, where only the time of day means anything."""

    identity: BackendId
    name: str
    pool: str
    forget_timestamp_s: float


def farewells(held: Held, now_s: float, timestamp_s: float) -> tuple[Farewell, ...]:
    """Return what is to be kept of those that linger; both times are now."""
    return tuple(
        Farewell(one.identity, one.name, one.pool, timestamp_s + one.until_s - now_s)
        for _, one in sorted(held.items())
    )


def after_restart(
    kept: Sequence[Farewell], config: Config, now_s: float, timestamp_s: float
) -> dict[BackendId, Lingering]:
    """Return what was kept; whatever happened to the time of day, nobody's time gets longer."""
    pools = {service.key: service.pool for service in config.services}
    held = {}
    for one in kept:
        pool = pools.get(one.identity.service)
        if pool is not None:
            left_s = min(max(one.forget_timestamp_s - timestamp_s, 0.0), pool.drain_timeout_s)
            held[one.identity] = Lingering(one.identity, one.name, one.pool, now_s, now_s + left_s)
    return held


def lingering_after(
    config: Config, observed: Observed, held: Held, former: Config | None, now_s: float
) -> dict[BackendId, Lingering]:
    """Return who lingers once ``config`` is in force.

    These are the backends that have packets now, by ``observed``, and are not in the file (any
    more). ``held`` are those that linger already: their time goes on, and it is for others to say
    when it is over. ``former`` knows the names and pools of the others.
    """
    services = {service.key: service for service in config.services}
    wanted = _known(extended(config, {}))
    known = _known(former) if former else {}
    found = {}
    for identity in _with_packets(
        observed, observed.records.keys() - wanted.keys(), services, held
    ):
        if _is_ours(identity.backend.address, config):
            continue  # an address of the gateway's own by now: packets to it would come back here
        name, pool = known.get(
            identity, (str(identity.backend), services[identity.service].pool.name)
        )
        timeout_s = services[identity.service].pool.drain_timeout_s
        if identity in held:
            found[identity] = held[identity]
        elif timeout_s:
            found[identity] = Lingering(identity, name, pool, now_s, now_s + timeout_s)
    room = max(_MOST - len(wanted), 0)
    latest = sorted(found.values(), key=lambda one: (-one.until_s, one.identity))[:room]
    return {one.identity: one for one in latest}


def _is_ours(address: Address, config: Config) -> bool:
    own = address in config.gateway.snat_addresses
    return own or any(service.vip == address for service in config.services)


def _with_packets(
    observed: Observed,
    strangers: AbstractSet[BackendId],
    services: Mapping[ServiceKey, Service],
    held: Held,
) -> list[BackendId]:
    """Return the ``strangers`` with flows, maybe, that a service of now would carry to them."""
    if observed.structure is None:
        return []
    before = observed.structure.services
    return [
        identity
        for identity in strangers
        if identity.service in services
        and identity.service in before
        and before[identity.service].mode is services[identity.service].mode
        and not before[identity.service].stateless
        and (observed.records[identity].up or identity in held)
    ]


@remembered
def _known(config: Config) -> Mapping[BackendId, tuple[str, str]]:
    """Return the name and the pool of every backend of a configuration."""
    known: dict[BackendId, tuple[str, str]] = {}
    for service in config.services:
        known.update(_named(service))
    return known


@remembered
def _named(service: Service) -> Mapping[BackendId, tuple[str, str]]:
    return {
        identity: (backend.name, service.pool.name)
        for identity, backend in zip(identities(service), service.pool.backends, strict=True)
    }


def extended(config: Config, held: Held) -> Config:
    """Return the configuration with fallbacks and lingering backends in its services' pools.

    The very configuration where it has no fallback and nobody lingers.
    """
    staying: dict[ServiceKey, list[Lingering]] = {}
    for identity, one in sorted(held.items()):
        staying.setdefault(identity.service, []).append(one)
    services = tuple(
        _extended(service, staying.get(service.key, [])) for service in config.services
    )
    same = all(a is b for a, b in zip(services, config.services, strict=True))
    return config if same else replace(config, services=services)


def _extended(service: Service, staying: Sequence[Lingering]) -> Service:
    pool = service.pool
    backends = list(pool.backends)
    if pool.fallback is not None:
        backends.append(pool.fallback)
    for one in staying:
        taken = {backend.name for backend in backends}
        name = next(n for n in _names(one) if n not in taken)
        key = one.identity.backend
        backends.append(Backend(BackendName(name), key.address, key.port, 0, left=one.pool))
    if len(backends) == len(pool.backends):
        return service
    return replace(service, pool=replace(pool, backends=tuple(backends)))


def _names(one: Lingering) -> tuple[str, ...]:
    """Return names for it, the best one first: another backend may have its name by now.

    None in a file can have the last one, which has a blank in it.
    """
    key = str(one.identity.backend)
    return one.name, key, f"{key} removed"
