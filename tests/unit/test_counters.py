"""Counters as they come out of the kernel's maps."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import cast

import numpy as np

from lb_xdp.core.desired import BackendId
from lb_xdp.core.model import BackendKey, Protocol, ServiceKey
from lb_xdp.datapath.counters import BackendCount, backend_counts
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.maps import BpfMap, Values

BACKEND = BackendId(
    ServiceKey(IPv4Address("203.0.113.10"), 80, Protocol.TCP),
    BackendKey(IPv4Address("10.0.0.11"), 80),
)


class Memory:
    """A map that holds ``values`` by index."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def read_all(self, limit: int) -> tuple[Values, Values]:
        return np.arange(limit), self._values[:limit]


def memory(struct: str, field: str, *values: int, cpus: int | None = None) -> BpfMap:
    """Return a map of 8 elements; the last one of them has ``values``, one for each CPU."""
    held: Values = np.zeros((8, cpus) if cpus else 8, layout().structs[struct])
    held[7][field] = values if cpus else values[0]
    return cast("BpfMap", Memory(held))


def test_totals_are_exact_over_all_cpus() -> None:
    """Sums are whole numbers to the last octet, also beyond what a float can hold."""
    totals = backend_counts(
        memory("lb_backend_count", "bytes", 2**60, 1, cpus=2),
        memory("lb_active", "connections", 12),
        memory("lb_limit", "expired", 5),
        {BACKEND: 7},
    )
    assert totals == {BACKEND: BackendCount(bytes=2**60 + 1, connections=7)}
    assert {type(getattr(totals[BACKEND], name)) for name in BackendCount._fields} == {int}


def test_connections_are_never_negative() -> None:
    """What the controller charges off a moment before the program does counts as none."""
    totals = backend_counts(
        memory("lb_backend_count", "bytes", 0, cpus=1),
        memory("lb_active", "connections", 1),
        memory("lb_limit", "expired", 2),
        {BACKEND: 7},
    )
    assert totals[BACKEND].connections == 0


def test_without_backends_nothing_is_read() -> None:
    """No index, no totals."""
    none = memory("lb_limit", "expired", 0)
    assert backend_counts(none, none, none, {}) == {}
