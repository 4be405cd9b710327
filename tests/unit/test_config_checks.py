"""Checks that compare values of a configuration."""

from __future__ import annotations

import pytest

from lb_xdp.config import MAX_SERVICE_BACKENDS, MAX_SERVICES, parse_config
from lb_xdp.config.reference import EXAMPLE
from lb_xdp.core.model import Config
from lb_xdp.errors import InvalidConfigError


def edit(*pairs: tuple[str, str]) -> Config:
    """Load the example with each first occurrence replaced."""
    text = EXAMPLE
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    return parse_config(text, "lb.yaml")


def problems_of(*pairs: tuple[str, str]) -> list[str]:
    with pytest.raises(InvalidConfigError) as refusal:
        edit(*pairs)
    return [str(problem).removeprefix("lb.yaml:") for problem in refusal.value.problems]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "interfaces: [eth0, eth1]",
            "interfaces: [eth0, eth1, ^eth0]",
            'gateway.interfaces[2]: interface "eth0" stands on line 3 already',
        ),
        (
            "  - name: dns",
            "  - name: ^web",
            'services[1].name: the name "web" is taken by the service on line 24',
        ),
        (
            "203.0.113.53\n    port: 53\n    protocol: udp\n    mode: dsr",
            "^203.0.113.10\n    port: 80\n    protocol: tcp\n    mode: nat",
            "services[1].vip: 203.0.113.10:80/tcp is taken by the service on line 25",
        ),
        (
            "services:\n",
            "  - {name: ^web, backends: [{host: 10.0.0.1, port: 1}]}\nservices:\n",
            'pools[1].name: the name "web" is taken by the pool on line 9',
        ),
        (
            "{host: 10.0.0.12, port: 8080, weight: 200}",
            "{host: ^10.0.0.11, port: 8080}",
            "pools[0].backends[1].host: 10.0.0.11:8080 is in this pool on line 11 already",
        ),
        (
            "{host: 10.0.0.12, port: 8080, weight: 200}",
            "{host: 10.0.0.12, port: 8080, name: ^web1}",
            'pools[0].backends[1].name: the name "web1" is taken by the backend on line 11',
        ),
        (
            "{host: 10.0.0.22, port: 53}",
            "{host: ^203.0.113.10, port: 53}",
            "services[1].backends[1].host: 203.0.113.10 is the VIP of line 25",
        ),
        (
            "{host: 10.0.0.22, port: 53}",
            "{host: 10.0.0.22, port: ^5353}",
            "services[1].backends[1].port: 5353 is not 53, the port of the service on line 30: dsr",
        ),
        (
            "interfaces: [eth0, eth1]",
            "interfaces: [eth0]\n  snat_addresses: [10.0.0.5, ^10.0.0.5]",
            "gateway.snat_addresses[1]: 10.0.0.5 stands on line 4 already; once is enough",
        ),
        (
            "interfaces: [eth0, eth1]",
            "interfaces: [eth0]\n  snat_addresses: [^203.0.113.53]",
            "gateway.snat_addresses[0]: 203.0.113.53 is the VIP of line 32; give an address of",
        ),
        (
            "interfaces: [eth0, eth1]",
            "interfaces: [eth0]\n  snat_addresses: [^10.0.0.22]",
            "gateway.snat_addresses[0]: 10.0.0.22 is the backend of line 38; give an address of",
        ),
        (
            "timeout: 1s",
            "timeout: ^3",
            "pools[0].health.timeout: 3s is longer than the interval (2s)",
        ),
        (
            "type: http\n      path: /healthz\n      host_header: x\n",
            "type: tcp\n      ^path: /healthz\n",
            "pools[0].health.path: has no effect with `type: tcp`; leave it out, or",
        ),
        (
            "    health: none ",
            "    health: {type: none, ^interval: 1} #",
            "services[1].health.interval: has no effect with `type: none`; leave it out",
        ),
        (
            "  - name: dns\n    vip: 203.0.113.53",
            "  - ^name: dns\n    vip: 203.0.113.53",
            "services[1]: a udp service needs `health:` said explicitly",
        ),
        (
            "    pool: web\n",
            "    pool: web\n    ^health: none\n",
            "services[0].health: the health check belongs to the pool",
        ),
        (
            "    pool: web\n",
            "    pool: web\n    ^backends: [{host: 10.0.0.1, port: 1}]\n",
            "services[0].backends: both `pool` and `backends` are given",
        ),
        (
            "  - name: web\n    vip: 203.0.113.10\n",
            (
                "  - {name: x, vip: 203.0.113.9, port: 1, mode: nat, pool: web}\n"
                "  - ^name: web\n    vip: 203.0.113.10\n"
            ),
            "services[1]: no backends: give `pool: NAME`, or `backends:`",
        ),
        (
            "    pool: web\n",
            "    pool: ^x\n",
            'services[0].pool: there is no pool "x"; pools: web',
        ),
    ],
)
def test_a_contradiction_is_told_at_its_place(old: str, new: str, expected: str) -> None:
    """Each contradiction between values is found once, at the place that `^` marks here."""
    text = EXAMPLE.replace("      expected_status: [200-299, 304]\n", "#\n")
    text = text.replace("www.example.net", "x").replace(old, new, 1)
    if "udp service" in expected:
        text = text.replace("    health: none ", "    # ")
    if "no backends" in expected:
        text = text.replace("    pool: web\n", "")
    before = text[: text.index("^")]
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    with pytest.raises(InvalidConfigError) as refusal:
        parse_config(text.replace("^", ""), "lb.yaml")
    (problem,) = refusal.value.problems
    assert str(problem).startswith(f"lb.yaml:{line}:{column}: {expected}")


