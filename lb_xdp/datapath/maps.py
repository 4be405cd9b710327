"""BPF maps: their geometry, declared once, and typed access to them.

Two lifetimes. *Generation* maps (endpoints, rings, backends, the table of programs) are what a
configuration's structure is compiled into; a new structure gets new ones. *Persistent* maps
(counters, flows, devices) live as long as the gateway does. Every reopened pin is compared with its
declaration before use: BCC's and libbpf's silence about a pin of another shape ends in corrupted
memory.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lb_xdp.core.plan import INDICES
from lb_xdp.core.ring import RING_SLOTS
from lb_xdp.datapath import syscall
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.syscall import MapType
from lb_xdp.errors import MapError, PrivilegeError

NAT_FLOWS = 131_072
"""Recorded nat flows: only shared backends and ones addressed directly need any."""

MAX_DEVICES = 64
MAX_SNATS = 256
CLIENTS = 262_144
"""Clients that affinity remembers."""

UNPROVEN = 32_768
"""Clients of whom only first packets have been seen."""

FRAGMENTED = 16_384
"""Fragmented packets under way at once."""

NO_PREALLOC = 1
MMAPABLE = 1 << 10

Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class MapSpec:
    """What a map must look like. ``name`` is the same in C, in bpffs and in ``bpftool map``."""

    name: str
    kind: MapType
    key: np.dtype[np.generic]
    value: np.dtype[np.generic]
    max_entries: int
    flags: int = 0

    @property
    def per_cpu(self) -> bool:
        """Whether every CPU has a value of its own."""
        return self.kind in {MapType.PERCPU_ARRAY, MapType.PERCPU_HASH}


@cache
def possible_cpus() -> int:
    """Return how many values a per-CPU element has (``/sys/devices/system/cpu/possible``)."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip()
    return max(int(part.rsplit("-", 1)[-1]) for part in text.split(",")) + 1


@dataclass(frozen=True, slots=True)
class TableShape:
    """The sizes of an endpoint table, as powers of two; the filter's is in bits."""

    filter_bits: int
    bucket_bits: int
    bucket6_bits: int


def table_dtype(shape: TableShape) -> np.dtype[np.void]:
    """Return ``struct lb_table`` of bpf/lb_maps.h."""
    structs = layout().structs
    return np.dtype(
        [
            ("head", structs["lb_table_head"]),
            ("filter", np.uint64, (1 << shape.filter_bits - 6,)),
            ("bucket", structs["lb_bucket"], (1 << shape.bucket_bits,)),
            ("bucket6", structs["lb_bucket6"], (1 << shape.bucket6_bits,)),
        ]
    )


