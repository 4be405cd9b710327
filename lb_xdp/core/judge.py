"""All services' standings, remembered: of thousands few change at a time.

Owns which outcomes still hold. What an outcome is, ``standing`` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import is_
from typing import NamedTuple

from lb_xdp.core.health import Advice
from lb_xdp.core.model import Config, Service, ServiceKey
from lb_xdp.core.override import Override, Overrides, Subject
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
_Asked = Mapping[Subject, Override]
_NOT_ASKED: _Asked = {}

StampOf = Callable[[Service], object]
"""From a service to what stays equal as long as nothing about its backends' health changes."""


def no_stamp(_service: Service) -> object:
    """Return what equals nothing: then everybody's health is asked for each time."""
    return object()


@dataclass(frozen=True, slots=True)
class Standings:
    """The outcome for all services. ``config`` is the one for the datapath."""

    config: Config
    services: Mapping[ServiceKey, ServiceStanding]

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

    ``seen`` is the health of each backend, and what it asks for itself; it is the same for as long
    as the ``stamp`` is.
    """

    stamp: object
    service: Service
    asked: _Asked
    seen: _Seen
    memory: Memory
    standing: ServiceStanding

    def holds(
        self,
        service: Service,
        asked: _Asked,
        seen: _Seen,
        memory: Memory,
        now_s: float,
    ) -> bool:
        """Say whether the outcome is still the one. Made with its own memory it is the same."""
        wake_s = self.standing.wake_s
        return (
            self.service is service
            and self.asked == asked
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
        self._effective: tuple[Config | None, Config | None] = (None, None)

    def stand(
        self,
        config: Config,
        overrides: Overrides,
        health_of: HealthOf,
        memories: Mapping[ServiceKey, Memory],
        now_s: float,
        *,
        advice_of: AdviceOf = no_advice,
        stamp_of: StampOf = no_stamp,
    ) -> Standings:
        """Return what every backend is to get. ``config`` is an ``extended`` one."""
        known = {}
        for service in config.services:
            held, stamp = self._known.get(service.key), stamp_of(service)
            if held is None or held.service is not service or held.stamp != stamp:
                seen = tuple(
                    (health_of(service, backend), advice_of(service, backend))
                    for backend in service.pool.backends
                )
            else:
                seen = held.seen
            memory = memories.get(service.key, _NOTHING)
            asked = overrides.by_service.get(service.name, _NOT_ASKED)
            if held is None or not held.holds(service, asked, seen, memory, now_s):
                standing = stand_service(
                    service, overrides, health_of, memory, now_s, advice_of=advice_of
                )
                held = _Known(stamp, service, asked, seen, memory, standing)
            known[service.key] = held if held.stamp is stamp else held._replace(stamp=stamp)
        self._known = known
        services = {key: held.standing for key, held in known.items()}
        effective = tuple(standing.service for standing in services.values())
        return Standings(self._config(config, effective), services)

    def _config(self, config: Config, effective: tuple[Service, ...]) -> Config:
        """Return the configuration with the weights that count: the very object, if it can be."""
        of, latest = self._effective
        for known in (config, latest if of is config else None):
            if known is not None and _same(known.services, effective):
                return known
        found = replace(config, services=effective)
        self._effective = config, found
        return found


def _same(some: tuple[Service, ...], others: tuple[Service, ...]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))
