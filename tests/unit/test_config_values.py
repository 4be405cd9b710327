"""What single values of a configuration may be, and what they become."""

from __future__ import annotations

import copy
from collections.abc import Callable
from io import StringIO
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from ruamel.yaml import YAML

from lb_xdp.config import parse_config
from lb_xdp.core.check import StatusRange
from lb_xdp.core.durations import format_duration, parse_duration_s
from lb_xdp.core.model import (
    ANY_PORT,
    Affinity,
    Algorithm,
    ApiListener,
    Backend,
    BackendName,
    CheckKind,
    Config,
    Detect,
    FlowTable,
    HealthCheck,
    Listen,
    Mode,
    NoBackend,
    OnBackendDown,
    Protocol,
    Session,
    TunnelSources,
    XdpMode,
)
from lb_xdp.errors import InvalidConfigError

Change = Callable[[Any], object]

SMALLEST: dict[str, Any] = {
    "gateway": {"interfaces": ["eth0"]},
    "services": [
        {
            "name": "web",
            "vip": "203.0.113.10",
            "port": 80,
            "mode": "nat",
            "backends": [{"host": "10.0.0.11", "port": 8080}],
        }
    ],
}


def load(**changes: object) -> Config:
    """Load the smallest configuration with values at dotted paths set."""
    document = copy.deepcopy(SMALLEST)
    for path, value in changes.items():
        *parents, last = path.split("__")
        target: Any = document
        for step in parents:
            target = target[int(step)] if step.isdigit() else target.setdefault(step, {})
        target[last] = value
    text = StringIO()
    YAML().dump(document, text)
    return parse_config(text.getvalue(), "lb.yaml")


def service(**changes: object) -> Config:
    return load(**{f"services__0__{key}": value for key, value in changes.items()})


def backend(**changes: object) -> Config:
    return service(**{f"backends__0__{key}": value for key, value in changes.items()})


def health(**changes: object) -> HealthCheck:
    return service(health=changes).services[0].pool.health


def gateway(**changes: object) -> Config:
    return load(**{f"gateway__{key}": value for key, value in changes.items()})


def test_the_defaults_are_those_of_the_reference() -> None:
    """What a file leaves out gets the documented default."""
    config = load()
    found = config.services[0]
    assert config.gateway.name == "default"
    assert config.gateway.xdp_mode is XdpMode.AUTO
    assert config.gateway.api_socket == "/run/lb-xdp/default/api.sock"
    assert config.gateway.metrics_listen == Listen("127.0.0.1", 9464)
    assert config.gateway.snat_addresses == ()
    assert config.gateway.tunnel_sources == TunnelSources()
    assert config.gateway.gue_port == 6080
    assert config.gateway.flow_table == FlowTable(262144, 900, 10800, 10, 10, 30)
    assert found.protocol is Protocol.TCP
    assert found.algorithm is Algorithm.MAGLEV
    assert found.session == Session(Affinity.NONE, 10800, flows=True)
    assert found.no_backend is NoBackend.DROP
    assert found.on_backend_down is OnBackendDown.REHASH
    assert found.why_tracked is None
    assert found.pool.backends == (
        Backend(BackendName("10.0.0.11:8080"), IPv4Address("10.0.0.11"), 8080, 100, None),
    )
    assert found.pool.health == HealthCheck(CheckKind.TCP)
    assert (config.source, config.warnings) == ("lb.yaml", ())


def test_the_socket_follows_the_name() -> None:
    """Two gateways on one host do not share a socket unless told to."""
    assert gateway(name="gw7").gateway.api_socket == "/run/lb-xdp/gw7/api.sock"
    assert gateway(name="gw7", api={"socket": "/x"}).gateway.api_socket == "/x"


