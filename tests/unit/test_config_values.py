"""What single values of a configuration may be, and what they become."""

from __future__ import annotations

import copy
from collections.abc import Callable
from io import StringIO
from ipaddress import IPv4Address
from typing import Any

import pytest
from ruamel.yaml import YAML

from lb_xdp.config import parse_config
from lb_xdp.config.durations import format_duration, parse_duration_s
from lb_xdp.core.model import (
    Backend,
    BackendName,
    CheckKind,
    Config,
    HealthCheck,
    Listen,
    Protocol,
    StatusRange,
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
    assert found.protocol is Protocol.TCP
    assert found.pool.backends == (
        Backend(BackendName("10.0.0.11:8080"), IPv4Address("10.0.0.11"), 8080, 100, None),
    )
    assert found.pool.health == HealthCheck(CheckKind.TCP)
    assert (config.source, config.warnings) == ("lb.yaml", ())


def test_the_socket_follows_the_name() -> None:
    """Two gateways on one host do not share a socket unless told to."""
    assert gateway(name="gw7").gateway.api_socket == "/run/lb-xdp/gw7/api.sock"
    assert gateway(name="gw7", api={"socket": "/x"}).gateway.api_socket == "/x"


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
    assert check.expected_status == tuple(StatusRange(*pair) for pair in expected)


@pytest.mark.parametrize(("written", "share"), [("10%", 0.1), (0.25, 0.25), (0, 0.0), ("100%", 1)])
def test_jitter_is_a_share_or_a_percentage(written: object, share: float) -> None:
    """Both spellings give the share of the interval."""
    assert health(jitter=written).jitter == share


def test_a_probe_can_go_elsewhere() -> None:
    """Host, port, path and Host header of an http probe are taken over."""
    check = health(type="http", host="127.0.0.1", port=9, path="/up", hostHeader="www.example.net")
    assert (check.host, check.port, check.path) == (IPv4Address("127.0.0.1"), 9, "/up")
    assert check.http_host == "www.example.net"


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
LATER = "not available in this version"


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
        (gateway, {"api": 3}, "gateway.api: 3 is not allowed; a mapping with socket"),
        (gateway, {"metrics": "off"}, "`none`, or a mapping"),
        (gateway, {"metrics": {"listen": 9464}}, "9464 is not allowed; an address and a port"),
        (gateway, {"metrics": {"listen": "127.0.0.1:0"}}, "an address and a port"),
        (gateway, {"metrics": {"listen": "127.0.0.1:70000"}}, "an address and a port"),
        (gateway, {"metrics": {"listen": "host:80"}}, "an address and a port"),
        (gateway, {"snat_addresses": []}, f"gateway.snat_addresses: {LATER}; only `mode: fullnat`"),
        (service, {"vip": "2001:db8::1"}, "IPv6 is not available in this version"),
        (service, {"vip": "203.0.113"}, "an IPv4 address"),
        (service, {"vip": 3405803786}, "an IPv4 address"),
        (service, {"vip": "224.0.0.1"}, "is a multicast address"),
        (service, {"vip": "0.0.0.0"}, "is no host's address"),
        (service, {"vip": "127.0.0.1"}, "is a loopback address"),
        (service, {"vip": "255.255.255.255"}, "is the broadcast address"),
        (service, {"port": "any"}, f'"any" is {LATER}; {INTEGER} 1 to 65535'),
        (service, {"port": "80"}, f'"80" is not allowed; {INTEGER} 1 to 65535'),
        (service, {"port": 0}, INTEGER),
        (service, {"port": True}, f"true is not allowed; {INTEGER}"),
        (service, {"port": 80.0}, f"80.0 is not allowed; {INTEGER}"),
        (service, {"protocol": "sctp"}, "one of tcp, udp"),
        (service, {"mode": "ipip"}, f'"ipip" is {LATER}; one of dsr, nat'),
        (service, {"algorithm": "round_robin"}, f'"round_robin" is {LATER}; maglev'),
        (service, {"session": {"affinity": "client_ip"}}, f"{LATER}; none"),
        (service, {"session": {"timeout": "0s"}}, "a duration from 1s to 168h"),
        (service, {"session": {"flows": "none"}}, f"services[0].session.flows: {LATER}"),
        (service, {"backends": []}, "services[0].backends: an empty list is not allowed"),
        (service, {"backends": [5]}, "5 is not allowed; a mapping with name, host, port"),
        (service, {"health": "nnoe"}, '"nnoe" is not allowed; `none`, or a mapping'),
        (backend, {"host": "web1.example.net"}, "host names are not available in this version"),
        (backend, {"host": "::1"}, "IPv6 is not available in this version"),
        (backend, {"host": "239.1.1.1"}, "is a multicast address"),
        (backend, {"host": "0.0.0.0"}, "is no host's address"),
        (backend, {"host": "127.0.0.9"}, "is a loopback address"),
        (backend, {"port": 65536}, INTEGER),
        (backend, {"weight": 65536}, f"65536 is not allowed; {INTEGER} 0 to 65535"),
        (backend, {"weight": "heavy"}, f'"heavy" is not allowed; {INTEGER}'),
        (backend, {"weight": 2**200}, "a number this long is not allowed"),
        (backend, {"max_connections": None}, "an empty value is not allowed; an integer"),
        (backend, {"priority": 1}, f"1 is {LATER}; 0"),
        (backend, {"name": "a b"}, NAME),
        (health, {"type": "https"}, "did you mean `http`?"),
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
        (health, {"host": "example.net"}, "host names are not available in this version"),
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
