"""Counters out of the kernel: per-CPU values read in batches and summed over CPUs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from lb_xdp.core.desired import BackendId
from lb_xdp.core.snapshot import ReasonCount
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.maps import BpfMap


@dataclass(frozen=True, slots=True)
class BackendCount:
    """Totals of one backend since its index was given out; see BackendStatus for the units."""

    packets: int = 0
    bytes: int = 0
    flows: int = 0
    reply_packets: int = 0
    reply_bytes: int = 0


def backend_counts(
    counts: BpfMap, indices: Mapping[BackendId, int]
) -> dict[BackendId, BackendCount]:
    """Return the totals of every backend that has an index."""
    if not indices:
        return {}
    _, values = counts.read_all(limit=max(indices.values()) + 1)
    fields = layout().structs["lb_backend_count"].names or ()
    totals = np.stack([values[name].sum(axis=1) for name in fields], axis=1).tolist()
    return {key: BackendCount(*totals[index]) for key, index in indices.items()}


def reason_counts(reasons: BpfMap) -> tuple[ReasonCount, ...]:
    """Return how many packets ended with each reason."""
    _, values = reasons.read_all()
    totals = values.sum(axis=1).tolist()
    return tuple(
        ReasonCount(reason.verdict, reason.name, totals[reason.index])
        for reason in layout().reasons
    )


def reset(counts: BpfMap, marks: BpfMap, indices: Iterable[int]) -> None:
    """Start the counters of indices at 0, before a new backend bears them."""
    zero = np.zeros((), dtype=layout().structs["lb_backend_count"])
    unmarked = np.zeros((), dtype=layout().structs["lb_nat_mark"])
    for index in indices:
        counts.write(index, zero)
        marks.write(index, unmarked)


def entries(flows: BpfMap) -> int:
    """Return how many flows are recorded."""
    keys, _ = flows.read_all()
    return len(keys)
