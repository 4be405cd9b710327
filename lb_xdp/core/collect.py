"""What a look at the flow table tells: which records are over, and which slots the others fall on.

Owns the rules by which records end that no packet ended, and the arithmetic over a snapshot of the
table. It refuses to read or delete anything: keys are arrays of ``struct lb_flow_key``, values of
``struct lb_flow``, with big-endian dtypes where ``bpf/lb_types.h`` has ``__be``.

numpy is allowed here: a table has hundreds of thousands of records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from lb_xdp.core.desired import Traits
from lb_xdp.core.flow_hash import flow_hashes
from lb_xdp.core.model import ANY_PORT, IPV6, FlowTable, Protocol, ServiceKey
from lb_xdp.core.ring import RING_SLOTS

OPENING, COUNTED, CLIENT_FIN, BACKEND_FIN, CLOSED = 1, 2, 4, 8, 16
"""``LB_FLOW_*`` of ``bpf/lb_types.h``."""

_HALF_CLOSED = 4.0  # times tcp_closing: the client has said all, the backend may not have
_SEEN_S = 1  # a record's ``seen`` is that much behind its flow's latest packet, at most

Records = npt.NDArray[np.void]
Mask = npt.NDArray[np.bool_]
SlotNumbers = npt.NDArray[np.int64]
Places = npt.NDArray[np.uint64]

_COLUMNS = 7  # four words of address, family, protocol, port
_FACTOR = np.uint64(0xFF51_AFD7_ED55_8CCD)  # of MurmurHash3's finalizer


def over(
    keys: Records,
    values: Records,
    *,
    now_jiffies: int,
    hz: int,
    times: FlowTable,
    identities: npt.NDArray[np.uint32],
) -> Mask:
    """Say of each record whether it is to be removed: silent for too long, or void.

    ``identities`` holds by index the identity of the present backend; a record that names another
    is void. ``now_jiffies`` is the low 32 bits, read after the records or just before them: a
    ``seen`` that is ahead of it counts as now. So half their range is the longest silence known.

    Where the data plane has seen an end but no FIN except the client's, a record is allowed four
    times ``tcp_closing``: a client that has said all may still be hearing the answer.
    """
    ages = (np.uint32(now_jiffies) - values["seen"]).astype(np.int32)
    state = values["state"]
    closed, opening = (state & np.uint64(bit) != 0 for bit in (CLOSED, OPENING))
    # Where the client's side alone is seen, its FIN counts as the end; the answer may take longer.
    half = state & np.uint64(CLOSED | CLIENT_FIN | BACKEND_FIN) == CLOSED | CLIENT_FIN
    udp = keys["protocol"] == Protocol.UDP.number
    allowed_s = np.select(
        [udp, half, closed, opening],
        [
            times.udp_idle_s,
            times.tcp_closing_s * _HALF_CLOSED,
            times.tcp_closing_s,
            times.tcp_opening_s,
        ],
        times.tcp_idle_s,
    )
    return (ages > (allowed_s + _SEEN_S) * hz) | _void(values, identities)


def _void(values: Records, identities: npt.NDArray[np.uint32]) -> Mask:
    backends = values["backend"]
    known = backends < len(identities)
    void: Mask = ~known | (identities[np.where(known, backends, 0)] != values["identity"])
    return void


def strays(keys: Records, services: Mapping[ServiceKey, Traits]) -> Mask:
    """Say of each record whether it is of a service that records nothing (``session.flows: none``).

    It did when the flow was recorded. Should it record again, a later flow between the same ends
    would be taken for that one. ``services`` must be all there are, as in ``recorded_slots``.
    """
    stateless = np.array([*(has.stateless for has in services.values()), False], bool)
    if not stateless.any():
        return np.zeros(len(keys), bool)
    stray: Mask = stateless[owners(keys, list(services))]
    return stray


def by_backend(values: Records, chosen: Mask, indices: int) -> npt.NDArray[np.int64]:
    """Return by backend index how many of the chosen records name it; ``indices`` is the length."""
    backends = values["backend"][chosen]
    counts: npt.NDArray[np.int64] = np.bincount(backends[backends < indices], minlength=indices)
    return counts


def unreleased(values: Records) -> Mask:
    """Say of each record whether it stands for a connection that its backend is still charged."""
    held: Mask = values["state"] & np.uint64(COUNTED | CLOSED) == COUNTED
    return held


def recorded_slots(
    keys: Records, services: Mapping[ServiceKey, Traits], slots: int = RING_SLOTS
) -> dict[ServiceKey, SlotNumbers]:
    """Return for every one of ``services`` the slots that its flows fall on, ascending.

    ``services`` must be all there are: a port of its own goes before ``port: any``.
    """
    owner, slot = placed(keys, services, slots)
    served = owner >= 0
    places = np.unique(owner[served] * slots + slot[served])
    cuts = np.searchsorted(places, np.arange(len(services) + 1) * slots)
    return {name: places[cuts[i] : cuts[i + 1]] - i * slots for i, name in enumerate(services)}


def placed(
    keys: Records, services: Mapping[ServiceKey, Traits], slots: int = RING_SLOTS
) -> tuple[SlotNumbers, SlotNumbers]:
    """Return of each flow its service's place in ``services``, -1 where it has none, and its slot.

    ``services`` must be all there are: a port of its own goes before ``port: any``.
    """
    names = list(services)
    owner = owners(keys, names)
    served = owner >= 0
    by_source = np.array([services[name].by_source for name in names], bool)
    hashes = flow_hashes(keys[served], by_source[owner[served]])
    slot = np.full(len(keys), -1, np.int64)
    slot[served] = (hashes * np.uint64(slots) >> np.uint64(32)).astype(np.int64)
    return owner, slot


def owners(keys: Records, names: Sequence[ServiceKey]) -> npt.NDArray[np.int64]:
    """Return the place in ``names`` of each flow's service, -1 where it has none."""
    table = _Table(names)
    found = table.find(keys, keys["destination_port"])
    missing = np.flatnonzero(found < 0)
    found[missing] = table.find(keys[missing], np.full(len(missing), ANY_PORT, np.uint16))
    return found


