"""Counters out of the kernel: per-CPU values read in batches and summed over CPUs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import starmap
from typing import NamedTuple

import numpy as np

from lb_xdp.core.desired import BackendId, Structure
from lb_xdp.core.snapshot import ReasonCount
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.maps import BpfMap


class BackendCount(NamedTuple):
    """Totals of one backend since its index was given out; see BackendStatus for the units."""

    packets: int = 0
    bytes: int = 0
    flows: int = 0
    reply_packets: int = 0
    reply_bytes: int = 0
    connections: int = 0


def backend_counts(
    counts: BpfMap, active: BpfMap, limits: BpfMap, indices: Mapping[BackendId, int]
) -> dict[BackendId, BackendCount]:
    """Return the totals of every backend that has an index, and the connections it has now."""
    if not indices:
        return {}
    limit = max(indices.values()) + 1
    _, values = counts.read_all(limit=limit)
    begun, ended = active.read_all(limit=limit)[1], limits.read_all(limit=limit)[1]
    connections = begun["connections"].astype(np.int64) - ended["expired"].astype(np.int64)
    fields = layout().structs["lb_backend_count"].names or ()
    # Signed as `connections` is: with uint64 beside int64, numpy would make floats of them all.
    sums = [values[name].sum(axis=1).astype(np.int64) for name in fields]
    sums.append(np.maximum(connections, 0))
    totals = list(starmap(BackendCount, zip(*(each.tolist() for each in sums), strict=True)))
    return {key: totals[index] for key, index in indices.items()}


class WatchCount(NamedTuple):
    """What was seen of one backend's handshakes. ``lb_watch_count`` of bpf/lb_types.h says more.

    ``durations`` are how many took at most 16 us, 32 us, and so on; the last: longer than all.
    """

    begun: int = 0
    answered: int = 0
    repeated: int = 0
    resets: int = 0
    duration_us: int = 0
    durations: tuple[int, ...] = ()


_SLACK = 64  # more than a bucket of the kernel's holds: else it refuses to read that bucket


def watch_counts(watched: BpfMap, indices: Mapping[BackendId, int]) -> dict[BackendId, WatchCount]:
    """Return what was seen of the backends that are watched."""
    if not indices:
        return {}
    keys, values = watched.read_all(limit=len(indices) + _SLACK)
    fields = layout().structs["lb_watch_count"].names or ()
    # Over all backends at once: there may be thousands, and the watcher asks each second.
    *sums, durations = (values[name].sum(axis=1).tolist() for name in fields)
    each = zip(*sums, map(tuple, durations), strict=True)
    found = dict(zip(keys.tolist(), starmap(WatchCount, each), strict=True))
    return {key: found[index] for key, index in indices.items() if index in found}


def watch(watched: BpfMap, structure: Structure, indices: Mapping[BackendId, int]) -> None:
    """Have counters for the backends of watched services, and for no others."""
    services = structure.services
    wanted = {i for identity, i in indices.items() if services[identity.service].watched}
    held = set(watched.read_all()[0].tolist())
    zero = np.zeros((), dtype=layout().structs["lb_watch_count"])
    for index in wanted - held:
        watched.write(index, zero)
    for index in held - wanted:
        watched.delete(index)


def reason_counts(reasons: BpfMap) -> tuple[ReasonCount, ...]:
    """Return how many packets ended with each reason."""
    _, values = reasons.read_all()
    totals = values.sum(axis=1).tolist()
    return tuple(
        ReasonCount(reason.verdict, reason.name, totals[reason.index])
        for reason in layout().reasons
    )


def reset(maps: Mapping[str, BpfMap], indices: Collection[int]) -> None:
    """Start everything that is counted by index at 0, before a new backend bears one."""
    for name in ("counts", "nat_marks", "limits", "active"):
        maps[name].clear(indices)
    for index in set(indices) & set(maps["watched"].read_all()[0].tolist() if indices else ()):
        maps["watched"].delete(index)


def flow_counts(counts: BpfMap) -> tuple[int, int, int, int]:
    """Return the totals of ``struct lb_flow_count``, in its order."""
    _, values = counts.read_all()
    fields = layout().structs["lb_flow_count"].names or ()
    inserts, closes, full, rehashed = (int(values[name].sum()) for name in fields)
    return inserts, closes, full, rehashed
