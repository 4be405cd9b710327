"""Programs and packets for ``scripts/bench``: one generation for each way of configuring a gateway.

Owns what is configured and who sends what; ``lb_xdp.datapath.bench`` does the timing. Clients are
in the blocks for benchmarks, behind a router on ``outer``; ten backends are on ``inner``. What
comes by ``inner`` is sent back by it (one-armed: XDP_TX), what comes by ``outer`` is redirected.
"""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Self

import numpy as np

from lb_xdp.core.goals import desire
from lb_xdp.core.model import (
    Address,
    Affinity,
    Algorithm,
    BackendKey,
    Config,
    Detect,
    FlowTable,
    Gateway,
    Mode,
    Protocol,
    Service,
    Session,
    XdpMode,
)
from lb_xdp.core.plan import Observed, Plan, make_plan
from lb_xdp.core.ring import Ring
from lb_xdp.core.rings import Rings
from lb_xdp.core.settle import NO_BACKEND, UNSETTLED, current_of, pack
from lb_xdp.datapath import counters
from lb_xdp.datapath.bench import Case, Harness
from lb_xdp.datapath.bench_frames import Kind, Traffic, bench_layout, build_frame, to_service
from lb_xdp.datapath.blueprint import draw
from lb_xdp.datapath.compile import FEATURES, build_id, compile_gateway, way_bits
from lb_xdp.datapath.generation import build_generation, load_programs
from lb_xdp.datapath.maps import BpfMap, generation_specs, persistent_specs
from tests.support.program import (
    CLIENT,
    CLIENT6,
    GATEWAY_MAC,
    INNER,
    OUTER,
    VIP,
    VIP6,
    Wire,
    service,
)

BACKENDS = 10
MANY_FLOWS = 1 << 21
FEW_FLOWS = 1 << 10
MAC = bytes.fromhex(GATEWAY_MAC.replace(":", ""))
OTHER: dict[int, Address] = {4: IPv4Address("192.0.2.99"), 6: IPv6Address("2001:db8:99::1")}
_VIPS: dict[int, Address] = {4: VIP, 6: VIP6}
_FIRST: dict[int, Address] = {4: IPv4Address("100.64.0.1"), 6: IPv6Address("2001:db8:1::1")}
_SNATS: tuple[Address, ...] = tuple(
    first + n for first in (IPv4Address("10.2.1.0"), IPv6Address("fd00:2::1:0")) for n in range(64)
)


class To(Enum):
    """Where the packets of a row go."""

    VIP = "vip"
    ALL = "all"  # the VIPs of all services in turn
    NOWHERE = "nowhere"  # an address that is nobody's
    CLIENT = "client"  # replies of backends


@dataclass(frozen=True, slots=True)
class Setup:
    """What a gateway is configured for; ``generic``: every feature compiled in.

    ``unsettled``: every slot has a former backend. ``watched``: handshakes are. ``number`` keeps
    equal set-ups apart, for flows that must not meet the records of others.
    """

    mode: Mode
    family: int = 4
    algorithm: Algorithm = Algorithm.MAGLEV
    affinity: Affinity = Affinity.NONE
    services: int = 1
    generic: bool = False
    unsettled: bool = False
    watched: bool = False
    number: int = 0

    @property
    def records(self) -> bool:
        """Say whether flows get records."""
        return (
            self.mode is Mode.FULLNAT
            or self.unsettled
            or not self.algorithm.hashes
            or self.affinity is not Affinity.NONE
        )

    def vips(self) -> list[Address]:
        """Return the VIPs of the services: the usual one, then others."""
        return [_VIPS[self.family], *(_FIRST[self.family] + n for n in range(self.services - 1))]

    def config(self) -> Config:
        """Return the configuration. Each VIP has a TCP service; the first one also UDP's."""
        services = [self._service(vip, n, Protocol.TCP) for n, vip in enumerate(self.vips())]
        services.append(self._service(_VIPS[self.family], self.services, Protocol.UDP))
        table = FlowTable(entries=MANY_FLOWS if self.records else FEW_FLOWS)
        gateway = Gateway(
            "bench",
            (OUTER, INNER),
            XdpMode.AUTO,
            "",
            None,
            snat_addresses=_SNATS,
            flow_table=table,
        )
        return Config(gateway, tuple(services))

    def _service(self, vip: Address, number: int, protocol: Protocol) -> Service:
        # Ports of their own, so that no backend is shared between nat services.
        translated = 1024 + number if self.mode.translates else None
        return service(
            self.mode,
            vip=vip,
            protocol=protocol,
            backends=range(1, BACKENDS + 1),
            backend_port=translated,
            algorithm=self.algorithm,
            session=Session(self.affinity),
            detect=Detect() if self.watched else None,
            name=f"s{number}",
        )


class _FastRings:
    """Rings for a thousand services with ten backends each: the owners of all are the same."""

    def __init__(self) -> None:
        self._rings = Rings()
        self._first: Ring | None = None

    def ring_of(self, wanted: Service, live: frozenset[BackendKey]) -> Ring:
        if self._first is None or not wanted.algorithm.hashes:
            self._first = self._rings.ring_of(wanted, live)
        keys = tuple(sorted(backend.key for backend in wanted.pool.backends))
        return Ring(keys, self._first.owner)


