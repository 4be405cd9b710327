"""Rings are remembered, and no more of them than are of use."""

from __future__ import annotations

from ipaddress import IPv4Address

from lb_xdp.core.model import (
    Algorithm,
    Backend,
    BackendKey,
    BackendName,
    CheckKind,
    HealthCheck,
    Mode,
    Pool,
    Protocol,
    Service,
    ServiceName,
)
from lb_xdp.core.ring import Ring
from lb_xdp.core.rings import SPARE_BASES, Rings

VIP = IPv4Address("203.0.113.10")


def service(*weights: int, port: int = 80, algorithm: Algorithm = Algorithm.MAGLEV) -> Service:
    backends = tuple(
        Backend(BackendName(f"web{n}"), IPv4Address("10.0.0.11") + n, 80, weight)
        for n, weight in enumerate(weights)
    )
    pool = Pool("web", backends, HealthCheck(CheckKind.NONE))
    return Service(
        ServiceName(f"web{port}"), VIP, port, Protocol.TCP, Mode.NAT, pool, algorithm=algorithm
    )


def ask(rings: Rings, of: Service) -> Ring:
    """Return a service's ring, looked at: until then it is not built."""
    ring = rings.ring_of(of, frozenset(backend.key for backend in of.pool.backends))
    assert len(ring.owner)
    return ring


def test_the_same_cause_gives_the_same_ring() -> None:
    """The very object; and services with equal pools share what is built for both."""
    rings = Rings()
    first = ask(rings, service(1, 2))
    assert ask(rings, service(1, 2)) is first
    assert rings.builds == 1
    assert ask(rings, service(1, 3)) is not first


def test_what_nobody_looks_at_is_not_built() -> None:
    """A ring that the kernel has already need not be made; what it follows from tells it apart."""
    rings = Rings()
    every = {n: frozenset(b.key for b in service(*n).pool.backends) for n in ((1, 2), (1, 3))}
    found = [rings.ring_of(service(*n), live) for n, live in every.items()]
    found.append(rings.ring_of(service(1, 3), frozenset()))
    assert len({ring.cause for ring in found}) == 3
    assert Rings().ring_of(service(1, 2), every[1, 2]).cause == found[0].cause
    assert rings.builds == 0


def test_the_steps_of_many_ramps_leave_few_rings_behind() -> None:
    """Memory is flat, whatever weights go by; what another service uses is not let go."""
    rings = Rings()
    ask(rings, service(7, 7, port=81))
    for step in range(40):
        ask(rings, service(1 + step, 1000))
        assert len(rings._bases) <= SPARE_BASES + 2
    base = rings._bases[_weights(service(7, 7, port=81))]
    ask(rings, service(7, 7))
    assert rings._bases[_weights(service(7, 7))] is base


def test_going_back_and_forth_builds_no_base_anew() -> None:
    """A drain and its end take the same two base rings."""
    rings = Rings()
    ask(rings, service(1, 2))
    ask(rings, service(0, 2))
    held = dict(rings._bases)
    for _ in range(5):
        ask(rings, service(1, 2))
        ask(rings, service(0, 2))
    assert {key: id(ring) for key, ring in rings._bases.items()} == {
        key: id(ring) for key, ring in held.items()
    }


def test_schedules_have_no_base() -> None:
    """Round robin builds each ring as a whole."""
    rings = Rings()
    for step in range(20):
        ask(rings, service(1 + step, 20, algorithm=Algorithm.ROUND_ROBIN))
    assert not rings._bases


def test_services_that_are_gone_leave_nothing() -> None:
    """Neither their rings nor what only they used."""
    rings = Rings()
    ask(rings, service(1, 2))
    ask(rings, service(3, 4, port=81))
    rings.forget_others([service(3, 4, port=81)])
    assert list(rings._bases) == [_weights(service(3, 4, port=81))]
    assert list(rings._latest) == [service(3, 4, port=81).key]
    rings.forget_others([])
    assert not rings._bases


def _weights(of: Service) -> tuple[tuple[BackendKey, int], ...]:
    return tuple(sorted((backend.key, backend.weight) for backend in of.pool.backends))