def test_the_api_over_tcp_has_its_files() -> None:
    """Where it listens, who may use it and what it proves itself by go together."""
    assert gateway().gateway.api_listener is None
    assert gateway(api={"listen": "none"}).gateway.api_listener is None
    local = {"listen": "127.0.0.1:8443", "tokens": "/t", "group": "netops"}
    found = gateway(api=local).gateway
    assert found.api_listener == ApiListener(Listen("127.0.0.1", 8443), "/t")
    assert found.api_group == "netops"
    secure = {"listen": "[::]:8443", "tokens": "/t", "certificate": "/c", "key": "/k"}
    assert gateway(api=secure).gateway.api_listener == ApiListener(
        Listen("::", 8443), "/t", "/c", "/k"
    )


@pytest.mark.parametrize("metrics", ["none", {"listen": "none"}])
def test_metrics_can_be_off(metrics: object) -> None:
    """`metrics: none` and `listen: none` mean that no port is opened."""
    assert gateway(metrics=metrics).gateway.metrics_listen is None


def test_metrics_can_listen_on_ipv6() -> None:
    """The address stands in brackets, as in a URL."""
    assert gateway(metrics={"listen": "[::1]:80"}).gateway.metrics_listen == Listen("::1", 80)


@pytest.mark.parametrize("check", ["none", {"type": "none"}])
def test_health_can_be_off(check: object) -> None:
    """`health: none` and `type: none` mean never probed."""
    assert service(health=check).services[0].pool.health.kind is CheckKind.NONE


@pytest.mark.parametrize(
    ("threshold", "rise", "fall"), [(4, 4, 4), ({"rise": 1, "fall": 5}, 1, 5), ({"fall": 9}, 2, 9)]
)
def test_a_threshold_is_one_number_or_two(threshold: object, rise: int, fall: int) -> None:
    """One number means both directions."""
    check = health(threshold=threshold)
    assert (check.rise, check.fall) == (rise, fall)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (204, ((204, 204),)),
        ("200-299", ((200, 299),)),
        ([200, "300-308"], ((200, 200), (300, 308))),
    ],
)
def test_expected_status_is_one_or_several(status: object, expected: Any) -> None:
    """Statuses, ranges and lists of both are read as ranges."""
    check = health(type="http", expected_status=status)
    assert check.http.expected_status == tuple(StatusRange(*pair) for pair in expected)


@pytest.mark.parametrize(("written", "share"), [("10%", 0.1), (0.25, 0.25), (0, 0.0), ("100%", 1)])
def test_jitter_is_a_share_or_a_percentage(written: object, share: float) -> None:
    """Both spellings give the share of the interval."""
    assert health(jitter=written).jitter == share


def test_a_probe_can_go_elsewhere() -> None:
    """Host, port, path and Host header of an http probe are taken over."""
    check = health(type="http", host="127.0.0.1", port=9, path="/up", hostHeader="www.example.net")
    assert (check.host, check.port, check.http.path) == (IPv4Address("127.0.0.1"), 9, "/up")
    assert check.http.host_header == "www.example.net"


def test_the_gateway_takes_tunnels_sources_and_a_flow_table() -> None:
    """Every key of the gateway that shapes packets and flow records is taken over."""
    found = gateway(
        snat_addresses=["10.0.0.5", "2001:db8::5"],
        tunnel_sources={"ipv4": "10.99.0.0/16", "ipv6": "2001:db8:99::/48"},
        gue_port=6081,
        flow_table={
            "entries": 1000,
            "settle": "1min",
            "tcp_idle": "2min",
            "tcp_opening": "3s",
            "tcp_closing": "4s",
            "udp_idle": "5s",
        },
    ).gateway
    assert found.snat_addresses == (IPv4Address("10.0.0.5"), IPv6Address("2001:db8::5"))
    assert found.tunnel_sources == TunnelSources(
        IPv4Network("10.99.0.0/16"), IPv6Network("2001:db8:99::/48")
    )
    assert found.gue_port == 6081
    assert found.flow_table == FlowTable(1000, 60, 120, 3, 4, 5)


