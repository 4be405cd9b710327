"""Probes without a way: a backend that was up is not blamed for our own link."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from lb_xdp.core.health import ProbeResult, is_live
from lb_xdp.core.model import Backend, BackendName, CheckKind, HealthCheck
from lb_xdp.core.plan import Observed, Plan
from lb_xdp.core.targets import TargetId
from lb_xdp.core.topology import NextHop, Topology
from lb_xdp.reconciler import Reconciler
from tests.support.one_service import MAC, config_of, topology_of

ADDRESS = IPv4Address("10.0.0.11")
BACKEND = Backend(BackendName("b1"), ADDRESS, 80)
UP = topology_of(ADDRESS)
NO_ROUTE = replace(UP, next_hops={})
NO_CARRIER = replace(UP, interfaces={"eth0": replace(UP.interfaces["eth0"], up=False)})
OTHER_WAY = replace(UP, next_hops={ADDRESS: NextHop(9, MAC, MAC, None, on_link=True)})
TARGET = TargetId("web", BACKEND.key)


class Nothing:
    """A datapath that is never asked."""

    def apply(self, plan: Plan, observed: Observed) -> Observed:
        raise NotImplementedError

    def observe(self) -> Observed:
        raise NotImplementedError


def reconciler(check: HealthCheck) -> Reconciler:
    config = config_of(BACKEND, check=check)
    return Reconciler(config, Nothing(), Observed(), 1, lambda: 100.0)


def result(*, ok: bool) -> ProbeResult:
    return ProbeResult(ok, "said", 0.01, 100.0)


CHECK = HealthCheck(CheckKind.TCP, fall=1)


@pytest.mark.parametrize("topology", [NO_ROUTE, NO_CARRIER], ids=["no route", "no carrier"])
def test_a_probe_without_a_way_decides_nothing_about_a_backend_that_was_up(
    topology: Topology,
) -> None:
    """Not as long as there is no way; the first failure after that counts again."""
    tried = reconciler(CHECK)
    tried.topology = UP
    assert tried.on_probe(TARGET, result(ok=True))
    tried.topology = topology
    assert not tried.on_probe(TARGET, result(ok=False))
    assert is_live(tried.vitals.state_of(TARGET, tried.now_s()).health)
    tried.topology = UP
    assert tried.on_probe(TARGET, result(ok=False))
    assert not is_live(tried.vitals.state_of(TARGET, tried.now_s()).health)


@pytest.mark.parametrize("topology", [UP, OTHER_WAY], ids=["a way", "by another interface"])
def test_a_failure_counts_where_there_is_a_way(topology: Topology) -> None:
    """So it does by an interface that is not the gateway's: nothing says that it is down."""
    tried = reconciler(CHECK)
    tried.topology = topology
    tried.on_probe(TARGET, result(ok=True))
    assert tried.on_probe(TARGET, result(ok=False))


def test_a_failure_counts_of_a_backend_that_was_never_up() -> None:
    """A start waits for every backend to be decided about, those without a way as well."""
    tried = reconciler(CHECK)
    tried.topology = NO_ROUTE
    assert tried.on_probe(TARGET, result(ok=False))
    assert not tried.undecided(tried.config)


def test_a_probe_elsewhere_says_what_it_says() -> None:
    """The way to the backend has nothing to do with a probe of another host."""
    tried = reconciler(replace(CHECK, host=IPv4Address("192.0.2.1")))
    tried.topology = UP
    tried.on_probe(TARGET, result(ok=True))
    tried.topology = NO_ROUTE
    assert tried.on_probe(TARGET, result(ok=False))
