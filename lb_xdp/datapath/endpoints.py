"""The endpoint tables: who stands at an address and port, laid out for one bucket a lookup.

A bucket has four entries. The builder tries factors until no bucket overflows, and doubles the
table when none fits; so the program never searches further. ``bpf/lb_service.h`` reads what is made
here, ``bpf/lb_hash.h`` has the hashes: multiply-shift over the key, as its octets lie in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lb_xdp.datapath.addresses import IPV4, IPV6, integers, packed
from lb_xdp.datapath.layout import layout
from lb_xdp.errors import MapError

MIN_BUCKET_BITS = 6
_MAX_BUCKET_BITS = 20
_MIN_FILTER_BITS = 9
_MAX_FILTER_BITS = 20
_FILTER_BITS_EACH = 16  # bits for each address: one packet in sixteen is looked up for nothing
_FACTORS = 64

_FIELDS = ("port", "protocol", "kind", "flags", "schedule", "wishes", "index")
_U64 = 0xFFFF_FFFF_FFFF_FFFF
_MIX: np.uint64 = np.uint64(0x9E37_79B9_7F4A_7C15)
Words = NDArray[np.uint64]


class Endpoint(NamedTuple):
    """One entry, in host order; port and protocol 0 for an address alone.

    With ``is_mac`` address and port are the four and the two octets of a MAC address. ``flags`` and
    ``schedule`` are a service's (LB_SERVICE_*, LB_SCHEDULE_*), and so are ``wishes`` (LB_WISH_*).
    """

    family: int
    address: int
    port: int
    protocol: int
    kind: int
    index: int = 0  # type: ignore[assignment]  # hides a tuple's method, which nobody calls
    is_mac: int = 0
    flags: int = 0
    schedule: int = 0
    wishes: int = 0


@dataclass(frozen=True, slots=True)
class EndpointTable:
    """A table that fits: ``bucket_bits`` is what the program must be compiled with.

    ``factors`` are one for IPv4 and two for IPv6, the upper half's first.
    """

    factors: tuple[int, ...]
    bucket_bits: int
    entries: NDArray[np.void]


def build_table(endpoints: Collection[Endpoint]) -> EndpointTable:
    """Lay IPv4 endpoints and MAC addresses out. Raises MapError if no table of a sane size fits."""
    entries = _encode(endpoints, "lb_endpoint", ("address", "is_mac", *_FIELDS))
    keys = _words(entries)[:, 0] if len(entries) else np.zeros(0, np.uint64)
    return _lay_out(entries, 1, lambda factors, bits: bucket_of(keys, factors[0], bits))


def build_table6(endpoints: Collection[Endpoint]) -> EndpointTable:
    """Lay IPv6 endpoints out. Raises MapError if no table of a sane size fits."""
    entries = _encode(endpoints, "lb_endpoint6", _FIELDS)
    entries["address"] = packed((e.family, e.address) for e in endpoints)
    words = _words(entries) if len(entries) else np.zeros((0, 4), np.uint64)
    return _lay_out(entries, 2, lambda factors, bits: bucket6_of(words, factors, bits))


def _lay_out(
    entries: NDArray[np.void],
    factors: int,
    bucket: Callable[[tuple[int, ...], int], NDArray[np.intp]],
) -> EndpointTable:
    depth = layout().constants["LB_BUCKET_ENTRIES"]
    least = max(MIN_BUCKET_BITS, (len(entries) - 1).bit_length())
    for bits in range(least, _MAX_BUCKET_BITS + 1):
        for number in range(_FACTORS):
            tried = tuple(_factor(number * factors + n) for n in range(factors))
            at = bucket(tried, bits)
            if np.bincount(at, minlength=1 << bits).max() <= depth:
                return EndpointTable(tried, bits, _place(entries, at, 1 << bits))
    raise MapError(f"{len(entries)} endpoints fit no table: a bug, please report")


def _encode(
    endpoints: Collection[Endpoint], struct: str, fields: Collection[str]
) -> NDArray[np.void]:
    entries: NDArray[np.void] = np.zeros(len(endpoints), layout().structs[struct])
    columns = dict(zip(Endpoint._fields, zip(*endpoints, strict=True), strict=False))
    for name in fields if columns else ():
        entries[name] = columns[name]
    return entries


def _words(entries: NDArray[np.void]) -> Words:
    """Return the entries as 64-bit words, as they lie: the key comes first."""
    return entries.view(np.uint64).reshape(len(entries), entries.dtype.itemsize // 8)


def _factor(number: int) -> int:
    """Return an odd factor, the same for the same number: SplitMix64 (Steele et al., 2014)."""
    state = (number + 1) * 0x9E3779B97F4A7C15 & _U64
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _U64
    state = (state ^ state >> 27) * 0x94D049BB133111EB & _U64
    return state ^ state >> 31 | 1


def bucket_of(keys: Words, factor: int, bits: int) -> NDArray[np.intp]:
    """Return each key's bucket, as ``lb_bucket_of`` in C does."""
    return (keys * np.uint64(factor) >> np.uint64(64 - bits)).astype(np.intp)


