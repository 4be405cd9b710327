"""Random valid configurations, one growing out of the other, and random states of their world.

A walk goes through eras. An era has a set of shapes (mode, family, algorithm ...) that are all in
use, so that what is compiled into the program stays the same within it; everything else changes
from step to step: services, backends, weights, limits, addresses, settings, who is up, who answers
ARP, which interfaces there are. The same seed takes the same walk.

This module owns choosing. It refuses to apply anything; that what it makes is valid is for
``lb_xdp.config`` to say, in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from random import Random
from typing import NamedTuple

from lb_xdp.core.check import HttpCheck
from lb_xdp.core.desired import BackendId
from lb_xdp.core.model import (
    ANY_PORT,
    Address,
    Affinity,
    Algorithm,
    Backend,
    BackendName,
    CheckKind,
    Config,
    FlowTable,
    Gateway,
    HealthCheck,
    Mode,
    NoBackend,
    Pool,
    Protocol,
    Service,
    ServiceName,
    Session,
    TunnelSources,
    XdpMode,
)
from lb_xdp.core.topology import Interface, NextHop, Topology

FLOW_ENTRIES = 4096
_SNATS: tuple[Address, ...] = (
    IPv4Address("10.2.0.100"),
    IPv4Address("10.2.0.101"),
    IPv6Address("fd00:2::100"),
    IPv6Address("fd00:2::101"),
)
_SOURCES = (
    TunnelSources(),
    TunnelSources(IPv4Network("10.200.0.0/16"), IPv6Network("fd00:99::/64")),
)
_PROBES = (
    HealthCheck(CheckKind.NONE),
    HealthCheck(CheckKind.TCP, port=9000),
    HealthCheck(CheckKind.HTTP, port=9001, http=HttpCheck(path="/healthz"), rise=1, fall=5,
                interval_s=0.5, timeout_s=0.25),
)  # fmt: skip


class Shape(NamedTuple):
    """All of a service that decides which code is compiled in."""

    mode: Mode
    vip_version: int
    backend_version: int
    protocol: Protocol
    algorithm: Algorithm
    affinity: Affinity
    records_flows: bool
    no_backend: NoBackend
    any_port: bool
    limited: bool


def random_shape(random: Random) -> Shape:
    """Return a shape that the configuration's rules allow."""
    mode = random.choice(list(Mode))
    vip_version = random.choice((4, 4, 6))
    algorithm = random.choice(list(Algorithm))
    affinity = random.choice((Affinity.NONE, Affinity.NONE, *Affinity))
    limited = random.random() < 0.2
    tracked = (
        mode is Mode.FULLNAT or not algorithm.hashes or affinity is not Affinity.NONE or limited
    )
    return Shape(
        mode,
        vip_version,
        random.choice((4, 6)) if mode.tunnel else vip_version,
        random.choice(list(Protocol)),
        algorithm,
        affinity,
        tracked or random.random() < 0.7,
        random.choice(list(NoBackend)),
        mode is not Mode.FULLNAT and random.random() < 0.15,
        limited,
    )


@dataclass(frozen=True, slots=True)
class Step:
    """One configuration, and the world that it finds."""

    config: Config
    topology: Topology
    live: frozenset[BackendId]
    note: str


