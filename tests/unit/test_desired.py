"""From configuration, liveness and topology to what the datapath should be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Network, ip_address
from typing import Any

import pytest

from lb_xdp.core.desired import BackendId, Desired, Schedule, traits
from lb_xdp.core.goals import desire
from lb_xdp.core.model import (
    GUE_PORT,
    Affinity,
    Algorithm,
    Backend,
    BackendName,
    CheckKind,
    Config,
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
    TunnelSources,
    XdpMode,
)
from lb_xdp.core.rings import Rings
from lb_xdp.core.topology import Interface, NextHop, Topology
from lb_xdp.core.ways import why_unreachable

VIP = ip_address("203.0.113.10")
FOUR, SIX, FAR = (ip_address(text) for text in ("10.0.0.11", "2001:db8::11", "192.0.2.1"))
ROUTER = ip_address("10.0.0.1")
OURS, ROUTERS, THEIRS = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2", b"\2\0\0\0\0\3"
TOPOLOGY = Topology(
    {"eth0": Interface("eth0", 7, OURS, 1500, up=True)},
    {
        FOUR: NextHop(7, OURS, THEIRS, None, on_link=True),
        SIX: NextHop(7, OURS, THEIRS, None, on_link=True),
        FAR: NextHop(7, OURS, ROUTERS, ROUTER, on_link=False),
    },
    frozenset([ip_address("10.0.0.2"), ip_address("2001:db8::2")]),
)
GATEWAY = Gateway("gw1", ("eth0",), XdpMode.AUTO, "/run/api.sock", None)


def service(mode: Mode = Mode.DSR, *addresses: Any, **rest: Any) -> Service:
    backends = tuple(
        Backend(BackendName(str(address)), address, 80, rest.pop("weight", 100),
                rest.pop("max_connections", None))
        for address in addresses or (FOUR,)
    )  # fmt: skip
    pool = Pool("web", backends, HealthCheck(CheckKind.NONE))
    fields = {"port": 80, "protocol": Protocol.TCP, **rest}
    return Service(ServiceName("web"), VIP, mode=mode, pool=pool, **fields)


def goal(*services: Service, topology: Topology = TOPOLOGY, **gateway: Any) -> Desired:
    config = Config(replace(GATEWAY, **gateway), services)
    live = {BackendId(one.key, backend.key) for one, backend in config.backends()}
    return desire(config, topology, live, Rings().ring_of, build=1, held={})


def only(values: Mapping[Any, Any]) -> Any:
    (value,) = values.values()
    return value


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (service(), {"schedule": Schedule.HASH, "tracked": False}),
        (service(algorithm=Algorithm.SOURCE_HASH), {"by_source": True, "tracked": False}),
        (service(algorithm=Algorithm.ROUND_ROBIN), {"schedule": Schedule.TURN, "tracked": True}),
        (service(algorithm=Algorithm.RANDOM), {"schedule": Schedule.RANDOM, "counted": False}),
        (
            service(algorithm=Algorithm.LEAST_CONNECTIONS),
            {"schedule": Schedule.LEAST, "counted": True, "limited": False},
        ),
        (service(max_connections=5), {"limited": True, "counted": True, "tracked": True}),
        (service(session=Session(Affinity.CLIENT_IP)), {"client": True, "prefix": False}),
        (service(session=Session(Affinity.CLIENT_PREFIX)), {"client": True, "prefix": True}),
        (service(no_backend=NoBackend.REJECT), {"reject": True}),
        (service(session=Session(flows=False)), {"stateless": True, "reset": False}),
        (replace(service(), on_backend_down=OnBackendDown.RESET), {"reset": True}),
        (service(Mode.FULLNAT), {"mode": Mode.FULLNAT, "tracked": True, "stateless": False}),
    ],
)
def test_traits_of_a_service(made: Service, expected: dict[str, object]) -> None:
    """Each word of the configuration is a trait of its own."""
    found = traits(made)._asdict()
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("mode", "address", "mtu"),
    [
        (Mode.DSR, FOUR, 1500),
        (Mode.NAT, FOUR, 1500),
        (Mode.IPIP, FOUR, 1480),
        (Mode.IPIP, SIX, 1460),
        (Mode.GUE, FOUR, 1472),
        (Mode.GUE, SIX, 1452),
        (Mode.IPIP, FAR, 1480),
    ],
)
def test_a_tunnel_takes_its_share_of_the_mtu(mode: Mode, address: Any, mtu: int) -> None:
    """What is left is for the client's packet, whatever family carries it."""
    record = only(goal(service(mode, address)).records)
    assert (record.mtu, record.up) == (mtu, True)