def bucket6_of(words: Words, factors: tuple[int, ...], bits: int) -> NDArray[np.intp]:
    """Return each key's bucket, as ``lb_bucket6_of`` in C does; ``words`` are a key's first three.

    ``factors`` are those of the address's upper and lower half.
    """
    high, low = np.uint64(factors[0]), np.uint64(factors[1])
    mixed: Words = words[:, 0] ^ words[:, 2] * _MIX
    hashed: Words = words[:, 1] * low + mixed * high
    buckets: NDArray[np.intp] = (hashed >> np.uint64(64 - bits)).astype(np.intp)
    return buckets


def _place(entries: NDArray[np.void], bucket: NDArray[np.intp], buckets: int) -> NDArray[np.void]:
    """Return the buckets, each filled from its start in the entries' order."""
    table = np.zeros((buckets, layout().constants["LB_BUCKET_ENTRIES"]), entries.dtype)
    order = np.argsort(bucket, kind="stable")
    row = bucket[order]
    table[row, np.arange(len(row)) - np.searchsorted(row, row)] = entries[order]
    return table


def build_filter(endpoints: Collection[Endpoint]) -> NDArray[np.uint64]:
    """Return the filter: 64-bit words with a bit set for each address that is in a table."""
    places = {(e.family, e.address) for e in endpoints if not e.is_mac}
    bits = (len(places) * _FILTER_BITS_EACH - 1).bit_length() if places else 0
    bits = min(max(bits, _MIN_FILTER_BITS), _MAX_FILTER_BITS)
    words: NDArray[np.uint64] = np.zeros(1 << bits - 6, np.uint64)
    for family, address in places:
        bit = filter_bit(family, address, bits)
        words[bit >> 6] |= np.uint64(1 << (bit & 63))
    return words


def filter_bit(family: int, address: int, bits: int) -> int:
    """Return an address's place in the filter, as ``lb_may_be_ours`` in C does."""
    octets = address.to_bytes(4 if family == 4 else 16)  # noqa: PLR2004 - the IP version
    if family == 4:  # noqa: PLR2004 - the IP version
        folded = int.from_bytes(octets, "little")
    else:
        folded = int.from_bytes(octets[:8], "little") + int.from_bytes(octets[8:], "little")
    return (folded * int(_MIX) & _U64) >> (64 - bits)


def read_table(entries: NDArray[np.void]) -> list[Endpoint]:
    """Return the endpoints of a table read back from the kernel, in no particular order."""
    flat = entries.reshape(-1)
    used = flat[flat["kind"] != layout().constants["LB_KIND_EMPTY"]]
    old = used.dtype["address"].shape == ()
    columns = {name: used[name].tolist() for name in _FIELDS}
    columns["family"] = [IPV4 if old else IPV6] * len(used)
    columns["address"] = used["address"].tolist() if old else integers(used["address"])
    columns["is_mac"] = used["is_mac"].tolist() if old else [0] * len(used)
    return list(map(Endpoint, *(columns[name] for name in Endpoint._fields)))


def mac_of(endpoint: Endpoint) -> bytes:
    """Return the MAC address of an entry that is one."""
    return endpoint.address.to_bytes(4) + endpoint.port.to_bytes(2)
