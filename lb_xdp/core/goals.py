"""From configuration, liveness and topology to the goal, service by service.

``desire`` is the pure function. ``Goals`` gives the same, and remembers: of thousands of services
few change at a time, and mostly none, since cycles are asked for by whatever changes, a neighbour's
word or a probe's. Owns which parts and goals still hold. What a part is, ``part`` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import is_
from typing import NamedTuple

from lb_xdp.core.desired import BackendId, BackendRecord, Desired, Structure, identities
from lb_xdp.core.judge import Standings
from lb_xdp.core.model import (
    GUE_PORT,
    Address,
    BackendKey,
    Config,
    Gateway,
    Mode,
    Protocol,
    Service,
    ServiceKey,
    TunnelSources,
)
from lb_xdp.core.part import Cause, Network, Part, RingOf, make_part
from lb_xdp.core.remembered import remembered
from lb_xdp.core.topology import Topology
from lb_xdp.core.ways import attached

_KEPT = 2
"""Of each service, and of all: the present configuration's, and the one's that is being tried."""

_Use = tuple[BackendKey, Protocol]


def desire(
    config: Config,
    topology: Topology,
    live: Collection[BackendId],
    ring_of: RingOf,
    *,
    build: int,
    held: Mapping[BackendId, BackendRecord],
) -> Desired:
    """Return what the datapath should be, given which backends may take traffic.

    ``held`` are the present records, ``build`` names the program's sources.
    """
    network = _network(config, topology)
    parts = []
    for service in config.services:
        up = frozenset(i.backend for i in identities(service) if i in live)
        parts.append(make_part(_cause(config, service, up, network), held, ring_of))
    return _assembled(config, network, build, parts)


def _network(config: Config, topology: Topology) -> Network:
    return Network(topology, {one.index: one for one in attached(config, topology)})


def _cause(
    config: Config, service: Service, live: frozenset[BackendKey], network: Network
) -> Cause:
    shared = _shared(config)
    mine = frozenset(use[0] for use in _uses(service) if use in shared) if shared else frozenset()
    return Cause(service, live, mine, config.gateway.flow_table, network)


@remembered
def _uses(service: Service) -> tuple[_Use, ...]:
    """Return what replies of a service's backends are known by, where they have to be known."""
    if service.mode is not Mode.NAT:
        return ()
    return tuple((backend.key, service.protocol) for backend in service.pool.backends)


@remembered
def _shared(config: Config) -> frozenset[_Use]:
    """Return what several services use."""
    users = Counter[_Use]()
    for service in config.services:
        users.update(_uses(service))
    return frozenset(use for use, count in users.items() if count > 1)


def _assembled(config: Config, network: Network, build: int, parts: Sequence[Part]) -> Desired:
    keys = [service.key for service in config.services]
    records: dict[BackendId, BackendRecord] = {}
    for part in parts:
        records.update(part.records)
    return Desired(
        _structure(config, network, build, dict(zip(keys, parts, strict=True)), records),
        records,
        {key: part.ring for key, part in zip(keys, parts, strict=True)},
        {one.name: one.index for one in network.ours.values()},
        {key: part.settle_ns for key, part in zip(keys, parts, strict=True)},
        {key: part.affinity_s for key, part in zip(keys, parts, strict=True)},
    )


def _structure(
    config: Config,
    network: Network,
    build: int,
    parts: Mapping[ServiceKey, Part],
    backends: Iterable[BackendId],
) -> Structure:
    gateway = config.gateway
    modes = {service.mode for service in config.services}
    families = {s.vip.version for s in config.services if s.mode.translates}
    local = network.topology.local_addresses
    tunnels = any(mode.tunnel for mode in modes)
    return Structure(
        build=build,
        services={key: part.traits for key, part in parts.items()},
        backends=frozenset(backends),
        local_addresses=frozenset(a for a in local if a.version in families),
        macs=frozenset(interface.mac for interface in network.ours.values()),
        snat_addresses=_ordered(gateway.snat_addresses) if Mode.FULLNAT in modes else (),
        tunnel_sources=gateway.tunnel_sources if tunnels else TunnelSources(),
        gue_port=gateway.gue_port if Mode.GUE in modes else GUE_PORT,
        flow_entries=gateway.flow_table.entries,
    )


