"""All services' standings, remembered: of thousands few change at a time.

Owns which outcomes still hold. What an outcome is, ``standing`` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from lb_xdp.core.desired import BackendId
from lb_xdp.core.model import Config, Service, ServiceKey
from lb_xdp.core.override import Overrides
from lb_xdp.core.standing import HealthOf, Memory, ServiceStanding, stand_service

_NOTHING = Memory()


@dataclass(frozen=True)
class Standings:
    """The outcome for all services. ``config`` is the one for the datapath."""

    config: Config
    services: Mapping[ServiceKey, ServiceStanding]

    @cached_property
    def live(self) -> frozenset[BackendId]:
        """The backends that may have packets."""
        return frozenset(
            BackendId(key, backend)
            for key, service in self.services.items()
            for backend, standing in service.backends.items()
            if standing.packets
        )

    @property
    def panics(self) -> frozenset[ServiceKey]:
        """The services that have no healthy backend."""
        return frozenset(key for key, service in self.services.items() if service.panic)

    @property
    def memories(self) -> dict[ServiceKey, Memory]:
        """What the next ones are to be made with."""
        return {key: service.memory for key, service in self.services.items()}

    @property
    def wake_s(self) -> float | None:
        """When something changes though nothing happens, None for never."""
        ends_s = (service.wake_s for service in self.services.values())
        return min((end_s for end_s in ends_s if end_s is not None), default=None)


class Judge:
    """Says what every backend is to get, service by service, and remembers what it said.

    Of thousands of services few change at a time; the others get the outcome that they had, the
    very object. It is to be told of changes that it cannot see: those of health and overrides.
    """

    def __init__(self) -> None:
        self._known: dict[ServiceKey, tuple[Service, Memory, ServiceStanding]] = {}

    def forget(self) -> None:
        """Judge all services anew the next time."""
        self._known.clear()

    def forget_pool(self, pool: str) -> None:
        """Judge those anew that have to do with a pool, or with a backend that left it."""
        self._known = {
            key: known
            for key, known in self._known.items()
            if known[0].pool.name != pool and all(b.left != pool for b in known[0].pool.backends)
        }

    def stand(
        self,
        config: Config,
        overrides: Overrides,
        health_of: HealthOf,
        memories: Mapping[ServiceKey, Memory],
        now_s: float,
    ) -> Standings:
        """Return what every backend is to get. ``config`` is an ``extended`` one."""
        services = {}
        for service in config.services:
            memory = memories.get(service.key, _NOTHING)
            known = self._known.get(service.key)
            if known is None or not _holds(known, service, memory, now_s):
                standing = stand_service(service, overrides, health_of, memory, now_s)
                known = self._known[service.key] = (service, memory, standing)
            services[service.key] = known[2]
        effective = tuple(standing.service for standing in services.values())
        return Standings(replace(config, services=effective), services)


def _holds(
    known: tuple[Service, Memory, ServiceStanding], service: Service, memory: Memory, now_s: float
) -> bool:
    """Say whether an outcome is still the one. Made again with its own memory it is the same."""
    of, made_with, standing = known
    return (
        of is service
        and (memory is made_with or memory is standing.memory)
        and (standing.wake_s is None or now_s < standing.wake_s)
    )
