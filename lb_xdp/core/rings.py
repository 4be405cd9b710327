"""Rings, remembered: the same weights and the same live backends give the same Ring object.

Identity matters here: the planner skips what has not changed by ``is``. Base rings are shared by
services with equal pools; of each service only the latest ring is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lb_xdp.core.model import BackendKey, Service, ServiceKey
from lb_xdp.core.ring import Ring, hand_over, maglev

_Weights = tuple[tuple[BackendKey, int], ...]


class Rings:
    """Builds rings on demand; ``builds`` counts those that were not remembered."""

    def __init__(self) -> None:
        self._bases: dict[_Weights, Ring] = {}
        self._latest: dict[ServiceKey, tuple[_Weights, frozenset[BackendKey], Ring]] = {}
        self._slots: dict[ServiceKey, Mapping[BackendKey, int]] = {}
        self.builds = 0

    def ring_of(self, service: Service, live: frozenset[BackendKey]) -> Ring:
        """Return the ring of a service whose live backends are ``live``."""
        weights = tuple(sorted((b.key, b.weight) for b in service.pool.backends))
        latest = self._latest.get(service.key)
        if latest is not None and latest[:2] == (weights, live):
            return latest[2]
        ring = self._hand_over(weights, live)
        self._latest[service.key] = (weights, live, ring)
        self._slots[service.key] = ring.counts()
        self.builds += 1
        return ring

    def _hand_over(self, weights: _Weights, live: frozenset[BackendKey]) -> Ring:
        base = self._bases.get(weights)
        if base is None:
            base = self._bases[weights] = maglev(dict(weights))
        return hand_over(base, live, dict(weights))

    def slots(self, service: ServiceKey) -> Mapping[BackendKey, int]:
        """Return how many slots each backend holds in the service's latest ring."""
        return self._slots.get(service, {})

    def forget_others(self, services: Collection[Service]) -> None:
        """Drop what services that are gone had."""
        keys = {service.key for service in services}
        used = {self._latest[key][0] for key in keys & self._latest.keys()}
        self._latest = {key: value for key, value in self._latest.items() if key in keys}
        self._slots = {key: value for key, value in self._slots.items() if key in keys}
        self._bases = {weights: ring for weights, ring in self._bases.items() if weights in used}
