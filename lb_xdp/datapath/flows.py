"""The flow table's housekeeping: reads records in batches, removes what is over.

``core.collect`` says what is over. The data plane goes on meanwhile, so each record is looked at
once more in the moment of its removal: what it says then is what counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lb_xdp.core.collect import (
    Mask,
    SlotNumbers,
    by_backend,
    forgotten,
    over,
    recorded_slots,
    strays,
    unreleased,
)
from lb_xdp.core.desired import Traits
from lb_xdp.core.model import FlowTable, ServiceKey
from lb_xdp.datapath.clock import jiffies, jiffies_per_s
from lb_xdp.datapath.maps import BpfMap, Values


@dataclass(frozen=True, slots=True)
class Collected:
    """What a look at the flow table found: ``entries`` that stay, ``removed`` ones.

    ``flows`` counts the former by the index of their backend.
    """

    entries: int
    recorded: Mapping[ServiceKey, SlotNumbers]
    flows: Mapping[int, int]
    removed: int


def collect(
    maps: Mapping[str, BpfMap],
    backends: BpfMap,
    *,
    times: FlowTable,
    services: Mapping[ServiceKey, Traits],
    affinity_s: Mapping[ServiceKey, int],
) -> Collected:
    """Remove what is over from the flow tables, and tell what is left. Raises MapError.

    Blocks for some 50 ms for each 100,000 records.
    """
    ports = maps["returns"].read_all()  # first: of what is in it, the flow is in `flows` by then
    keys, values = maps["flows"].read_all()
    identities = _identities(backends, values)
    gone = over(
        keys,
        values,
        now_jiffies=jiffies(),
        hz=jiffies_per_s(),
        times=times,
        identities=identities,
    ) | strays(keys, services)
    expired = _remove(maps["flows"], keys, values, gone)
    _charge_off(maps["limits"], expired, identities)
    _sweep_returns(maps, *ports, keys[~gone], values[~gone])
    _sweep_clients(maps["affinities"], affinity_s)
    counts = by_backend(values, ~gone, len(identities))
    used = np.flatnonzero(counts)
    flows = dict(zip(used.tolist(), counts[used].tolist(), strict=True))
    left = int(len(keys) - gone.sum())
    return Collected(left, recorded_slots(keys[~gone], services), flows, len(expired))


def _identities(backends: BpfMap, values: Values) -> NDArray[np.uint32]:
    """Return by index the identity of the present backend, as far as records refer to any."""
    if not len(values):
        return np.zeros(1, np.uint32)
    limit = int(values["backend"].max()) + 1
    _, records = backends.read_all(limit=limit)
    identities: NDArray[np.uint32] = np.ascontiguousarray(records["identity"])
    return identities


def _remove(flows: BpfMap, keys: Values, values: Values, gone: Mask) -> Values:
    """Remove the records that are ``gone``; returns what they last said.

    One that has changed since it was read stays, and is struck from ``gone``: its flow goes on, or
    a client has used its port anew. The next look judges it.
    """
    doomed = np.flatnonzero(gone)
    taken = np.zeros(len(doomed), flows.spec.value)  # not a small object for each of a million
    count = 0
    for at in doomed:
        held = flows.read(keys[at])
        if held is not None and held[0] != values[at]:
            gone[at] = False
        elif (last := flows.take(keys[at])) is not None:
            taken[count] = last[0]
            count += 1
    return taken[:count]


def _charge_off(limits: BpfMap, expired: Values, identities: NDArray[np.uint32]) -> None:
    """Give backends back the connections that ended in silence; only this adds to ``expired``.

    A void record says nothing of the backend that has its index now.
    """
    backends = np.minimum(expired["backend"], len(identities) - 1)
    mine = identities[backends] == expired["identity"]
    open_still = expired["backend"][unreleased(expired) & mine]
    for index, count in zip(*np.unique(open_still, return_counts=True), strict=True):
        with limits.edit(int(index)) as held:  # whose other fields the controller writes meanwhile
            held["expired"] += np.uint64(count)


def _sweep_returns(
    maps: Mapping[str, BpfMap], taken: Values, owners: Values, keys: Values, values: Values
) -> None:
    """Free the ports of fullnat flows that are over: whose record is gone or says something else.

    A flow may have begun anew since, with the port that it had: that is looked at once more.
    """
    if not len(taken):
        return
    uses = zip(values["snat_port"].tolist(), values["identity"].tolist(), strict=True)
    ports = dict(zip((key.tobytes() for key in keys), uses, strict=True))
    for key, owner in zip(taken, owners, strict=True):
        use = int(key["destination_port"]), int(owner["identity"])
        if ports.get(owner["flow"].tobytes()) == use:
            continue
        held = maps["flows"].read(owner["flow"])
        if held is None or (int(held[0]["snat_port"]), int(held[0]["identity"])) != use:
            maps["returns"].delete(key)


def _sweep_clients(affinities: BpfMap, affinity_s: Mapping[ServiceKey, int]) -> None:
    keys, bonds = affinities.read_all()
    if not len(keys):
        return
    gone = forgotten(
        keys,
        bonds["seen"],
        now_jiffies=jiffies(),
        hz=jiffies_per_s(),
        affinity_s=affinity_s,
    )
    for key in keys[gone]:
        affinities.delete(key)