class Walk:
    """An endless walk; ``interfaces`` exist. ``era_steps`` is how long an era lasts.

    ``structural`` is the share of the other steps that ask for another generation, each of which
    costs the verifier seconds.
    """

    def __init__(
        self,
        seed: int,
        interfaces: Sequence[Interface],
        *,
        era_steps: int,
        structural: float = 0.1,
    ) -> None:
        self._random = Random(seed)
        self._interfaces = interfaces
        self._era_steps = era_steps
        self._structural = structural
        self._missing: set[str] = set()
        self._count = 0
        self._shapes: tuple[Shape, ...] = ()
        self._services: list[Service] = []
        self._gateway = Gateway("many", (), XdpMode.AUTO, "/run/lb-xdp/many/api.sock", None,
                                flow_table=FlowTable(entries=FLOW_ENTRIES))  # fmt: skip

    def steps(self, count: int) -> Iterator[Step]:
        """Yield ``count`` steps."""
        for number in range(count):
            if number % self._era_steps == 0:
                self._begin_era()
                yield self._step("another era")
                continue
            change = self._random.choice(
                (self._exchange_backends, self._exchange_service, self._set_gateway, self._unplug)
                if self._random.random() < self._structural
                else (self._reweigh, self._relimit, self._settle_otherwise, self._stay)
            )
            change()
            yield self._step(change.__name__.strip("_"))

    def _begin_era(self) -> None:
        random = self._random
        self._shapes = tuple(random_shape(random) for _ in range(random.choice((1, 1, 2, 3, 5))))
        many = random.random() < 0.03
        spare = random.randint(40, 120) if many else random.randint(0, 6)
        shapes = [*self._shapes, *(random.choice(self._shapes) for _ in range(spare))]
        self._services = [self._service(shape) for shape in shapes]
        self._set_gateway()

    def _step(self, note: str) -> Step:
        config = Config(self._gateway, tuple(self._services))
        topology = self._world_of(config)
        share = self._random.choice((0.0, 0.5, 0.9, 1.0, 1.0))
        identities = sorted({BackendId(s.key, b.key) for s, b in config.backends()})
        live = frozenset(one for one in identities if self._random.random() < share)
        return Step(config, topology, live, note)

    # What changes.

    def _stay(self) -> None:
        """Change the world only."""

    def _reweigh(self) -> None:
        at = self._random.randrange(len(self._services))
        pool = self._services[at].pool
        backends = tuple(
            replace(b, weight=self._weight()) if self._random.random() < 0.5 else b
            for b in pool.backends
        )
        self._services[at] = replace(self._services[at], pool=replace(pool, backends=backends))

    def _exchange_backends(self) -> None:
        """Take some backends of a service away, and add others."""
        random = self._random
        at = random.randrange(len(self._services))
        service = self._services[at]
        kept = [b for b in service.pool.backends if random.random() < 0.7]
        numbers = {int(b.address) & 0xFF for b in kept}
        fresh = [n for n in random.sample(range(1, 250), 4) if n not in numbers]
        model = service.pool.backends[0]
        for number in fresh[: random.randint(0 if kept else 1, 4)]:
            address = _at(model.address, number)
            name = BackendName(f"n{number}")
            kept.append(replace(model, name=name, address=address, weight=self._weight()))
        pool = replace(service.pool, backends=tuple(kept))
        self._services[at] = replace(service, pool=pool)

    def _exchange_service(self) -> None:
        """Put another service of the same shape in one's place, or one more, or take one away."""
        random = self._random
        needed = len(self._shapes)
        if len(self._services) > needed and random.random() < 0.4:
            self._services.pop(random.randrange(needed, len(self._services)))
        elif random.random() < 0.5:
            self._services.append(self._service(random.choice(self._shapes)))
        else:
            at = random.randrange(needed)
            self._services[at] = self._service(self._shapes[at])

    def _relimit(self) -> None:
        """Change what limited backends may have, and how long clients are remembered."""
        random = self._random
        at = random.randrange(len(self._services))
        service = self._services[at]
        backends = tuple(
            replace(b, max_connections=b.max_connections and random.randint(1, 1000))
            for b in service.pool.backends
        )
        self._services[at] = replace(
            service,
            pool=replace(service.pool, backends=backends),
            session=replace(service.session, timeout_s=float(random.randint(1, 600))),
        )

    def _settle_otherwise(self) -> None:
        random = self._random
        table = replace(
            self._gateway.flow_table,
            settle_s=float(random.choice((1, 60, 900))),
            udp_idle_s=float(random.choice((1, 30))),
        )
        self._gateway = replace(self._gateway, flow_table=table)

    def _set_gateway(self) -> None:
        random = self._random
        names = [interface.name for interface in self._interfaces]
        snats = tuple(random.sample(_SNATS, 4))[: random.randint(2, 4)]
        if len({a.version for a in snats}) == 1:  # fullnat of either family needs one of its own
            snats = _SNATS
        self._gateway = replace(
            self._gateway,
            interfaces=tuple(random.sample(names, random.choice((1, len(names), len(names))))),
            snat_addresses=snats,
            tunnel_sources=random.choice(_SOURCES),
            gue_port=random.choice((6080, 6081)),
        )

    def _unplug(self) -> None:
        """Take an interface away, or bring all back."""
        names = sorted({interface.name for interface in self._interfaces})
        self._missing = {self._random.choice(names)} - self._missing

    # What is made anew.

    def _service(self, shape: Shape) -> Service:
        """Return a service of a shape, with VIP and addresses that no other has."""
        random = self._random
        self._count += 1
        number = self._count
        port = ANY_PORT if shape.any_port else random.choice((80, 443, 8080))
        moved = shape.mode.translates and not shape.any_port and random.random() < 0.5
        backend_port = port + 1000 if moved else port
        first = random.randint(1, 240)
        backends = tuple(
            Backend(
                BackendName(f"n{first + n}"),
                _backend_address(shape.backend_version, number, first + n),
                backend_port,
                self._weight(),
                random.randint(1, 1000) if shape.limited else None,
            )
            for n in range(random.choice((1, 2, 3, 5, 9)))
        )
        return Service(
            ServiceName(f"s{number}"),
            _vip(shape.vip_version, number),
            port,
            shape.protocol,
            shape.mode,
            Pool(f"p{number}", backends, random.choice(_PROBES)),
            algorithm=shape.algorithm,
            session=Session(shape.affinity, float(random.randint(1, 600)), shape.records_flows),
            no_backend=shape.no_backend,
        )

    def _weight(self) -> int:
        return self._random.choice(
            (0, 1, 50, 100, 100, 100, 101, 65535, self._random.randint(1, 999))
        )

    def _world_of(self, config: Config) -> Topology:
        """Return a network in which most backends answer, some have no MAC and some no way."""
        random = self._random
        hops: dict[Address, NextHop] = {}
        for address in sorted({b.address for _, b in config.backends()}, key=int):
            interface = self._interfaces[-1 - (random.random() < 0.05)]
            fate = random.random()
            mac = bytes([2, 0, 0, *(int(address) & 0xFFFF).to_bytes(2), random.choice((1, 1, 2))])
            if fate > 0.04:
                answer = mac if fate > 0.08 else None
                hops[address] = NextHop(interface.index, interface.mac, answer, None, on_link=True)
        known = {i.name: i for i in self._interfaces if i.name not in self._missing}
        local: frozenset[Address] = frozenset({IPv4Address("10.2.0.1"), IPv6Address("fd00:2::1")})
        return Topology(known, hops, local)


def _vip(version: int, number: int) -> Address:
    if version == 4:
        return IPv4Address("198.18.0.0") + number % 0xFFFF
    return IPv6Address("2001:db8::") + number


def _backend_address(version: int, service: int, number: int) -> Address:
    """Return an address in a network of 256 of the service's own."""
    if version == 4:
        return IPv4Address("11.0.0.0") + (service % 0xFFFF) * 256 + number
    return IPv6Address("fd00:5::") + (service << 16) + number


def _at(model: Address, number: int) -> Address:
    """Return the address with that number beside a backend of the same service."""
    return model - (int(model) & 0xFF) + number
