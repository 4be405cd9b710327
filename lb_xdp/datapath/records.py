"""Backend records and their limits as they lie in the maps, and back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

import numpy as np

from lb_xdp.core.desired import BackendId, BackendRecord
from lb_xdp.core.model import ANY_PORT, IPV4, IPV6, BackendKey, ServiceKey
from lb_xdp.datapath.addresses import from_words, packed
from lb_xdp.datapath.layout import layout
from lb_xdp.datapath.maps import BpfMap, Values
from lb_xdp.datapath.structure import protocol_of

_FLAGS = {
    "up": "LB_BACKEND_UP",
    "shared": "LB_BACKEND_SHARED",
    "no_new": "LB_BACKEND_NO_NEW",
    "tracked": "LB_BACKEND_TRACKED",
    "watched": "LB_BACKEND_WATCHED",
}
_MAX_U16 = 0xFFFF


def _constant(name: str) -> int:
    return layout().constants[name]


def identity_of(identity: BackendId) -> int:
    """Return the 32 bits by which a record of a flow knows its backend again; never 0."""
    return _digest(str(identity))


def _digest(name: str) -> int:
    digest = blake2b(name.encode(), digest_size=4, person=b"lb-xdp backend").digest()
    return int.from_bytes(digest) | 1


def encode_records(records: Mapping[BackendId, BackendRecord]) -> Values:
    """Return a ``struct lb_backend`` of each, in their order; column by column, as numpy likes."""
    values = np.zeros(len(records), dtype=layout().structs["lb_backend"])
    if not records:
        return values
    services, backends = zip(*records, strict=True)
    said = records.values()
    values["address"] = packed(key[:2] for key in backends)
    values["vip"] = packed(key[:2] for key in services)
    values["port"] = [key[2] for key in backends]
    values["vip_port"] = [key[2] for key in services]
    values["protocol"] = [key[3] for key in services]
    values["mac"] = _macs(record.mac for record in said)
    values["source_mac"] = _macs(record.source_mac for record in said)
    values["ifindex"] = [record.ifindex for record in said]
    values["mtu"] = [min(record.mtu, _MAX_U16) for record in said]
    values["identity"] = _identities_of(records)
    bits = {flag: [getattr(record, name) for record in said] for name, flag in _FLAGS.items()}
    bits["LB_BACKEND_IPV6"] = [key[0] == IPV6 for key in backends]
    bits["LB_BACKEND_VIP6"] = [key[0] == IPV6 for key in services]
    bits["LB_BACKEND_ANY_PORT"] = [key[2] == ANY_PORT for key in services]
    for flag, column in bits.items():
        values["flags"] |= np.uint8(_constant(flag)) * np.array(column)
    return values


def _macs(macs: Iterable[bytes]) -> Values:
    return np.frombuffer(b"".join(macs), np.uint8).reshape(-1, 6)


def _identities_of(identities: Collection[BackendId]) -> list[int]:
    """Return ``identity_of`` each. A service's name is put together once for its backends."""
    names = {service: str(service) for service in {identity.service for identity in identities}}
    return [_digest(f"{names[service]} -> {backend}") for service, backend in identities]


def write_limit(limits: BpfMap, index: int, record: BackendRecord) -> None:
    """Write what a backend is allowed. What has expired is the collector's and stays."""
    with limits.edit(index) as held:
        held["connections"], held["resume"] = record.limit, record.resume
        held["weight"] = record.weight


def write_limits(limits: BpfMap, records: Mapping[int, BackendRecord]) -> None:
    """Write what backends are allowed, by index, where that is another than before."""
    if not records:
        return
    _, held = limits.read_all(limit=max(records) + 1)
    names = ("connections", "resume", "weight")
    allowed = np.stack([held[name] for name in names], axis=1).tolist()
    for index, record in records.items():
        if allowed[index] != [record.limit, record.resume, record.weight]:
            write_limit(limits, index, record)


def read_records(
    backends: BpfMap, limits: BpfMap
) -> tuple[dict[BackendId, BackendRecord], dict[BackendId, int]]:
    """Return every record of a generation, and its index."""
    keys, values = backends.read_all()
    used = values["identity"] != 0
    keys, values = keys[used], values[used]
    _, allowed = limits.read_all(limit=int(keys.max(initial=0)) + 1)
    identities = _identities(values)
    found = zip(identities, _decode(values, allowed[keys]), strict=True)
    return dict(found), dict(zip(identities, keys.tolist(), strict=True))


def _identities(values: Values) -> list[BackendId]:
    """Return whose each record is. A service's key is made once for all of its backends."""
    ipv6, vip6 = _constant("LB_BACKEND_IPV6"), _constant("LB_BACKEND_VIP6")
    services: dict[tuple[object, ...], ServiceKey] = {}
    found = []
    columns = ("flags", "port", "vip_port", "protocol")
    plain = zip(*(values[name].tolist() for name in columns), strict=True)
    for (flags, port, vip_port, number), address, vip in zip(
        plain, values["address"], values["vip"], strict=True
    ):
        place = (flags & vip6, vip.tobytes(), vip_port, number)
        if place not in services:
            family = IPV6 if flags & vip6 else IPV4
            services[place] = ServiceKey(from_words(vip, family), vip_port, protocol_of(number))
        key = BackendKey(from_words(address, IPV6 if flags & ipv6 else IPV4), port)
        found.append(BackendId(services[place], key))
    return found


def _decode(values: Values, limits: Values) -> Iterator[BackendRecord]:
    """Return each record; those that say the same are one object."""
    masks = [_constant(flag) for flag in _FLAGS.values()]
    columns: list[Iterable[Any]] = [map(bytes, values[name]) for name in ("mac", "source_mac")]
    columns += [values[name].tolist() for name in ("ifindex", "mtu", "flags")]
    columns += [limits[name].tolist() for name in ("connections", "resume", "weight")]
    known: dict[tuple[Any, ...], BackendRecord] = {}
    for said in zip(*columns, strict=True):
        if said not in known:
            mac, source_mac, ifindex, mtu, flags, limit, resume, weight = said
            bits = dict(zip(_FLAGS, (bool(flags & mask) for mask in masks), strict=True))
            known[said] = BackendRecord(
                ifindex, mac, source_mac, mtu, limit=limit, resume=resume, weight=weight, **bits
            )
        yield known[said]