class _Table:
    """Services, found by address, port and protocol for many flows at once.

    Each place on the wire is mixed into one number that is searched for; what is found is compared.
    """

    def __init__(self, names: Sequence[ServiceKey]) -> None:
        self._places = np.zeros((len(names), _COLUMNS), np.uint64)
        for row, name in enumerate(names):
            address = int(name.vip) if name.vip.version == IPV6 else int(name.vip) << 96
            words = [address >> shift & 0xFFFF_FFFF for shift in (96, 64, 32, 0)]
            self._places[row] = [*words, name.vip.version, name.protocol.number, name.port]
        mixed = _mix(self._places)
        self._order = np.argsort(mixed)
        self._mixed = mixed[self._order]

    def find(self, keys: Records, ports: npt.NDArray[np.uint16]) -> npt.NDArray[np.int64]:
        """Return the number of each flow's service, were ``ports`` its destination ports."""
        if not len(self._order):
            return np.full(len(keys), -1)
        places = np.empty((len(keys), _COLUMNS), np.uint64)
        places[:, :4] = keys["destination"]
        places[:, 4], places[:, 5], places[:, 6] = keys["family"], keys["protocol"], ports
        at = np.searchsorted(self._mixed, _mix(places))
        number = self._order[np.minimum(at, len(self._order) - 1)]
        return np.where((self._places[number] == places).all(axis=1), number, -1)


def _mix(places: Places) -> npt.NDArray[np.uint64]:
    mixed = np.zeros(len(places), np.uint64)
    for column in places.T:
        mixed = (mixed ^ column) * _FACTOR
        mixed ^= mixed >> np.uint64(32)
    return mixed


def forgotten(
    keys: Records,
    seen: npt.NDArray[np.uint32],
    *,
    now_jiffies: int,
    hz: int,
    affinity_s: Mapping[ServiceKey, int],
) -> Mask:
    """Say of each client of ``affinities`` whether its service has stopped remembering it.

    ``affinity_s`` must name all services there are, as in ``recorded_slots``; a client of none of
    them is forgotten.
    """
    owner = owners(keys, list(affinity_s))
    allowed_s = np.array([*affinity_s.values(), -1], np.int64)[owner]
    ages = (np.uint32(now_jiffies) - seen).astype(np.int32)
    done: Mask = (allowed_s < 0) | (ages > (allowed_s + _SEEN_S) * hz)
    return done
