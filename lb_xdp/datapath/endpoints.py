"""The endpoint table: who stands at an address and port, laid out for one cache line a lookup.

A bucket has four entries. The builder tries seeds until no bucket overflows, and doubles the table
when none fits; so the program never searches further. ``bpf/lb_service.h`` reads what is made here,
``bpf/lb_hash.h`` has the hash: MurmurHash3_x86_32 over address and port << 16 | protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

import numpy as np
from numpy.typing import NDArray

from lb_xdp.core.desired import BackendId, Structure
from lb_xdp.core.model import Mode, Protocol, ServiceKey
from lb_xdp.datapath.layout import layout
from lb_xdp.errors import MapError

MIN_BUCKETS = 64
_MAX_BUCKETS = 1 << 20
_SEEDS = 64

_U32 = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One entry. Address, port and protocol in host order; port and protocol 0 for an address."""

    address: int
    port: int
    protocol: int
    kind: int
    index: int


@dataclass(frozen=True, slots=True)
class EndpointTable:
    """A table that fits: ``buckets`` is what the program must be compiled with."""

    seed: int
    buckets: int
    entries: NDArray[np.void]


def structure_endpoints(
    structure: Structure, indices: Mapping[BackendId, int], rings: Mapping[ServiceKey, int]
) -> list[Endpoint]:
    """Return the endpoints of a structure. ``rings`` gives each service's index in the ring map."""
    constants = layout().constants
    kinds = {
        Mode.DSR: constants["LB_KIND_SERVICE_DSR"],
        Mode.NAT: constants["LB_KIND_SERVICE_NAT"],
    }
    found = [
        Endpoint(int(key.vip), key.port, key.protocol.number, kinds[mode], rings[key])
        for key, mode in structure.modes.items()
    ]
    found += _backend_endpoints(structure, indices, constants["LB_KIND_BACKEND"])
    found += _address_endpoints(structure, constants)
    return found


def _backend_endpoints(
    structure: Structure, indices: Mapping[BackendId, int], kind: int
) -> list[Endpoint]:
    """One for each nat backend's own address; of a shared one the lowest index speaks for all."""
    lowest: dict[tuple[int, int, int], int] = {}
    for identity in structure.backends:
        if structure.modes[identity.service] is Mode.NAT:
            protocol: Protocol = identity.service.protocol
            place = (int(identity.backend.address), identity.backend.port, protocol.number)
            index = indices[identity]
            lowest[place] = min(index, lowest.get(place, index))
    return [Endpoint(*place, kind, index) for place, index in sorted(lowest.items())]


def _address_endpoints(structure: Structure, constants: Mapping[str, int]) -> list[Endpoint]:
    bits: dict[IPv4Address, int] = {}
    for key in structure.modes:
        bits[key.vip] = constants["LB_ADDRESS_VIP"]
    for address in structure.local_addresses:
        bits[address] = bits.get(address, 0) | constants["LB_ADDRESS_LOCAL"]
    kind = constants["LB_KIND_ADDRESS"]
    return [Endpoint(int(address), 0, 0, kind, value) for address, value in sorted(bits.items())]


def build_table(endpoints: list[Endpoint]) -> EndpointTable:
    """Lay the endpoints out. Raises MapError if no table of a sane size fits."""
    addresses = np.array([e.address for e in endpoints], dtype=np.uint32)
    places = np.array([e.port << 16 | e.protocol for e in endpoints], dtype=np.uint32)
    depth = layout().constants["LB_BUCKET_ENTRIES"]
    buckets = MIN_BUCKETS
    while buckets < len(endpoints):
        buckets *= 2
    while buckets <= _MAX_BUCKETS:
        for seed in range(_SEEDS):
            bucket = endpoint_hash(seed, addresses, places) & np.uint32(buckets - 1)
            if np.bincount(bucket, minlength=buckets).max() <= depth:
                return EndpointTable(seed, buckets, _place(endpoints, bucket, buckets))
        buckets *= 2
    raise MapError(f"{len(endpoints)} endpoints fit no table: a bug, please report")


def _place(endpoints: list[Endpoint], bucket: _U32, buckets: int) -> NDArray[np.void]:
    entries = np.zeros((buckets, layout().constants["LB_BUCKET_ENTRIES"]), _entry_dtype())
    used = np.zeros(buckets, dtype=np.intp)
    for endpoint, at in zip(endpoints, bucket.tolist(), strict=True):
        entry = entries[at, used[at]]
        entry["address"], entry["port"] = endpoint.address, endpoint.port
        entry["protocol"], entry["kind"] = endpoint.protocol, endpoint.kind
        entry["index"] = endpoint.index
        used[at] += 1
    return entries


def _entry_dtype() -> np.dtype[np.void]:
    return layout().structs["lb_endpoint"]


def endpoint_hash(seed: int, addresses: _U32, places: _U32) -> _U32:
    """MurmurHash3_x86_32 of two words each, vectorised; ``lb_endpoint_hash`` in C."""
    state = np.full(addresses.shape, seed, dtype=np.uint32)
    for words in (addresses, places):
        mixed = words * np.uint32(0xCC9E2D51)
        mixed = (mixed << np.uint32(15)) | (mixed >> np.uint32(17))
        state ^= mixed * np.uint32(0x1B873593)
        state = (state << np.uint32(13)) | (state >> np.uint32(19))
        state = state * np.uint32(5) + np.uint32(0xE6546B64)
    state ^= np.uint32(8)
    state ^= state >> np.uint32(16)
    state *= np.uint32(0x85EBCA6B)
    state ^= state >> np.uint32(13)
    state *= np.uint32(0xC2B2AE35)
    return state ^ (state >> np.uint32(16))


def read_table(entries: NDArray[np.void]) -> list[Endpoint]:
    """Return the endpoints of a table read back from the kernel, in no particular order."""
    flat = entries.reshape(-1)
    used = flat[flat["kind"] != layout().constants["LB_KIND_EMPTY"]]
    return [
        Endpoint(*map(int, (e["address"], e["port"], e["protocol"], e["kind"], e["index"])))
        for e in used
    ]
