"""BPF maps: their geometry, declared once, and typed access to them.

Two lifetimes. *Generation* maps (endpoints, rings, backends) are what a configuration's structure
is compiled into; a new structure gets new ones. *Persistent* maps (counters, flows, devices) live
as long as the gateway does. Every reopened pin is compared with its declaration before use: BCC's
and libbpf's silence about a pin of another shape ends in corrupted memory.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
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
        return self.kind is MapType.PERCPU_ARRAY


def possible_cpus() -> int:
    """Return how many values a per-CPU element has (``/sys/devices/system/cpu/possible``)."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip()
    return max(int(part.rsplit("-", 1)[-1]) for part in text.split(",")) + 1


def generation_specs(services: int, buckets: int) -> tuple[MapSpec, ...]:
    """Return the maps that belong to one generation."""
    structs = layout().structs
    u32 = np.dtype(np.uint32)
    head, bucket = structs["lb_table_head"], structs["lb_bucket"]
    table = np.dtype([("head", head), ("bucket", bucket, (buckets,))])
    ring = np.dtype([("slot", np.uint32, (RING_SLOTS + 1,))])
    return (
        MapSpec("endpoints", MapType.ARRAY, u32, table, 1),
        MapSpec("rings", MapType.ARRAY, u32, ring, services),
        MapSpec("backends", MapType.ARRAY, u32, structs["lb_backend"], INDICES),
    )


def persistent_specs() -> tuple[MapSpec, ...]:
    """Return the maps that live as long as the gateway."""
    structs = layout().structs
    u32 = np.dtype(np.uint32)
    reasons = len(layout().reasons)
    flow_key, flow = structs["lb_nat_key"], structs["lb_nat_flow"]
    return (
        MapSpec("counts", MapType.PERCPU_ARRAY, u32, structs["lb_backend_count"], INDICES),
        MapSpec("reasons", MapType.PERCPU_ARRAY, u32, np.dtype(np.uint64), reasons),
        MapSpec("nat_flows", MapType.LRU_HASH, flow_key, flow, NAT_FLOWS),
        MapSpec("nat_marks", MapType.ARRAY, u32, structs["lb_nat_mark"], INDICES),
        MapSpec("devices", MapType.DEVMAP_HASH, u32, u32, MAX_DEVICES),
    )


class BpfMap:
    """An open map. Close it, or use it as a context manager; pins outlive it."""

    def __init__(self, spec: MapSpec, fd: int) -> None:
        self.spec = spec
        self.fd = fd

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

    def read(self, key: object) -> Values | None:
        """Return one element's value (for a per-CPU map: one for each CPU), or None."""
        shape = (possible_cpus(),) if self.spec.per_cpu else (1,)
        data = np.zeros(shape, dtype=_aligned(self.spec))
        if not syscall.map_lookup(self.fd, self._key(key), data):
            return None
        return data["value"] if self.spec.per_cpu else data

    def delete(self, key: object) -> bool:
        """Delete one element; False if there was none."""
        return syscall.map_delete(self.fd, self._key(key))

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
