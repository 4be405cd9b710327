"""Rings, remembered: the same weights and the same live backends give the same Ring object.

Identity matters here: the planner skips what has not changed by ``is``. Base rings are shared by
services with equal pools; of each service only the latest ring is kept, and of base rings that no
service uses any more a few: every step of a slow start makes another one, a drain and its end the
same two.

Round robin takes slots in turn, so its ring is a schedule. All other algorithms use one Maglev
ring: by hash, or by looking at random slots of it, so that a slot's chance is its backend's weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from hashlib import blake2b
from typing import NamedTuple

from lb_xdp.core.model import Algorithm, BackendKey, Service, ServiceKey
from lb_xdp.core.ring import RING_SLOTS, VERSION, Fill, Ring, fill, hand_over, maglev, schedule

SPARE_BASES = 8
"""Base rings that are kept though no service uses them; 66 kB each, 131 kB from 256 backends on."""

_Weights = tuple[tuple[BackendKey, int], ...]


class _Cause(NamedTuple):
    """All that a ring depends on."""

    weights: _Weights
    live: frozenset[BackendKey]
    in_turn: bool


class Rings:
    """Builds rings on demand; ``builds`` counts those that were not remembered.

    ``how`` takes the turns of Maglev: ``core.ring.fill`` or something faster.
    """

    def __init__(self, how: Fill = fill) -> None:
        self._how = how
        self._bases: dict[_Weights, Ring] = {}
        self._users: Counter[_Weights] = Counter()
        self._idle: dict[_Weights, None] = {}  # the longest idle first
        self._latest: dict[ServiceKey, tuple[_Cause, Ring]] = {}
        self.builds = 0

    def ring_of(self, service: Service, live: frozenset[BackendKey]) -> Ring:
        """Return the ring of a service whose live backends are ``live``."""
        weights = tuple(sorted((b.key, b.weight) for b in service.pool.backends))
        cause = _Cause(weights, live, service.algorithm is Algorithm.ROUND_ROBIN)
        latest = self._latest.get(service.key)
        if latest is not None and latest[0] == cause:
            return latest[1]
        ring = self._made(cause)
        self._use(cause.weights, latest[0].weights if latest else None)
        self._latest[service.key] = (cause, ring)
        return ring

    def _made(self, cause: _Cause) -> Ring:
        """Return a ring that is built when somebody looks at its slots."""
        keys = tuple(key for key, weight in cause.weights if weight)
        return Ring(keys, lambda: self._build(cause), _digest(cause))

    def _build(self, cause: _Cause) -> Ring:
        self.builds += 1
        weights = dict(cause.weights)
        if cause.in_turn:
            return schedule(weights, cause.live)
        base = self._bases.get(cause.weights)
        if base is None:
            base = self._bases[cause.weights] = maglev(weights, RING_SLOTS, self._how)
        return hand_over(base, cause.live, weights)

    def _use(self, weights: _Weights, former: _Weights | None) -> None:
        """Note that a service went from one base ring to another; let go of those long idle."""
        self._users[weights] += 1
        self._idle.pop(weights, None)
        if former is not None:
            self._users[former] -= 1
            if not self._users[former]:
                del self._users[former]
                self._idle[former] = None
        while len(self._idle) > SPARE_BASES:
            oldest = next(iter(self._idle))
            del self._idle[oldest]
            self._bases.pop(oldest, None)

    def forget_others(self, services: Collection[Service]) -> None:
        """Drop what services that are gone had."""
        keys = {service.key for service in services}
        self._users = Counter(self._latest[key][0].weights for key in keys & self._latest.keys())
        self._idle = {}
        self._latest = {key: value for key, value in self._latest.items() if key in keys}
        self._bases = {
            weights: ring for weights, ring in self._bases.items() if weights in self._users
        }


def _digest(cause: _Cause) -> bytes:
    """Return a digest of a cause, the same in every process of the same way to make rings."""
    live = [tuple(key) for key in sorted(cause.live)]
    text = repr((VERSION, RING_SLOTS, [(*key, w) for key, w in cause.weights], live, cause.in_turn))
    return blake2b(text.encode(), digest_size=16).digest()
