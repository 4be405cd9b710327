"""The endpoint table: who stands at an address and port, laid out for one cache line a lookup.

A bucket has four entries. The builder tries factors until no bucket overflows, and doubles the
table when none fits; so the program never searches further. ``bpf/lb_service.h`` reads what is made
here, ``bpf/lb_hash.h`` has the hash: multiply-shift over the entry's first eight octets.
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

MIN_BUCKET_BITS = 6
_MAX_BUCKET_BITS = 20
_FACTORS = 64

_FIELDS = ("address", "port", "protocol", "kind", "index", "is_mac")
_U64 = 0xFFFF_FFFF_FFFF_FFFF
_Keys = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One entry. Address, port and protocol in host order; port and protocol 0 for an address.

    With ``is_mac`` address and port are the four and the two octets of a MAC address.
    """

    address: int
    port: int
    protocol: int
    kind: int
    index: int = 0
    is_mac: int = 0


@dataclass(frozen=True, slots=True)
class EndpointTable:
    """A table that fits: ``bucket_bits`` is what the program must be compiled with."""

    factor: int
    bucket_bits: int
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
    found += [_mac_endpoint(mac, constants["LB_KIND_MAC"]) for mac in sorted(structure.macs)]
    return found


def _mac_endpoint(mac: bytes, kind: int) -> Endpoint:
    address, port = int.from_bytes(mac[:4]), int.from_bytes(mac[4:])
    return Endpoint(address, port, 0, kind, is_mac=1)


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
    entries = _encode(endpoints)
    keys = _keys(entries)
    depth = layout().constants["LB_BUCKET_ENTRIES"]
    least = max(MIN_BUCKET_BITS, (len(endpoints) - 1).bit_length())
    for bits in range(least, _MAX_BUCKET_BITS + 1):
        for number in range(_FACTORS):
            factor = _factor(number)
            bucket = bucket_of(keys, factor, bits)
            if np.bincount(bucket, minlength=1 << bits).max() <= depth:
                return EndpointTable(factor, bits, _place(entries, bucket, 1 << bits))
    raise MapError(f"{len(endpoints)} endpoints fit no table: a bug, please report")


def _encode(endpoints: list[Endpoint]) -> NDArray[np.void]:
    entries: NDArray[np.void] = np.zeros(len(endpoints), layout().structs["lb_endpoint"])
    for name in _FIELDS:
        entries[name] = [getattr(endpoint, name) for endpoint in endpoints]
    return entries


def _keys(entries: NDArray[np.void]) -> _Keys:
    """Return what the program compares: the first eight octets of each entry, as they lie."""
    words = entries.view(np.uint64).reshape(len(entries), entries.dtype.itemsize // 8)
    return words[:, 0]


def _factor(number: int) -> int:
    """Return an odd factor, the same for the same number: SplitMix64 (Steele et al., 2014)."""
    state = (number + 1) * 0x9E3779B97F4A7C15 & _U64
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _U64
    state = (state ^ state >> 27) * 0x94D049BB133111EB & _U64
    return state ^ state >> 31 | 1


def bucket_of(keys: _Keys, factor: int, bits: int) -> NDArray[np.intp]:
    """Return each key's bucket, as ``lb_bucket_of`` in C does."""
    return (keys * np.uint64(factor) >> np.uint64(64 - bits)).astype(np.intp)


def _place(entries: NDArray[np.void], bucket: NDArray[np.intp], buckets: int) -> NDArray[np.void]:
    table = np.zeros((buckets, layout().constants["LB_BUCKET_ENTRIES"]), entries.dtype)
    used = np.zeros(buckets, dtype=np.intp)
    for entry, at in zip(entries, bucket.tolist(), strict=True):
        table[at, used[at]] = entry
        used[at] += 1
    return table


def read_table(entries: NDArray[np.void]) -> list[Endpoint]:
    """Return the endpoints of a table read back from the kernel, in no particular order."""
    flat = entries.reshape(-1)
    used = flat[flat["kind"] != layout().constants["LB_KIND_EMPTY"]]
    return [Endpoint(*(int(entry[name]) for name in _FIELDS)) for entry in used]


def mac_of(endpoint: Endpoint) -> bytes:
    """Return the MAC address of an entry that is one."""
    return endpoint.address.to_bytes(4) + endpoint.port.to_bytes(2)
