"""Maps: names, geometry, batches, per-CPU values, all by real maps in the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import numpy as np
import pytest

from lb_xdp.core.desired import BackendId
from lb_xdp.core.model import BackendKey, Protocol, ServiceKey
from lb_xdp.datapath import counters, syscall
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.maps import (
    BpfMap,
    MapSpec,
    TableShape,
    generation_specs,
    persistent_specs,
    possible_cpus,
)
from lb_xdp.datapath.syscall import MapType
from lb_xdp.errors import MapError

SPECS = (*generation_specs(2, TableShape(9, 6, 6)), *persistent_specs(1000, 12))
U32 = np.dtype(np.uint32)
_LONGEST_NAME = 15


@pytest.fixture
def pin() -> Iterator[Path]:
    """Provide a free path on the sandbox's bpffs."""
    path = Path("/sys/fs/bpf/test-map")
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("spec", SPECS, ids=[spec.name for spec in SPECS])
def test_the_kernel_has_every_map_as_declared(spec: MapSpec) -> None:
    """Type, sizes and the whole name: the kernel keeps 15 characters of it."""
    with BpfMap.create(spec) as made:
        info = syscall.map_info(made.fd)
    name = f"lb_{spec.name}"
    assert len(name) <= _LONGEST_NAME
    assert (info.name, info.type, info.max_entries) == (name, spec.kind, spec.max_entries)
    assert (info.key_size, info.value_size) == (spec.key.itemsize, spec.value.itemsize)


@pytest.mark.parametrize(
    "other",
    [
        {"kind": MapType.PERCPU_ARRAY},
        {"value": np.dtype(np.uint64)},
        {"max_entries": 9},
        {"kind": MapType.LRU_HASH, "key": np.dtype(np.uint64)},
    ],
    ids=["type", "value", "entries", "key"],
)
def test_a_pin_of_another_geometry_is_refused(pin: Path, other: dict[str, object]) -> None:
    """Reopening names the pin and both shapes, and says what to do."""
    spec = MapSpec("test", MapType.ARRAY, U32, U32, 8)
    with BpfMap.create(replace(spec, **other)) as made:  # type: ignore[arg-type]  # one field each
        made.pin(pin)
    with pytest.raises(MapError, match=rf"{pin}: is of another layout.*--replace"):
        BpfMap.reopen(spec, pin)


def test_a_pin_keeps_what_was_written(pin: Path) -> None:
    """A reopened map has the values of the one that is closed."""
    spec = MapSpec("test", MapType.ARRAY, U32, U32, 8)
    with BpfMap.create(spec) as made:
        made.write(5, 77)
        made.pin(pin)
    with BpfMap.reopen(spec, pin) as again:
        value = again.read(5)
    assert value is not None
    assert value.tolist() == [77]


@pytest.mark.parametrize(
    ("kind", "capacity", "limit"),
    [
        (MapType.ARRAY, 300, None),
        (MapType.ARRAY, 300, 7),
        (MapType.PERCPU_ARRAY, 300, None),
        (MapType.PERCPU_ARRAY, 300, 300),
        (MapType.LRU_HASH, 5000, None),  # a fuller one forgets some, as it should
    ],
)
def test_batches_equal_single_reads(kind: MapType, capacity: int, limit: int | None) -> None:
    """What one batch call returns is what a read of each key returns."""
    spec = MapSpec("test", kind, U32, np.dtype(np.uint64), capacity)
    with BpfMap.create(spec) as made:
        for key in range(300):
            made.write(key, key * 1_000_003)
        keys, values = made.read_all(limit)
        single = [made.read(int(key)) for key in keys]
    assert len(keys) == (limit or 300)
    assert len(set(keys.tolist())) == len(keys)
    for found, alone in zip(values, single, strict=True):
        assert alone is not None
        assert np.array_equal(np.atleast_1d(found), alone)


def test_values_of_all_cpus_are_kept_apart_and_summed() -> None:
    """A counter is the sum over CPUs, and each CPU's value comes back as it was written."""
    cpus = possible_cpus()
    service = ServiceKey(IPv4Address("203.0.113.10"), 80, Protocol.TCP)
    keys = [BackendId(service, BackendKey(IPv4Address("10.0.0.1"), port)) for port in (1, 2)]
    specs = {spec.name: spec for spec in SPECS}
    value = np.zeros(cpus, layout().structs["lb_backend_count"])
    value["packets"] = 1 + np.arange(cpus)
    value["reply_bytes"] = 2**40
    with (
        BpfMap.create(specs["counts"]) as counts,
        BpfMap.create(specs["active"]) as active,
        BpfMap.create(specs["limits"]) as limits,
    ):
        counts.write(3, value)
        active.write(3, (50, 0))
        limits.write(3, (8, 0, 0, 0, 0))
        back = counts.read(3)
        found = counters.backend_counts(counts, active, limits, {keys[0]: 3, keys[1]: 9})
    assert back is not None
    assert back["packets"].tolist() == value["packets"].tolist()
    assert found[keys[0]].packets == cpus * (cpus + 1) // 2
    assert found[keys[0]].reply_bytes == cpus * 2**40
    assert found[keys[0]].connections == 50 - 8
    assert found[keys[1]] == counters.BackendCount()


def test_entries_come_and_go() -> None:
    """An element is there after a write and not after a delete; both tell which."""
    spec = MapSpec("test", MapType.HASH, U32, U32, 100)
    with BpfMap.create(spec) as made:
        made.write(1, 2)
        made.write(3, 4)
        assert (made.delete(1), made.delete(1), made.read(1)) == (True, False, None)
        taken = made.take(3)
        assert taken is not None
        assert (taken.tolist(), made.take(3)) == ([4], None)


def test_a_write_past_the_end_is_an_error() -> None:
    """The kernel's refusal names map and key."""
    with (
        BpfMap.create(MapSpec("test", MapType.ARRAY, U32, U32, 8)) as made,
        pytest.raises(MapError, match=r"test\[8\]"),
    ):
        made.write(8, 1)
