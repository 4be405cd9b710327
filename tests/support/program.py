"""The real program on single packets: built as the controller builds it, run by BPF_PROG_TEST_RUN.

A small network stands in the sandbox's own namespace, so that the routing table answers the
program's questions. Addresses: client 10.1.0.2 behind ``outer`` (10.1.0.1/24), backends 10.2.0.11
and up behind ``inner`` (10.2.0.1/24); the VIP is 203.0.113.10. In IPv6 fd00:1::2, fd00:1::1,
fd00:2::11 and up, fd00:2::1 and 2001:db8::10.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Self

from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from lb_xdp.core.desired import BackendId, Desired
from lb_xdp.core.goals import desire
from lb_xdp.core.model import (
    Address,
    Algorithm,
    Backend,
    BackendKey,
    BackendName,
    CheckKind,
    Config,
    Detect,
    FlowTable,
    Gateway,
    HealthCheck,
    Mode,
    NoBackend,
    OnBackendDown,
    Pool,
    Protocol,
    Service,
    ServiceName,
    Session,
    XdpMode,
)
from lb_xdp.core.plan import Observed, Plan, make_plan
from lb_xdp.core.rings import Rings
from lb_xdp.core.topology import Interface, NextHop, Topology
from lb_xdp.datapath import counters, syscall
from lb_xdp.datapath.compile import build_id, way_bits
from lb_xdp.datapath.generation import Generation, build_generation
from lb_xdp.datapath.maps import BpfMap, persistent_specs
from tests.support import xdp_pass

VIP = IPv4Address("203.0.113.10")
VIP6 = IPv6Address("2001:db8::10")
CLIENT = IPv4Address("10.1.0.2")
CLIENT6 = IPv6Address("fd00:1::2")
CLIENT_MAC = "02:00:00:00:01:02"
GATEWAY_MAC = "02:00:00:00:01:01"
OUTER, INNER = "outer", "inner"
OUTER_ADDRESS, INNER_ADDRESS = IPv4Address("10.1.0.1"), IPv4Address("10.2.0.1")
OUTER_ADDRESS6, INNER_ADDRESS6 = IPv6Address("fd00:1::1"), IPv6Address("fd00:2::1")
SNATS: tuple[Address, ...] = (IPv4Address("10.2.0.100"), IPv6Address("fd00:2::100"))

FLOW_ENTRIES = 1 << 16

ACTIONS = {0: "aborted", 1: "drop", 2: "pass", 3: "tx", 4: "redirect"}


def backend_address(number: int) -> IPv4Address:
    """Return the address of backend 1, 2, ..."""
    return IPv4Address(f"10.2.0.{10 + number}")


def backend_address6(number: int) -> IPv6Address:
    """Return the IPv6 address of backend 1, 2, ..."""
    return IPv6Address(f"fd00:2::{10 + number}")


def backend_mac(number: int) -> bytes:
    """Return the MAC of backend 1, 2, ..."""
    return bytes([2, 0, 0, 0, 2, 10 + number])


class Wire:
    """The two veth pairs. Their far ends run XDP_PASS, as real receivers of XDP frames do."""

    def __init__(self) -> None:
        self._ip("link", "add", OUTER, "type", "veth", "peer", "name", "outer-peer")
        self._ip("link", "add", INNER, "type", "veth", "peer", "name", "inner-peer")
        self._ip("link", "set", OUTER, "address", GATEWAY_MAC)
        program = Path("/sys/fs/bpf/pass")
        xdp_pass.pin(program)
        for name in ("outer-peer", "inner-peer"):  # nobody says anything of his own accord
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1", encoding="ascii")
        for name in (OUTER, INNER, "outer-peer", "inner-peer"):
            self._ip("link", "set", name, "up")
            self._ip("link", "set", name, "xdp", "pinned", str(program))
        self._ip("address", "add", f"{OUTER_ADDRESS}/24", "dev", OUTER)
        self._ip("address", "add", f"{INNER_ADDRESS}/24", "dev", INNER)
        self._ip("address", "add", f"{OUTER_ADDRESS6}/64", "dev", OUTER, "nodad")
        self._ip("address", "add", f"{INNER_ADDRESS6}/64", "dev", INNER, "nodad")
        for client in (CLIENT, CLIENT6):
            self._ip("neighbour", "replace", str(client), "lladdr", CLIENT_MAC, "dev", OUTER)
        for family in ("ipv4", "ipv6"):
            for name in ("all", OUTER, INNER):
                switch = Path(f"/proc/sys/net/{family}/conf/{name}/forwarding")
                switch.write_text("1", encoding="ascii")

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def close(self) -> None:
        for name in (OUTER, INNER):
            self._ip("link", "delete", name)

    def set_mtu(self, interface: str, octets: int) -> None:
        """Change the MTU that the routing table goes by."""
        self._ip("link", "set", interface, "mtu", str(octets))

    def topology(self, backends: int) -> Topology:
        """Return what netlink would tell of this network, with ``backends`` answering."""
        interfaces = {name: _interface(name) for name in (OUTER, INNER)}
        inner = interfaces[INNER]
        hops: dict[Address, NextHop] = {
            address: NextHop(inner.index, inner.mac, backend_mac(n), None, on_link=True)
            for n in range(1, backends + 1)
            for address in (backend_address(n), backend_address6(n))
        }
        local: set[Address] = {OUTER_ADDRESS, INNER_ADDRESS, OUTER_ADDRESS6, INNER_ADDRESS6}
        return Topology(interfaces, hops, frozenset(local))


def _interface(name: str) -> Interface:
    folder = Path("/sys/class/net") / name
    mac = bytes.fromhex((folder / "address").read_text(encoding="ascii").strip().replace(":", ""))
    index = int((folder / "ifindex").read_text(encoding="ascii"))
    return Interface(name, index, mac, 1500, up=True)


def service(
    mode: Mode,
    port: int = 80,
    *,
    protocol: Protocol = Protocol.TCP,
    backends: Sequence[int] = (1, 2, 3),
    backend_port: int | None = None,
    vip: Address = VIP,
    family: int | None = None,
    algorithm: Algorithm = Algorithm.MAGLEV,
    session: Session = Session(),  # noqa: B008 - frozen
    no_backend: NoBackend = NoBackend.DROP,
    on_backend_down: OnBackendDown = OnBackendDown.REHASH,
    max_connections: int | None = None,
    detect: Detect | None = None,
    name: str = "web",
) -> Service:
    """Return a service over backends 1, 2, ..., of equal weights and never probed.

    ``family`` is the backends', the VIP's if not given.
    """
    address: Callable[[int], Address] = (
        backend_address if (family or vip.version) == 4 else backend_address6
    )
    members = tuple(
        Backend(
            BackendName(f"b{n}"), address(n), backend_port or port, max_connections=max_connections
        )
        for n in backends
    )
    pool = Pool(name, members, HealthCheck(CheckKind.NONE), detect=detect)
    return Service(
        ServiceName(name),
        vip,
        port,
        protocol,
        mode,
        pool,
        algorithm=algorithm,
        session=session,
        no_backend=no_backend,
        on_backend_down=on_backend_down,
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a packet. ``reasons`` are those counted in this run; just one, once."""

    action: str
    packet: Ether
    data: bytes
    reasons: Mapping[str, int]

    @property
    def reason(self) -> str:
        assert list(self.reasons.values()) == [1], f"counted {dict(self.reasons)}"
        return next(iter(self.reasons))