def ring_dtype() -> np.dtype[np.void]:
    """Return ``struct lb_ring`` of bpf/lb_maps.h."""
    head = layout().structs["lb_ring_head"]
    return np.dtype({
        "names": ["head", "slot"],
        "formats": [head, (np.uint32, (RING_SLOTS + 1,))],
        "itemsize": -(-(head.itemsize + 4 * (RING_SLOTS + 1)) // 8) * 8,
    })  # fmt: skip


def generation_specs(services: int, shape: TableShape) -> tuple[MapSpec, ...]:
    """Return the maps that belong to one generation."""
    structs = layout().structs
    u32 = np.dtype(np.uint32)
    return (
        MapSpec("endpoints", MapType.ARRAY, u32, table_dtype(shape), 1),
        MapSpec("rings", MapType.ARRAY, u32, ring_dtype(), services),
        MapSpec("backends", MapType.ARRAY, u32, structs["lb_backend"], INDICES),
        MapSpec("snats", MapType.ARRAY, u32, structs["lb_snat"], MAX_SNATS),
        MapSpec("programs", MapType.PROG_ARRAY, u32, u32, layout().constants["LB_PROGRAMS"]),
    )


def persistent_specs(flow_entries: int, way_bits: int) -> tuple[MapSpec, ...]:
    """Return the maps that live as long as the gateway.

    What few gateways need takes memory only as it is used (NO_PREALLOC).
    """
    structs = layout().structs
    u32 = np.dtype(np.uint32)
    reasons = len(layout().reasons)
    array, per_cpu = MapType.ARRAY, MapType.PERCPU_ARRAY
    key, fragment = structs["lb_flow_key"], structs["lb_fragment_key"]
    hashed, lru = MapType.HASH, MapType.LRU_HASH
    returns, bonds = structs["lb_return"], structs["lb_affinity"]
    handshakes = 1 << layout().constants["LB_HANDSHAKE_BITS"]
    watched = MapType.PERCPU_HASH
    return (
        MapSpec("counts", per_cpu, u32, structs["lb_backend_count"], INDICES),
        MapSpec("reasons", per_cpu, u32, np.dtype(np.uint64), reasons),
        MapSpec("flows", hashed, key, structs["lb_flow"], flow_entries),
        MapSpec("flow_counts", per_cpu, u32, structs["lb_flow_count"], 1),
        MapSpec("returns", hashed, key, returns, flow_entries, NO_PREALLOC),
        MapSpec("affinities", hashed, key, bonds, CLIENTS, NO_PREALLOC),
        MapSpec("limits", array, u32, structs["lb_limit"], INDICES),
        MapSpec("active", array, u32, structs["lb_active"], INDICES),
        MapSpec("nat_flows", lru, key, structs["lb_nat_flow"], NAT_FLOWS),
        MapSpec("nat_marks", array, u32, structs["lb_nat_mark"], INDICES),
        MapSpec("fragments", lru, fragment, structs["lb_fragment"], FRAGMENTED),
        MapSpec("ways", array, u32, structs["lb_way"], possible_cpus() << way_bits),
        MapSpec("budget", per_cpu, u32, structs["lb_budget"], 1),
        MapSpec("devices", MapType.DEVMAP_HASH, u32, u32, MAX_DEVICES),
        MapSpec("handshakes", array, u32, structs["lb_handshake"], handshakes),
        MapSpec("unproven", lru, key, bonds, UNPROVEN),
        MapSpec("watched", watched, u32, structs["lb_watch_count"], INDICES, NO_PREALLOC),
    )


class BpfMap:
    """An open map. Close it, or use it as a context manager; pins outlive it."""

    def __init__(self, spec: MapSpec, fd: int) -> None:
        self.spec = spec
        self.fd = fd
        self._edited = Lock()

    @classmethod
    def create(cls, spec: MapSpec) -> Self:
        """Create a map. Raises MapError, or PrivilegeError where the kernel says EPERM."""
        try:
            fd = syscall.map_create(
                spec.kind,
                key_size=spec.key.itemsize,
                value_size=spec.value.itemsize,
                max_entries=spec.max_entries,
                flags=spec.flags,
                name=f"lb_{spec.name}",
            )
        except OSError as error:
            if error.errno == errno.EPERM:
                raise PrivilegeError("may not create BPF maps: run lb-xdp as root") from error
            raise MapError(f"map {spec.name}: cannot be created: {error.strerror}") from error
        return cls(spec, fd)

    @classmethod
    def reopen(cls, spec: MapSpec, path: Path) -> Self:
        """Open a pin, and refuse one of another shape. Raises MapError, FileNotFoundError."""
        fd = _open_pin(path)
        info = syscall.map_info(fd)
        found = (info.type, info.key_size, info.value_size, info.max_entries)
        wanted = (spec.kind, spec.key.itemsize, spec.value.itemsize, spec.max_entries)
        if found != wanted:
            os.close(fd)
            raise MapError(
                f"{path}: is of another layout: type, key, value, entries {found}, "
                f"but this version needs {tuple(map(int, wanted))}. Forwarding goes on; "
                "`lb-xdp run --replace` takes over without a gap and starts anew with that map"
            )
        return cls(spec, fd)

    def close(self) -> None:
        """Close the descriptor; safe to repeat."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pin(self, path: Path) -> None:
        """Pin the map. Raises MapError."""
        try:
            syscall.pin(self.fd, str(path))
        except OSError as error:
            raise MapError(f"{path}: cannot be pinned: {error.strerror}") from error

    def _key(self, key: object) -> Values:
        return np.array(key, dtype=self.spec.key).reshape(1)

    def write(self, key: object, value: object) -> None:
        """Write one element; ``value`` is anything numpy can put into the value's dtype."""
        shape = (possible_cpus(),) if self.spec.per_cpu else (1,)
        data = np.zeros(shape, dtype=_aligned(self.spec))
        if self.spec.per_cpu:
            data["value"][:] = value
        else:
            data[:] = value
        try:
            syscall.map_update(self.fd, self._key(key), data)
        except OSError as error:
            raise MapError(f"map {self.spec.name}[{key}]: {error.strerror}") from error

    def write_block(self, keys: Sequence[int], values: Values) -> None:
        """Write many elements by one system call, out of an array that lies as the map's do.

        Not for per-CPU maps.
        """
        self._write_batch(keys, values[: len(keys)])

    def clear(self, keys: Collection[int]) -> None:
        """Write zeros to many elements, on all CPUs; an edit of one is before or after that."""
        if not keys:
            return
        cpus = possible_cpus() if self.spec.per_cpu else 1
        with self._edited:
            self._write_batch(keys, np.zeros((len(keys), cpus), dtype=_aligned(self.spec)))

    def _write_batch(self, keys: Collection[int], values: Values) -> None:
        try:
            syscall.map_update_batch(self.fd, np.array([*keys], dtype=self.spec.key), values)
        except OSError as error:
            raise MapError(f"map {self.spec.name}: {error.strerror}") from error

    def read(self, key: object) -> Values | None:
        """Return one element's value (for a per-CPU map: one for each CPU), or None."""
        shape = (possible_cpus(),) if self.spec.per_cpu else (1,)
        data = np.zeros(shape, dtype=_aligned(self.spec))
        if not syscall.map_lookup(self.fd, self._key(key), data):
            return None
        return data["value"] if self.spec.per_cpu else data

    @contextmanager
    def edit(self, key: object) -> Iterator[Values]:
        """Lend one element to be changed, and write it when the block ends. Raises MapError.

        Threads that edit elements of the same open map take turns; ``write`` waits for nobody.
        """
        with self._edited:
            held = self.read(key)
            if held is None:
                raise MapError(f"map {self.spec.name}[{key}]: there is none")
            yield held
            self.write(key, held)

    def delete(self, key: object) -> bool:
        """Delete one element; False if there was none. Raises MapError."""
        try:
            return syscall.map_delete(self.fd, self._key(key))
        except OSError as error:
            raise MapError(f"map {self.spec.name}[{key}]: {error.strerror}") from error

    def take(self, key: object) -> Values | None:
        """Delete one element of a hash and return what it last held; None if there was none."""
        data = np.zeros(1, dtype=self.spec.value)
        return data if syscall.map_take(self.fd, self._key(key), data) else None

    def read_all(self, limit: int | None = None) -> tuple[Values, Values]:
        """Return keys and values by batches; per-CPU values have shape (n, CPUs).

        ``limit`` stops after so many: of an array, the elements 0 to ``limit`` - 1.
        """
        cpus = possible_cpus() if self.spec.per_cpu else 1
        capacity = min(limit or self.spec.max_entries, self.spec.max_entries)
        keys = np.zeros(capacity, dtype=self.spec.key)
        values = np.zeros((capacity, cpus), dtype=_aligned(self.spec))
        cursor = np.zeros(max(self.spec.key.itemsize, 8), dtype=np.uint8)
        total, last = 0, False
        while not last and total < capacity:
            count, last = self._read_batch(keys[total:], values[total:], cursor, start=total == 0)
            total += count
            if count == 0:
                break
        read = values[:total]["value"] if self.spec.per_cpu else values[:total, 0]
        return keys[:total], read

    def _read_batch(
        self, keys: Values, values: Values, cursor: Values, *, start: bool
    ) -> tuple[int, bool]:
        try:
            return syscall.map_lookup_batch(self.fd, keys, values, len(keys), cursor, start=start)
        except OSError as error:
            raise MapError(f"map {self.spec.name}: {error.strerror}") from error


def _open_pin(path: Path) -> int:
    try:
        return syscall.open_pin(str(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise MapError(f"{path}: cannot be opened: {error.strerror}") from error


def _aligned(spec: MapSpec) -> np.dtype[np.generic]:
    """Per-CPU values lie 8 bytes apart at least; others are as declared."""
    if not spec.per_cpu:
        return spec.value
    size = -(-spec.value.itemsize // 8) * 8
    return np.dtype({"names": ["value"], "formats": [spec.value], "itemsize": size})
