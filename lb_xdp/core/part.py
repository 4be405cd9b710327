"""What one service has of the goal: its traits, the records of its backends, and its ring.

Owns how these follow from the service, from who is alive, and from the network. It refuses to
remember anything, and to know other services beyond the addresses that they share with this one:
``goals`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil
from typing import NamedTuple

from lb_xdp.core.desired import BackendId, BackendRecord, Traits, identities, traits
from lb_xdp.core.model import Affinity, Backend, BackendKey, FlowTable, Mode, Protocol, Service
from lb_xdp.core.ring import Ring
from lb_xdp.core.targets import addresses_of
from lb_xdp.core.topology import Interface, Topology
from lb_xdp.core.ways import NO_WAY, find_way

_RESUME_PERCENT = 95

RingOf = Callable[[Service, frozenset[BackendKey]], Ring]
"""From a service and its live backends to its ring; the caller may remember results."""


class Network(NamedTuple):
    """What is known of the network, and ``ours``, the interfaces to attach to, by index."""

    topology: Topology
    ours: Mapping[int, Interface]

    def same_ways(self, other: Network, service: Service) -> bool:
        """Say whether a service's backends are reached as in another network."""
        if self is other:
            return True
        before, after = self.topology.next_hops, other.topology.next_hops
        return self.ours == other.ours and all(
            before.get(address) == after.get(address) for address in addresses_of(service)
        )

    def asks(self, service: Service) -> bool:
        """Say whether some neighbour has not answered: then present records matter, too."""
        hops = (self.topology.next_hops.get(address) for address in addresses_of(service))
        return any(hop is not None and hop.mac is None for hop in hops)


class Cause(NamedTuple):
    """All that a part is made from, but for present records.

    ``live`` are the backends that may take traffic, ``shared`` those whose address and port are
    backends of another nat service as well.
    """

    service: Service
    live: frozenset[BackendKey]
    shared: frozenset[BackendKey]
    times: FlowTable
    network: Network


class Part(NamedTuple):
    """The goal's part of one service; see ``Desired`` for what its fields mean."""

    traits: Traits
    records: Mapping[BackendId, BackendRecord]
    ring: Ring
    settle_ns: int
    affinity_s: int


def make_part(cause: Cause, held: Mapping[BackendId, BackendRecord], ring_of: RingOf) -> Part:
    """Return a service's part of the goal.

    ``held`` are the present records: a backend whose neighbour does not answer now keeps the MAC
    that it had. Whether it is alive is for probes to say, not for ARP.
    """
    service = cause.service
    records = {
        identity: _record(cause, backend, held.get(identity))
        for identity, backend in zip(identities(service), service.pool.backends, strict=True)
    }
    up = frozenset(identity.backend for identity, record in records.items() if record.up)
    return Part(
        traits(service),
        records,
        ring_of(service, up),
        _settle_ns(service, cause.times),
        _affinity_s(service),
    )


def _record(cause: Cause, backend: Backend, held: BackendRecord | None) -> BackendRecord:
    service, (topology, ours) = cause.service, cause.network
    rules = traits(service)
    way = find_way(service.mode, backend.address, topology, ours, held)
    limit = backend.max_connections or 0
    return BackendRecord(
        *way,
        up=way is not NO_WAY and backend.key in cause.live,
        shared=backend.key in cause.shared,
        no_new=backend.weight == 0,
        tracked=rules.tracked,
        limit=limit,
        resume=_resume(service.mode, limit),
        weight=backend.weight if rules.counted else 0,
        watched=rules.watched,
    )


def _resume(mode: Mode, limit: int) -> int:
    """Return how many connections a full backend must be down to before it takes new ones.

    Where both directions pass by, each connection is seen to end and the next one may come at once;
    elsewhere the number is an estimate, and a backend that wavers about its limit would flap.
    """
    if mode.translates:
        return max(limit - 1, 0)
    return limit * _RESUME_PERCENT // 100


def _settle_ns(service: Service, times: FlowTable) -> int:
    """Return after how long a flow that has not shown itself is taken to be over."""
    if not (service.tracked or service.session.flows):
        return 0
    seconds = times.settle_s if service.protocol is Protocol.TCP else times.udp_idle_s
    return round(seconds * 1e9)


def _affinity_s(service: Service) -> int:
    return 0 if service.session.affinity is Affinity.NONE else ceil(service.session.timeout_s)