def test_a_service_takes_an_algorithm_a_session_and_a_word_for_no_backend() -> None:
    """Every key of the service that shapes its flows is taken over."""
    (found,) = service(
        algorithm="source_hash",
        session={"affinity": "client_prefix", "timeout": "1h"},
        no_backend="reject",
        on_backend_down="reset",
    ).services
    assert found.algorithm is Algorithm.SOURCE_HASH
    assert found.session == Session(Affinity.CLIENT_PREFIX, 3600, flows=True)
    assert found.no_backend is NoBackend.REJECT
    assert found.on_backend_down is OnBackendDown.RESET
    assert not service(session={"flows": "none"}).services[0].session.flows


def test_detect_is_off_unless_asked_for() -> None:
    """Nothing, `none` and a mapping, whose values have defaults; UDP services are not watched."""
    assert service().services[0].pool.detect is None
    assert service(detect="none").services[0].pool.detect is None
    (found,) = service(detect={}).services
    assert found.watched == found.pool.detect == Detect()
    told = {"interval": "3s", "min_flows": 5, "failure_share": "30%", "eject": True}
    told |= {"max_ejected": 0.25, "base_time": "10s", "max_time": "1min"}
    (found,) = service(detect=told).services
    assert found.watched == Detect(3, 5, 0.3, eject=True, max_ejected=0.25, base_time_s=10,
                                   max_time_s=60)  # fmt: skip
    assert service(protocol="udp", detect={}, health="none").services[0].watched is None


def test_ipv6_addresses_are_spelled_in_the_short_form_and_in_brackets() -> None:
    """VIP, backend and probe host may be IPv6; names of backends put the address in brackets."""
    hosts = [{"host": "2001:db8:0:0::0011", "port": 80}]
    (found,) = service(vip="2001:DB8::1", backends=hosts, health={"host": "::1"}).services
    assert found.vip == IPv6Address("2001:db8::1")
    assert str(found.key) == "[2001:db8::1]:80/tcp"
    (only,) = found.pool.backends
    assert (only.name, only.address) == ("[2001:db8::11]:80", IPv6Address("2001:db8::11"))
    assert str(only.key) == "[2001:db8::11]:80"
    assert found.pool.health.host == IPv6Address("::1")


@pytest.mark.parametrize(
    ("host", "vip", "name"),
    [("10.0.0.11", "203.0.113.1", "10.0.0.11"), ("2001:db8::11", "2001:db8::1", "2001:db8::11")],
)
def test_any_port_is_any_port_of_the_backend_too(host: str, vip: str, name: str) -> None:
    """With `port: any` backends have no port, and are named by their address."""
    (found,) = service(vip=vip, port="any", backends=[{"host": host}], health="none").services
    assert found.port == ANY_PORT
    assert str(found.key).endswith(":any/tcp")
    assert found.pool.backends[0].port == ANY_PORT
    assert found.pool.backends[0].name == str(found.pool.backends[0].key) == name


@pytest.mark.parametrize("mode", ["dsr", "ipip", "gue", "nat"])
def test_every_mode_is_known(mode: str) -> None:
    """A mode needs no more than its word; fullnat's address is tested with the refusals."""
    found = service(mode=mode, port=8080).services[0].mode
    assert found is Mode(mode)
    assert found.routes == (mode != "dsr")
    assert (found.tunnel, found.translates) == (mode in {"ipip", "gue"}, mode == "nat")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"algorithm": "least_connections"}, "least_connections needs to know every flow"),
        ({"algorithm": "round_robin"}, "round_robin needs to know every flow"),
        ({"algorithm": "random"}, "random needs to know every flow"),
        ({"session": {"affinity": "client_ip"}}, "session affinity client_ip needs to know every"),
        (
            {"backends": [{"name": "web1", "host": "10.0.0.1", "port": 1, "max_connections": 5}]},
            "max_connections of web1 needs to count every flow",
        ),
    ],
)
def test_a_service_says_why_it_records_every_flow(
    changes: dict[str, object], expected: str
) -> None:
    """The reason is a clause that can stand in a status; nothing needs records otherwise."""
    (found,) = service(**changes).services
    assert found.tracked
    assert (found.why_tracked or "").startswith(expected)
    assert not service(algorithm="source_hash").services[0].tracked