def _ordered(addresses: Collection[Address]) -> tuple[Address, ...]:
    """Return addresses in the order of the map that holds them: by family, then by value."""
    return tuple(sorted(addresses, key=lambda address: (address.version, int(address))))


class _KnownPart(NamedTuple):
    """A part and what it was made from. ``open``: from present records as well."""

    cause: Cause
    open: bool
    part: Part

    def holds(self, cause: Cause) -> bool:
        before = self.cause
        return (
            before.service is cause.service
            and (before.live is cause.live or before.live == cause.live)
            and before.shared == cause.shared
            and before.times == cause.times
            and before.network.same_ways(cause.network, cause.service)
            and not self.open
        )


class _KnownGoal(NamedTuple):
    """A goal and what it was put together from."""

    gateway: Gateway
    network: Network
    parts: Sequence[Part]
    desired: Desired

    def holds(self, gateway: Gateway, network: Network, parts: Sequence[Part]) -> bool:
        return (
            len(parts) == len(self.parts)
            and all(map(is_, parts, self.parts))
            and gateway == self.gateway
            and network.ours == self.network.ours
            and network.topology.local_addresses == self.network.topology.local_addresses
        )


class Goals:
    """Returns the very object as long as it holds. ``build`` names the program's sources."""

    def __init__(self, build: int, ring_of: RingOf) -> None:
        self._build = build
        self._ring_of = ring_of
        self._network = Network(Topology(), {})
        self._parts: dict[ServiceKey, tuple[_KnownPart, ...]] = {}
        self._goals: list[_KnownGoal] = []

    def of(
        self,
        standings: Standings,
        topology: Topology,
        held: Mapping[BackendId, BackendRecord],
    ) -> Desired:
        """Return the goal; ``held`` are the present records."""
        config = standings.config
        network = self._known_network(_network(config, topology))
        parts, before = [], self._parts
        self._parts = {}
        for key, standing in standings.services.items():
            cause = _cause(config, standing.service, standing.memory.served, network)
            known = self._part(before.get(key, ()), cause, held)
            self._parts[key] = known
            parts.append(known[0].part)
        return self._goal(config, network, parts)

    def forget_former(self) -> None:
        """Remember the latest goal alone: of what came before it, each ring takes 66 kB.

        Whoever goes back there pays for what differs once more.
        """
        self._parts = {key: known[:1] for key, known in self._parts.items()}
        del self._goals[1:]

    def _known_network(self, network: Network) -> Network:
        """Return the very network of before, if it is the same."""
        if network != self._network:
            self._network = network
        return self._network

    def _part(
        self,
        known: tuple[_KnownPart, ...],
        cause: Cause,
        held: Mapping[BackendId, BackendRecord],
    ) -> tuple[_KnownPart, ...]:
        """Return what is known of a service by now, what holds first."""
        for one in known:
            if one.holds(cause):
                if one is known[0] and one.cause.network is cause.network:
                    return known
                return (one._replace(cause=cause), *(other for other in known if other is not one))
        part = make_part(cause, held, self._ring_of)
        part = next((one.part for one in known if one.part == part), part)
        new = _KnownPart(cause, cause.network.asks(cause.service), part)
        others = [one for one in known if one.part is not part]
        return (new, *others[: _KEPT - 1])

    def _goal(self, config: Config, network: Network, parts: Sequence[Part]) -> Desired:
        for known in self._goals:
            if known.holds(config.gateway, network, parts):
                self._goals = [known, *(other for other in self._goals if other is not known)]
                return known.desired
        desired = _assembled(config, network, self._build, parts)
        known = _KnownGoal(config.gateway, network, parts, desired)
        self._goals = [known, *self._goals[: _KEPT - 1]]
        return desired