class Built:
    """A generation for a set-up, and its maps. Close it by leaving its block."""

    def __init__(self, setup: Setup, wire: Wire) -> None:
        self.setup = setup
        config, topology = setup.config(), wire.topology(BACKENDS)
        live = {(service.key, backend.key) for service, backend in config.backends()}
        desired = desire(
            config,
            topology,
            live,  # type: ignore[arg-type]  # equal to BackendIds, which are such tuples
            _FastRings().ring_of,
            build=build_id(),
            held={},
        )
        plan = make_plan(Observed(), desired, now_ns=time.monotonic_ns())
        if setup.unsettled:
            plan = _unsettle(plan)
        entries = config.gateway.flow_table.entries
        with ExitStack() as undo:
            self.maps = {
                spec.name: undo.enter_context(BpfMap.create(spec))
                for spec in persistent_specs(entries, way_bits())
            }
            for index in desired.interfaces.values():
                self.maps["devices"].write(index, index)
            counters.watch(self.maps["watched"], plan.structure, plan.indices)
            generation = build_generation(plan, self.maps)
            undo.callback(generation.close)
            self.program_fd = generation.program.fd
            if setup.generic:
                self.program_fd = _load_generic(plan, {**generation.maps, **self.maps}, undo)
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()


def _unsettle(plan: Plan) -> Plan:
    rings = {}
    for key, image in plan.rings.items():
        current = current_of(image.slots)
        former = np.roll(current, 1)
        state = np.where(former == current, np.uint32(0), np.uint32(UNSETTLED))
        former = np.where(former == current, np.uint32(NO_BACKEND), former)
        rings[key] = image._replace(held=pack(current, former, state))
    return replace(plan, rings=rings)


def _load_generic(plan: Plan, maps: dict[str, BpfMap], undo: ExitStack) -> int:
    """Load the program with every feature onto the maps of the specialised one."""
    blueprint = draw(plan)
    code = compile_gateway(replace(blueprint.code.parameters, features=frozenset(FEATURES)))
    spec = next(s for s in generation_specs(1, blueprint.shape) if s.name == "programs")
    programs = undo.enter_context(BpfMap.create(spec))
    loaded = load_programs(code, {**maps, "programs": programs})
    undo.callback(os.close, loaded.fd)
    return loaded.fd


def make_wire() -> Wire:
    """Return the network of the packet tests, with a route to the clients of benchmarks."""
    wire = Wire()
    for block, router in (("198.18.0.0/15", CLIENT), ("2001:2::/48", CLIENT6)):
        subprocess.run(["ip", "route", "add", block, "via", str(router), "dev", OUTER], check=True)
    return wire


def traffic(built: Built, kind: Kind, to: To, flows: int) -> Traffic:
    """Return what a row sends to a gateway whose clients are ``flows`` many."""
    setup = built.setup
    vip = _VIPS[setup.family]
    if to is To.NOWHERE:
        return to_service(kind, OTHER[setup.family], 80, MAC, flows)
    sent = to_service(kind, vip, 80, MAC, flows)
    if to is To.CLIENT:
        return _replies(built, kind, sent)
    if to is To.ALL:
        vips = np.array([int(v) & 0xFFFF_FFFF for v in setup.vips()])
        sent.flows["destination"] = vips[np.arange(flows) % len(vips)]
        if setup.family != 4:
            raise ValueError("the VIPs of IPv6 differ in more than their last word")
    return sent


def _replies(built: Built, kind: Kind, sent: Traffic) -> Traffic:
    """Return the answers of backends to ``sent``."""
    setup = built.setup
    address = IPv4Address("10.2.0.0") if setup.family == 4 else IPv6Address("fd00:2::")
    client = _SNATS[0 if setup.family == 4 else -1]
    frame = build_frame(kind, address, client, (1024, 1), MAC)
    back = sent.flows.copy()
    if setup.mode is Mode.NAT:
        numbers = np.random.default_rng(2).integers(11, 11 + BACKENDS, len(back))
        back["source"] = (int(address) & 0xFFFF_FFFF) + numbers
        back["source_port"], back["destination"] = 1024, sent.flows["source"]
        back["destination_port"] = sent.flows["source_port"]
        frame = build_frame(kind, address, _client(setup.family), (1024, 1), MAC)
        return Traffic(frame, setup.family, back)
    keys, _ = built.maps["returns"].read_all()
    keys = np.random.default_rng(2).permutation(keys)[: len(back)]
    word = 0 if setup.family == 4 else 3
    back = np.zeros(len(keys), bench_layout().structs["lb_bench_flow"])
    back["source"], back["destination"] = keys["source"][:, word], keys["destination"][:, word]
    back["source_port"], back["destination_port"] = keys["source_port"], keys["destination_port"]
    return Traffic(frame, setup.family, back)


def _client(family: int) -> Address:
    return IPv4Address("198.18.0.0") if family == 4 else IPv6Address("2001:2::")


def prime(harness: Harness, built: Built, flows: int, ifindex: int) -> None:
    """Send requests of that many flows, so that there are records for their replies."""
    sent = traffic(built, Kind.ESTABLISHED, To.VIP, flows)
    harness.times_ns(Case("prime", built.program_fd, sent, ifindex), 1)