class LoadedProgram:
    """One generation for some services, with all backends up except ``down``."""

    def __init__(
        self,
        wire: Wire,
        *services: Service,
        down: Sequence[int] = (),
        backends: int = 9,
        flow_entries: int = FLOW_ENTRIES,
    ) -> None:
        self.topology = wire.topology(backends)
        self.config = Config(
            Gateway(
                "test",
                (OUTER, INNER),
                XdpMode.AUTO,
                "/run/lb-xdp/test/api.sock",
                None,
                snat_addresses=SNATS,
                flow_table=FlowTable(entries=flow_entries),
            ),
            services,
        )
        dead = {address(n) for n in down for address in (backend_address, backend_address6)}
        self.live = frozenset(
            BackendId(service.key, backend.key)
            for service, backend in self.config.backends()
            if backend.address not in dead
        )
        self.plan, self.desired = self._plan()
        with ExitStack() as undo:
            self.maps = {
                spec.name: undo.enter_context(BpfMap.create(spec))
                for spec in persistent_specs(flow_entries, way_bits())
            }
            for interface in self.topology.interfaces.values():
                self.maps["devices"].write(interface.index, interface.index)
            counters.watch(self.maps["watched"], self.plan.structure, self.plan.indices)
            self.generation: Generation = build_generation(self.plan, self.maps)
            undo.callback(self.generation.close)
            self._undo = undo.pop_all()

    def _plan(self) -> tuple[Plan, Desired]:
        desired = desire(
            self.config, self.topology, self.live, Rings().ring_of, build=build_id(), held={}
        )
        return make_plan(Observed(), desired, now_ns=time.monotonic_ns()), desired

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def run(self, packet: Packet | bytes, *, ingress: str = OUTER) -> Outcome:
        """Run one packet, and tell what came of it."""
        before = self.reasons()
        result = syscall.program_test_run(
            self.generation.program.fd,
            bytes(packet),
            ifindex=self.topology.interfaces[ingress].index,
        )
        after = self.reasons()
        counted = {name: n - before[name] for name, n in after.items() if n != before[name]}
        return Outcome(ACTIONS[result.action], Ether(result.packet), result.packet, counted)

    def reasons(self) -> dict[str, int]:
        return {c.reason: c.packets for c in counters.reason_counts(self.maps["reasons"])}

    def counts(self, service: Service, number: int) -> counters.BackendCount:
        """Return what was counted for a backend of a service."""
        identity = self.identity(service, number)
        maps = self.maps
        return counters.backend_counts(
            maps["counts"], maps["active"], maps["limits"], self.plan.indices
        )[identity]

    def watched(self, service: Service, number: int) -> counters.WatchCount:
        """Return what was seen of a backend's handshakes."""
        seen = counters.watch_counts(self.maps["watched"], self.plan.indices)
        return seen[self.identity(service, number)]

    @staticmethod
    def identity(service: Service, number: int) -> BackendId:
        wanted = {backend_address(number), backend_address6(number)}
        member = next(b for b in service.pool.backends if b.address in wanted)
        return BackendId(service.key, BackendKey(member.address, member.port))


def describe(packet: Packet) -> str:
    """Return a packet decoded, for the diff of a failed comparison."""
    text: str = packet.show(dump=True)
    return text


def assert_same(found: bytes, expected: Packet) -> None:
    """Compare whole packets; a failure shows both decoded."""
    wanted = bytes(expected)
    if found != wanted:
        raise AssertionError(
            f"found:\n{describe(Ether(found))}\nexpected:\n{describe(Ether(wanted))}"
        )


def payload(octets: int) -> Raw:
    """Return a payload of that many octets."""
    return Raw(bytes(n & 0xFF for n in range(octets)))
