"""The effective configuration, the generated reference and arbitrary input."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from lb_xdp.config import effective, json_schema, parse_config
from lb_xdp.config.reference import EXAMPLE, render
from lb_xdp.core.durations import format_duration, parse_duration_s
from lb_xdp.core.model import Affinity, Algorithm, Config
from lb_xdp.errors import InvalidConfigError

ROOT = Path(__file__).parents[2]


def bare(config: Config) -> Config:
    """Leave out where a configuration came from."""
    return replace(config, source="", warnings=())


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,12}", fullmatch=True)
seconds = st.one_of(
    st.integers(1, 3600),
    st.floats(0.01, 3600),
    st.integers(10, 9999).map(lambda count: f"{count}ms"),
    st.integers(1, 60).map(lambda count: f"{count}min"),
)
statuses = st.one_of(st.integers(100, 599), st.integers(200, 299).map(lambda n: f"{n}-{n + 100}"))
common = {
    "interval": seconds,
    "threshold": st.one_of(
        st.integers(1, 100),
        st.fixed_dictionaries({}, optional={"rise": st.integers(1, 9), "fall": st.integers(1, 9)}),
    ),
    "jitter": st.one_of(st.floats(0, 1), st.integers(0, 100).map(lambda n: f"{n}%")),
    "host": st.sampled_from(["192.0.2.9", "::1"]),
    "port": st.integers(1, 65535),
}
http = {
    "path": st.from_regex(r"/[!-~]{0,20}", fullmatch=True),
    "host_header": st.from_regex(r"[!-~]{1,20}", fullmatch=True),
    "expected_status": st.one_of(statuses, st.lists(statuses, min_size=1, max_size=3)),
}
checks = st.one_of(
    st.just("none"),
    st.fixed_dictionaries({}, optional=common),
    st.fixed_dictionaries({"type": st.just("http")}, optional={**common, **http}),
)


TRANSLATING = ["nat", "fullnat"]
FLOW_TIMES = ["settle", "tcp_idle", "tcp_opening", "tcp_closing", "udp_idle"]
times = seconds.filter(lambda value: isinstance(value, str) or value >= 1).filter(
    lambda value: not str(value).endswith("ms")
)
service_keys = {
    "algorithm": st.sampled_from(list(Algorithm)).map(str),
    "session": st.fixed_dictionaries(
        {}, optional={"affinity": st.sampled_from(list(Affinity)).map(str), "timeout": times}
    ),
    "no_backend": st.sampled_from(["drop", "reject"]),
    "on_backend_down": st.sampled_from(["rehash", "reset"]),
}

waits = seconds.filter(lambda value: isinstance(value, str) or value >= 0)
pool_keys = {
    "slow_start": waits,
    "drain_timeout": waits,
    "min_active": st.integers(1, 16_000),
    "failback_delay": waits,
}
SORRY = {"host": "10.9.9.9", "port": 80}
PANICS: list[dict[str, Any]] = [
    {},
    {"panic": "all"},
    {"panic": "fallback", "fallback": SORRY},
    {"panic": "fallback", "fallback": {"name": "a:fallback", **SORRY}},
]


detects = st.one_of(
    st.just("none"),
    st.fixed_dictionaries(
        {},
        optional={
            "interval": st.sampled_from([1, "5s", "2min"]),
            "min_flows": st.integers(1, 1_000_000),
            "failure_share": st.sampled_from([0, "30%", 0.5, 1]),
            "eject": st.booleans(),
            "max_ejected": st.sampled_from(["10%", 0.25]),
            "base_time": st.sampled_from(["30s", "1h"]),
            "max_time": st.sampled_from(["5min", "24h"]),
        },
    ),
)


@st.composite
def backend_lists(draw: st.DrawFn, subnet: str = "10.0.0.") -> list[dict[str, Any]]:
    """Draw backends with distinct addresses, and names where they stay distinct."""
    count = draw(st.integers(1, 4))
    given_names = draw(st.lists(names, min_size=count, max_size=count, unique=True))
    optional = {
        "weight": st.integers(0, 65535),
        "max_connections": st.integers(1, 10**9),
        "priority": st.integers(0, 255),
    }
    backends = []
    for number, name in enumerate(given_names):
        own = {"host": f"{subnet}{number + 1}", "port": draw(st.integers(1, 65535))}
        if draw(st.booleans()):
            own["name"] = name
        backends.append(own | draw(st.fixed_dictionaries({}, optional=optional)))
    return backends


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a valid file as plain data."""
    pools: list[dict[str, Any]] = [
        {
            "name": name,
            "backends": draw(backend_lists()),
            "health": draw(checks),
            "detect": draw(detects),
        }
        | draw(st.fixed_dictionaries({}, optional=pool_keys))
        | draw(st.sampled_from(PANICS))
        for name in draw(st.lists(names, max_size=2, unique=True))
    ]
    services = []
    for number, name in enumerate(draw(st.lists(names, min_size=1, max_size=3, unique=True))):
        service: dict[str, Any] = {"name": name, "vip": f"203.0.113.{number + 1}"}
        service |= {"port": draw(st.integers(1, 65535)), "mode": draw(st.sampled_from(TRANSLATING))}
        kind = draw(st.sampled_from(["named", "inline", "ipv6", "any"]))
        if pools and kind == "named":
            service["pool"] = draw(st.sampled_from(pools))["name"]
        elif kind == "ipv6":
            service["vip"] = f"2001:db8::{number + 1}"
            service |= {"backends": draw(backend_lists("2001:db8:1::")), "health": draw(checks)}
        elif kind == "any":
            host = {"host": f"10.0.1.{number}"}
            service |= {"port": "any", "mode": "gue", "backends": [host], "health": "none"}
        else:
            service |= {"backends": draw(backend_lists()), "health": draw(checks)}
        services.append(service | draw(st.fixed_dictionaries({}, optional=service_keys)))
    gateway_keys = {
        "tunnel_sources": st.fixed_dictionaries(
            {}, optional={"ipv4": st.just("10.8.0.0/16"), "ipv6": st.just("2001:db8::/48")}
        ),
        "gue_port": st.integers(1, 65535),
        "flow_table": st.fixed_dictionaries(
            {}, optional={"entries": st.integers(16, 1 << 24), **dict.fromkeys(FLOW_TIMES, times)}
        ),
        "name": names,
        "xdp_mode": st.sampled_from(["auto", "native", "generic"]),
        "api": st.sampled_from(
            [
                {"socket": "/tmp/a  b"},
                {"group": "netops", "listen": "127.0.0.1:8443", "tokens": "/etc/lb-xdp/tokens"},
                {
                    "listen": "[::]:8443",
                    "tokens": "/etc/tokens",
                    "certificate": "/etc/cert.pem",
                    "key": "/etc/key.pem",
                },
            ]
        ),
        "metrics": st.sampled_from(["none", {"listen": "[::1]:80"}, {"listen": "0.0.0.0:1"}]),
    }
    gateway = draw(st.fixed_dictionaries({}, optional=gateway_keys))
    gateway["snat_addresses"] = ["192.0.2.1", "2001:db8:9::1"]
    gateway["interfaces"] = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    return {"gateway": gateway, "pools": pools, "services": services}