def test_dsr_ends_at_a_router() -> None:
    """All other modes go on; dsr says what would."""
    records = [only(goal(service(mode, FAR)).records) for mode in Mode]
    assert [record.reachable for record in records] == [mode is not Mode.DSR for mode in Mode]
    why = why_unreachable(service(Mode.DSR, FAR), FAR, TOPOLOGY, records[0])
    assert why == (
        "behind router 10.0.0.1: dsr reaches only the own network, use mode: ipip, gue or nat"
    )


@pytest.mark.parametrize(("address", "asked"), [(FOUR, "ARP"), (SIX, "neighbour discovery")])
def test_nobody_answers(address: Any, asked: str) -> None:
    """A neighbour that never answered has no record, and the reason names the protocol."""
    silent = {address: NextHop(7, OURS, None, None, on_link=True)}
    topology = replace(TOPOLOGY, next_hops=silent)
    record = only(goal(service(Mode.NAT, address), topology=topology).records)
    why = why_unreachable(service(Mode.NAT, address), address, topology, record)
    assert why == f"no answer to {asked} for {address} on eth0"


@pytest.mark.parametrize(
    ("mode", "limit", "resume"),
    [
        (Mode.NAT, 100, 99),
        (Mode.FULLNAT, 1, 0),
        (Mode.DSR, 100, 95),
        (Mode.IPIP, 10, 9),
        (Mode.GUE, 1, 0),
        (Mode.DSR, None, 0),
    ],
)
def test_limits(mode: Mode, limit: int | None, resume: int) -> None:
    """Where the count is an estimate, a full backend waits until some more are gone."""
    record = only(goal(service(mode, max_connections=limit)).records)
    assert (record.limit, record.resume) == (limit or 0, resume)
    assert record.weight == (100 if limit else 0)


def test_weight_zero_takes_no_new_flows() -> None:
    """Its record says so; flows that are there go on."""
    record = only(goal(service(weight=0)).records)
    assert (record.no_new, record.up) == (True, True)


def test_settings_without_a_use_make_no_new_generation() -> None:
    """What nobody needs is left at its default, whatever the file says."""
    sources = TunnelSources(IPv4Network("10.9.0.0/16"))
    fields: dict[str, Any] = {"snat_addresses": (FAR,), "tunnel_sources": sources, "gue_port": 7}
    plain, tunnel, nat, full = (
        goal(service(mode), **fields).structure
        for mode in (Mode.DSR, Mode.GUE, Mode.NAT, Mode.FULLNAT)
    )
    assert (plain.snat_addresses, plain.tunnel_sources, plain.gue_port, plain.local_addresses) == (
        (),
        TunnelSources(),
        GUE_PORT,
        frozenset(),
    )
    assert (tunnel.tunnel_sources, tunnel.gue_port) == (sources, 7)
    assert nat.local_addresses == {ip_address("10.0.0.2")}
    assert (nat.snat_addresses, full.snat_addresses) == ((), (FAR,))


@pytest.mark.parametrize(
    ("made", "settle_s", "affinity_s"),
    [
        (service(), 900, 0),
        (service(protocol=Protocol.UDP), 30, 0),
        (service(session=Session(flows=False)), 0, 0),
        (service(algorithm=Algorithm.RANDOM), 900, 0),
        (service(session=Session(Affinity.CLIENT_IP, 1.5)), 900, 2),
    ],
)
def test_times_of_a_service(made: Service, settle_s: int, affinity_s: int) -> None:
    """Only a service whose flows never get a record has slots that need no time to settle."""
    found = goal(made)
    assert found.settle_ns == {made.key: settle_s * 10**9}
    assert found.affinity_s == {made.key: affinity_s}


def test_round_robin_has_a_ring_of_turns() -> None:
    """All other algorithms share one kind of ring."""
    ring = only(goal(service(Mode.DSR, FOUR, SIX, algorithm=Algorithm.ROUND_ROBIN)).rings)
    assert ring.owner[:6].tolist() == [0, 1, 0, 1, 0, 1]
    maglev, random = (
        only(goal(service(Mode.DSR, FOUR, SIX, algorithm=algorithm)).rings)
        for algorithm in (Algorithm.MAGLEV, Algorithm.RANDOM)
    )
    assert maglev.owner.tolist() == random.owner.tolist()
