"""The vocabulary: how keys are spelled and sorted, and why a service records its flows."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from random import Random

from lb_xdp.core.model import (
    ANY_PORT,
    Algorithm,
    Backend,
    BackendKey,
    BackendName,
    CheckKind,
    Config,
    Gateway,
    HealthCheck,
    Mode,
    NoBackend,
    Pool,
    Protocol,
    Service,
    ServiceKey,
    ServiceName,
    XdpMode,
)
from lb_xdp.core.report import empty_services, service_statuses
from lb_xdp.core.snapshot import Records
from lb_xdp.core.topology import Topology

FOUR, SIX = IPv4Address("203.0.113.10"), IPv6Address("2001:db8::10")


def test_keys_are_spelled_as_people_write_them() -> None:
    """IPv6 stands in brackets before a port; a key of any port says so."""
    assert str(ServiceKey(FOUR, 80, Protocol.TCP)) == "203.0.113.10:80/tcp"
    assert str(ServiceKey(SIX, 53, Protocol.UDP)) == "[2001:db8::10]:53/udp"
    assert str(ServiceKey(SIX, ANY_PORT, Protocol.TCP)) == "[2001:db8::10]:any/tcp"
    assert str(BackendKey(FOUR, 8080)) == "203.0.113.10:8080"
    assert str(BackendKey(SIX, 8080)) == "[2001:db8::10]:8080"
    assert str(BackendKey(SIX, ANY_PORT)) == "2001:db8::10"


def test_keys_of_both_families_can_be_sorted() -> None:
    """The order is total and stable: by family, address, port and protocol."""
    services = [ServiceKey(a, p, t) for a in (FOUR, SIX) for p in (0, 80) for t in Protocol]
    backends = [BackendKey(address, port) for address in (FOUR, SIX) for port in (0, 80)]
    pairs = [(service, backend) for service in services for backend in backends]
    shuffled = pairs.copy()
    Random(1).shuffle(shuffled)
    assert sorted(shuffled) == pairs


def test_a_service_says_in_the_status_what_it_does() -> None:
    """Algorithm, affinity and the reason for records reach the status; so does a refusal."""
    pool = Pool("p", (), HealthCheck(CheckKind.NONE))
    service = Service(
        *(ServiceName("web"), SIX, ANY_PORT, Protocol.TCP, Mode.GUE, pool),
        algorithm=Algorithm.LEAST_CONNECTIONS,
        no_backend=NoBackend.REJECT,
    )
    gateway = Gateway("gw1", ("eth0",), XdpMode.AUTO, "/run/x", None)
    config = Config(gateway, (service,))
    (status,) = service_statuses(config, Topology(), {service.key: ()}, {service.key: (3, 4)})
    assert (status.vip, status.port, status.mode) == ("2001:db8::10", 0, "gue")
    assert (status.algorithm, status.affinity) == ("least_connections", "none")
    assert status.why_tracked == "least_connections needs to know every flow"
    assert (status.records, status.unsettled_slots, status.marked_slots) == (Records.ALL, 3, 4)
    assert empty_services((status,)) == ["service web: no backend is up; its packets are refused"]


def test_a_limit_is_a_reason_to_record_every_flow() -> None:
    """The first backend with a limit is named."""
    backends = tuple(
        Backend(BackendName(f"web{n}"), FOUR, n, max_connections=limit)
        for n, limit in ((1, None), (2, 5), (3, 6))
    )
    pool = Pool("p", backends, HealthCheck(CheckKind.NONE))
    service = Service(ServiceName("web"), FOUR, 80, Protocol.TCP, Mode.NAT, pool)
    assert service.why_tracked == "max_connections of web2 needs to count every flow"