@settings(max_examples=20, deadline=None)
@given(document=documents())
def test_the_effective_configuration_loads_to_the_same(document: dict[str, Any]) -> None:
    """Whatever is valid, its effective text loads to an equal configuration, and stays the same."""
    text = StringIO()
    YAML().dump(document, text)
    config = parse_config(text.getvalue(), "lb.yaml")
    shown = effective(config)
    again = parse_config(shown, "effective")
    assert bare(again) == bare(config)
    assert effective(again) == shown


@settings(max_examples=200, deadline=None)
@given(value=st.floats(0.001, 1e6))
def test_durations_survive_being_written(value: float) -> None:
    """A written duration is read as the very same float."""
    assert parse_duration_s(format_duration(value)) == value


fragments = st.sampled_from(
    [
        *"\n :-[]{},#&*!|>'\"%@`\\\t?~<=",
        *("  ", "- ", ": ", "\n  ", "---\n", "...", "&a ", "*a", "<<", "!!int ", "!!str "),
        *("gateway", "services", "pools", "name", "vip", "port", "backends", "health"),
        *("10.0.0.1", "80", "none", "null", "0x", "1e9"),
        *("\\U00FFFFFF", "\\ud800", "\ud800", "\x00", "\ufeff", "\x85"),
    ]
)
noise = st.one_of(st.text(max_size=80), st.lists(fragments, max_size=30).map("".join))


