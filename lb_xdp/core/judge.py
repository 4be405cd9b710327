"""All services' standings, remembered: of thousands few change at a time.

Owns which outcomes still hold. What an outcome is, ``standing`` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from lb_xdp.core.desired import BackendId
from lb_xdp.core.health import Advice
from lb_xdp.core.model import Config, Service, ServiceKey
from lb_xdp.core.override import Overrides
from lb_xdp.core.snapshot import Health
from lb_xdp.core.standing import (
    AdviceOf,
    HealthOf,
    Memory,
    ServiceStanding,
    no_advice,
    stand_service,
)

_NOTHING = Memory()

_Seen = tuple[tuple[Health, Advice], ...]


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


class _Known(NamedTuple):
    """An outcome, and all that it was made from but the time.

    ``seen`` is the health of each backend, and what it asks for itself.
    """

    service: Service
    overrides: Overrides
    seen: _Seen
    memory: Memory
    standing: ServiceStanding

    def holds(
        self,
        service: Service,
        overrides: Overrides,
        seen: _Seen,
        memory: Memory,
        now_s: float,
    ) -> bool:
        """Say whether the outcome is still the one. Made with its own memory it is the same."""
        wake_s = self.standing.wake_s
        return (
            self.service is service
            and self.overrides is overrides
            and self.seen == seen
            and (memory is self.memory or memory is self.standing.memory)
            and (wake_s is None or now_s < wake_s)
        )


class Judge:
    """Says what every backend is to get, service by service, and remembers what it said.

    A service for which nothing has changed gets the outcome that it had, the very object.
    """

    def __init__(self) -> None:
        self._known: dict[ServiceKey, _Known] = {}

    def stand(
        self,
        config: Config,
        overrides: Overrides,
        health_of: HealthOf,
        memories: Mapping[ServiceKey, Memory],
        now_s: float,
        *,
        advice_of: AdviceOf = no_advice,
    ) -> Standings:
        """Return what every backend is to get. ``config`` is an ``extended`` one."""
        known = {}
        for service in config.services:
            seen = tuple(
                (health_of(service, backend), advice_of(service, backend))
                for backend in service.pool.backends
            )
            memory = memories.get(service.key, _NOTHING)
            held = self._known.get(service.key)
            if held is None or not held.holds(service, overrides, seen, memory, now_s):
                standing = stand_service(
                    service, overrides, health_of, memory, now_s, advice_of=advice_of
                )
                held = _Known(service, overrides, seen, memory, standing)
            known[service.key] = held
        self._known = known
        services = {key: held.standing for key, held in known.items()}
        effective = tuple(standing.service for standing in services.values())
        return Standings(replace(config, services=effective), services)