def test_a_short_interval_shortens_the_default_timeout() -> None:
    """An interval below a second alone is no mistake."""
    assert health(interval="100ms").timeout_s == 0.1


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("500ms", 0.5), ("2s", 2), ("15min", 900), ("15m", 900), ("3h", 10800), ("1.5s", 1.5)],
)
def test_durations_have_units(written: str, seconds: float) -> None:
    """Every unit of the reference is read and written back without loss."""
    assert parse_duration_s(written) == seconds
    assert parse_duration_s(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    "written", ["", "2", "s", "-1s", "1d", "1h30m", "1e3s", "\u0661s", "2  s", "."]
)
def test_what_is_no_duration_is_not_guessed(written: str) -> None:
    """Numbers without unit in quotes, signs and unknown units are refused."""
    assert parse_duration_s(written) is None


INTEGER = "an integer from"
NAME = "a name of at most 63"


@pytest.mark.parametrize(
    ("make", "changes", "expected"),
    [
        (gateway, {"name": "a/b"}, NAME),
        (gateway, {"name": ".."}, NAME),
        (gateway, {"name": 7}, f"gateway.name: 7 is not allowed; {NAME}"),
        (gateway, {"interfaces": []}, "gateway.interfaces: an empty list is not allowed"),
        (gateway, {"interfaces": "eth0"}, 'gateway.interfaces: "eth0" is not allowed; a list'),
        (gateway, {"interfaces": ["sixteen-letters-"]}, "interface name of at most 15 characters"),
        (gateway, {"interfaces": ["a b"]}, "gateway.interfaces[0]:"),
        (gateway, {"interfaces": None}, "an empty value is not allowed; a list"),
        (gateway, {"xdp_mode": "fast"}, "one of auto, native, generic"),
        (gateway, {"api": {"socket": "api.sock"}}, "an absolute path"),
        (gateway, {"api": {"socket": "/" + "x" * 107}}, "at most 107 characters"),
        (gateway, {"api": {"group": "no group"}}, "the name of a group of this host"),
        (gateway, {"api": {"listen": "here"}}, "an address and a port"),
        (gateway, {"api": {"listen": "127.0.0.1:1", "tokens": "tokens"}}, "an absolute path"),
        (gateway, {"api": 3}, "gateway.api: 3 is not allowed; a mapping with socket"),
        (gateway, {"metrics": "off"}, "`none`, or a mapping"),
        (gateway, {"metrics": {"listen": 9464}}, "9464 is not allowed; an address and a port"),
        (gateway, {"metrics": {"listen": "127.0.0.1:0"}}, "an address and a port"),
        (gateway, {"metrics": {"listen": "127.0.0.1:70000"}}, "an address and a port"),
        (gateway, {"metrics": {"listen": "host:80"}}, "an address and a port"),
        (gateway, {"snat_addresses": "10.0.0.5"}, '"10.0.0.5" is not allowed; a list'),
        (gateway, {"snat_addresses": ["gw"]}, 'gateway.snat_addresses[0]: "gw": a host name'),
        (gateway, {"snat_addresses": ["fe80::5"]}, "fe80::5 is a link-local address"),
        (gateway, {"tunnel_sources": {"ipv4": "172.16.0.0"}}, "an IPv4 prefix of 8 to 32 bits"),
        (gateway, {"tunnel_sources": {"ipv4": "100::/64"}}, "an IPv4 prefix of 8 to 32 bits"),
        (gateway, {"tunnel_sources": {"ipv4": "8.0.0.0/7"}}, "an IPv4 prefix of 8 to 32 bits"),
        (gateway, {"tunnel_sources": {"ipv4": "10.0.0.1/8"}}, "write 10.0.0.0/8"),
        (gateway, {"tunnel_sources": {"ipv4": "10.0.0.0/255.0.0.0"}}, "an IPv4 prefix of"),
        (gateway, {"tunnel_sources": {"ipv4": "224.1.0.0/16"}}, "which is a multicast address"),
        (gateway, {"tunnel_sources": {"ipv6": "10.0.0.0/8"}}, "an IPv6 prefix of 8 to 128 bits"),
        (gateway, {"tunnel_sources": {"ipv6": "fe80::%1/64"}}, "an IPv6 prefix of 8 to 128 bits"),
        (gateway, {"gue_port": 0}, INTEGER),
        (gateway, {"gue_port": "any"}, INTEGER),
        (gateway, {"flow_table": {"entries": 15}}, f"{INTEGER} 16 to 16777216"),
        (gateway, {"flow_table": {"settle": "0s"}}, 'flow_table.settle: "0s" is not allowed; a d'),
        (gateway, {"flow_table": {"udp_idle": "8d"}}, "a duration from 1s to 168h"),
        (gateway, {"flow_table": 5}, "5 is not allowed; a mapping with entries, settle, tcp_idle"),
        (service, {"vip": "203.0.113"}, "an address such as 203.0.113.10"),
        (service, {"vip": 3405803786}, "an address such as 203.0.113.10"),
        (service, {"vip": "2001:db8::1::2"}, "an address such as 203.0.113.10 or 2001:db8::10"),
        (service, {"vip": "2001:db8::1%eth0"}, "an address with a zone is not allowed"),
        (service, {"vip": "::ffff:203.0.113.10"}, "in IPv6 spelling; write 203.0.113.10"),
        (service, {"vip": "::"}, "is no host's address"),
        (service, {"vip": "::1"}, "is a loopback address"),
        (service, {"vip": "ff02::1"}, "is a multicast address"),
        (service, {"vip": "fe80::1"}, "is a link-local address, which no router forwards"),
        (service, {"vip": "169.254.1.1"}, "is a link-local address, which no router forwards"),
        (service, {"vip": "224.0.0.1"}, "is a multicast address"),
        (service, {"vip": "0.0.0.0"}, "is no host's address"),
        (service, {"vip": "127.0.0.1"}, "is a loopback address"),
        (service, {"vip": "255.255.255.255"}, "is the broadcast address"),
        (service, {"port": "all"}, f'"all" is not allowed; {INTEGER} 1 to 65535, or any'),
        (service, {"port": "80"}, f'"80" is not allowed; {INTEGER} 1 to 65535, or any'),
        (service, {"port": 0}, INTEGER),
        (service, {"port": True}, f"true is not allowed; {INTEGER}"),
        (service, {"port": 80.0}, f"80.0 is not allowed; {INTEGER}"),
        (service, {"protocol": "sctp"}, "one of tcp, udp"),
        (service, {"mode": "l2"}, "one of dsr, ipip, gue, nat, fullnat"),
        (service, {"algorithm": "round-robin"}, "did you mean `round_robin`?"),
        (service, {"algorithm": 1}, "one of maglev, round_robin, least_connections, random, sourc"),
        (service, {"session": {"affinity": "client"}}, "one of none, client_ip, client_prefix"),
        (service, {"session": {"timeout": "0s"}}, "a duration from 1s to 168h"),
        (service, {"session": {"flows": False}}, "false is not allowed; one of auto, none"),
        (service, {"no_backend": "ignore"}, "one of drop, reject"),
        (service, {"on_backend_down": "rst"}, "one of rehash, reset"),
        (service, {"detect": "off"}, "`none`, or a mapping such as `{eject: true}`"),
        (service, {"detect": {"eject": "yes"}}, "detect.eject: "),
        (service, {"detect": {"eject": 1}}, "1 is not allowed; true or false"),
        (service, {"detect": {"ejekt": True}}, "did you mean `eject`?"),
        (service, {"detect": {"min_flows": 0}}, "an integer from 1 to 1000000"),
        (service, {"detect": {"max_ejected": "101%"}}, "from 0% to 100%"),
        (service, {"detect": {"base_time": "0s"}}, "a duration from 1s to 24h"),
        (service, {"backends": []}, "services[0].backends: an empty list is not allowed"),
        (service, {"backends": [5]}, "5 is not allowed; a mapping with name, host, port"),
        (service, {"health": "nnoe"}, '"nnoe" is not allowed; `none`, or a mapping'),
        (backend, {"host": "10.0.0.1l"}, "such as 10.0.0.11 or 2001:db8::11, or a host name"),
        (backend, {"host": "web..example.net"}, "or a host name such as web.internal.example"),
        (backend, {"host": "-web.example.net"}, "or a host name such as web.internal.example"),
        (backend, {"host": "x" * 64 + ".net"}, "or a host name such as web.internal.example"),
        (gateway, {"dns": {"resolver": "ns.example.net"}}, "a host name is not allowed here"),
        (gateway, {"dns": {"interval": "100ms"}}, "a duration from 1s to 24h"),
        (gateway, {"dns": {"max_change": "150%"}}, "from 0% to 100%"),
        (gateway, {"dns": {"confirm": 0}}, "an integer from 1 to 100"),
        (backend, {"host": "::1"}, "is a loopback address"),
        (backend, {"host": "fe80::11"}, "is a link-local address: it could be on any interface"),
        (backend, {"host": "fe80::11%eth0"}, "an address with a zone is not allowed"),
        (backend, {"host": "::ffff:10.0.0.11"}, "in IPv6 spelling; write 10.0.0.11"),
        (backend, {"port": None}, INTEGER),
        (backend, {"port": 0}, INTEGER),
        (backend, {"host": "239.1.1.1"}, "is a multicast address"),
        (backend, {"host": "0.0.0.0"}, "is no host's address"),
        (backend, {"host": "127.0.0.9"}, "is a loopback address"),
        (backend, {"port": 65536}, INTEGER),
        (backend, {"weight": 65536}, f"65536 is not allowed; {INTEGER} 0 to 65535"),
        (backend, {"weight": "heavy"}, f'"heavy" is not allowed; {INTEGER}'),
        (backend, {"weight": 2**200}, "a number this long is not allowed"),
        (backend, {"max_connections": None}, "an empty value is not allowed; an integer"),
        (backend, {"priority": 256}, "256 is not allowed; an integer from 0 to 255"),
        (backend, {"priority": -1}, "an integer from 0 to 255"),
        (backend, {"name": "a b"}, NAME),
        (health, {"type": "htp"}, "did you mean `http`?"),
        (health, {"interval": 0}, "a duration from 10ms to 1h"),
        (health, {"interval": "soon"}, "such as 500ms, 2s, 15min, 3h, or a number of seconds"),
        (health, {"timeout": 0}, "services[0].health.timeout: 0 is not allowed; a duration from 1"),
        (health, {"timeout": -1}, "a duration from 1ms to 1h"),
        (health, {"threshold": 0}, "an integer from 1 to 100 for both"),
        (health, {"threshold": {"rise": 0}}, "services[0].health.threshold.rise: 0 is not"),
        (health, {"type": "http", "path": "healthz"}, "a path that starts with `/`"),
        (health, {"type": "http", "path": "/a b"}, "without blanks"),
        (health, {"type": "http", "host_header": "a\r\nX: y"}, "a host name or address"),
        (health, {"type": "http", "expected_status": 99}, "health.expected_status: 99 is not"),
        (health, {"type": "http", "expected_status": [200, 600]}, "expected_status[1]: 600 is"),
        (health, {"type": "http", "expected_status": "299-200"}, "the smaller status comes first"),
        (health, {"type": "http", "expected_status": []}, "an empty list is not allowed"),
        (health, {"jitter": "110%"}, "a number from 0 to 1, or from 0% to 100%"),
        (health, {"jitter": 2}, "a number from 0 to 1"),
        (health, {"host": "example.net"}, "a host name is not allowed here"),
    ],
)
def test_a_wrong_value_makes_one_message_in_plain_words(
    make: Callable[..., object], changes: dict[str, object], expected: str
) -> None:
    """Each wrong value is told once, with what is allowed instead."""
    with pytest.raises(InvalidConfigError) as refusal:
        make(**changes)
    (problem,) = refusal.value.problems
    assert expected in str(problem)
    assert "Input should" not in str(problem)