@settings(max_examples=100, deadline=None)
@given(text=noise)
def test_arbitrary_text_is_refused_in_the_one_way(text: str) -> None:
    """Nothing that stands in a file makes another exception than InvalidConfigError."""
    with pytest.raises(InvalidConfigError) as refusal:
        parse_config(text, "lb.yaml")
    assert refusal.value.problems
    assert str(refusal.value).encode()


@settings(max_examples=25, deadline=None)
@given(start=st.integers(0, len(EXAMPLE)), length=st.integers(0, 40), new=noise)
def test_a_damaged_file_is_read_or_refused(start: int, length: int, new: str) -> None:
    """A valid file with a piece replaced by anything loads or is refused."""
    try:
        parse_config(EXAMPLE[:start] + new + EXAMPLE[start + length :], "lb.yaml")
    except InvalidConfigError as refusal:
        places = [(problem.line, problem.column) for problem in refusal.problems]
        assert min(min(places)) > 0


json_like = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["gateway", "pools", "services", "name", "backends", "health", "port"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=15,
)


@settings(max_examples=60, deadline=None)
@given(data=st.dictionaries(st.sampled_from(["gateway", "pools", "services"]), json_like))
def test_data_of_any_shape_is_refused_in_the_one_way(data: dict[str, Any]) -> None:
    """Known keys with values of any type make problems, never a crash."""
    with pytest.raises(InvalidConfigError):
        parse_config(json.dumps(data), "lb.yaml")


def test_the_example_of_the_reference_loads() -> None:
    """What the reference shows can be copied."""
    config = parse_config(EXAMPLE, "lb.yaml")
    assert config.warnings == ()
    assert [str(service.key) for service in config.services] == [
        "203.0.113.10:80/tcp",
        "203.0.113.53:53/udp",
        "[2001:db8::25]:25/tcp",
    ]


def test_the_committed_reference_is_the_generated_one() -> None:
    """docs/configuration.md cannot fall behind the schema."""
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == render()


def test_every_default_is_written_out() -> None:
    """The effective configuration of a short file names every key that shapes forwarding."""
    text = "gateway: {interfaces: [eth0]}\nservices:\n"
    text += "- {name: a, vip: 2001:db8::1, port: any, mode: gue, health: none,"
    text += " session: {flows: none}, backends: [{host: 2001:db8::11}]}\n"
    shown = YAML(typ="safe").load(effective(parse_config(text, "lb.yaml")))
    assert shown["gateway"]["snat_addresses"] == []
    assert shown["gateway"]["tunnel_sources"] == {"ipv4": "172.16.0.0/16", "ipv6": "100::/64"}
    assert shown["gateway"]["gue_port"] == 6080
    assert shown["gateway"]["flow_table"] == {
        "entries": 262144,
        "settle": "15min",
        "tcp_idle": "3h",
        "tcp_opening": "10s",
        "tcp_closing": "10s",
        "udp_idle": "30s",
    }
    (service,) = shown["services"]
    assert service["port"] == "any"
    assert service["session"] == {"affinity": "none", "timeout": "3h", "flows": "none"}
    assert (service["algorithm"], service["no_backend"]) == ("maglev", "drop")
    (backend,) = service["backends"]
    assert (backend["name"], backend["host"]) == ("2001:db8::11", "2001:db8::11")
    assert "port" not in backend


def test_the_json_schema_knows_both_spellings() -> None:
    """Editors accept snake_case and camelCase, and refuse unknown keys."""
    schema = json_schema()
    backend = schema["$defs"]["Backend"]
    assert {"max_connections", "maxConnections"} <= backend["properties"].keys()
    assert backend["additionalProperties"] is False
    assert json.loads(json.dumps(schema)) == schema
