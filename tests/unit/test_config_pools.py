"""How the backends of a pool come and go, as the file says it."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest

from lb_xdp.config import parse_config
from lb_xdp.core.model import ANY_PORT, Backend, BackendName, Config, Panic
from lb_xdp.errors import InvalidConfigError

FILE = """\
gateway: {{interfaces: [eth0]}}
pools:
  - name: web
    backends: [{{host: 10.0.0.11, port: 80}}, {{host: 10.0.0.12, port: 80, priority: 3}}]
    {keys}
services:
  - {{name: web, vip: 203.0.113.10, port: 80, mode: dsr, pool: web}}
"""
SORRY = "panic: fallback\n    fallback: {{{0}}}"


def load(keys: str = "health: none") -> Config:
    return parse_config(FILE.format(keys=keys), "lb.yaml")


def test_the_defaults_are_those_of_the_reference() -> None:
    """Nothing is slow, five minutes to drain, no panic."""
    pool = load().services[0].pool
    assert (pool.slow_start_s, pool.drain_timeout_s, pool.failback_delay_s) == (0, 300, 0)
    assert (pool.min_active, pool.panic, pool.fallback) == (1, Panic.NONE, None)
    assert [backend.priority for backend in pool.backends] == [0, 3]


def test_all_keys_arrive() -> None:
    """Each key is where the model has it; a fallback has a name and no weight."""
    keys = "{slowStart: 30s, drain_timeout: 1h, min_active: 2, failback_delay: 1min, panic: all}"
    pool = load("\n    ".join(keys.strip("{}").split(", "))).services[0].pool
    assert (pool.slow_start_s, pool.drain_timeout_s, pool.failback_delay_s) == (30, 3600, 60)
    assert (pool.min_active, pool.panic) == (2, Panic.ALL)
    pool = load(SORRY.format("host: 10.0.0.99, port: 80")).services[0].pool
    sorry = Backend(
        BackendName("10.0.0.99:80"), IPv4Address("10.0.0.99"), 80, weight=0, fallback=True
    )
    assert (pool.panic, pool.fallback) == (Panic.FALLBACK, sorry)
    pool = load(SORRY.format("name: sorry, host: 10.0.0.99, port: 80")).services[0].pool
    assert pool.fallback is not None
    assert pool.fallback.name == "sorry"


def test_a_fallback_of_any_port_has_none() -> None:
    """It obeys the same rules as backends do."""
    text = FILE.format(keys=SORRY.format("host: 10.0.0.99") + "\n    health: none")
    text = text.replace(", port: 80", "").replace("10, mode", "10, port: any, mode")
    pool = parse_config(text, "lb.yaml").services[0].pool
    assert pool.fallback is not None
    assert pool.fallback.port == ANY_PORT


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            "slow_start: 25h",
            'pools[0].slow_start: "25h" is not allowed; a duration from 0ms to 24h',
        ),
        ("slow_start: -1", "a duration from 0ms to 24h"),
        ("drain_timeout: never", "a duration from 0ms to 24h"),
        ("failback_delay:", "a duration from 0ms to 24h"),
        ("min_active: 0", "an integer from 1 to 16000"),
        ("panic: some", "one of none, all, fallback"),
        ("panic: fallback", "pools[0].panic: needs `fallback:` with the server's address"),
        ("fallback: {host: 10.0.0.9, port: 80}", "has no effect with `panic: none`"),
        ("panic: fallback\n    fallback: 5", "5 is not allowed; a mapping such as"),
        ("panic: fallback\n    fallback:", "pools[0].fallback: an empty value is not allowed"),
        (SORRY.format("host: '::1', port: 80"), "pools[0].fallback.host: "),
        (SORRY.format("host: 10.0.0.11, port: 80"), "10.0.0.11:80 is in this pool on line 4"),
        (
            SORRY.format("name: '10.0.0.11:80', host: 10.0.0.9, port: 80"),
            "is taken by the backend on line 4",
        ),
        (SORRY.format("host: 203.0.113.10, port: 80"), "203.0.113.10 is the VIP of line"),
        (SORRY.format("host: 10.0.0.9, port: 80, weight: 5"), "pools[0].fallback.weight"),
        (SORRY.format("host: 10.0.0.9, port: 81"), "pools[0].fallback.port"),
    ],
)
def test_what_is_wrong_is_told_once(keys: str, expected: str) -> None:
    """Each mistake makes one message, at its place, with what is allowed."""
    with pytest.raises(InvalidConfigError) as refusal:
        load(keys)
    (problem,) = refusal.value.problems
    assert expected in str(problem)


def test_a_fallback_does_not_make_up_for_weights() -> None:
    """A pool of weight 0 throughout is warned about, fallback or not."""
    text = FILE.replace(
        "port: 80}}, {{host: 10.0.0.12, port: 80, priority: 3}}", "port: 80, weight: 0}}"
    )
    found: dict[str, Any] = {
        keys: parse_config(text.format(keys=keys), "lb.yaml").warnings
        for keys in ("health: none", SORRY.format("host: 10.0.0.9, port: 80"))
    }
    assert all("every backend has weight 0" in warnings[0] for warnings in found.values())