def test_dsr_says_why_and_what_instead() -> None:
    """The refusal of port translation in DSR explains itself and names the alternative."""
    (problem,) = problems_of(("{host: 10.0.0.21, port: 53}", "{host: 10.0.0.21, port: 5353}"))
    assert "dsr rewrites no ports" in problem
    assert "`mode: nat`" in problem


def test_services_may_share_backends_and_vips() -> None:
    """The same pool behind two services, and one VIP with two ports, are everyday set-ups."""
    again = "  - {name: web2, vip: 203.0.113.10, port: 81, mode: nat, pool: web}\n  - name: dns"
    first, second, *_ = edit(("  - name: dns", again)).services
    assert first.pool is second.pool


def test_inline_pools_have_names_that_no_file_can_give() -> None:
    """An inline pool is never mistaken for a named one."""
    assert [service.pool.name for service in edit().services] == [
        "web",
        "service:dns",
        "service:mail",
    ]


def test_no_services_is_an_error() -> None:
    """A gateway without a service is a mistake, not an idle gateway."""
    with pytest.raises(InvalidConfigError, match="2:11: services: an empty list is not allowed"):
        parse_config("gateway: {interfaces: [eth0]}\nservices: []\n", "lb.yaml")


def test_pools_of_a_wrong_shape_make_no_second_error() -> None:
    """While pools cannot be read, nobody can say that one is missing."""
    text = "gateway: {interfaces: [eth0]}\npools: 3\nservices:\n"
    text += "- {name: a, vip: 203.0.113.1, port: 1, mode: nat, pool: x}\n"
    with pytest.raises(InvalidConfigError) as refusal:
        parse_config(text, "lb.yaml")
    assert str(refusal.value) == "lb.yaml:2:8: pools: 3 is not allowed; a list"


def test_warnings_have_places_too() -> None:
    """What is accepted but odd is told in the form of an error, sorted by place."""
    config = edit(
        ("weight: 100}", "weight: 0, maxConnections: 10}"),
        ("weight: 200}", "weight: 0}"),
        ("services:\n", "  - {name: idle, backends: [{host: 10.0.0.1, port: 1}]}\nservices:\n"),
    )
    assert config.warnings == (
        "lb.yaml:23:12: pools[1].name: no service uses this pool; it is not probed",
        "lb.yaml:25:5: services[0]: every backend has weight 0: the service gets no traffic",
    )
    assert config.services[0].pool.backends[0].max_connections == 10


def many(services: int, backends: int, again: int = 0) -> str:
    """Return a file whose services share one pool; the last one stands there ``again`` times."""
    text = "gateway: {interfaces: [eth0]}\npools:\n- name: p\n  health: none\n  backends:\n"
    text += "".join(f"  - {{host: 10.0.0.{n + 1}, port: 1}}\n" for n in range(backends))
    text += "services:\n"
    for n in range(services):
        text += f"- &s {{name: s{n}, vip: 203.0.113.1, port: {n + 1}, mode: nat, pool: p}}\n"
    return text + "- *s\n" * again


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        (many(1, 1, again=MAX_SERVICES), MAX_SERVICES),
        (many(64, MAX_SERVICE_BACKENDS // 64 + 1), MAX_SERVICE_BACKENDS),
    ],
)
def test_too_large_a_configuration_is_refused(text: str, limit: int) -> None:
    """The limits of this version are named where they are passed."""
    with pytest.raises(InvalidConfigError, match=f"at most {limit:,} are allowed") as refusal:
        parse_config(text, "lb.yaml")
    assert len(refusal.value.problems) == 1


def test_the_largest_configuration_is_accepted() -> None:
    """As many backends in services as are allowed load."""
    config = parse_config(many(64, MAX_SERVICE_BACKENDS // 64), "lb.yaml")
    assert len(list(config.backends())) == MAX_SERVICE_BACKENDS


API = "  api: {socket: /run/lb-xdp/gw1/api.sock}"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            "listen: 0.0.0.0:84, certificate: /c, key: /k",
            "`tokens` is missing: over TCP only tokens say who",
        ),
        ("listen: 127.0.0.1:8443", "`tokens` is missing: over TCP only tokens say who"),
        ("listen: 10.0.0.1:8443, tokens: /t", "without TLS only a loopback address is allowed"),
        ("listen: 127.0.0.1:1, tokens: /t, certificate: /c", "`key` is missing: TLS needs both"),
        ("listen: 127.0.0.1:1, tokens: /t, key: /c", "`certificate` is missing: TLS needs both"),
        ("tokens: /t", "gateway.api.tokens: has no effect without `listen`"),
    ],
)
def test_an_api_that_strangers_could_use_is_refused(keys: str, expected: str) -> None:
    """Over TCP there are always tokens, and TLS everywhere but on the host itself."""
    (problem,) = problems_of((API, f"  api: {{{keys}}}"))
    assert expected in problem


def test_an_api_that_is_off_may_keep_its_files() -> None:
    """`listen: none` switches it off and leaves the other keys for the day it is on again."""
    edit((API, "  api: {listen: none, tokens: /t}"))
